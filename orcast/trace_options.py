"""What `orcast replay` and `orcast trace` ask about a trace, and how it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenarios.errors import InputError

if TYPE_CHECKING:
    from sim.workload import Workload

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A trace, or a benchmark's result, of any format that is known; .gz, .zst, Parquet; "
        "- for stdin.",
    ),
]
FormatOption = Annotated[
    str,
    typer.Option("--format", metavar="NAME", help="Its format, where it is not told by itself."),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="The column that has arrival, prompt, output or session; may be repeated.",
    ),
]
UnitOption = Annotated[
    str | None,
    typer.Option("--unit", metavar="UNIT", help="Of arrival times: s, ms, us, ns, date."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json that counts text."),
]
ClassOption = Annotated[
    str | None, typer.Option("--class", metavar="COLUMN", help="The column of a request's class.")
]
FIELDS = ("arrival", "prompt", "output", "session")


def trace_settings(
    file: str,
    *,
    format_: str,
    column: list[str] | None,
    unit: str | None,
    tokenizer: str | None,
    class_: str | None,
) -> dict[str, Any]:
    """The workload section that replays a file."""
    columns = {}
    for one in column or []:
        field, equals, name = one.partition("=")
        if not equals or not name or field not in FIELDS:
            raise InputError(
                f"--column {one}: expected FIELD=NAME, FIELD one of {', '.join(FIELDS)}"
            )
        columns[field] = name
    if unit is not None:
        columns["unit"] = unit
    found: dict[str, Any] = {"trace": file}
    if format_ != "auto":
        found["format"] = format_
    if columns:
        found["columns"] = columns
    if tokenizer is not None:
        found["tokenizer"] = tokenizer
    if class_ is not None:
        found["class_column"] = class_
    return found


def open_workload(settings: dict[str, Any]) -> tuple[Workload, str]:
    """The requests of a workload section's trace, and the name of its format."""
    from scenarios.forecast.trace_opening import open_trace, read_scenario_trace
    from scenarios.schema.load import parse_as
    from scenarios.schema.workload import Workload as Section
    from sim.workload.traces import Columns, trace_format

    section = parse_as(Section, settings, origin="trace")
    assert section.trace is not None
    try:
        file = open_trace(section.trace)
        said = None if section.columns is None else Columns(**section.columns.model_dump())
        format, _ = trace_format(file, section.format, said)
        workload = read_scenario_trace(
            file,
            format=section.format,
            columns=section.columns,
            tokenizer=section.tokenizer,
            content=True,
            label=section.class_column,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    return workload, format.name
