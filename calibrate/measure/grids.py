"""Which points to measure: steps of two, what tiles and graphs make special, then where it errs.

Times of matrix products have steps (M = 1024 to 1025 costs up to 44 % on a GPU), so tile
boundaries are measured on both sides. Points come coarse first: whenever the time is up, what has
been measured spans the range.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.tables.leave_one_out import errors_by_value
from sim.latency.table_data import LatencyTable, Part

TILE_ROWS = (64, 128, 256)  # rows of the products' tiles: a boundary is a step of its own
SMALLEST_STEP = 1.15  # no finer than this between two values of an axis


def doubling(first: int, last: int) -> list[int]:
    """``first``, twice that, … up to ``last``, which is always there."""
    values = [first * 2**i for i in range(max(0, int(math.log2(last / first))) + 1)]
    return sorted({*values, last})


def token_axis(last: int, *, captured: Sequence[int] = (), tiled: bool = True) -> list[int]:
    """Tokens of a pass: steps of two, graph sizes and, on a GPU, one more than a tile holds."""
    steps = set[int]()
    if tiled:
        steps |= {value for tile in TILE_ROWS for value in (tile, tile + 1)}
        steps |= {value + 1 for value in doubling(512, max(512, last // 2))}
        steps |= {3 * 2**i for i in range(8, 13)}  # between 512 and 8192 a pass takes ms
    wanted = {*doubling(1, last), *steps, *captured}
    return sorted(value for value in wanted if value <= last)


def coarse_first(*axes: Sequence[int]) -> list[tuple[int, ...]]:
    """The points of a grid: corners, then halves, then quarters of every axis."""
    levels = [dict(zip(axis, _levels(len(axis)), strict=True)) for axis in axes]

    def order(point: tuple[int, ...]) -> tuple[object, ...]:
        depth = [level[value] for level, value in zip(levels, point, strict=True)]
        return max(depth), sum(depth), point

    return sorted(itertools.product(*axes), key=order)


def _levels(count: int) -> list[int]:
    """At which halving of the range each of ``count`` positions comes."""
    levels = [0] * count
    spans, depth = [(0, count - 1)], 1
    while spans:
        halves = []
        for low, high in spans:
            if high - low < 2:
                continue
            middle = (low + high) // 2
            levels[middle] = depth
            halves += [(low, middle), (middle, high)]
        spans, depth = halves, depth + 1
    return levels


def refinement(
    table: LatencyTable, name: str, part: Part, *, target: float, tried: Mapping[str, set[int]]
) -> tuple[str, list[int]] | None:
    """The axis and its new values where leave-one-out errs most; None where it errs little.

    New values lie between the worst value's neighbours, at geometric means. `tried` are values, by
    axis, that need no second attempt.
    """
    worst: tuple[float, str, list[int]] | None = None
    for axis in part.coordinates:
        values = np.unique(part.coordinates[axis]).tolist()
        for value, errors in errors_by_value(table, name, part, axis).items():
            error = float(np.median(errors))
            if error <= target or (worst is not None and error <= worst[0]):
                continue
            at = values.index(value)
            between = {
                _between(low, high)
                for low, high in itertools.pairwise(values[max(0, at - 1) : at + 2])
                if low > 0 and high / low > SMALLEST_STEP**2
            }
            new = sorted(between - set(values) - tried.get(axis, set()))
            if new:
                worst = (error, axis, new)
    return None if worst is None else (worst[1], worst[2])


def _between(low: int, high: int) -> int:
    middle = math.sqrt(low * high)
    if middle >= 64:  # odd sizes take paths of their own
        return 16 * round(middle / 16)
    return round(middle)
