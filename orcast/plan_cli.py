"""`orcast plan`: the cheapest deployment that serves a load within its service level."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orcast.composed import compose
from orcast.options import JobsOption, JsonOption, SetOption
from orcast.overrides import as_settings
from orcast.task_progress import TaskProgress
from orcast.task_workers import RayOption, task_workers

ANY, FEWEST = "plan-any", 1000  # requests of a trace whose own lengths are planned with


def plan(
    scenario: Annotated[
        str, typer.Argument(metavar="[SCENARIO]", help="A scenario file, or a library name.")
    ] = ANY,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to serve, instead of the scenario's.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Consider this GPU; may be repeated.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="R", help="Serve so many requests a second.")
    ] = None,
    users: Annotated[
        float | None, typer.Option(metavar="N", help="Or so many users at the same time.")
    ] = None,
    think_time: Annotated[
        float | None, typer.Option(metavar="S", help="A user's time from an answer to a request.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Or the busiest minutes of this trace.")
    ] = None,
    ttft: Annotated[
        float | None, typer.Option(metavar="MS", help="Limit to the first token.")
    ] = None,
    tpot: Annotated[
        float | None, typer.Option(metavar="MS", help="Limit to each token after it.")
    ] = None,
    e2e: Annotated[
        float | None, typer.Option(metavar="MS", help="Limit to the whole answer.")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="Of requests that keep the limits, in %.")
    ] = None,
    set_: SetOption = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="YAML {gpu: USD per hour}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder (default: runs/NAME).")
    ] = None,
    jobs: JobsOption = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the cheapest deployment for a load, what breaks it first, and why the others lost."""
    from reports.plan.folder import FILES, MARKER, write_plan
    from reports.run.writer import fresh_folder
    from scenarios.plan.plan import plan as plan_scenario
    from scenarios.schema.load import load_scenario

    load = _given(request_rate=rate, users=users, think_time_s=think_time, trace=trace)
    limits = _given(ttft_ms=ttft, tpot_ms=tpot, e2el_ms=e2e, percentile=percentile)
    settings = as_settings(
        _given(model=model)
        | ({"plan.candidates.gpus": gpu} if gpu else {})
        | ({"plan.load": load} if load else {})
        | ({"plan.objectives": []} if limits else {})  # those limits, and no others
        | {f"slo.{name}": limit for name, limit in limits.items()}
    )
    if trace is not None and scenario == ANY and not _long(set_):
        settings += _lengths_of(trace)
    settings += set_ or []
    if prices is not None:
        settings.append(f"plan.prices={json.dumps(str(prices))}")
    loaded, origin = load_scenario(scenario, settings)
    workers = task_workers(jobs, ray)
    folder = out or Path("runs") / _folder_name(loaded.name)
    progress = TaskProgress("exploring deployments")
    with fresh_folder(folder, marker=MARKER, files=FILES) as partial, progress:
        answer = plan_scenario(
            loaded,
            origin=origin,
            compose=compose,
            workers=workers,
            progress=progress.show,
        )
        write_plan(partial, answer)
    _show(answer, folder, as_json=as_json)


def _long(settings: list[str] | None) -> bool:
    """Whether the lengths of requests are said."""
    said = ("workload.trace=", "workload.lengths", "workload.classes", "workload=")
    return any(one.startswith(said) for one in settings or [])


def _lengths_of(trace: str) -> list[str]:
    """The trace's own lengths, where it has requests enough for every run of a plan."""
    from orcast.trace_options import open_workload
    from scenarios.library import find_file

    found, _ = open_workload({"trace": str(find_file(trace, beside=None) or trace)})
    if len(found) < FEWEST:
        return []
    arrivals = {"process": "poisson", "request_rate": 1.0}
    return as_settings({"workload.trace": trace, "workload.arrivals": arrivals})


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _folder_name(name: str) -> str:
    """``plan-NAME``, beside the folder of the scenario's run."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return plain if plain.startswith("plan") else f"plan-{plain}".strip("-")


def _show(answer: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        for warning in answer["warnings"]:
            print(f"orcast: warning: {warning}", file=sys.stderr)
        print(json.dumps(answer | {"plan_folder": str(folder)}))
        return
    from rich.console import Console

    from reports.plan.table import plan_table

    console = Console(highlight=False)
    # A table of figures and reasons needs room; a pipe has all it wants.
    console.width = max(console.width, 100) if console.is_terminal else 160
    console.print(plan_table(answer))
    if answer["chosen"] is not None:
        print(f"To forecast it again: orcast run {shlex.quote(str(folder / 'chosen.yaml'))}")
    print(f"Report: {folder / 'report.html'}")
