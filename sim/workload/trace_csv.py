"""Traces in CSV whose columns are numbers: fast, for those of millions of rows.

numpy parses a whole file in one call. Only when that fails, or gives a number out of range, is the
file gone through line by line, to name the line that is wrong.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.workload.trace_entries import csv_header, separator_of, split_cells
from sim.workload.trace_file import TraceFile, TraceRows, shown
from sim.workload.trace_formats import PER_S, TraceFormat
from sim.workload.workload import Workload

Kind = Literal["date", "seconds", "tokens"]

_DATE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?")
_DATE_CHARACTERS = 29  # the most that the pattern matches
_DTYPES = {"date": f"U{_DATE_CHARACTERS + 1}", "seconds": "f8", "tokens": "f8"}
_EXPECTED = {
    "date": "a date and time like 2023-11-16 18:15:46.6805900",
    "seconds": "a number of seconds of at least 0",
    "tokens": "a whole number of at least 0",
}
_MOST_TOKENS = 2**31 - 1


def read_table(file: TraceFile, format: TraceFormat) -> Workload:
    """A CSV trace whose times are numbers, or dates as Azure's traces write them.

    Those have up to nine digits of a second; the +00:00 of the 2024 ones, or a Z, is skipped.
    """
    assert format.arrival is not None
    unit = format.arrival.unit
    if unit == "date":
        file = replace(file, text=re.sub(r"(?<=\d)(\+00:00|Z),", ",", file.text))
    kinds: dict[str, Kind] = {
        format.arrival.keys[0]: "date" if unit == "date" else "seconds",
        format.prompt[0]: "tokens",
        format.output[0]: "tokens",
    }
    arrival, prompt_tokens, output_tokens = _columns(file, kinds)
    arrival_s = arrival if unit in ("date", "s") else (arrival - arrival[0]) / PER_S[unit]
    return TraceRows(arrival_s, prompt_tokens, output_tokens).workload(file)


def read_column(path: str | os.PathLike[str], column: str) -> NDArray[np.int64]:
    """The token counts in one column of any CSV file with a header line, for `lengths.empirical`.

    Raises TraceError as `read_trace` does, also where there is no such column.
    """
    (values,) = _columns(TraceFile.read(path), {column: "tokens"})
    return values


def _columns(file: TraceFile, kinds: dict[str, Kind]) -> list[NDArray[Any]]:
    """The named columns: dates and seconds as float64 seconds, tokens as int64."""
    header_line, text = file.first_line()
    header, separator = csv_header(text), separator_of(text)
    for name in kinds:
        if name not in header:
            raise file.error(header_line, f"no column {name!r} in {shown(','.join(header))}")
    rows = [line for line in file.lines()[header_line:] if line and not line.isspace()]
    if not rows:
        raise file.error(header_line, "the header is all there is, expected rows of requests")
    found: list[NDArray[Any]] | None = None
    if any('"' in row for row in rows):  # commas inside quotes separate nothing
        commas = sum(len(split_cells(row, separator)) - 1 for row in rows)
    else:
        commas = sum(row.count(separator) for row in rows)
    if commas == len(rows) * (len(header) - 1):
        try:
            table = np.loadtxt(
                rows,
                dtype=[(f"column{at}", _DTYPES[kind]) for at, kind in enumerate(kinds.values())],
                delimiter=separator,
                quotechar='"',
                comments=None,
                usecols=[header.index(name) for name in kinds],
                ndmin=1,
            )
            found = [_numbers(table[f"column{at}"], kind) for at, kind in enumerate(kinds.values())]
        except ValueError:
            found = None
    if found is None:
        raise _first_error(file, header_line, header, separator, kinds)
    return found


def _numbers(column: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """A column as numbers; ValueError when one of them is not what `kind` says."""
    if kind == "date":
        codes = np.ascontiguousarray(column).view(np.uint32).reshape(len(column), -1)
        # numpy alone would also take "2023", "today", another time zone, and a date cut off at the
        # column's width: the marks must be in their places, with digits alone after the second.
        marks = ((4, "-"), (7, "-"), (13, ":"), (16, ":"), (_DATE_CHARACTERS, "\0"))
        fraction = codes[:, 20:]
        if (
            any((codes[:, at] != ord(mark)).any() for at, mark in marks)
            or ((codes[:, 19] != ord(".")) & (codes[:, 19] != 0)).any()
            or ((fraction != 0) & ((fraction < ord("0")) | (fraction > ord("9")))).any()
        ):
            raise ValueError(_EXPECTED[kind])
        times = column.astype("datetime64[ns]")
        since_first: NDArray[np.float64] = (times - times[0]).astype(np.int64) / 1e9
        return since_first
    if not (np.isfinite(column) & (column >= 0)).all():
        raise ValueError(_EXPECTED[kind])
    if kind == "seconds":
        return np.ascontiguousarray(column)
    if (column > _MOST_TOKENS).any() or (column != np.floor(column)).any():
        raise ValueError(_EXPECTED[kind])
    return column.astype(np.int64)


def _first_error(
    file: TraceFile,
    header_line: int,
    header: list[str],
    separator: str,
    kinds: dict[str, Kind],
) -> Exception:
    """What is wrong with the first bad row of a file that could not be parsed as a whole."""
    for number, line in enumerate(file.lines()[header_line:], start=header_line + 1):
        if not line.strip():
            continue
        cells = split_cells(line, separator)
        if len(cells) != len(header):
            return file.error(
                number, f"{len(cells)} columns in {shown(line)}, expected {','.join(header):.80}"
            )
        for name, kind in kinds.items():
            cell = cells[header.index(name)]
            if not _is(cell, kind):
                return file.error(number, f"{name} is {shown(cell)}, expected {_EXPECTED[kind]}")
    return file.error(header_line, "cannot be read as a table, expected plain numbers and commas")


def _is(cell: str, kind: Kind) -> bool:
    """Whether a cell is what its column should hold."""
    try:
        if kind == "date":
            return bool(_DATE.fullmatch(cell) and datetime.fromisoformat(cell[:19]))
        number = float(cell) if "_" not in cell else math.nan
    except ValueError:
        return False
    if kind == "tokens" and (number > _MOST_TOKENS or number % 1 != 0):
        return False
    return math.isfinite(number) and number >= 0
