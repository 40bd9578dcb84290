"""Recorded requests as a workload: one function for every trace format Orcast reads.

What the formats are stands in `sim/workload/trace_formats.py`. Columns and keys beyond those needed
are ignored, in any order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sim.workload.labels import trace_labels
from sim.workload.trace_conversations import read_conversations
from sim.workload.trace_csv import read_column, read_table
from sim.workload.trace_entries import entries, first_row, inside
from sim.workload.trace_file import TraceError, TraceFile, shown
from sim.workload.trace_formats import FORMATS as TRACE_FORMATS
from sim.workload.trace_formats import TABLE, Columns, TraceFormat, guessed_columns, plain_unit
from sim.workload.trace_prometheus import read_prometheus
from sim.workload.trace_requests import read_requests, sure_unit
from sim.workload.trace_results import read_aggregates, read_bench
from sim.workload.trace_served import read_served
from sim.workload.workload import Workload

__all__ = ["FORMATS", "Columns", "TraceError", "TraceFile", "read_column", "read_trace"]

FORMATS = tuple(TRACE_FORMATS)
_WHOLE = {
    "vllm-bench": read_bench,
    "aggregates": read_aggregates,
    "prometheus": read_prometheus,
}  # no requests to take labels from


def read_trace(
    path: str | os.PathLike[str] | TraceFile,
    *,
    format: str = "auto",
    content: bool = False,
    output_content: bool = False,
    label: str | None = None,
    columns: Columns | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Workload:
    """Read a trace: requests in order of arrival, the first at time 0.

    format: one of FORMATS, or "auto" to tell from what the file holds.
    content: keep what the prompts contain, for the prefix cache, where the format records it.
    output_content: let recorded answers be content too. Off by default: an engine that
        replays recorded lengths generates tokens of its own, so a later prompt that quotes the
        recorded answer does not match what that engine has in its cache.
    label: the column or key whose text names each request's class.
    columns: where a table that is of no known format keeps what, and the unit of its times.
    count_tokens: a tokenizer, for conversations in text.

    Requests that failed (no output token) are left out and counted in the workload's notes. Rows
    out of order are sorted, equal times keeping the file's order.

    Raises TraceError, one line that begins PATH:LINE.
    """
    file = path if isinstance(path, TraceFile) else TraceFile.read(path)
    found, notes = trace_format(file, format, columns)
    if label is not None:
        if found.name in _WHOLE:
            raise TraceError(
                f"{file.path}: a {found.name} result has no rows to take {label!r} from"
            )
        file = replace(file, labels=trace_labels(file, found, label))
    workload = _read(file, found, content, output_content, count_tokens)
    return replace(workload, notes=(*notes, *workload.notes)) if notes else workload


def trace_format(
    file: TraceFile, name: str = "auto", columns: Columns | None = None
) -> tuple[TraceFormat, tuple[str, ...]]:
    """The format named, or the one whose keys the file's first request has; and how a table's
    columns were understood."""
    if name == "auto" and columns is not None and (columns.prompt or columns.output):
        name = TABLE.name
    if name == "auto":
        found = _detected(file)
    elif name in TRACE_FORMATS:
        found = TRACE_FORMATS[name]
    else:
        expected = f"expected auto, {', '.join(FORMATS)}"
        raise TraceError(f"{file.path}: unknown format {name!r}, {expected}")
    if found is TABLE:
        return _table(file, columns or Columns())
    return (found if columns is None else columns.of(found)), ()


def _read(
    file: TraceFile,
    format: TraceFormat,
    content: bool,
    output_content: bool,
    count: Callable[[str], int] | None,
) -> Workload:
    if format.name in _WHOLE:
        return _WHOLE[format.name](file)
    if format.name == "orcast":
        return read_served(file, content=content)
    if format.name == "conversations":
        return read_conversations(file, format, content=content, count=count)
    own_dates = format.name == "azure"
    plain = format.arrival is not None and (own_dates or format.arrival.unit != "date")
    if plain and format.session is None and format.ids is None and _is_csv(file):
        return read_table(file, format)
    return read_requests(file, format, content=content, output_content=output_content, count=count)


def _is_csv(file: TraceFile) -> bool:
    return file.table is None and file.text.lstrip()[:1] not in "{["


def _detected(file: TraceFile) -> TraceFormat:
    """The format whose keys the file's first request (or whole JSON object) shows."""
    row = first_row(file)
    if row is not None:
        for one in TRACE_FORMATS.values():
            if any(all(_has(row, key) for key in keys) for keys in one.known_by):
                return one
        guessed = guessed_columns(_names(row))
        if guessed.prompt and guessed.output:
            return TABLE
    line, text = file.first_line()
    raise file.error(
        line,
        f"unknown format, first line {shown(text)}; say which columns hold what: "
        "workload.columns: {arrival: NAME, prompt: NAME, output: NAME, unit: s}",
    )


def _has(row: Mapping[str, Any], key: str) -> bool:
    return key in row or inside(row, key) is not None


def _names(row: Mapping[str, Any]) -> list[str]:
    """Keys of a row, and those of the objects in it, as paths."""
    names = list(row)
    for key, value in row.items():
        if isinstance(value, Mapping):
            names += [f"{key}.{inner}" for inner in value]
    return names


def _table(file: TraceFile, said: Columns) -> tuple[TraceFormat, tuple[str, ...]]:
    """A table of any tool's: its columns as said, or as their names say."""
    row = first_row(file)
    if row is None:
        raise file.error(1, "no table: expected rows with names of columns")
    names = _names(row)
    for name in (said.arrival, said.prompt, said.output, said.session):
        if name is not None and not _has(row, name):
            line = file.first_line()[0] if file.table is None else 1
            raise file.error(line, f"no column {name!r} in {shown(','.join(names))}")
    guess = guessed_columns(names)
    columns = Columns(
        said.arrival or guess.arrival,
        said.prompt or guess.prompt,
        said.output or guess.output,
        said.session or guess.session,
        said.unit,
    )
    lacking = [one for one in ("arrival", "prompt", "output") if not getattr(columns, one)]
    if lacking:
        raise file.error(
            1,
            f"which column has the {lacking[0]}? Say workload.columns: {{{lacking[0]}: NAME}}; "
            f"found {shown(','.join(names))}",
        )
    assert columns.arrival is not None
    format = columns.of(TABLE)
    if columns.unit is None and plain_unit(columns.arrival) is None:
        found = next(iter(entries(file)), None)
        if found is None:
            raise file.error(1, "the header is all there is, expected rows of requests")
        format = sure_unit([found], format)
    assert format.arrival is not None
    unit = "dates" if format.arrival.unit == "date" else format.arrival.unit
    session = f", sessions from {columns.session}" if columns.session else ""
    note = (
        f"{file.path.name}: a table, arrivals from {columns.arrival} ({unit}), prompts from "
        f"{columns.prompt}, outputs from {columns.output}{session}"
    )
    return format, (note,)
