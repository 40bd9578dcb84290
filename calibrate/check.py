"""How good a latency table is: coverage, leave-one-out error, monotonicity, gaps.

Leave-one-out: take a measured point away, look it up from its neighbours, compare. Only points with
neighbours on both sides count, so that interpolation is judged and not extrapolation. Along one
axis at a time: the axis with the largest error is the one to measure more finely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from sim.latency.attention_table import pairs
from sim.latency.table_data import LatencyTable, Part

NOISE = 0.05  # a time that falls by more than this where more work is done is no noise
COARSE_STEP = 2.01  # grids are measured at x2 steps; a wider one is a gap
FINE_ENOUGH = 0.05  # median leave-one-out error above this asks for more points
GRID_AXES = {
    "linear": ("tokens",),
    "logits": ("sequences",),
    "prefill_attention": ("new_tokens", "cached_tokens"),
    "decode_attention": ("sequences", "context_tokens"),
    "mixed_attention": ("new_tokens", "cached_tokens", "sequences", "context_tokens"),
    "moe": ("tokens",),
    "communication": ("bytes",),
    "host": ("sequences",),
    "swap": ("blocks",),
}


@dataclass(frozen=True, slots=True)
class AxisCheck:
    """One axis of one part. Errors are relative; `leave_one_out` is (median, p95) or None."""

    name: str
    smallest: int
    largest: int
    values: int
    leave_one_out: tuple[float, float] | None
    falls: int  # pairs of neighbours where more work took less time
    compared: int
    gaps: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class PartCheck:
    name: str
    points: int
    axes: tuple[AxisCheck, ...]

    @property
    def worst_axis(self) -> AxisCheck | None:
        judged = [axis for axis in self.axes if axis.leave_one_out is not None]
        return max(judged, key=lambda axis: axis.leave_one_out or (0.0, 0.0), default=None)


@dataclass(frozen=True, slots=True)
class TableCheck:
    """What `check_table` found. `errors`: the table is broken; `warnings`: it could be better."""

    source: str
    parts: tuple[PartCheck, ...]
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    estimated: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"Table of {self.source}", ""]
        header = (
            f"{'part':20}{'axis':18}{'range':>16}{'values':>8}{'leave-one-out':>22}{'falls':>12}"
        )
        lines.append(header)
        for part in self.parts:
            for axis in part.axes:
                error = "-"
                if axis.leave_one_out is not None:
                    error = f"{axis.leave_one_out[0]:.1%} / p95 {axis.leave_one_out[1]:.1%}"
                lines.append(
                    f"{part.name:20}{axis.name:18}{f'{axis.smallest}-{axis.largest}':>16}"
                    f"{axis.values:>8}{error:>22}{f'{axis.falls} of {axis.compared}':>12}"
                )
        lines.append("")
        lines += [f"estimated, not measured: {text}" for text in self.estimated]
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"ERROR: {text}" for text in self.errors]
        if not self.warnings and not self.errors:
            lines.append("nothing to complain about")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "ok": not self.errors,
            "errors": list(self.errors),
            "warnings": list(self.warnings),
            "estimated": list(self.estimated),
            "parts": {
                part.name: {
                    "points": part.points,
                    "measure_more_finely": part.worst_axis.name if part.worst_axis else None,
                    "axes": {
                        axis.name: {
                            "smallest": axis.smallest,
                            "largest": axis.largest,
                            "values": axis.values,
                            "leave_one_out_median": axis.leave_one_out and axis.leave_one_out[0],
                            "leave_one_out_p95": axis.leave_one_out and axis.leave_one_out[1],
                            "falls": axis.falls,
                            "compared": axis.compared,
                            "gaps": [list(gap) for gap in axis.gaps],
                        }
                        for axis in part.axes
                    },
                }
                for part in self.parts
            },
        }


def check_table(table: LatencyTable) -> TableCheck:
    """Judge every part of a table; nothing is changed."""
    parts, warnings, errors = [], [], []
    for name, axes in GRID_AXES.items():
        part = table.parts.get(name)
        if part is None:
            continue
        checked = PartCheck(
            name, len(part.time_s), tuple(_check_axis(name, part, axis, axes) for axis in axes)
        )
        parts.append(checked)
        for axis in checked.axes:
            where = f"{name}, {axis.name}"
            if axis.values < 2 and name in ("linear", "decode_attention", "prefill_attention"):
                if axis.name != "cached_tokens":
                    errors.append(f"{where}: a single value says nothing about growth")
                else:
                    warnings.append(f"{where}: measured at {axis.smallest} only; the rest is held")
            if axis.compared and axis.falls > 0.25 * axis.compared:
                errors.append(
                    f"{where}: time falls as work grows in {axis.falls} of {axis.compared} pairs "
                    "of neighbours: mixed up rows or a throttled GPU"
                )
            elif axis.falls:
                warnings.append(
                    f"{where}: time falls by over {NOISE:.0%} as work grows in {axis.falls} of "
                    f"{axis.compared} pairs of neighbours"
                )
            for low, high in axis.gaps[:3]:
                warnings.append(f"{where}: nothing measured between {low} and {high}")
        worst = checked.worst_axis
        if worst is not None and worst.leave_one_out and worst.leave_one_out[0] > FINE_ENOUGH:
            warnings.append(
                f"{name}: measure {worst.name} more finely, a missing point is off by "
                f"{worst.leave_one_out[0]:.1%}"
            )
    if table.meta.get("host_overhead_us") is None:
        warnings.append("no host overhead measured: a scenario has to say latency.host_overhead")
    estimated = tuple(str(text) for text in table.meta.get("estimated") or ())
    return TableCheck(table.source, tuple(parts), tuple(warnings), tuple(errors), estimated)


def _check_axis(name: str, part: Part, axis: str, axes: Sequence[str]) -> AxisCheck:
    errors: list[float] = []
    falls = compared = 0
    for one in part.operations().values():
        for xs, ys, others in _lines(one, axis, [other for other in axes if other != axis]):
            compared += len(ys) - 1
            falls += int((ys[1:] < ys[:-1] * (1 - NOISE)).sum())
            stretch = _stretch(name, axis, others)
            places = [stretch(x) for x in xs]
            for i in range(1, len(xs) - 1):
                share = (places[i] - places[i - 1]) / (places[i + 1] - places[i - 1])
                guess = ys[i - 1] + share * (ys[i + 1] - ys[i - 1])
                if ys[i] > 0:
                    errors.append(abs(guess / ys[i] - 1))
    values = np.unique(part.coordinates[axis])
    positive = values[values > 0].tolist()
    gaps = tuple(
        (low, high)
        for low, high in pairwise(positive)
        if high > low * COARSE_STEP and high - low > 16
    )
    left_out = None
    if errors:
        left_out = (float(np.median(errors)), float(np.percentile(errors, 95)))
    return AxisCheck(
        axis, int(values[0]), int(values[-1]), len(values), left_out, falls, compared, gaps
    )


def _lines(
    part: Part, axis: str, others: Sequence[str]
) -> list[tuple[list[int], np.ndarray, dict[str, int]]]:
    """Points along one axis, all other coordinates equal."""
    lines: dict[tuple[int, ...], list[tuple[int, float]]] = {}
    columns = [part.coordinates[other].tolist() for other in others]
    keys = zip(*columns, strict=True) if columns else iter([()] * len(part.time_s))
    for key, x, y in zip(keys, part.coordinates[axis].tolist(), part.time_s.tolist(), strict=True):
        lines.setdefault(key, []).append((x, y))
    return [
        (
            [x for x, _ in sorted(points)],
            np.array([y for _, y in sorted(points)]),
            dict(zip(others, key, strict=True)),
        )
        for key, points in lines.items()
    ]


def _stretch(name: str, axis: str, others: dict[str, int]) -> Callable[[float], float]:
    """The scale on which the look-up is linear: query-key pairs along a prompt's length."""
    if axis == "new_tokens" and name in ("prefill_attention", "mixed_attention"):
        cached = others["cached_tokens"]
        return lambda x: pairs(x, cached)
    return lambda x: x
