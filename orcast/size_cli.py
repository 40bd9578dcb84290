"""`orcast size`: what a training budget buys, and what serving it will cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from orcast.composed import compose
from orcast.options import JobsOption, JsonOption
from orcast.task_progress import TaskProgress
from orcast.task_workers import RayOption, task_workers
from scenarios.errors import InputError


def size(
    sizing: Annotated[
        str | None,
        typer.Argument(
            metavar="SIZING.yaml",
            help="A sizing file, or a name from the library (default: budget-1e22).",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Override one value, e.g. budget.usd=50000, model=llama-3.1-8b; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for report, tables, model and plan."),
    ] = None,
    jobs: JobsOption = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Size a model and its cluster by scaling laws; say what training and serving cost."""
    from contextlib import nullcontext

    from reports.size.folder import fresh_size_folder, write_size
    from scenarios.sizing.load import load_sizing
    from scenarios.sizing.sizing import size as answer

    loaded, origin = load_sizing(sizing, set_ or [])
    workers = task_workers(jobs, ray)
    progress = TaskProgress("serving models")
    with nullcontext() if out is None else fresh_size_folder(out) as partial, progress:
        try:
            result = answer(
                loaded,
                origin=origin,
                compose=compose,
                workers=workers,
                progress=progress.show,
            )
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{origin or 'sizing'}: {error}") from None
        if partial is not None:
            write_size(partial, result)
    if as_json:
        for note in result.summary["notes"]:
            print(f"orcast: note: {note}", file=sys.stderr)
        folder = {} if out is None else {"folder": str(out)}
        print(json.dumps(result.summary | folder))
        return
    from rich.console import Console

    from reports.size.table import size_tables

    console = Console(highlight=False)
    # Tables of figures and reasons need room; a pipe has all it wants.
    console.width = max(console.width, 100 if console.is_terminal else 120)
    for part in size_tables(result.summary):
        console.print(part)
    if out is not None:
        print(f"Report: {out / 'report.html'}")
        print(f"Model:  {out / 'config.json'} (--set model={out} in a scenario)")
        if result.summary["plan"] is not None:
            print(f"Plan:   orcast plan {quote(str(out / 'plan.yaml'))}")
