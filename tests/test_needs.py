"""A run says at its end what it skipped, by kind; what is required may not be skipped."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests import needs

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
SUITE = """
import pytest
from tests import needs

lacks, has = pytest.mark.needs("data", "no/such/file"), pytest.mark.needs("data")

@lacks
@pytest.mark.parametrize("number", range(3))
def test_with_a_mark(number): ...

def test_finding_out_by_itself():
    needs.skip("cuda")

@has
def test_with_what_is_there(): ...
"""
WHOLE_FILE = """
import pytest
from tests import needs

pytest.importorskip("no_such_package", reason=needs.KERNELS)
"""


@pytest.fixture(params=[[], ["-p", "xdist.plugin", "-n", "2"]], ids=["here", "workers"])
def run(request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs the two files above under this suite's conftest.py; returns status and last lines."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("ORCAST_SHARED_DATA", str(pytester.path))
    pytester.makeconftest("from tests.conftest import *")

    def pytest_run(*options: str, **files: str) -> tuple[int, list[str]]:
        pytester.makepyfile(**(files or {"test_some": SUITE, "test_whole": WHOLE_FILE}))
        done = pytester.runpytest_subprocess("-q", *request.param, *options)
        return int(done.ret), [line for line in done.outlines if line][-4:]

    return pytest_run


def test_the_last_lines_count_what_was_skipped_by_kind(run) -> None:
    status, lines = run()
    assert status == pytest.ExitCode.OK
    assert lines[-4] == f"skipped: 3 tests: need {needs.WORDS['data']}"
    assert set(lines[-3:-1]) == {
        f"skipped: 1 test: needs {needs.WORDS['cuda']}",
        f"skipped: 1 whole file: needs {needs.WORDS['kernels']}",
    }
    assert re.match(r"1 passed, \d skipped in ", lines[-1])


@pytest.mark.parametrize("kind", ["data", "cuda", "kernels", "browser"])
def test_what_is_required_may_not_be_skipped(run, kind: str) -> None:
    """One is lacked by a mark, one in a test, one by a whole file, and no test needs the last."""
    status, lines = run("--require", kind)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert bool(re.search("failed|errors", lines[-1])) == (kind in ("data", "cuda"))
    if kind != "data":  # of which one test ran
        assert lines[-2] == f"required, and not all there or not run: {kind}"


def test_what_is_required_and_there_passes(run) -> None:
    """The folder of data is there, if not the file that others look for."""
    status, lines = run("--require", "data", test_some=SUITE.replace("@lacks", "@has"))
    assert status == pytest.ExitCode.OK, lines


def test_every_skip_goes_through_the_kinds() -> None:
    own = re.compile(r"pytest\.skip\(|mark\.skip|xfail|importorskip\((?!.*reason=needs\.)")
    elsewhere = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path.name not in ("needs.py", "conftest.py", Path(__file__).name)
        for line in path.read_text(encoding="utf-8").splitlines()
        if own.search(line)
    ]
    assert elsewhere == []


@pytest.mark.parametrize("kind", needs.WORDS)
def test_a_kind_is_found_again_in_what_a_skip_says(kind: str) -> None:
    assert needs.kind_of(needs.reason(kind, "some detail")) == kind
    assert needs.kind_of("Skipped: something else") is None
