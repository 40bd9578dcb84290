"""`orcast validate`: serve a scenario for real, forecast the same, compare both."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcast.needed import require_torch
from orcast.options import JsonOption, SetOption
from scenarios.errors import InputError

if TYPE_CHECKING:
    from calibrate.engine.engine import RealEngine, Served
    from calibrate.recordings.validation import EngineRun, Validation
    from kernels.transformer import Transformer
    from scenarios.forecast.deployment import Deployment
    from scenarios.forecast.forecast import Forecast
    from scenarios.schema.scenario import Scenario
    from sim.latency.table_data import LatencyTable
    from sim.schedulers.engine_config import EngineConfig

MARKER = "validation.json"
DRAFT_SEED = 1  # of weights that no checkpoint has; the target's is 0
FILES = {MARKER, "report.html", "measured", "forecast", "table", "png", "svg"}


@dataclass(frozen=True, slots=True)
class DraftOfQuestion:
    """The model that drafts, and its weights where there are any."""

    config: dict[str, Any]
    checkpoint: Path | None


@dataclass(frozen=True, slots=True)
class Question:
    """A scenario, its deployment (without a latency model), and the model to serve."""

    scenario: Scenario
    origin: Path | None
    deployment: Deployment
    config: dict[str, Any]
    checkpoint: Path | None
    device: str
    dtype: str
    draft: DraftOfQuestion | None = None


def validate(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A scenario file, or a library name.")
    ],
    set_: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Result folder (default: runs/NAME-validation)."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cuda or cpu (default: cpu for hardware.gpu cpu, else cuda)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of weights and cache.")] = "bfloat16",
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="DIR", help="Latency table (default: the scenario's)."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time to calibrate, where no table fits: 8m on a GPU, 60s on a CPU."),
    ] = None,
    eos: Annotated[
        bool, typer.Option("--eos", help="A checkpoint's end-of-sequence token ends an output.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the engine on a scenario's requests, simulate the same, and compare."""
    require_torch("the engine")
    from calibrate.device.environment import device_name
    from reports.calibration.validation_report import validation_report
    from reports.run.writer import fresh_folder, write_run

    question = question_of(scenario, set_ or [], device=device, dtype=dtype)
    name = question.scenario.name
    folder = out or Path("runs") / f"{name}-validation"
    with fresh_folder(folder, marker=MARKER, files=FILES) as partial:
        tables = _table_for(question, table, earlier=folder, into=partial, budget=budget)
        model = load_model_of(question, tables)
        served, validation, measured, forecast = ask_engine(question, model, tables, eos=eos)
        for part, run in (("measured", measured), ("forecast", forecast)):
            (partial / part).mkdir()
            write_run(partial / part, run.records, scenario=run.scenario, summary=run.summary)
        _write_outputs(partial / "measured" / "outputs.jsonl", served, question.checkpoint)
        _write_acceptance(partial / "measured" / "acceptance.jsonl", served)
        figures = validation.as_dict() | {
            "scenario": name,
            "device": device_name(question.device),
            "table": str(folder / "table" if tables.parent == partial else tables),
        }
        (partial / MARKER).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        replay = validation.replay
        text = validation_report(
            validation.comparison,
            figures,
            name=name,
            setting=f"{question.scenario.model} on {figures['device']}, scheduler "
            f"{question.scenario.engine.scheduler}; latency table {figures['table']}",
            engine=validation.engine,
            forecast=validation.forecast,
            predicted_s=None if replay is None else replay.predicted_s,
        )
        (partial / "report.html").write_text(text, encoding="utf-8")
    if as_json:
        for note in validation.comparison.notes:
            print(f"orcast: note: {note}", file=sys.stderr)
        print(json.dumps(figures))
        return
    from rich.console import Console

    from reports.calibration.validation_table import validation_table

    Console(highlight=False).print(validation_table(figures, validation.comparison.notes))
    print(f"Report: {folder / 'report.html'}")


def question_of(
    name: str, overrides: list[str], *, device: str | None = None, dtype: str = "bfloat16"
) -> Question:
    """A scenario by file or name, ready to be served. Raises InputError where it cannot be."""
    from calibrate.engine.checkpoint import has_weights
    from calibrate.engine.speculation.speculating_executor import METHODS
    from scenarios import library
    from scenarios.forecast.deployment import deploy
    from scenarios.forecast.latency_source import parallelism_of
    from scenarios.schema.latency import Latency
    from scenarios.schema.load import load_scenario

    scenario, origin = load_scenario(name, overrides)
    technique = scenario.speculation
    for key, refused, why in (
        (
            "speculation.method",
            technique is not None and technique.method not in METHODS,
            f"{', '.join(METHODS)}, or one token at a time (speculation=null)",
        ),
        ("cluster", not scenario.cluster.is_plain or scenario.cluster.replicas > 1, "one replica"),
        ("hardware", parallelism_of(scenario.hardware).num_gpus > 1, "one GPU"),
        ("workload.beam_search", scenario.workload.beam_search, "samples, not beams"),
        (f"engine.{scenario.engine.says_tiers}", bool(scenario.engine.tiers), "one KV cache"),
        (
            "engine.weight_dtype",
            scenario.engine.weight_dtype != "auto",
            "the type given as --dtype",
        ),
        ("engine.kv_cache_dtype", scenario.engine.kv_cache_dtype == "fp8", "16-bit caches"),
    ):
        if refused:
            raise InputError(f"{origin or 'scenario'}: {key}: the engine serves with {why}")
    unmeasured = scenario.model_copy(update={"latency": Latency()})
    deployment = deploy(unmeasured, origin=origin)
    beside = None if origin is None else origin.parent
    path = library.model_path(scenario.model, beside=beside)
    checkpoint = path.parent if has_weights(path.parent) else None
    draft = None
    if technique is not None and technique.draft_model is not None:
        drafts = library.model_path(technique.draft_model, beside=beside)
        weights = drafts.parent if has_weights(drafts.parent) else None
        draft = DraftOfQuestion(library.model_config(drafts), weights)
    if device is None:
        device = "cpu" if scenario.hardware.gpu == "cpu" else "cuda"
    return Question(
        scenario, origin, deployment, library.model_config(path), checkpoint, device, dtype, draft
    )


def load_model_of(question: Question, table: Path | None = None) -> Transformer:
    """The model on its device, with the matrix products that `table` was measured with."""
    from calibrate.device.environment import CalibrationError
    from calibrate.engine.checkpoint import load_model
    from sim.latency.table_folder import read_table

    try:
        measured_with = None if table is None else read_table(table).meta.get("linear_backend")
        return load_model(
            question.config,
            folder=question.checkpoint,
            device=question.device,
            dtype=question.dtype,
            linear_backend=measured_with,
        )
    except (CalibrationError, ValueError, MemoryError) as error:
        raise InputError(f"{question.origin or 'scenario'}: model: {error}") from None


def _table_for(
    question: Question, given: Path | None, *, earlier: Path, into: Path, budget: str | None
) -> Path:
    """The latency table to forecast with: given, the scenario's, an earlier one, or a new one."""
    from scenarios import library

    named = question.scenario.latency.table
    if given is not None:
        return given
    if named is not None:
        beside = None if question.origin is None else question.origin.parent
        found = library.find_file(named, beside=beside)
        if found is None:
            raise InputError(f"{question.origin or 'scenario'}: latency.table: no folder {named}")
        return found
    table = into / "table"
    if _fits(earlier / "table", question):
        shutil.copytree(earlier / "table", table)
        return table
    # Measured beside the folder: what is there when somebody interrupts is gone on with.
    measuring = earlier.with_name(f"{earlier.name}-table")
    if not _fits(measuring, question):
        _calibrate(question, measuring, budget or ("60s" if question.device == "cpu" else "8m"))
    shutil.move(measuring, table)
    return table


def _fits(table: Path, question: Question) -> bool:
    """Whether an earlier validation left a table of this model on this device."""
    from calibrate.device.environment import device_name
    from sim.latency.table_folder import TableError, read_table

    if not (table / "meta.yaml").is_file():
        return False
    try:
        meta = read_table(table).meta
    except TableError:
        return False
    wanted = {
        "gpu": device_name(question.device),
        "dtype": question.dtype,
        "block_size": question.scenario.engine.block_size,
    }
    same_model = meta["model"].get("name") == question.deployment.model.name
    return same_model and all(meta.get(key) == value for key, value in wanted.items())


def _calibrate(question: Question, table: Path, budget: str) -> None:
    """Measure the latency table of the question's model on its device."""
    from calibrate.device.environment import CalibrationError
    from calibrate.measure.budget import budget_seconds
    from calibrate.measure.calibration import calibrate
    from calibrate.measure.setting import Setting
    from calibrate.measure.target import partial_folder
    from orcast.calibrate_cli import progress_bar

    try:
        budget_s = budget_seconds(budget)
        with progress_bar(budget_s) as tell:
            setting = Setting(
                question.config,
                name=question.deployment.model.name,
                out=table,
                device=question.device,
                budget_s=budget_s,
                dtype=question.dtype,
                block_size=question.scenario.engine.block_size,
            )
            calibrate(setting, progress=tell)
    except KeyboardInterrupt:
        kept = partial_folder(table)
        print(f"stopped; what was measured is in {kept}: the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (CalibrationError, ValueError) as error:
        raise InputError(str(error)) from None


def ask_engine(
    question: Question, model: Transformer, table: Path, *, eos: bool
) -> tuple[Served, Validation, EngineRun, Forecast]:
    """Both runs of the scenario, and one held against the other."""
    from calibrate.device.environment import device_name
    from calibrate.device.yardstick import measure_yardstick
    from calibrate.engine.engine import GAVE_UP, REFUSED
    from calibrate.engine.warm_up import warm_up
    from calibrate.recordings.comparison import compare
    from calibrate.recordings.measurement import simulated
    from calibrate.recordings.replay import replay
    from calibrate.recordings.validation import EngineRun, Validation
    from scenarios.forecast.forecast import forecast
    from scenarios.schema.latency import Latency
    from sim.latency.table_folder import read_table

    scenario, deployment = question.scenario, question.deployment
    settings: dict[str, Any] = scenario.latency.model_dump(exclude_none=True)
    settings |= {"source": "table", "table": str(table)}
    if question.device == "cuda":
        settings.setdefault("launch", "eager")  # as the engine does with all but decodes
    measurable = scenario.model_copy(update={"latency": Latency(**settings)})
    predicted = forecast(measurable, origin=question.origin)
    measured = read_table(table)
    draft = _draft_model(question)
    try:
        warm_up(model, deployment.config, num_blocks=deployment.memory.usable_blocks, draft=draft)
    except (ValueError, MemoryError) as error:
        raise InputError(f"{question.origin or 'scenario'}: model: {error}") from None
    engine = _engine(question, model, draft, measured, eos=eos)
    yardsticks = [measure_yardstick(question.device)]
    with _stoppable(engine):
        served = engine.run()
    yardsticks.append(measure_yardstick(question.device))
    then_us = measured.meta.get("yardstick_us")
    slowdown = None if not then_us else fmean(one.us for one in yardsticks) / float(then_us)
    shared = [one.contention for one in yardsticks if one.contention is not None]
    workload = deployment.workload
    again = None
    config = _as_served(deployment.config, served)
    foreseen = {*served.errors.values()} <= {REFUSED, GAVE_UP}  # the simulator does the same
    if foreseen and not eos:
        again = replay(
            served.records,
            workload,
            config,
            scheduler=scenario.engine.scheduler,
            num_blocks=deployment.memory.usable_blocks,
            latency=predicted.deployment.latency,
        )
    if deployment.config.async_scheduling and again is not None:
        records = replace(served.records, gaps_s=again.gaps_s, gap_weights=again.gap_weights)
        served = replace(served, records=records)
    run = EngineRun.of(
        served,
        slo=deployment.slo,
        scenario=scenario.model_dump(mode="json"),
        label=f"served by the engine on {device_name(question.device)}",
    )
    try:
        comparison = compare(
            simulated("forecast", predicted.records.requests, predicted.records.preemptions),
            run.measurement(),
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    validation = Validation(
        comparison,
        again,
        served.records,
        predicted.records,
        served.errors,
        slowdown,
        contention=fmean(shared) if shared else None,
        doubts=tuple(measured.doubts),
    )
    return served, validation, run, predicted


def _as_served(config: EngineConfig, served: Served) -> EngineConfig:
    """The engine's settings with the acceptance that it saw, for the simulator."""
    from sim.speculation.acceptance import ObservedAcceptance

    technique = served.speculation
    if technique is None:
        return config
    assert isinstance(technique.acceptance, ObservedAcceptance)
    seen = replace(technique, acceptance=technique.acceptance.replayed())
    return replace(config, speculation=seen)


def _write_acceptance(path: Path, served: Served) -> None:
    """A line a request: what each of its verifications accepted, null where it had no draft."""
    from sim.speculation.acceptance import ObservedAcceptance

    if served.speculation is None:
        return
    observed = served.speculation.acceptance
    assert isinstance(observed, ObservedAcceptance)
    with path.open("w", encoding="utf-8") as file:
        for request in served.records.requests["request"].tolist():
            file.write(json.dumps(observed.rows.get(request, [])) + "\n")


def _write_outputs(path: Path, served: Served, checkpoint: Path | None) -> None:
    """A line a request: its tokens, their text where there is a tokenizer, and what went wrong."""
    from calibrate.engine.checkpoint import decode

    with path.open("w", encoding="utf-8") as file:
        for request in sorted(served.outputs.keys() | served.errors.keys()):
            tokens = served.outputs.get(request, [])
            line: dict[str, Any] = {"request": request, "tokens": tokens}
            if checkpoint is not None and (text := decode(checkpoint, tokens)) is not None:
                line["text"] = text
            if request in served.samples:
                line["samples"] = served.samples[request]
            if request in served.errors:
                line["error"] = served.errors[request]
            file.write(json.dumps(line) + "\n")


def _engine(
    question: Question,
    model: Transformer,
    draft: Transformer | None,
    table: LatencyTable,
    *,
    eos: bool,
) -> RealEngine:
    from calibrate.engine.assembly import engine
    from calibrate.engine.checkpoint import eos_token

    token = None
    if eos:
        token = None if question.checkpoint is None else eos_token(question.checkpoint)
        if token is None:
            raise InputError("--eos needs a checkpoint whose config names its eos_token_id")
    scenario, deployment = question.scenario, question.deployment
    sizes = scenario.engine.cudagraph_capture_sizes
    if sizes is None:  # those that the table was measured for
        sizes = table.meta.get("cudagraph_capture_sizes") or []
    try:
        return engine(
            deployment.workload,
            deployment.config,
            model,
            scheduler=scenario.engine.scheduler,
            num_blocks=deployment.memory.usable_blocks,
            capture_sizes=tuple(sizes),
            eos_token=token,
            draft=draft,
            seed=scenario.workload.seed,
            progress=_progress(len(deployment.workload)),
        )
    except ValueError as error:
        raise InputError(f"{question.origin or 'scenario'}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error):
            raise
        why = str(error).splitlines()[0]
        raise InputError(
            f"{why}; lower engine.num_gpu_blocks_override or engine.gpu_memory_utilization"
        ) from None


def _draft_model(question: Question) -> Transformer | None:
    """Other weights than the target's where neither has any: a draft of the same shape differs."""
    from calibrate.engine.checkpoint import load_model

    if question.draft is None:
        return None
    return load_model(
        question.draft.config,
        folder=question.draft.checkpoint,
        device=question.device,
        dtype=question.dtype,
        seed=DRAFT_SEED,
    )


@contextmanager
def _stoppable(engine: RealEngine) -> Iterator[None]:
    """Ctrl-C ends the run after the current iteration; what was measured by then is kept."""
    before = signal.signal(signal.SIGINT, lambda *_: engine.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _progress(total: int) -> Callable[[int], None] | None:
    """Requests that have ended, on the terminal, ten times a second at most."""
    if not sys.stderr.isatty():
        return None
    import time

    shown_s = 0.0

    def show(ended: int) -> None:
        nonlocal shown_s
        now_s = time.perf_counter()
        if now_s - shown_s > 0.1 or ended == total:
            shown_s = now_s
            end = "\n" if ended == total else ""
            print(f"\rserving: {ended} of {total} requests", end=end, file=sys.stderr, flush=True)

    return show
