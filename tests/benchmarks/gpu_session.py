"""Everything that needs a GPU, in one command: ``python -m tests.benchmarks.gpu_session [FOLDER]``.

Stages, each with a small result file under FOLDER (or $OUT, or ./gpu-results) written as soon as it
ends, so that an interrupted session leaves what it had:

- ``check``: the kernel tests (``pytest -m gpu``) → ``check.json``, ``check.xml``
- ``benchmark``: the table of ratios → ``benchmark.csv``
- ``tune``: the candidate tiles of prefill and products → ``tune.csv``
- ``numerics``: deviation of the kernels and of their emulations → ``numerics.csv``
- ``tables``: latency tables of ``--models`` → ``tables/GPU/MODEL/``; parts are shared between them
- ``repeat``: a second table of the first of ``--models`` against the first → ``repeat.json``
- ``end_to_end``: random iterations, run against what the tables say → ``end_to_end.csv``
- ``engine``: how fast the engine serves, decode steps by batch size → ``engine.json``
- ``validate``: forecast against engine over nine scenarios → ``validation.json`` (this stage needs
  the core dependencies, simpy, pydantic and plotly, and llama-3.1-8b's table in ``--known``)

A machine lent for ten minutes at a time runs them so, with the tables brought back in between put
where ``--known`` finds them (``calibrate/tables/GPU``):

    … OUT --stages check,numerics
    … OUT --stages benchmark
    … OUT --stages tables --models llama-3.1-8b --budget 8m
    … OUT --stages tables --models qwen3-8b,qwen3-0.6b --budget 8m
    … OUT --stages tables --models qwen3-30b-a3b --budget 8m
    … OUT --stages repeat,end_to_end --models llama-3.1-8b --budget 8m
    … OUT --stages engine,validate

``--budget`` is for all tables of a run, ``--limit`` ends a run before its machine does: no stage
begins after it. ``meta.json`` holds GPU, driver, torch and Triton versions, measured ceilings and
stage times.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from calibrate.calibration import budget_seconds, calibrate
from calibrate.end_to_end import end_to_end
from calibrate.environment import environment
from calibrate.repeatability import differences
from calibrate.rig import Limits
from kernels.numerics import Deviation, deviations, kernel_deviations
from sim.latency.table_folder import read_table
from sim.model_spec import ModelSpec
from tests.benchmarks.kernels import SECTIONS, run_sections
from tests.kernels.timing import write_csv

ROOT = Path(__file__).parents[2]


# The driver's names of GPUs, and the library's.
GPUS = {"H200": "h200-sxm", "H100 80GB HBM3": "h100-sxm", "A100-SXM4-80GB": "a100-80gb"}
# Shares of the budget: attention and logits of a family are measured once.
MODELS = {"llama-3.1-8b": 4.0, "qwen3-8b": 2.0, "qwen3-0.6b": 2.0, "qwen3-30b-a3b": 4.0}


@dataclass(frozen=True, slots=True)
class Run:
    """What a stage is told."""

    folder: Path
    reference: Path | None
    models: list[str]
    budget_s: float
    known: Path | None
    device: str

    @property
    def gpu(self) -> str:
        name = torch.cuda.get_device_name(0) if self.device == "cuda" else "cpu"
        return next((ours for theirs, ours in GPUS.items() if theirs in name), name)

    @property
    def tables(self) -> Path:
        return self.folder / "tables" / self.gpu.replace(" ", "-").lower()

    def table(self, model: str) -> Path:
        """The model's table: of this run, or one brought along."""
        own = self.tables / model
        if own.is_dir() or self.known is None:
            return own
        return self.known / model


def _config(model: str) -> dict[str, object]:
    path = ROOT / "scenarios" / "models" / f"{model}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def tables(run: Run) -> dict[str, object]:
    """A table of each model; what one measured, the next takes over."""
    told: dict[str, object] = {}
    shares = [MODELS.get(model, 2.0) for model in run.models]
    for model, share in zip(run.models, shares, strict=True):
        if run.known is not None and run.known.is_dir():  # where the next finds shared parts
            for path in run.known.iterdir():
                if path.is_dir() and not (run.tables / path.name).exists():
                    shutil.copytree(path, run.tables / path.name)
                    told[f"{path.name} (known)"] = True
        budget_s = run.budget_s * share / sum(shares)
        told[model] = _table(run, model, run.tables / model, budget_s)
    for name in [name for name in told if name.endswith(" (known)")]:
        shutil.rmtree(run.tables / name.removesuffix(" (known)"))  # not this run's to bring back
        del told[name]
    return told


def _table(run: Run, model: str, out: Path, budget_s: float, share: bool = True) -> object:
    calibrate(
        _config(model),
        name=model,
        out=out,
        device=run.device,
        budget_s=budget_s,
        gpu=run.gpu if run.device == "cuda" else None,
        share=run.tables if share else None,
        progress=lambda state: (
            print(f"{state.elapsed_s:6.0f} s {state.part}", flush=True)
            if state.points % 100 == 0
            else None
        ),
    )
    torch.cuda.empty_cache()
    meta = read_table(out).meta
    print(f"{model}: {meta['whole_iterations']}")
    return {"duration_s": meta["duration_s"], **meta["whole_iterations"]}


def repeat(run: Run) -> dict[str, object]:
    """Calibrate the first model again, nothing shared, and say how far the two are apart."""
    model = run.models[0]
    first = run.table(model)
    if not first.is_dir():
        _table(run, model, first, run.budget_s / 2, share=False)
    second = run.folder / "repeated" / model
    _table(run, model, second, run.budget_s / 2, share=False)
    a, b = read_table(first), read_table(second)
    spec = ModelSpec.from_config(_config(model), name=model)
    found = differences(a, b, spec, Limits(**a.meta["limits"]))
    (run.folder / "repeat.json").write_text(json.dumps(found, indent=1))
    return {"iterations": found["iterations"]}


def check_end_to_end(run: Run) -> dict[str, object]:
    """Random iterations against the tables, another seed than any of theirs."""
    told: dict[str, object] = {}
    with (run.folder / "end_to_end.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        shape = ("decodes", "context_tokens", "prompts", "new_tokens")
        writer.writerow(["model", *shape, "predicted_us", "measured_us", "eager_us"])
        for model in run.models:
            table = read_table(run.table(model))
            device = torch.device(run.device)
            checked, errors = end_to_end(table, _config(model), name=model, device=device)
            torch.cuda.empty_cache()
            for one in checked:
                given = one.lengths
                new = sum(pair[0] for pair in given.prefills)
                counts = (len(given.decodes), sum(given.decodes), len(given.prefills), new)
                times = (one.predicted_us, one.measured_us, one.eager_us)
                writer.writerow([model, *counts, *(f"{time_us:.5g}" for time_us in times)])
            told[model] = errors.as_dict()
    return told


def check(run: Run) -> dict[str, object]:
    """Run the kernel tests on the GPU; failures are named, not raised."""
    folder = run.folder
    report = folder / "check.xml"
    tests = ROOT / "tests" / "kernels" / "operations"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--junitxml={report}", str(tests)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    (folder / "check.log").write_text(done.stdout[-200_000:] + done.stderr[-20_000:])
    print(done.stdout[-6000:])
    if not report.exists():
        return {"returncode": done.returncode, "error": done.stderr[-2000:]}
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


def time_kernels(run: Run) -> dict[str, object]:
    """The benchmark table."""
    ceilings, rows = run_sections(list(SECTIONS), reference=run.reference)
    write_csv(rows, run.folder / "benchmark.csv")
    return dataclasses.asdict(ceilings)


def tune(run: Run) -> dict[str, object]:
    """The candidate tiles of prefill attention and the products."""
    sections = ["prefill", "products"]
    ceilings, rows = run_sections(sections, tune=True, reference=run.reference)
    write_csv(rows, run.folder / "tune.csv")
    return dataclasses.asdict(ceilings)


def numerics(run: Run) -> dict[str, object]:
    """Deviation from exact attention: emulations by block size, kernels by length."""
    on_cpu = torch.Generator().manual_seed(0)
    found = deviations([128, 512, 2048, 4096], [32, 64, 128, 512], generator=on_cpu)
    names = [field.name for field in dataclasses.fields(Deviation)]
    with (run.folder / "numerics.csv").open("w", newline="") as file:
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


def engine(run: Run) -> dict[str, object]:
    """The engine's speed."""
    return _benchmark("engine", "--out", str(run.folder / "engine.json"))


def validate(run: Run) -> dict[str, object]:
    """Forecast against engine."""
    if run.known is None:
        return {"error": "--known: the tables to forecast with"}
    table = run.known / "llama-3.1-8b"
    return _benchmark(
        "validation", "--table", str(table), "--out", str(run.folder / "validation.json")
    )


def _benchmark(name: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    print(ran.stdout[-6000:])
    if ran.returncode:
        return {"returncode": ran.returncode, "error": ran.stderr[-2000:]}
    return {"returncode": 0}


STAGES: dict[str, Callable[[Run], dict[str, object]]] = {
    "check": check,
    "benchmark": time_kernels,
    "numerics": numerics,
    "tune": tune,
    "tables": tables,
    "repeat": repeat,
    "end_to_end": check_end_to_end,
    "engine": engine,
    "validate": validate,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT", "gpu-results"))
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, in order")
    parser.add_argument("--reference", type=Path, help="folder of other stacks' tables")
    parser.add_argument("--models", default=",".join(MODELS), help="of tables and their checks")
    parser.add_argument("--budget", default="8m", help="for all tables of this run")
    parser.add_argument("--limit", default="9m", help="no stage begins after it")
    parser.add_argument("--known", type=Path, help="tables brought along; calibrate/tables/GPU")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tables only"
    )
    options = parser.parse_args()
    names = options.stages.split(",")
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        parser.error(f"--stages: no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was run", file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    run = Run(
        folder=options.folder,
        reference=options.reference,
        models=options.models.split(","),
        budget_s=budget_seconds(options.budget),
        known=options.known,
        device=options.device,
    )
    known = ROOT / "calibrate" / "tables" / run.gpu
    if run.known is None and known.is_dir():
        run = dataclasses.replace(run, known=known)
    meta: dict[str, object] = {"environment": environment(options.device), "stages": {}}
    started, limit_s = time.perf_counter(), budget_seconds(options.limit)
    failed = False
    for name in names:
        began = time.perf_counter()
        left_s = limit_s - (began - started)
        if left_s <= 0:
            meta["stages"][name] = {"error": f"not begun: {limit_s:.0f} s are over"}
            failed = True
            continue
        try:
            within = min(run.budget_s, 0.9 * left_s)
            result = STAGES[name](dataclasses.replace(run, budget_s=within))
        except Exception as error:  # the next stages are still worth having
            result = {"error": f"{type(error).__name__}: {error}"}
            if options.device == "cuda":
                torch.cuda.synchronize()
        result["duration_s"] = round(time.perf_counter() - began, 1)
        failed |= bool(result.get("error") or result.get("failed"))
        meta["stages"][name] = result
        (options.folder / "meta.json").write_text(json.dumps(meta, indent=1))
        print(f"{name}: {result}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
