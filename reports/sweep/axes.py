"""The axes of a sweep's charts: places, number lines, ticks, and numbers short enough for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from reports.page.page import plotly_text
from reports.sweep.words import axis_title, level_label
from scenarios.quantity import plain
from scenarios.sweep.table import SweepTable, better

LEAST_APART = 0.12  # of an axis, between two labels


def ticks(table: SweepTable, axis: int, levels: list[tuple[Any, ...]]) -> dict[str, Any]:
    """An axis with a place for each level."""
    size = len(levels)
    step = 1 if size <= 24 else math.ceil(size / 24)
    shown = range(0, size, step)
    return {
        "title": {"text": plotly_text(axis_title(table, axis))},
        "range": [-0.5, size - 0.5],
        "tickvals": list(shown),
        "ticktext": [wrapped(plotly_text(level_label(levels[at]))) for at in shown],
        "zeroline": False,
    }


def positions_along(
    table: SweepTable, axis: int, levels: list[tuple[Any, ...]]
) -> tuple[list[float], dict[str, Any]]:
    """Where each level lies, and the axis: a number line, a logarithmic one, or places."""
    numbers = [level[0] for level in levels]
    if not table.is_numeric(axis) or len(levels) < 2:
        return [float(at) for at in range(len(levels))], ticks(table, axis, levels)
    title = {"title": {"text": plotly_text(axis_title(table, axis))}, "zeroline": False}
    few = len(levels) <= 12 and table.sampling == "cartesian"
    if min(numbers) > 0 and max(numbers) / min(numbers) > 8:
        low, high = math.log10(min(numbers)), math.log10(max(numbers))
        spare = 0.04 * (high - low)
        line: dict[str, Any] = {"type": "log", "range": [low - spare, high + spare]}
        if few:
            shown = _apart(numbers, [math.log10(n) for n in numbers])
            line |= {"tickvals": shown, "ticktext": [level_label((n,)) for n in shown]}
        else:
            line |= {"dtick": 1 if high - low > 2 else "D2", "tickformat": "~s"}
        return numbers, title | line
    spare = 0.04 * (max(numbers) - min(numbers))
    line = {"range": [min(numbers) - spare, max(numbers) + spare]}
    evenly = few and len(levels) <= 8
    shown = _apart(numbers, numbers)
    return numbers, title | line | ({"tickvals": shown} if evenly else {"nticks": 8})


def _apart(numbers: list[float], places: list[float]) -> list[float]:
    """Those whose labels do not touch on a narrow page, the first and the last among them."""
    least = LEAST_APART * (max(places) - min(places))
    shown: list[tuple[float, float]] = []
    for place, number in sorted(zip(places, numbers, strict=True)):
        if not shown or place - shown[-1][0] >= least:
            shown.append((place, number))
    last = max(zip(places, numbers, strict=True))
    if shown[-1] != last:
        if len(shown) > 1 and last[0] - shown[-1][0] < least:
            shown.pop()
        shown.append(last)
    return [number for _, number in shown]


def spans_decades(metric: str, values: Sequence[float]) -> bool:
    """Whether a figure is best seen in its logarithm; how far below its best one is, is not."""
    if better(metric) > 0 or not values:
        return False
    return min(values) > 0 and max(values) > 30 * min(values)


def scale_ends(values: Sequence[float | int]) -> tuple[float, float]:
    """A colour scale's ends, apart also where all values are the same."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if low < high else (low - 1.0, high + 1.0)


def evenly_chosen(levels: list[tuple[Any, ...]], most: int) -> list[tuple[Any, ...]]:
    """At most `most` levels, evenly from first to last."""
    if len(levels) <= most:
        return levels
    return [levels[round(at * (len(levels) - 1) / (most - 1))] for at in range(most)]


def short(value: float) -> str:
    """A figure in a cell: four letters, where that is possible."""
    size = abs(value)
    if size >= 1e4:
        letter, unit = next((n, u) for n, u in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if size >= u)
        return f"{plain(value / unit, 2)}{letter}"
    if size >= 100:
        return f"{value:.0f}"
    return plain(value, 3 if size >= 1 else 2 if size >= 0.1 else 1)


def wrapped(text: str) -> str:
    """A label on two lines where it is long."""
    if len(text) <= 14 or " " not in text:
        return text
    middle = min(
        (at for at, letter in enumerate(text) if letter == " "),
        key=lambda at: abs(at - len(text) / 2),
    )
    return f"{text[:middle]}<br>{text[middle + 1 :]}"


def html_id(metric: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in metric)
