"""Run ``operations/`` in Triton's interpreter, in a process of its own.

TRITON_INTERPRET must be set before Triton is imported and changes it for the whole process, so one
child process runs all files and each file's outcome is a test here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

OPERATIONS = Path(__file__).parent / "operations"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ElementTree.Element]]:
    """The child's test cases by file stem."""
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    # Triton's interpreter warns of NumPy deprecations and of overflow to infinity.
    command += ["-o", "addopts=", "-o", "filterwarnings=ignore", f"--rootdir={ROOT}"]
    run = subprocess.run(
        [*command, f"--junitxml={report}", str(OPERATIONS)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert report.exists(), run.stdout[-4000:] + run.stderr[-4000:]
    cases: dict[str, list[ElementTree.Element]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname") or case.get("name") or ""
        stem = next((part for part in name.split(".") if part.startswith("test_")), name)
        cases.setdefault(stem, []).append(case)
    return cases


@pytest.mark.parametrize("stem", sorted(path.stem for path in OPERATIONS.glob("test_*.py")))
def test_every_operation_matches_its_reference_in_the_interpreter(stem, outcomes):
    cases = outcomes.get(stem, [])
    failed = [
        f"{case.get('name')}:\n{problem.text or problem.get('message')}"
        for case in cases
        for problem in (*case.findall("failure"), *case.findall("error"))
    ]
    assert not failed, "\n\n".join(failed)
    ran = [case for case in cases if case.find("skipped") is None]
    assert ran, f"no test of {stem} ran in the interpreter"
