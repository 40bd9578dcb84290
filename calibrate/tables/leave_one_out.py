"""Leave-one-out error of a latency table, by part and axis.

Take a measured value of one axis away, look its points up as `sim.latency` does then, compare.
Only points with measured neighbours on both sides count, so that interpolation is judged and not
extrapolation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sim.latency.attention_table import DecodeAttention, PrefillAttention
from sim.latency.grid import Line
from sim.latency.table_data import LatencyTable, Part

SAMPLES = 400  # points looked up for each axis of a part, so that a check takes seconds
MIXED = ("new_tokens", "cached_tokens", "sequences", "context_tokens")

Point = Mapping[str, int]


def errors_along(table: LatencyTable, name: str, part: Part, axis: str) -> list[float]:
    """Relative errors of points looked up without the measurements at their value of the axis.

    `part` is that of this `name` or one operation of it.
    """
    by_value = errors_by_value(table, name, part, axis)
    return [error for errors in by_value.values() for error in errors]


def errors_by_value(
    table: LatencyTable, name: str, part: Part, axis: str
) -> dict[int, list[float]]:
    """The same by the value that was left out."""
    judged = [
        (point, time_s)
        for points in lines_along(part, axis)
        for point, time_s in points[1:-1]
        if time_s > 0
    ]
    if len(judged) > SAMPLES:
        # Not every n-th: points come in rows, and n would follow their length.
        chosen = np.random.default_rng(0).choice(len(judged), SAMPLES, replace=False)
        judged = [judged[i] for i in chosen]
    by_value: dict[int, list[tuple[Point, float]]] = {}
    for point, time_s in judged:
        by_value.setdefault(point[axis], []).append((point, time_s))
    errors = {}
    for value, points in by_value.items():
        kept = part.coordinates[axis] != value
        coordinates = {key: column[kept] for key, column in part.coordinates.items()}
        look_up = _look_up(table, name, Part(coordinates, part.time_s[kept]), axis)
        errors[value] = [abs(look_up(point) / time_s - 1) for point, time_s in points]
    return errors


def _look_up(table: LatencyTable, name: str, part: Part, axis: str) -> Callable[[Point], float]:
    """The simulator's own interpolation of a part, in seconds."""
    if name == "decode_attention":
        decode = DecodeAttention(part)
        return lambda at: decode.line(at["sequences"])(at["context_tokens"])
    if name == "prefill_attention":
        prefill = PrefillAttention(part, None)
        return lambda at: prefill.alone(at["new_tokens"], at["cached_tokens"])
    if name == "bounded_decode":
        decodes = {reach: DecodeAttention(part.at(reach)) for reach in _reaches(part)}
        return lambda at: decodes[at["reach"]].line(at["sequences"])(at["context_tokens"])
    if name == "bounded_prefill":
        prefills = {
            reach: PrefillAttention(part.at(reach), None, reach) for reach in _reaches(part)
        }
        return lambda at: prefills[at["reach"]].alone(at["new_tokens"], at["cached_tokens"])
    if name == "mixed_attention":
        mixed = PrefillAttention(table.parts["prefill_attention"], part)
        return lambda at: mixed.beside(*(at[key] for key in MIXED)) or 0.0
    lines = {
        _others(points[0][0], axis): Line([p[axis] for p, _ in points], [t for _, t in points])
        for points in lines_along(part, axis)
    }
    return lambda at: lines[_others(at, axis)](at[axis])


def _reaches(part: Part) -> list[int]:
    return [int(reach) for reach in np.unique(part.coordinates["reach"])]


def lines_along(part: Part, axis: str) -> list[list[tuple[Point, float]]]:
    """Points along one axis in ascending order, all other coordinates equal."""
    lines: dict[tuple[int, ...], list[tuple[Point, float]]] = {}
    columns = [column.tolist() for column in part.coordinates.values()]
    for *values, time_s in zip(*columns, part.time_s.tolist(), strict=True):
        point = dict(zip(part.coordinates, values, strict=True))
        lines.setdefault(_others(point, axis), []).append((point, time_s))
    return [sorted(points, key=lambda pair: pair[0][axis]) for points in lines.values()]


def _others(point: Point, axis: str) -> tuple[int, ...]:
    return tuple(value for key, value in point.items() if key != axis)
