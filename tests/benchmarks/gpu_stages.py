"""What a GPU session runs, a stage in a process of its own: ``… gpu_stages STAGE SETTINGS``.

`gpu_session` starts them, ends them at their limits and packs what they leave. A stage writes its
result, a JSON object, at once and again whenever there is more to tell, so that a stage that is
killed has told what it had.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "kernels" / "operations"
# The driver's names of GPUs, and the library's.
GPUS = {"H200": "h200-sxm", "H100 80GB HBM3": "h100-sxm", "A100-SXM4-80GB": "a100-80gb"}
# Shares of the budget: attention and logits of a family are measured once.
MODELS = {"llama-3.1-8b": 4.0, "qwen3-8b": 2.0, "qwen3-0.6b": 2.0, "qwen3-30b-a3b": 4.0}
BUDGET_SHARE = 0.8  # of what is left when measuring begins; the rest is for what it overruns
TELL_S = 5.0  # between two writings of a result

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What a stage is told."""

    folder: Path  # of results
    work: Path  # of tables while they are made, and those brought along
    models: list[str]
    limit_s: float  # of the stage
    ends_at: float = float("inf")  # when it will be ended, by the clock
    budget_s: float = 0.0  # of all its tables; 0: most of what is left when they begin
    cooling_s: float = 20.0  # to wait, in all, for a GPU that is held down
    known: Path | None = None  # tables of other runs, a folder a GPU
    reference: Path | None = None  # other stacks' tables
    tests: Path = TESTS
    scenario: Path | None = None  # to validate with, in place of the benchmark's own
    variations: str = ""  # of it, those whose names contain this
    requests: int = 0  # of the engine's workload; 0: its own
    longest: int = 0  # prompt and answer of it, in tokens; 0: its own
    device: str = "cuda"

    @property
    def left_s(self) -> float:
        return min(self.limit_s, self.ends_at - time.time())

    @property
    def result(self) -> Path:
        return self.work / "results"

    @property
    def gpu(self) -> str:
        return gpu_name(self.device)

    @property
    def tables(self) -> Path:
        return self.work / "tables" / self.gpu.replace(" ", "-").lower()

    @property
    def known_tables(self) -> Path | None:
        return None if self.known is None else self.known / self.tables.name

    def table(self, model: str) -> Path:
        """The model's table: of this run or an archive, else of the known folder."""
        own, known = self.tables / model, self.known_tables
        return own if own.is_dir() or known is None else known / model

    def settings(self) -> str:
        """For `from_settings`."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_settings(cls, text: str) -> Run:
        given = json.loads(text)
        for name in ("folder", "work", "known", "reference", "tests", "scenario"):
            given[name] = given[name] and Path(given[name])
        return cls(**given)


def gpu_name(device: str) -> str:
    """Our name of the GPU, or the driver's."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    return next((ours for theirs, ours in GPUS.items() if theirs in name), name)


def name_of(model: str) -> str:
    return Path(model).stem if model.endswith(".json") else model


def _config(model: str) -> dict[str, object]:
    return json.loads(_config_path(model).read_text(encoding="utf-8"))


def _config_path(model: str) -> Path:
    own = ROOT / "scenarios" / "models" / f"{model}.json"
    return Path(model) if model.endswith(".json") else own


def require_model(model: str) -> None:
    """ValueError for a model that is neither a name of the library nor a file."""
    if not _config_path(model).is_file():
        raise ValueError(f"--models {model}: no model of the library, nor a config.json")


def has(name: str) -> bool:
    """Whether this Python can import it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def tell(run: Run, stage: str, result: Result) -> None:
    """Put a stage's result, as far as it is known, where the session finds it."""
    run.result.mkdir(parents=True, exist_ok=True)
    path = run.result / f"{stage}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result))
    new.replace(path)


# -- correctness -----------------------------------------------------------------------------------


def canary(run: Run) -> Result:
    """One launch of each kernel, one captured graph; what is wrong is named."""
    from tests.benchmarks.canary import CASES, canary

    passed, failed = [], {}
    result: Result = {"passed": passed, "failed": failed, "of": len(CASES)}
    for name, wrong in canary(run.device):
        print(f"{name}: {wrong or 'agrees'}", flush=True)
        if wrong:
            failed[name] = wrong
        else:
            passed.append(name)
        tell(run, "canary", result)
    return result


def check(run: Run) -> Result:
    """The kernel tests; failures are named, and what was done when time is up."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-vv", "--tb=short", "--color=no"]
    if has("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    command += ["-p", "no:cacheprovider", str(run.tests)]
    seen: dict[str, list[str]] = defaultdict(list)
    told_s = float("-inf")
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            outcome = _outcome(line)
            if outcome is not None:
                seen[outcome[0]].append(outcome[1])
            if time.monotonic() > told_s + TELL_S:
                told_s = time.monotonic()
                tell(run, "check", _checked(seen))
    result = _checked(seen)
    failed = bool(result["failed"])
    if not result["passed"] or (process.returncode and not failed):
        result["error"] = f"{result['passed']} tests passed: status {process.returncode}"
    return result


def _outcome(line: str) -> tuple[str, str] | None:
    """What a line of ``pytest -v`` tells: outcome and test; with or without xdist."""
    words = "PASSED|FAILED|ERROR|SKIPPED"
    found = re.match(rf"(?P<test>\S+::.+?) (?P<said>{words})\b", line) or re.match(
        rf"\[gw\d+\] \[ *\d+%\] (?P<said>{words}) (?P<test>\S+::.+)", line
    )
    return None if found is None else (found["said"], found["test"].strip())


def _checked(seen: dict[str, list[str]]) -> Result:
    counts = {name.lower(): len(seen[name]) for name in ("PASSED", "SKIPPED")}
    return {**counts, "failed": [*seen["FAILED"], *seen["ERROR"]]}


# -- speed of kernels ------------------------------------------------------------------------------


def benchmark(run: Run) -> Result:
    """The table of ratios."""
    from tests.benchmarks.kernels import FIRST

    return _timed(run, list(FIRST), out="benchmark.csv")


def tune(run: Run) -> Result:
    """The candidate tiles of prefill attention and the products; latent and float8 kernels."""
    names = ["latent and float8", "prefill", "products"]
    return _timed(run, names, tune=True, out="tune.csv")


def _timed(run: Run, sections: list[str], *, tune: bool = False, out: str) -> Result:
    """Rows that failed are told, but are no reason to measure all the others once more."""
    from tests.benchmarks.kernels import run_sections

    ceilings, failed = run_sections(
        sections, tune=tune, reference=run.reference, out=run.folder / out
    )
    return dataclasses.asdict(ceilings) | ({"rows_failed": failed} if failed else {})


def numerics(run: Run) -> Result:
    """How far the kernels lie from exact attention, by length."""
    import torch

    from kernels.numerics import kernel_deviations

    generator = torch.Generator(run.device).manual_seed(0)
    with (run.folder / "numerics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dtype", "tokens", "standard", "flash"])
        for tokens in (128, 512, 2048, 8192):
            for dtype in (torch.bfloat16, torch.float16):
                found = kernel_deviations(tokens, generator=generator, dtype=dtype)
                writer.writerow([dtype, tokens, *found])
                file.flush()
    return {}


def emulated(run: Run) -> Result:
    """The same for the methods emulated on a processor; needs no GPU."""
    import torch

    from kernels.numerics import Deviation, deviations

    lengths, blocks = [128, 512, 2048, 4096], [32, 64, 128, 512]
    found = deviations(lengths, blocks, generator=torch.Generator().manual_seed(0))
    with (run.folder / "emulated.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Deviation)])
        writer.writerows(dataclasses.astuple(deviation) for deviation in found)
    return {"rows": len(found)}


# -- tables ----------------------------------------------------------------------------------------


def tables(run: Run) -> Result:
    """A table of each model; what one measured, the next takes over."""
    told: Result = {}
    shares = [MODELS.get(model, 2.0) for model in run.models]
    for number, (model, share) in enumerate(zip(run.models, shares, strict=True)):
        name = name_of(model)
        told[name] = _table(run, model, run.tables / name, share / sum(shares[number:]))
        tell(run, "tables", told)
    return told


def _table(run: Run, model: str, out: Path, share: float, *, others: bool = True) -> object:
    import torch

    from calibrate.measure.calibration import Progress, calibrate
    from calibrate.measure.setting import Setting
    from sim.latency.table_folder import read_table

    part, limit_s = "", share * run.left_s

    def say(state: Progress) -> None:
        nonlocal part
        if state.part != part:
            part = state.part
            print(f"{state.elapsed_s:6.0f} of {state.budget_s:.0f} s {part}", flush=True)

    setting = Setting(
        _config(model),
        name=name_of(model),
        out=out,
        device=run.device,
        budget_s=share * run.budget_s or BUDGET_SHARE * limit_s,
        gpu=run.gpu if run.device == "cuda" else None,
        share=_others(run, name_of(model)) if others else None,
        cooling_s=share * run.cooling_s,
        most_s=(BUDGET_SHARE + 0.05) * limit_s,
    )
    calibrate(setting, progress=say)
    if run.device == "cuda":
        torch.cuda.empty_cache()
    meta = read_table(out).meta
    return {"duration_s": meta["duration_s"], **meta["whole_iterations"]}


def _others(run: Run, model: str) -> Path:
    """A folder of the other models' finished tables, of this run and known ones."""
    folder = run.work / "others"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in (run.tables, run.known_tables):
        for path in source.iterdir() if source is not None and source.is_dir() else ():
            finished = (path / "meta.yaml").is_file() and path.suffix not in (".partial", ".old")
            if finished and path.name != model and not (folder / path.name).exists():
                shutil.copytree(path, folder / path.name)
    return folder


def longer(run: Run) -> Result:
    """Measure the first model again, nothing shared, for longer, and say how far the two lie apart.

    The longer table then takes the place of the earlier one.
    """
    from calibrate.measure.repeatability import differences
    from calibrate.measure.rig import Limits
    from sim.latency.table_folder import read_table
    from sim.model.config import read_config

    model = run.models[0]
    name = name_of(model)
    out, own, earlier = run.work / "longer" / name, run.tables / name, run.table(name)
    result: Result = {"table": _table(run, model, out, 1.0, others=False)}
    tell(run, "longer", result)
    if earlier.is_dir():
        a, b = read_table(earlier), read_table(out)
        spec = read_config(_config(model), name=name)
        found = differences(a, b, spec, Limits(**a.meta["limits"]))
        (run.folder / "repeat.json").write_text(json.dumps(found, indent=1))
        result["differences"] = found["iterations"]
    if own.is_dir():
        repeated = run.work / "repeated" / name
        shutil.rmtree(repeated, ignore_errors=True)
        repeated.parent.mkdir(parents=True, exist_ok=True)
        own.rename(repeated)
    own.parent.mkdir(parents=True, exist_ok=True)
    out.rename(own)
    return result


def end_to_end(run: Run) -> Result:
    """Random iterations against the tables, another seed than any of theirs."""
    import torch

    from calibrate.measure.end_to_end import end_to_end
    from sim.latency.table_folder import read_table

    told: Result = {}
    with (run.folder / "end_to_end.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        shape = ("decodes", "context_tokens", "prompts", "new_tokens")
        writer.writerow(["model", *shape, "predicted_us", "measured_us", "eager_us"])
        for model in run.models:
            name = name_of(model)
            table, device = read_table(run.table(name)), torch.device(run.device)
            checked, errors = end_to_end(table, _config(model), name=name, device=device)
            for one in checked:
                given = one.lengths
                new = sum(pair[0] for pair in given.prefills)
                counts = (len(given.decodes), sum(given.decodes), len(given.prefills), new)
                times = (one.predicted_us, one.measured_us, one.eager_us)
                writer.writerow([name, *counts, *(f"{time_us:.5g}" for time_us in times)])
            file.flush()
            told[name] = errors.as_dict()
            tell(run, "end_to_end", told)
    return told


# -- the engine ------------------------------------------------------------------------------------


def engine(run: Run) -> Result:
    """How fast the engine serves, deciding behind the device and ahead of it."""
    from tests.benchmarks.engine import main

    arguments = ["--device", run.device, "--models", run.models[0]]
    arguments += ["--out", str(run.folder / "engine.json")]
    if run.requests:
        arguments += ["--requests", str(run.requests)]
    if run.longest:
        arguments += ["--longest", str(run.longest)]
    main(arguments)
    return {}


def validate(run: Run) -> Result:
    """Forecast against engine; a variation that fails is named."""
    from tests.benchmarks.validation import main

    name = name_of(run.models[0])
    table = run.table(name)
    if not table.is_dir():
        return {"error": f"--from: no table of {name} to forecast with"}
    arguments = ["--table", str(table), "--out", str(run.folder / "validation.json")]
    if run.scenario is not None:
        arguments += ["--scenario", str(run.scenario)]
    if run.variations:
        arguments += ["--only", run.variations]
    return {"failed": main(arguments)}


STAGES: dict[str, Callable[[Run], Result]] = {
    "canary": canary,
    "check": check,
    "benchmark": benchmark,
    "tables": tables,
    "engine": engine,
    "longer": longer,
    "end_to_end": end_to_end,
    "validate": validate,
    "numerics": numerics,
    "tune": tune,
    "emulated": emulated,
}


def main() -> int:
    """Run one stage; its errors are told, and are its status."""
    stage, run = sys.argv[1], Run.from_settings(sys.argv[2])
    result: Result = {}
    try:
        if stage not in ("canary", "check"):  # whose own processes use the GPU
            tell(run, "environment", _environment(run))
        result = STAGES[stage](run)
    except Exception as error:
        traceback.print_exc()
        known = run.result / f"{stage}.json"
        result = json.loads(known.read_text()) if known.is_file() else {}
        result["error"] = f"{type(error).__name__}: {error}"
    tell(run, stage, result)
    return 1 if result.get("error") or result.get("failed") else 0


def _environment(run: Run) -> dict[str, str]:
    from calibrate.device.environment import environment

    return environment(run.device)


if __name__ == "__main__":
    sys.exit(main())
