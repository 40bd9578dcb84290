"""`orcast calibrate refine`: what a profile cannot hold, from the first seconds of a recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcast.options import SetOption
from scenarios.errors import InputError

if TYPE_CHECKING:
    from calibrate.recordings.measurement import Measurement
    from calibrate.recordings.refine import Refined
    from scenarios.forecast.deployment import Deployment
    from sim.engine.front_end import FrontEnd
    from sim.latency.protocol import LatencyModel
    from sim.latency.table import TableLatency

REPLAY = "validation/vllm-replay"  # the engine of a table that comes without a scenario


def refine(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="A latency table's folder, or a scenario.")
    ],
    recording: Annotated[
        Path,
        typer.Argument(help="requests.jsonl, a bench serve result, or an engine's iteration log."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The refined table's folder.")],
    until: Annotated[
        float | None,
        typer.Option("--until", metavar="SECONDS", help="Fit to what came before; test the rest."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The engine's iteration log of the same requests."),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Fit what an engine costs beyond its kernels, and say how well the rest is forecast."""
    from reports.run.writer import fresh_folder
    from sim.latency.table_data import PART_COLUMNS

    if until is not None and not until > 0:
        raise InputError(f"--until {until:g}: expected a number of seconds above 0")
    files = {"meta.yaml", "report.html", *(f"{name}.csv" for name in PART_COLUMNS)}
    with fresh_folder(out, marker="meta.yaml", files=files) as partial:
        question = _question(table, recording, set_ or [], partial)
        found = _found(question, recording, until, log)
        _note(partial, found)
    print("\n".join(found.lines()))
    print(f"Written to {out}; forecast with it: --set latency.table={out}")


@dataclass(frozen=True, slots=True)
class _Question:
    """What is deployed, with the table to be refined, and the model that looks it up."""

    deployment: Deployment
    latency: TableLatency


def _question(table: str, recording: Path, settings: list[str], partial: Path) -> _Question:
    """The deployment of the scenario; its table is written to `partial`, as it is before."""
    from orcast.composed import compose
    from scenarios.forecast.deployment import deploy
    from scenarios.schema.load import load_scenario, parse_scenario
    from sim.latency.table_folder import write_table

    given = Path(table)
    if (given / "meta.yaml").is_file():
        settings = [f"latency.table={given}", *settings]
        table = REPLAY
    if not any(one.startswith("workload.trace=") for one in settings):
        settings = [*settings, *_workload_of(recording)]
    try:
        scenario, origin = load_scenario(table, settings)
    except InputError as error:
        if table != REPLAY:
            raise
        # The scenario is ours: what it lacks is what a table cannot say.
        lacks = str(error).partition(f"{REPLAY}.yaml: ")[2] or str(error)
        raise InputError(f"{given} and {recording} alone: {lacks}; give it by --set") from None
    deployed = deploy(scenario, origin=origin, compose=compose)
    meta, parts = _table_of(deployed.latency)
    write_table(partial, meta, parts)
    content = scenario.model_dump(exclude_defaults=True)
    content["latency"] = {"table": str(partial.resolve())}
    if scenario.latency.host_overhead is not None:
        content["latency"]["host_overhead"] = scenario.latency.host_overhead.model_dump()
    ready = deploy(parse_scenario(content, origin=table), origin=origin, compose=compose)
    return _Question(ready, _looked_up(ready.latency))


def _workload_of(recording: Path) -> list[str]:
    """The recording's own arrivals and lengths, where it has them."""
    file = recording / "requests.jsonl" if recording.is_dir() else recording
    named = Path(file.stem) if file.suffix in (".gz", ".zst") else file
    known = named.suffix in (".json", ".jsonl")
    return [f"workload={{trace: {str(file)!r}}}"] if known else []


def _table_of(latency: LatencyModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table behind a latency model: its meta and its parts."""
    from calibrate.tables.tabulated import tabulated
    from sim.latency.roofline import RooflineLatency
    from sim.latency.table import TableLatency
    from sim.latency.table_folder import rows_of

    for inner in _within(latency):
        if isinstance(inner, TableLatency):
            meta = {name: value for name, value in inner.table.meta.items() if name != "refined"}
            meta.pop("schema_version", None)
            return meta, dict(rows_of(inner.table))
        if isinstance(inner, RooflineLatency):
            return tabulated(inner)
    raise InputError(f"nothing to refine in {latency.label}: it is no table")


def _looked_up(latency: LatencyModel) -> TableLatency:
    from sim.latency.table import TableLatency

    return next(inner for inner in _within(latency) if isinstance(inner, TableLatency))


def _within(latency: LatencyModel) -> Iterator[LatencyModel]:
    """A latency model and those that it wraps."""
    yield latency
    for name in ("inner", "target"):
        if hasattr(latency, name):
            yield from _within(getattr(latency, name))


def _found(
    question: _Question, recording: Path, until_s: float | None, log_file: Path | None
) -> Refined:
    from calibrate.recordings.iteration_log import read_iteration_log
    from calibrate.recordings.measurement import read_measurement, simulated
    from calibrate.recordings.refine import (
        beyond_the_log,
        by_iterations,
        by_requests,
        constants_for,
    )
    from sim.engine.simulation import simulate

    deployed, latency = question.deployment, question.latency
    layers = deployed.model.num_layers
    hidden = deployed.scenario.engine.async_scheduling

    def forecast(front_end: FrontEnd | None) -> Measurement:
        records = simulate(
            deployed.workload,
            deployed.config,
            deployed.latency,
            scheduler=deployed.scenario.engine.scheduler,
            num_blocks=deployed.memory.usable_blocks,
            front_end=front_end,
        )
        return simulated("forecast", records.requests, records.preemptions)

    try:
        log = read_iteration_log(log_file or recording, slots=deployed.memory.slots)
        if log is not None and log_file is None:
            return by_iterations(log, latency, layers=layers, until_s=until_s, hidden=hidden)
        measured = read_measurement(recording)
        if not measured.has_arrivals:
            raise ValueError(f"{recording}: no arrivals; bench serve writes start_times today")
        constants = constants_for(latency, measured, layers=layers, hidden=hidden)
        known = None
        if log is not None:
            constants = beyond_the_log(constants)
            known = by_iterations(log, latency, layers=layers, until_s=until_s, hidden=hidden)
        elif log_file is not None:
            raise ValueError(
                f"{log_file}: no line of an iteration; start vLLM with "
                "--enable-logging-iteration-details"
            )
        return by_requests(
            measured,
            forecast,
            latency,
            constants,
            until_s=until_s,
            front_end=deployed.front_end,
            known=known,
        )
    except ValueError as error:
        words = str(error)
        named = str(recording) in words or (log_file is not None and str(log_file) in words)
        raise InputError(words if named else f"{recording}: {words}") from None


def _note(folder: Path, found: Refined) -> None:
    """Add what was found to the table's meta.yaml."""
    import yaml

    path = folder / "meta.yaml"
    meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    text = yaml.safe_dump({**meta, "refined": found.meta()}, sort_keys=False)
    path.write_text(text, encoding="utf-8")
