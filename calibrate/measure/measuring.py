"""Measuring one part's points, the most useful one next, until its time is up.

In this order: points of the coarse grid; points whose repeats disagree; what has been measured less
often than it should; values of the axis that leave-one-out finds worst.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from calibrate.device.clocks import ClockLog
from calibrate.device.environment import CalibrationError
from calibrate.device.timer import Timer
from calibrate.measure.grids import refinement
from calibrate.measure.journal import Journal, Point, Points, Take
from calibrate.measure.parts import Bench
from calibrate.tables.leave_one_out import lines_along
from sim.latency.table_data import PART_COLUMNS, Part
from sim.latency.table_folder import table_of

TAKES = 3  # of every point, where there is time
MOST_TAKES = 5  # of points whose takes disagree
SPREAD = {"cuda": 0.05, "cpu": 0.25}  # a point above is measured again
TARGET = 0.02  # median leave-one-out error at a value of an axis that needs no closer neighbours
MUST = 4  # points that every part gets, whatever the budget
THROTTLED_TAKES = 3  # before a throttled clock is put up with
COOLING_S = 3.0
MOST_COOLING_S = 20.0  # in all: what stays hot longer is measured hot, and the table says so

FALL = 0.05
GROWING = {  # axes along which no time can fall
    "linear": ("tokens",),
    "logits": ("sequences",),
    "prefill_attention": ("new_tokens", "cached_tokens"),
    "decode_attention": ("sequences", "context_tokens"),
    "moe": ("tokens",),
    "copy": ("blocks",),
    "swap": ("blocks",),
    "host": ("sequences",),
}

Axes = dict[str, set[int]]


@dataclass(slots=True)
class Measuring:
    """Measures points into a journal."""

    journal: Journal
    timer: Timer
    clocks: ClockLog
    target: float = TARGET
    on_point: Callable[[str], None] = lambda part: None
    cool: Callable[[float], None] = time.sleep
    cooling_s: float = MOST_COOLING_S  # that are left
    _tried: dict[str, Axes] = field(default_factory=dict)
    _added: dict[str, list[Point]] = field(default_factory=dict)

    def run(self, bench: Bench, until_s: float, *, takes: int = TAKES) -> None:
        """Measure the part until `until_s` on the monotonic clock, or until nothing is left.

        `takes` of every point are enough for now.
        """
        while True:
            points = self.journal.of(bench.name)
            done = len(points.takes)
            if time.monotonic() >= until_s and (done >= MUST or not self._missing(bench, points)):
                return
            point = self._next(bench, points, takes)
            if point is None:
                return
            self._measure(bench, point)
            self.on_point(bench.name)

    def time_us(self, bench: Bench, point: Point) -> tuple[tuple[float, ...], float, int]:
        """The times of a point, their spread and repeats, at a clock that is not held down."""
        for attempt in range(1, THROTTLED_TAKES + 1):
            timings = [self.timer.measure(calls, mode=bench.mode) for calls in bench.calls(point)]
            clocks = self.clocks.sample()
            if clocks is None or not clocks.throttled:
                break
            if attempt == THROTTLED_TAKES or self.cooling_s < COOLING_S:
                self._warn_throttled(bench.name, clocks.throttled, clocks.sm_mhz, clocks.max_sm_mhz)
                break
            self.cooling_s -= COOLING_S
            self.cool(COOLING_S)
            self.clocks.sample(now=True)
        return (
            tuple(timing.time_us for timing in timings),
            timings[0].spread,
            sum(timing.repeats for timing in timings),
        )

    def _warn_throttled(self, part: str, why: str, mhz: float, most_mhz: float) -> None:
        told = {line["part"] for line in self.journal.records.get("throttled", [])}
        if part not in told:
            text = f"the GPU's clock was held down while {part} was measured ({why}): SM at "
            text += f"{mhz:.0f} of {most_mhz:.0f} MHz; these times are too long, measure again"
            self.journal.record("throttled", {"part": part, "text": text})

    def _measure(self, bench: Bench, point: Point) -> None:
        began = time.monotonic()
        try:
            times_us, spread, repeats = self.time_us(bench, point)
        except (torch.OutOfMemoryError, MemoryError):
            self._skip(bench, point)
        except RuntimeError as error:
            if "alloc" not in str(error).lower():  # a CPU's allocator raises no type of its own
                raise failed(bench.name, point, error) from None
            self._skip(bench, point)
        else:
            spent_s = time.monotonic() - began
            self.journal.add(bench.name, point, Take(times_us, spread, repeats), spent_s=spent_s)

    def _skip(self, bench: Bench, point: Point) -> None:
        """Leave out a point that memory does not hold, and all that are larger in every way."""
        if self.timer.on_gpu:
            torch.cuda.empty_cache()
        points = self.journal.of(bench.name)
        for other in self._grid(bench):
            larger = all(o >= p for o, p in zip(other, point, strict=True))
            if larger and other not in points.takes:
                self.journal.skip(bench.name, other, "out of memory")
        points.skipped.add(point)

    def _grid(self, bench: Bench) -> list[Point]:
        return bench.points() + self._added.get(bench.name, [])

    def _missing(self, bench: Bench, points: Points) -> list[Point]:
        return [p for p in self._grid(bench) if p not in points.takes and p not in points.skipped]

    def _next(self, bench: Bench, points: Points, enough: int) -> Point | None:
        missing = self._missing(bench, points)
        if missing:
            return missing[0]
        limit = SPREAD[self.timer.device.type]
        own = {p: takes for p, takes in points.takes.items() if not takes[0].source}
        doubtful = [
            p
            for p, takes in own.items()
            if len(takes) < min(MOST_TAKES, enough + 2) and points.spread(p) > limit
        ]
        if doubtful:
            return min(doubtful, key=lambda p: len(own[p]))
        falling = [p for p in self._before_falls(bench, points) if p in own]
        if falling:
            return min(falling, key=lambda p: len(own[p]))
        rare = [p for p, takes in own.items() if len(takes) < enough]
        if rare:
            return min(rare, key=lambda p: len(own[p]))
        if bench.refine and self._refine(bench, points):
            missing = self._missing(bench, points)
            return missing[0] if missing else None
        return None

    def _before_falls(self, bench: Bench, points: Points) -> list[Point]:
        """Points that took longer than one with more work: disturbed, and worth another look."""
        found = []
        for axis in GROWING.get(bench.name, ()):
            for line in lines_along(part_of(bench.name, points), axis):
                for (less, less_s), (_, more_s) in itertools.pairwise(line):
                    point = tuple(less.values())
                    tries = len(points.takes[point])
                    if more_s < less_s * (1 - FALL) and tries < MOST_TAKES + 3:
                        found.append(point)
        return found

    def _refine(self, bench: Bench, points: Points) -> bool:
        """Add values to the axis that needs them most; whether any were added."""
        part = part_of(bench.name, points)
        noise = float(np.median([points.spread(point) for point in points.takes]))
        target = max(self.target, 1.5 * noise)  # noise is no reason to look closer
        tried = self._tried.setdefault(bench.name, {})
        table = table_of({"source": "", "tensor_parallel": 1}, {})
        for _ in range(3):  # values that fit nowhere are passed over
            found = refinement(table, bench.name, part, target=target, tried=tried)
            if found is None:
                return False
            axis, values = found
            tried.setdefault(axis, set()).update(values)
            added = self._along(bench, points, axis, values)
            if added:
                self._added.setdefault(bench.name, []).extend(added)
                return True
        return False

    def _along(self, bench: Bench, points: Points, axis: str, values: list[int]) -> list[Point]:
        """All points at new values of an axis, other coordinates as measured."""
        at = [name for name in PART_COLUMNS[bench.name] if name != "operation"].index(axis)
        added = {
            (*point[:at], value, *point[at + 1 :]) for point in points.takes for value in values
        }
        return [point for point in sorted(added) if bench.fits(point) and point not in points.takes]


def part_of(name: str, points: Points) -> Part:
    """The points as the simulator reads them, times as called."""
    columns = [column for column in PART_COLUMNS[name] if column != "operation"]
    measured = sorted(points.takes)
    coordinates = {
        column: np.array([point[i] for point in measured], dtype=np.int64)
        for i, column in enumerate(columns)
    }
    return Part(coordinates, np.array([points.time_us(point) / 1e6 for point in measured]))


def failed(part: str, point: Point, error: Exception) -> CalibrationError:
    """What a device that gave up says, in a line."""
    where = ", ".join(map(str, point))
    why = " ".join(str(error).split())[:200]
    return CalibrationError(
        f"measuring {part} at ({where}) failed: {why}. What was measured until now is kept: run "
        "the same command again to go on"
    )
