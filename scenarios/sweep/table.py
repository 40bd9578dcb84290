"""The table of a sweep: a row for each run, its setting, seed, figures and error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FRONT = ("setting", "seed", "point", "error")  # columns beside axes and figures


@dataclass(frozen=True, slots=True)
class SweepTable:
    """Columns of equal length by name, and what is needed to read them.

    ``setting`` numbers the settings; then come a column for each path of the axes, ``seed``,
    ``point`` (its key), ``error`` (None where it has figures) and the figures.
    """

    name: str
    description: str
    axes: tuple[tuple[str, ...], ...]  # the paths of each axis
    sampling: str
    confidence: float
    metrics: tuple[str, ...]  # to be shown first
    columns: dict[str, list[Any]]
    _first_row: dict[int, int] = field(init=False, repr=False, compare=False)  # of each setting

    def __post_init__(self) -> None:
        first: dict[int, int] = {}
        for row, setting in enumerate(self.columns["setting"]):
            first.setdefault(setting, row)
        object.__setattr__(self, "_first_row", first)

    @property
    def num_runs(self) -> int:
        return len(self.columns["setting"])

    @property
    def num_settings(self) -> int:
        return max(self.columns["setting"], default=-1) + 1

    @property
    def errors(self) -> list[str]:
        """Of every run that failed, in order."""
        return [error for error in self.columns["error"] if error is not None]

    @property
    def figures(self) -> list[str]:
        """The names of all figures."""
        front = {*FRONT, *(path for axis in self.axes for path in axis)}
        return [name for name in self.columns if name not in front]

    def level(self, axis: int, setting: int) -> tuple[Any, ...]:
        """What an axis is set to in a setting."""
        row = self._first_row[setting]
        return tuple(self.columns[path][row] for path in self.axes[axis])

    def levels(self, axis: int) -> list[tuple[Any, ...]]:
        """The different levels of an axis: numbers in order of size, others as they come."""
        rows = zip(*(self.columns[path] for path in self.axes[axis]), strict=True)
        found = list(dict.fromkeys(rows))
        if self.is_numeric(axis):
            found.sort()
        return found

    def is_numeric(self, axis: int) -> bool:
        """Whether an axis is a number line."""
        if len(self.axes[axis]) != 1:
            return False
        values = self.columns[self.axes[axis][0]]
        return all(isinstance(value, int | float) and value is not True and value is not False
                   for value in values)  # fmt: skip

    def by_setting(self, metric: str) -> list[list[float | None]]:
        """A figure's values for each setting, in the order of the seeds; None where it has none."""
        values: list[list[float | None]] = [[] for _ in range(self.num_settings)]
        column = self.columns.get(metric) or [None] * self.num_runs
        for setting, value in zip(self.columns["setting"], column, strict=True):
            values[setting].append(None if value is None else float(value))
        return values


def columns_of(rows: Sequence[Mapping[str, Any]], first: Iterable[str]) -> dict[str, list[Any]]:
    """Rows as columns of one type each: `first`, then the others as they first appear."""
    names = dict.fromkeys(first)
    for row in rows:
        names |= dict.fromkeys(row)
    return {name: _one_type([row.get(name) for row in rows]) for name in names}


def _one_type(values: list[Any]) -> list[Any]:
    """All of them bool, int, float or text, beside None. What is not plain becomes its JSON."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and kinds <= {bool, int, float, str}:
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)
            for value in values]  # fmt: skip


_HIGHER = ("throughput", "goodput", "attainment", "completed", "kv_useful", "slo_met")
_LOWER = (
    *("_ms", "preemptions", "rejected", "duration", "busy_s", "waiting", "fragmentation"),
    *("usd_per_million_output_tokens", "usd_per_hour"),
    *("joules_per_output_token", "joules_per_token", "mean_watts"),
)


def better(metric: str) -> int:
    """1 where more of a figure is better, -1 where less is, 0 where that depends."""
    if any(word in metric for word in _HIGHER):
        return 1
    return -1 if any(metric.endswith(word) for word in _LOWER) else 0
