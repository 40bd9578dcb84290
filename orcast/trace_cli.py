"""`orcast trace`: what a recorded load is like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orcast.options import JsonOption
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


def trace(
    file: FileArgument,
    format_: FormatOption = "auto",
    column: ColumnsOption = None,
    unit: UnitOption = None,
    tokenizer: TokenizerOption = None,
    class_: ClassOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write an HTML page there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a trace: rate over time, lengths, sharing, sessions, burstiness."""
    from reports.export.target import check_file
    from reports.trace.report import trace_report
    from reports.trace.words import rows
    from scenarios.errors import InputError
    from scenarios.forecast.trace_description import describe
    from scenarios.whole import write_whole

    if out is not None:
        try:
            check_file(out, "page")
        except ValueError as error:
            raise InputError(str(error)) from None
    settings = trace_settings(
        file, format_=format_, column=column, unit=unit, tokenizer=tokenizer, class_=class_
    )
    workload, name = open_workload(settings)
    found = describe(workload, format=name)
    if out is not None:
        text = trace_report(found, workload.prompt_tokens, workload.output_tokens)
        write_whole(out, text)
    if as_json:
        print(json.dumps(found | ({} if out is None else {"page": str(out)})))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scenarios.quantity import printable

    shown = Table(show_header=False, title=Text(printable(workload.name)), title_justify="left")
    for label, value in rows(found):
        shown.add_row(label, Text(printable(value)))
    console = Console(highlight=False)
    console.print(shown)
    for note in workload.notes:
        console.print(Text(printable(f"note: {note}"), style="yellow"))
    if out is not None:
        print(f"Page: {out}")
