"""How good a latency table is: coverage, leave-one-out error, monotonicity, gaps.

The axis whose points are found worst without themselves (`calibrate.tables.leave_one_out`) is the
one to measure more finely.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from calibrate.tables.leave_one_out import errors_along, lines_along
from sim.latency.table_data import LatencyTable, Part

NOISE = 0.05  # a time that falls by more than this where more work is done is no noise
# So many falls among all pairs of neighbours are no accident on a GPU. Cores are shared with other
# processes: of the host's time, and of a table measured on a processor, a fall is a warning only.
MIXED_UP = 0.25
COARSE_STEP = 2.01  # grids are measured at x2 steps; a wider one is a gap
TILE_KEYS = 128  # fewer cached tokens than a tile of keys holds cost what one costs
FINE_ENOUGH = 0.05  # median leave-one-out error above this asks for more points
# No memory delivers a byte faster, no weight takes less than half a byte: times below are no µs.
FASTEST_BYTES_PER_S = 2e13
SMALLEST_WEIGHT_BYTES = 0.5
GRID_AXES = {
    "linear": ("tokens",),
    "logits": ("sequences",),
    "prefill_attention": ("new_tokens", "cached_tokens"),
    "decode_attention": ("sequences", "context_tokens"),
    "bounded_prefill": ("new_tokens", "cached_tokens"),
    "bounded_decode": ("sequences", "context_tokens"),
    "mixed_attention": ("new_tokens", "cached_tokens", "sequences", "context_tokens"),
    "decode_skew": ("sequences", "context_tokens", "longest_tokens"),
    "moe": ("tokens", "experts"),
    "communication": ("bytes",),
    "host": ("sequences",),
    "swap": ("blocks",),
    "copy": ("blocks",),
}
PROCESSOR = "CPU "  # begins the name of a device that is none (`calibrate.device.environment`)
ESTIMATED = "(estimated)"  # ends the name of an operation that was not measured
SCATTERED = ("decode_skew",)  # no grid: its range is told, nothing else
MUST_GROW = (
    ("linear", "tokens"),
    ("logits", "sequences"),
    ("prefill_attention", "new_tokens"),
    ("bounded_prefill", "new_tokens"),
    ("bounded_decode", "sequences"),
    ("decode_attention", "sequences"),
    ("decode_attention", "context_tokens"),
)


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
    estimated: tuple[str, ...] = ()

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
    parts, warnings, errors = [], [], _impossible(table)
    on_cores = str(table.meta.get("gpu", "")).startswith(PROCESSOR)
    for name, axes in GRID_AXES.items():
        part = table.parts.get(name)
        if part is None:
            continue
        checked = PartCheck(
            name, len(part.time_s), tuple(_check_axis(table, name, axis) for axis in axes)
        )
        parts.append(checked)
        for axis in checked.axes:
            where = f"{name}, {axis.name}"
            if axis.values < 2 and (name, axis.name) in MUST_GROW:
                errors.append(f"{where}: a single value says nothing about growth")
            elif axis.values < 2 and axis.name == "cached_tokens":
                warnings.append(f"{where}: measured at {axis.smallest} only; the rest is held")
            many = axis.falls > max(1, MIXED_UP * axis.compared)
            if many and not (on_cores or name == "host"):
                errors.append(
                    f"{where}: time falls as work grows in {axis.falls} of {axis.compared} pairs "
                    "of neighbours: mixed up rows or a throttled GPU"
                )
            elif axis.falls:
                warnings.append(
                    f"{where}: time falls by over {NOISE:.0%} as work grows in {axis.falls} of "
                    f"{axis.compared} pairs of neighbours"
                )
            warnings += [
                f"{where}: nothing measured between {low} and {high}" for low, high in axis.gaps[:3]
            ]
        worst = checked.worst_axis
        if worst is not None and worst.leave_one_out and worst.leave_one_out[0] > FINE_ENOUGH:
            warnings.append(
                f"{name}: measure {worst.name} more finely, a missing point is off by "
                f"{worst.leave_one_out[0]:.1%}"
            )
        warnings += _shorter_operations(name, part, axes[0])
    if table.meta.get("host_overhead_us") is None and "host" not in table.parts:
        warnings.append("no host overhead measured: a scenario has to say latency.host_overhead")
    warnings += table.doubts
    estimated = tuple(str(text) for text in table.meta.get("estimated") or ())
    return TableCheck(table.source, tuple(parts), tuple(warnings), tuple(errors), estimated)


def _impossible(table: LatencyTable) -> list[str]:
    """Times that no GPU reaches: none at all, or less than reading the weights takes."""
    errors = [
        f"{name}: {count} of {len(part.time_s)} points take no time"
        for name, part in table.parts.items()
        if name != "host" and (count := int((part.time_s == 0).sum()))
    ]
    linear, shape = table.parts.get("linear"), table.meta["model"]
    if linear is None:
        return errors
    heads = 2 * shape["num_attention_heads"] + 2 * shape["num_kv_heads"]
    weights = shape["num_layers"] * shape["hidden_size"] * shape["head_dim"] * heads
    read_s = weights * SMALLEST_WEIGHT_BYTES / table.tensor_parallel / FASTEST_BYTES_PER_S
    whole_s = sum(float(part.time_s.max()) for part in linear.operations().values())
    if 0 < whole_s < read_s:
        errors.append(
            f"linear: at most {whole_s * 1e6:.3g} µs for the whole model, reading the attention's "
            f"weights alone takes over {read_s * 1e6:.3g} µs: times of one layer, or not in µs"
        )
    return errors


def _shorter_operations(name: str, part: Part, axis: str) -> list[str]:
    """Operations measured over less of the axis than others of their part."""
    last = {
        operation: int(one.coordinates[axis].max()) for operation, one in part.operations().items()
    }
    longest = max(last.values())
    return [
        f"{name}, {axis}: {operation} was measured up to {reached} only, others up to {longest}"
        for operation, reached in last.items()
        if reached < longest
    ]


def _check_axis(table: LatencyTable, name: str, axis: str) -> AxisCheck:
    part = table.parts[name]
    values = np.unique(part.coordinates[axis])
    smallest, largest = int(values[0]), int(values[-1])
    if name in SCATTERED:
        return AxisCheck(axis, smallest, largest, len(values), None, 0, 0, ())
    # Where the table says how far repeats of this part lay apart, less is no fall.
    told = table.meta.get("parts", {}).get(name, {})
    noise = max(NOISE, float(told.get("spread_median", 0.0)))
    falls = compared = 0
    errors: list[float] = []
    for operation, one in part.operations().items():
        if operation.endswith(ESTIMATED):
            continue
        for points in lines_along(one, axis):
            times = np.array([time_s for _, time_s in points])
            compared += len(times) - 1
            falls += int((times[1:] < times[:-1] * (1 - noise)).sum())
        errors += errors_along(table, name, one, axis)
    gaps = tuple(
        (low, high)
        for low, high in pairwise(values[values > 0].tolist())
        if high > low * COARSE_STEP
        and high - low > 16
        and (axis != "cached_tokens" or high > TILE_KEYS)
    )
    left_out = None
    if errors:
        left_out = (float(np.median(errors)), float(np.percentile(errors, 95)))
    return AxisCheck(axis, smallest, largest, len(values), left_out, falls, compared, gaps)
