"""Classes of requests: a label for each, from a column of a trace or drawn by shares."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping

import numpy as np

from sim.workload.trace_file import TraceFile, shown


def trace_labels(file: TraceFile, name: str) -> list[str]:
    """The text in column or key `name` of every row of a trace, in the order of the file.

    Raises TraceError where the trace has no such column, or a row lacks it.
    """
    number, first = file.first_line()
    if first.lstrip().startswith("{"):
        return _json_labels(file, name)
    header = [cell.strip() for cell in next(csv.reader([first]), [])]
    if name not in header:
        raise file.error(number, f"no column {name!r} in {shown(','.join(header))}")
    at = header.index(name)
    labels = []
    for line, text in enumerate(file.lines()[number:], start=number + 1):
        if not text.strip():
            continue
        cells = next(csv.reader([text]), [])
        if len(cells) <= at:
            raise file.error(line, f"{len(cells)} columns in {shown(text)}, no {name}")
        labels.append(cells[at].strip())
    return labels


def _json_labels(file: TraceFile, name: str) -> list[str]:
    labels = []
    for line, text in enumerate(file.lines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise file.error(line, f"{shown(text)}, expected one JSON object a line") from None
        if not isinstance(row, dict) or name not in row:
            raise file.error(line, f"no key {name!r}, which names a request's class")
        labels.append(str(row[name]))
    return labels


def drawn_labels(
    rng: np.random.Generator, num_requests: int, shares: Mapping[str, float]
) -> list[str]:
    """A class for each request, independently, in proportion to the shares."""
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    edges = np.cumsum(weights / weights.sum())[:-1]
    return [names[k] for k in np.searchsorted(edges, rng.random(num_requests), side="right")]
