"""Everything that needs a GPU, in one command: ``python -m tests.benchmarks.gpu_session [FOLDER]``.

Stages, each with a small result file under FOLDER (or $OUT, or ./gpu-results), most of them written
as they go, so that an interrupted session leaves what it had:

- ``check``: the kernel tests (``pytest -m gpu``) → ``check.log``, ``check.json``, ``check.xml``
- ``benchmark``: the table of ratios → ``benchmark.csv``
- ``tune``: the candidate tiles of prefill and products → ``tune.csv``
- ``numerics``: deviation of the kernels and of their emulations → ``numerics.csv``
- ``tables``: latency tables of ``--models``; parts are shared between them → ``tables.tar.gz``
- ``repeat``: a second table of the first of ``--models`` against the first → ``repeat.json``,
  ``tables.tar.gz``
- ``end_to_end``: random iterations, run against what the tables say → ``end_to_end.csv``
- ``engine``: how fast the engine serves, decode steps by batch size → ``engine.json``
- ``validate``: forecast against engine over nine scenarios → ``validation.json`` (this stage needs
  the core dependencies, simpy, pydantic and plotly, and llama-3.1-8b's table)

A machine lent for ten minutes at a time, bare every time and handing back few files, runs them so;
each run has eight files at most and no folders:

    … OUT --stages check,numerics
    … OUT --stages benchmark
    … OUT --stages tables --models llama-3.1-8b --budget 8m
    … OUT --stages tables --models qwen3-8b,qwen3-0.6b --budget 8m --known tables.tar.gz
    … OUT --stages tables --models qwen3-30b-a3b --budget 8m --known tables.tar.gz
    … OUT --stages repeat,end_to_end --models llama-3.1-8b --budget 8m --known tables.tar.gz
    … OUT --stages engine,validate --known tables.tar.gz

``tables.tar.gz`` holds ``tables/GPU/MODEL``, journals of tables that were not finished (the same
command goes on from them) and ``repeated/MODEL``: what lay in the archives it was given, then this
run's. Given are FOLDER's own and what ``--known`` names, another run's archive; or that is a folder
of tables, by default ``calibrate/tables/GPU``, where ``tar -xzf tables.tar.gz -C calibrate tables``
puts them.

``--budget`` is for all tables of a run, ``--limit`` ends a run before its machine does: no stage
begins after it, and tests, engine and validation that still run then are stopped. ``meta.json``
holds GPU, driver, torch and Triton versions, measured ceilings and stage times, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calibrate.device.environment import environment
from calibrate.measure.budget import budget_seconds
from calibrate.measure.calibration import Progress, calibrate
from calibrate.measure.end_to_end import end_to_end
from calibrate.measure.repeatability import differences
from calibrate.measure.rig import Limits
from kernels.numerics import Deviation, deviations, kernel_deviations
from sim.latency.table_folder import read_table
from sim.model.config import read_config
from tests.benchmarks.kernels import SECTIONS, run_sections

ROOT = Path(__file__).parents[2]

TESTS = ROOT / "tests" / "kernels" / "operations"
# The driver's names of GPUs, and the library's.
GPUS = {"H200": "h200-sxm", "H100 80GB HBM3": "h100-sxm", "A100-SXM4-80GB": "a100-80gb"}
ARCHIVE = "tables.tar.gz"
PACKED = ("tables", "repeated")  # folders of the archive
# Shares of the budget: attention and logits of a family are measured once.
MODELS = {"llama-3.1-8b": 4.0, "qwen3-8b": 2.0, "qwen3-0.6b": 2.0, "qwen3-30b-a3b": 4.0}


@dataclass(frozen=True, slots=True)
class Run:
    """What a stage is told."""

    folder: Path
    work: Path  # tables while they are made, and those brought along
    reference: Path | None
    models: list[str]
    budget_s: float
    left_s: float  # until the run's limit
    known: Path | None
    device: str

    @property
    def gpu(self) -> str:
        return gpu_name(self.device)

    @property
    def tables(self) -> Path:
        return self.work / "tables" / self.gpu.replace(" ", "-").lower()

    def table(self, model: str) -> Path:
        """The model's table: of this run or an archive, else of the known folder."""
        own = self.tables / model
        if own.is_dir() or self.known is None:
            return own
        return self.known / model

    def pack(self) -> None:
        """Put all tables and journals into the results, over what was packed before."""
        archive = self.folder / ARCHIVE
        unfinished = archive.with_name(f"{ARCHIVE}.new")
        with tarfile.open(unfinished, "w:gz", compresslevel=6) as packed:
            for name in PACKED:
                if (self.work / name).is_dir():
                    packed.add(self.work / name, arcname=name)
        unfinished.replace(archive)


def unpack(archive: Path, work: Path) -> None:
    """Lay out the tables and journals of an archive."""
    with tarfile.open(archive) as packed:
        wanted = [one for one in packed.getmembers() if one.name.split("/")[0] in PACKED]
        packed.extractall(work, members=wanted, filter="data")


def gpu_name(device: str) -> str:
    """Our name of the GPU, or the driver's."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    return next((ours for theirs, ours in GPUS.items() if theirs in name), name)


def _config(model: str) -> dict[str, object]:
    path = ROOT / "scenarios" / "models" / f"{model}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def tables(run: Run) -> dict[str, object]:
    """A table of each model; what one measured, the next takes over."""
    told: dict[str, object] = {}
    shares = [MODELS.get(model, 2.0) for model in run.models]
    for model, share in zip(run.models, shares, strict=True):
        budget_s = run.budget_s * share / sum(shares)
        told[model] = _table(run, model, run.tables / model, budget_s, share=_others(run, model))
    return told


def _others(run: Run, model: str) -> Path:
    """A folder of the other models' finished tables, of this run and known ones."""
    folder = run.work / "others"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for source in (run.tables, run.known):
        for path in source.iterdir() if source is not None and source.is_dir() else ():
            finished = (path / "meta.yaml").is_file() and path.suffix not in (".partial", ".old")
            if finished and path.name != model and not (folder / path.name).exists():
                shutil.copytree(path, folder / path.name)
    return folder


def _table(run: Run, model: str, out: Path, budget_s: float, share: Path | None = None) -> object:
    part = ""

    def tell(state: Progress) -> None:
        nonlocal part
        if state.part != part:  # one is finished: keep it, should the machine go
            part = state.part
            run.pack()
        if state.points % 100 == 0:
            print(f"{state.elapsed_s:6.0f} s {state.part}", flush=True)

    try:
        calibrate(
            _config(model),
            name=model,
            out=out,
            device=run.device,
            budget_s=budget_s,
            gpu=run.gpu if run.device == "cuda" else None,
            share=share,
            progress=tell,
        )
    finally:
        run.pack()
    torch.cuda.empty_cache()
    meta = read_table(out).meta
    print(f"{model}: {meta['whole_iterations']}")
    return {"duration_s": meta["duration_s"], **meta["whole_iterations"]}


def repeat(run: Run) -> dict[str, object]:
    """Calibrate the first model again, nothing shared, and say how far the two are apart."""
    model = run.models[0]
    first = run.table(model)
    if not first.is_dir():
        _table(run, model, first, run.budget_s / 2)
    second = run.work / "repeated" / model
    _table(run, model, second, run.budget_s / 2)
    a, b = read_table(first), read_table(second)
    spec = read_config(_config(model), name=model)
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
            file.flush()
            told[model] = errors.as_dict()
    return told


def check(run: Run) -> dict[str, object]:
    """Run the kernel tests on the GPU; failures are named, not raised."""
    report, log = run.folder / "check.xml", run.folder / "check.log"
    report.unlink(missing_ok=True)  # of an earlier run
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", str(TESTS)]
    with log.open("w") as file:  # as it comes
        ended = _run(command, run.left_s, stdout=file, stderr=subprocess.STDOUT)
    tail = log.read_text(encoding="utf-8", errors="replace")[-6000:]
    print(tail)
    if not report.exists():
        return {"error": f"no report of the tests: {ended}", "log": tail[-2000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    result: dict[str, object] = {"passed": passed, "skipped": skipped, "failed": failed}
    if passed == 0 or (ended != "status 0" and not failed):
        result["error"] = f"{passed} tests passed: {ended}"
    (run.folder / "check.json").write_text(json.dumps(result, indent=1))
    return result


def _run(command: list[str], limit_s: float, **streams: Any) -> str:
    """Run a command from the repository's root with its packages; says how it ended."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, process_group=0, **streams)
    try:
        return f"status {process.wait(limit_s)}"
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too: they hold the GPU
            process.wait()


def time_kernels(run: Run) -> dict[str, object]:
    """The benchmark table."""
    out = run.folder / "benchmark.csv"
    ceilings = run_sections(list(SECTIONS), reference=run.reference, out=out)
    return dataclasses.asdict(ceilings)


def tune(run: Run) -> dict[str, object]:
    """The candidate tiles of prefill attention and the products."""
    sections = ["prefill", "products"]
    out = run.folder / "tune.csv"
    ceilings = run_sections(sections, tune=True, reference=run.reference, out=out)
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
    return _benchmark(run, "engine", "--out", str(run.folder / "engine.json"))


def validate(run: Run) -> dict[str, object]:
    """Forecast against engine."""
    table = run.table("llama-3.1-8b")
    if not table.is_dir():
        return {"error": "--known: no table of llama-3.1-8b to forecast with"}
    out = run.folder / "validation.json"
    return _benchmark(run, "validation", "--table", str(table), "--out", str(out))


def _benchmark(run: Run, name: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        ended = _run(command, run.left_s, stderr=errors)
        errors.seek(0)
        said = errors.read()
    return {} if ended == "status 0" else {"error": f"{ended}: {said[-2000:]}"}


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


def run_stages(run: Run, names: list[str], limit_s: float) -> bool:
    """Run the stages in order; True if all went well. meta.json is there from the beginning."""
    stages: dict[str, dict[str, object]] = {name: {"error": "not begun"} for name in names}
    meta = {"environment": environment(run.device), "stages": stages}

    def write_meta() -> None:
        (run.folder / "meta.json").write_text(json.dumps(meta, indent=1))

    write_meta()
    started = time.perf_counter()
    for name in names:
        began = time.perf_counter()
        left_s = limit_s - (began - started)
        if left_s <= 0:
            stages[name] = {"error": f"not begun: {limit_s:.0f} s are over"}
            write_meta()
            continue
        stages[name] = result = {"error": "interrupted"}  # unless it ends
        write_meta()
        try:
            within_s = min(run.budget_s, 0.9 * left_s)
            result = STAGES[name](dataclasses.replace(run, budget_s=within_s, left_s=left_s))
        except Exception as error:  # the next stages are still worth having
            result = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(Exception):  # after some errors CUDA refuses everything
                if run.device == "cuda":
                    torch.cuda.synchronize()
        finally:
            result["duration_s"] = round(time.perf_counter() - began, 1)
            stages[name] = result
            write_meta()
        print(f"{name}: {result}", flush=True)
    return not any(result.get("error") or result.get("failed") for result in stages.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT", "gpu-results"))
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, in order")
    parser.add_argument("--reference", type=Path, help="folder of other stacks' tables")
    parser.add_argument("--models", default=",".join(MODELS), help="of tables and their checks")
    parser.add_argument("--budget", default="8m", help="for all tables of this run")
    parser.add_argument("--limit", default="9m", help="no stage begins after it")
    parser.add_argument("--known", type=Path, help="tables: an archive or a folder")
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
    known = options.known or ROOT / "calibrate" / "tables" / gpu_name(options.device)
    if options.known is not None and not known.exists():
        parser.error(f"--known {known}: neither an archive nor a folder of tables")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # told in meta.json
    with tempfile.TemporaryDirectory(prefix="orcast-") as work:
        for archive in (known, folder / ARCHIVE):
            if archive.is_file():
                unpack(archive, Path(work))
        limit_s = budget_seconds(options.limit)
        run = Run(
            folder=folder,
            work=Path(work),
            reference=options.reference.resolve() if options.reference else None,
            models=options.models.split(","),
            budget_s=budget_seconds(options.budget),
            left_s=limit_s,
            known=known.resolve() if known.is_dir() else None,
            device=options.device,
        )
        return 0 if run_stages(run, names, limit_s) else 1


if __name__ == "__main__":
    sys.exit(main())
