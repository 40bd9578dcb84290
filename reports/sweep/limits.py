"""Which limits of a sweep no run came to: why its settings are alike."""

from __future__ import annotations

from scenarios.quantity import count
from scenarios.sweep.table import SweepTable

_REACHED_BY = {"engine.max_num_seqs": "peak_running"}  # a limit's path -> what would reach it


def never_reached(sweep: SweepTable) -> str:
    """A sentence for each such axis: ``max_num_seqs is never reached at 128, 256: at most 69 run.``

    Empty where every limit is reached, or is not an axis.
    """
    return " ".join(
        sentence
        for axis, paths in enumerate(sweep.axes)
        if len(paths) == 1 and paths[0] in _REACHED_BY and sweep.is_numeric(axis)
        if (sentence := _sentence(sweep, paths[0]))
    )


def _sentence(sweep: SweepTable, path: str) -> str:
    most: dict[int, float] = {}
    reached = sweep.columns.get(_REACHED_BY[path]) or [None] * sweep.num_runs
    for limit, found in zip(sweep.columns[path], reached, strict=True):
        if found is not None:
            most[limit] = max(most.get(limit, 0), found)
    loose = {limit: found for limit, found in most.items() if found < limit}
    if not loose:
        return ""
    limits = ", ".join(count(limit) for limit in sorted(loose))
    name = path.rpartition(".")[2]
    return f"{name} is never reached at {limits}: at most {count(max(loose.values()))} run."
