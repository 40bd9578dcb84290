"""`orcast replay`: a recorded load, served by a deployment that a few options name."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from orcast.options import JsonOption, QuietOption, RunFolderOption, SetOption
from orcast.trace_options import (
    ClassOption,
    ColumnsOption,
    FileArgument,
    FormatOption,
    TokenizerOption,
    UnitOption,
    open_workload,
    trace_settings,
)

DEFAULTS: dict[str, Any] = {  # of a replay without a scenario
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100-sxm"},
    "engine": {},
    "latency": {"source": "auto"},
}
LIMITS = {"ttft_ms": 1000.0, "tpot_ms": 50.0, "percentile": 95.0}


def replay(
    file: FileArgument,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario", metavar="NAME", help="Deployment to replay it on; its load is cleared."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="What is served.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="On which GPU.")] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="GPUs that share every layer.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(metavar="N", min=1, help="Copies of it.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Poisson arrivals at R a second in place of its own."),
    ] = None,
    speed: Annotated[
        float | None, typer.Option(metavar="X", help="Arrivals X times as fast.")
    ] = None,
    ttft: Annotated[
        float | None, typer.Option(metavar="MS", help="Limit to the first token.")
    ] = None,
    tpot: Annotated[
        float | None, typer.Option(metavar="MS", help="To each token after it.")
    ] = None,
    e2e: Annotated[float | None, typer.Option(metavar="MS", help="To the whole answer.")] = None,
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="Of requests that keep the limits, in %.")
    ] = None,
    format_: FormatOption = "auto",
    column: ColumnsOption = None,
    unit: UnitOption = None,
    tokenizer: TokenizerOption = None,
    class_: ClassOption = None,
    set_: SetOption = None,
    out: RunFolderOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Replay a trace, or the requests of a benchmark's result: say what it is, then run it."""
    from orcast.running import run_loaded
    from reports.trace.words import in_three_lines
    from scenarios.errors import InputError
    from scenarios.forecast.trace_description import describe

    workload = trace_settings(
        file, format_=format_, column=column, unit=unit, tokenizer=tokenizer, class_=class_
    )
    requests, name = open_workload(workload)
    if rate is not None:
        if not 0 < rate < math.inf:
            raise InputError(f"--rate {rate:g}: expected a number of requests a second above 0")
        workload["arrivals"] = {"process": "poisson", "request_rate": rate}
    if speed is not None:
        if not 1e-6 <= speed <= 1e6:
            raise InputError(f"--speed {speed:g}: expected a number from 1e-6 to 1e6")
        workload["time_scale"] = 1 / speed
    limits = {"ttft_ms": ttft, "tpot_ms": tpot, "e2el_ms": e2e, "percentile": percentile}
    slo = {key: limit for key, limit in limits.items() if limit is not None}
    with _said_of(file):
        loaded, origin = _loaded(
            scenario, workload, requests.name, slo, (model, gpu, gpus, replicas), set_ or []
        )
        lines = in_three_lines(describe(requests, format=name))
        if not quiet:
            print("\n".join(lines), file=sys.stderr if as_json else sys.stdout)
        run_loaded(loaded, origin, out=out, as_json=as_json, quiet=quiet)


@contextmanager
def _said_of(file: str) -> Iterator[None]:
    """What is wrong with a scenario that nobody has written is told of the recording."""
    from scenarios.errors import InputError
    from scenarios.schema.load import MAPPING

    try:
        yield
    except InputError as error:
        nobodys, _, rest = str(error).partition(": ")
        if nobodys != MAPPING:
            raise
        raise InputError(f"{file}: {rest}") from None


def _loaded(
    scenario: str | None,
    workload: dict[str, Any],
    name: str,
    slo: dict[str, float],
    served: tuple[str | None, str | None, int | None, int | None],
    settings: list[str],
) -> tuple[Any, Path]:
    """The scenario that serves the workload: the one named without its load, or a plain one."""
    from orcast.overrides import as_settings
    from scenarios import library
    from scenarios.model_figures import degree_that_fits
    from scenarios.schema.load import load_mapping, load_scenario

    model, gpu, gpus, replicas = served
    given = {
        "model": model, "hardware.gpu": gpu, "hardware.tensor_parallel": gpus,
        "cluster.replicas": replicas,
    }  # fmt: skip
    flags = as_settings({path: value for path, value in given.items() if value is not None})
    if scenario is not None:
        flags += as_settings({"workload": workload})
        flags += as_settings({f"slo.{key}": limit for key, limit in slo.items()})
        return load_scenario(scenario, [*flags, *settings])
    content = {**DEFAULTS, "name": name or "replay", "workload": workload}
    content["slo"] = slo if slo.keys() - {"percentile"} else {**LIMITS, **slo}
    if gpus is None:
        degree = degree_that_fits(
            library.model(model or DEFAULTS["model"]),
            library.gpu(gpu or DEFAULTS["hardware"]["gpu"]),
        )
        flags += as_settings({"hardware.tensor_parallel": degree})
    return load_mapping(content, [*flags, *settings])
