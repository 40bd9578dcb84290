"""Classes of requests: a label for each, from a column of a trace or drawn by shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.workload.trace_entries import Entry, csv_header, separator_of, split_cells
from sim.workload.trace_file import TraceFile, shown
from sim.workload.trace_formats import TraceFormat
from sim.workload.trace_spans import requests_of


def trace_labels(file: TraceFile, format: TraceFormat, name: str) -> list[str]:
    """The text in column or key `name` of every row of a trace, in the order of the file.

    Raises TraceError where the trace has no such column, or a row lacks it.
    """
    number, first = file.first_line()
    if file.table is not None or format.rows is not None or first.lstrip()[:1] in "{[":
        return [
            _label(entry, name) if entry.counts_in(format) else ""
            for entry in requests_of(file, format)
        ]
    header, separator = csv_header(first), separator_of(first)
    if name not in header:
        raise file.error(number, f"no column {name!r} in {shown(','.join(header))}")
    at = header.index(name)
    labels = []
    for line, text in enumerate(file.lines()[number:], start=number + 1):
        if not text.strip():
            continue
        cells = split_cells(text, separator)
        if len(cells) <= at:
            raise file.error(line, f"{len(cells)} columns in {shown(text)}, no {name}")
        labels.append(cells[at].strip())
    return labels


def _label(entry: Entry, name: str) -> str:
    value = entry.get(name)
    if value is None:
        raise entry.error(f"no key {name!r}, which names a request's class")
    return str(value)


def drawn_labels(
    rng: np.random.Generator, num_requests: int, shares: Mapping[str, float]
) -> list[str]:
    """A class for each request, independently, in proportion to the shares."""
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    edges = np.cumsum(weights / weights.sum())[:-1]
    return [names[k] for k in np.searchsorted(edges, rng.random(num_requests), side="right")]
