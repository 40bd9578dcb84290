"""Everything that needs a GPU, in one command: ``python -m tests.benchmarks.gpu_session [FOLDER]``.

Stages, each with a small result file under FOLDER (or $OUT, or ./gpu-results) written as soon as it
ends, so that an interrupted session leaves what it had:

- ``check``: the kernel tests (``pytest -m gpu``) → ``check.json``, ``check.xml``
- ``benchmark``: the table of ratios → ``benchmark.csv``
- ``tune``: the candidate tiles of prefill and products → ``tune.csv``
- ``numerics``: deviation of the kernels and of their emulations → ``numerics.csv``

``meta.json`` holds GPU, driver, torch and Triton versions, measured ceilings and stage times.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import torch

from calibrate.environment import environment
from kernels.numerics import Deviation, deviations, kernel_deviations
from tests.benchmarks.kernels import SECTIONS, run_sections
from tests.kernels.timing import write_csv

ROOT = Path(__file__).parents[2]


def check(folder: Path, reference: Path | None) -> dict[str, object]:
    """Run the kernel tests on the GPU; failures are named, not raised."""
    del reference
    report = folder / "check.xml"
    tests = ROOT / "tests" / "kernels" / "operations"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--junitxml={report}", str(tests)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    (folder / "check.log").write_text(run.stdout[-200_000:] + run.stderr[-20_000:])
    print(run.stdout[-6000:])
    if not report.exists():
        return {"returncode": run.returncode, "error": run.stderr[-2000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    result = {"passed": passed, "skipped": skipped, "failed": failed}
    (folder / "check.json").write_text(json.dumps(result, indent=1))
    return result


def time_kernels(folder: Path, reference: Path | None) -> dict[str, object]:
    """The benchmark table."""
    ceilings, rows = run_sections(list(SECTIONS), reference=reference)
    write_csv(rows, folder / "benchmark.csv")
    return dataclasses.asdict(ceilings)


def tune(folder: Path, reference: Path | None) -> dict[str, object]:
    """The candidate tiles of prefill attention and the products."""
    sections = ["prefill", "products"]
    ceilings, rows = run_sections(sections, tune=True, reference=reference)
    write_csv(rows, folder / "tune.csv")
    return dataclasses.asdict(ceilings)


def numerics(folder: Path, reference: Path | None) -> dict[str, object]:
    """Deviation from exact attention: emulations by block size, kernels by length."""
    del reference
    on_cpu = torch.Generator().manual_seed(0)
    found = deviations([128, 512, 2048, 4096], [32, 64, 128, 512], generator=on_cpu)
    names = [field.name for field in dataclasses.fields(Deviation)]
    with (folder / "numerics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", *names])
        for deviation in found:
            writer.writerow(["emulated bf16", *dataclasses.astuple(deviation)])
        generator = torch.Generator("cuda").manual_seed(0)
        for tokens in (128, 512, 2048, 8192):
            for dtype in (torch.bfloat16, torch.float16):
                standard, flash = kernel_deviations(tokens, generator=generator, dtype=dtype)
                writer.writerow([f"kernels {dtype}", tokens, "", standard, flash, "", ""])
                print(f"{tokens} {dtype}: standard {standard:.2e}, flash {flash:.2e}")
    return {"rows": len(found)}


STAGES: dict[str, Callable[[Path, Path | None], dict[str, object]]] = {
    "check": check,
    "benchmark": time_kernels,
    "numerics": numerics,
    "tune": tune,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT", "gpu-results"))
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, in order")
    parser.add_argument("--reference", type=Path, help="folder of other stacks' tables")
    options = parser.parse_args()
    names = options.stages.split(",")
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        parser.error(f"--stages: no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was run", file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, object] = {"environment": environment("cuda"), "stages": {}}
    failed = False
    for name in names:
        began = time.perf_counter()
        try:
            result = STAGES[name](options.folder, options.reference)
        except Exception as error:  # the next stages are still worth having
            result = {"error": f"{type(error).__name__}: {error}"}
            torch.cuda.synchronize()
        result["duration_s"] = round(time.perf_counter() - began, 1)
        failed |= bool(result.get("error") or result.get("failed"))
        meta["stages"][name] = result
        (options.folder / "meta.json").write_text(json.dumps(meta, indent=1))
        print(f"{name}: {result}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
