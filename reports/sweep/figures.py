"""The charts of a sweep as plain Plotly JSON: heat maps, lines with bands, points, sensitivity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reports.page.figures import chart_layout
from reports.page.page import Figure, Key, plotly_text
from reports.page.style import colour
from reports.sweep.axes import (
    evenly_chosen,
    html_id,
    positions_along,
    scale_ends,
    short,
    spans_decades,
    ticks,
    wrapped,
)
from reports.sweep.words import Measure, axis_label, axis_title, level_label, varying
from scenarios.quantity import GAP, compact, plain
from scenarios.sweep.statistics import Interval, Sensitivity, best_setting, interval, intervals
from scenarios.sweep.table import SweepTable, better

SERIES = ("decode", "prefill", "running", "preempted", "waiting", "e2e", "used", "fragmentation")
# Cividis (Nunez, Anderton, Renslow 2018): the same to every eye, readable on white and on black.
SCALE = ("#00224e", "#2a3f6d", "#575d6d", "#7f7c75", "#a59c74", "#d2c060", "#fee838")
MOST_CELL_TEXTS = 16  # columns of a heat map that still have room for figures


def heat_map(table: SweepTable, metric: str, x_axis: int, y_axis: int) -> Figure:
    """A figure over two axes; over the others, where there are any, its mean is taken."""
    columns, rows = table.levels(x_axis), table.levels(y_axis)
    cells = _cells(table, metric, x_axis, y_axis)
    known = [found.mean for found in cells.values()]
    measure = Measure.of(metric, known)
    z, texts, hovers = [], [], []
    logarithmic = spans_decades(metric, known)
    for y in range(len(rows)):
        found = [cells.get((x, y)) for x in range(len(columns))]
        means = [math.nan if one is None else one.mean / measure.size for one in found]
        z.append(compact(np.log10(means) if logarithmic else means, 6))
        texts.append(["" if one is None else short(one.mean / measure.size) for one in found])
        hovers.append([plotly_text(measure.mean(one)) for one in found])
    low, high = scale_ends([value for row in z for value in row if value is not None])
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "z": z,
            "text": texts,
            "customdata": hovers,
            "texttemplate": "%{text}" if len(columns) <= MOST_CELL_TEXTS else "",
            "textfont": {"size": 11.5},
            "x": list(range(len(columns))),
            "y": list(range(len(rows))),
            "xgap": 2,
            "ygap": 2,
            "zmin": low,
            "zmax": high,
            "colorscale": [[at / (len(SCALE) - 1), tone] for at, tone in enumerate(SCALE)],
            "reversescale": better(metric) < 0,
            "showscale": False,
            "hoverongaps": False,
            "hovertemplate": f"{axis_label(table, x_axis)} %{{x}}<br>"
            f"{axis_label(table, y_axis)} %{{y}}<br>%{{customdata}}<extra></extra>",
        }
    ]
    layout = chart_layout(
        x=ticks(table, x_axis, columns),
        y=ticks(table, y_axis, rows) | {"rangemode": "normal"},
        height_px=110 + 34 * max(len(rows), 4),
        left_px=74 if table.is_numeric(y_axis) else 130,
    )
    layout["hovermode"] = "closest"
    layout["margin"]["t"] = 26
    layout["yaxis"]["showgrid"] = False
    best = _best_cell(table, metric, x_axis, y_axis)
    if best is not None:
        layout["shapes"] = [_frame(*best)]
    name, title = f"heat-{html_id(metric)}-{x_axis}-{y_axis}", measure.title
    if len(varying(table)) > 2:
        title += f" over {axis_label(table, x_axis)} and {axis_label(table, y_axis)}"
    return Figure(name, title, _heat_caption(table, metric, best), data, layout)


def _cells(table: SweepTable, metric: str, x_axis: int, y_axis: int) -> dict[tuple[int, int], Any]:
    """The mean over the seeds of each cell (and over the axes that are not shown)."""
    column = {level: at for at, level in enumerate(table.levels(x_axis))}
    row = {level: at for at, level in enumerate(table.levels(y_axis))}
    values: dict[tuple[int, int], list[float]] = {}
    for setting, found in enumerate(table.by_setting(metric)):
        cell = column[table.level(x_axis, setting)], row[table.level(y_axis, setting)]
        values.setdefault(cell, []).extend(value for value in found if value is not None)
    return {cell: interval(found, table.confidence) for cell, found in values.items() if found}


def _heat_caption(table: SweepTable, metric: str, best: tuple[int, int] | None) -> str:
    words = []
    if best is not None:
        words.append(f"Framed: the best mean ({'highest' if better(metric) > 0 else 'lowest'}).")
    if len(varying(table)) > 2:
        words.append("Each cell is the mean over all settings of the other axes.")
    return " ".join(words)


def _best_cell(table: SweepTable, metric: str, x_axis: int, y_axis: int) -> tuple[int, int] | None:
    if len(varying(table)) > 2:
        return None
    best = best_setting(table, metric)
    if best is None:
        return None
    columns, rows = table.levels(x_axis), table.levels(y_axis)
    return columns.index(table.level(x_axis, best)), rows.index(table.level(y_axis, best))


def _frame(x: int, y: int) -> dict[str, Any]:
    line = {"color": colour("bad"), "width": 3}
    return {"type": "rect", "x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5,
            "line": line}  # fmt: skip


def lines(table: SweepTable, metric: str, x_axis: int, line_axis: int | None) -> Figure:
    """A figure along one axis, a line for each level of another, with confidence bands."""
    levels = [None] if line_axis is None else evenly_chosen(table.levels(line_axis), len(SERIES))
    columns = table.levels(x_axis)
    every = [found.mean for found in intervals(table, metric) if found is not None]
    measure = Measure.of(metric, every)
    positions, axis = positions_along(table, x_axis, columns)
    logarithmic = spans_decades(metric, every)
    known = _means_along(table, metric, x_axis, line_axis)
    found = [[known.get((column, level)) for column in columns] for level in levels]
    shown = [one for line in found for one in line if one is not None]
    floor = _floor(shown) if logarithmic else 0.0
    data: list[dict[str, Any]] = []
    keys: list[Key] = []
    for number, (level, along) in enumerate(zip(levels, found, strict=True)):
        x = [positions[at] for at, one in enumerate(along) if one is not None]
        points = [one for one in along if one is not None]
        if not points:
            continue
        tone = SERIES[number]
        means = [one.mean / measure.size for one in points]
        name = "" if level is None else level_label(level)
        first = len(data)
        data.append(_band(x, points, floor, measure.size, tone))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(name),
                "x": x,
                "y": compact(means, 5),
                "customdata": [plotly_text(measure.mean(one)) for one in points],
                "line": {"color": colour(tone), "width": 1.8},
                "marker": {"color": colour(tone), "size": 6, "line": {"width": 0}},
                "hovertemplate": f"{plotly_text(name)} {'·' if name else ''} %{{customdata}}"
                "<extra></extra>",
            }
        )
        if level is not None:
            keys.append(Key(name, tone, (first, first + 1)))
    y: dict[str, Any] = {"title": {"text": measure.unit or measure.name}}
    if logarithmic:
        y |= {"type": "log", "rangemode": "normal", "dtick": 1, "tickformat": ",~g"}
    layout = chart_layout(x=axis, y=y, height_px=320, left_px=66)
    layout["hovermode"] = "closest"
    layout["margin"]["t"] = 26
    by = "" if line_axis is None else f"A line for each {axis_title(table, line_axis)}. "
    return Figure(
        f"lines-{html_id(metric)}-{x_axis}",
        f"{measure.title} along {axis_label(table, x_axis)}",
        by
        + _band_caption(
            table,
            averaged=len(varying(table)) > (1 if line_axis is None else 2),
            cut="" if not _reaches_0(shown) else "the lowest value shown" if logarithmic else "0",
        ),
        data,
        layout,
        tuple(keys),
    )


def _floor(shown: Sequence[Interval]) -> float:
    """The lowest that a logarithmic axis has to show of these means and their intervals."""
    lows = [one.mean - (one.half or 0.0) for one in shown]
    return min(value for value in [*lows, *(one.mean for one in shown)] if value > 0)


def _reaches_0(shown: Sequence[Interval]) -> bool:
    return any(one.mean > 0 >= one.mean - (one.half or 0.0) for one in shown)


def _band(
    x: list[float], points: Sequence[Interval], floor: float, size: float, tone: str
) -> dict[str, Any]:
    """The confidence interval around a line; nothing is seen of it where it has no width.

    No figure is below 0: what an interval has there is cut at `floor`.
    """
    low = [
        (bottom if bottom > 0 else min(floor, one.mean)) / size
        for one in points
        for bottom in [one.mean - (one.half or 0.0)]
    ]
    high = [(one.mean + (one.half or 0.0)) / size for one in points]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *x[::-1]],
        "y": compact([*low, *high[::-1]], 5),
        "fill": "toself",
        "fillcolor": colour(tone),
        "opacity": 0.2,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _band_caption(table: SweepTable, *, averaged: bool, cut: str) -> str:
    seeds = len(set(table.columns["seed"]))
    words = []
    if seeds > 1:
        level = plain(100 * table.confidence)
        words.append(f"Bands: {level}{GAP}% confidence intervals of the mean over {seeds} seeds.")
        if cut:
            words.append(f"Where an interval reaches 0, its band is cut at {cut}.")
    if averaged:
        words.append("Means are over all settings of the other axes.")
    return " ".join(words)


Levels = tuple[tuple[Any, ...], tuple[Any, ...] | None]


def _means_along(
    table: SweepTable, metric: str, x_axis: int, line_axis: int | None
) -> dict[Levels, Interval]:
    """The means over the settings with the same levels of both axes; None: of one axis alone."""
    values: dict[Levels, list[list[float]]] = {}
    for setting, runs in enumerate(table.by_setting(metric)):
        if known := [value for value in runs if value is not None]:
            level = None if line_axis is None else table.level(line_axis, setting)
            values.setdefault((table.level(x_axis, setting), level), []).append(known)
    return {levels: _mean(found, table.confidence) for levels, found in values.items()}


def _mean(settings: list[list[float]], confidence: float) -> Interval:
    """The mean over settings, each with its runs: over seeds first, so that bands are theirs."""
    if len({len(runs) for runs in settings}) > 1:  # some runs failed
        return interval([value for runs in settings for value in runs], confidence)
    by_seed = [math.fsum(column) / len(settings) for column in zip(*settings, strict=True)]
    return interval(by_seed, confidence)


def points(table: SweepTable, metric: str, axis: int) -> Figure:
    """Every setting of a drawn sweep as a point along one axis."""
    found = intervals(table, metric)
    settings = [setting for setting, one in enumerate(found) if one is not None]
    known = [one for one in found if one is not None]
    measure = Measure.of(metric, [one.mean for one in known])
    columns = table.levels(axis)
    positions, layout_x = positions_along(table, axis, columns)
    at = {level: positions[number] for number, level in enumerate(columns)}
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [at[table.level(axis, setting)] for setting in settings],
            "y": compact([one.mean / measure.size for one in known], 5),
            "error_y": {
                "type": "data",
                "array": compact([(one.half or 0.0) / measure.size for one in known], 4),
                "color": colour("held"),
                "thickness": 1,
                "width": 0,
            },
            "text": [level_label(table.level(axis, setting)) for setting in settings],
            "customdata": [plotly_text(measure.mean(one)) for one in known],
            "marker": {"color": colour("decode"), "size": 7, "line": {"width": 0}},
            "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
        }
    ]
    y: dict[str, Any] = {"title": {"text": measure.unit or measure.name}}
    caption = ""
    if spans_decades(metric, [one.mean for one in known]):
        y |= {"type": "log", "rangemode": "normal", "dtick": 1, "tickformat": ",~g"}
        if _reaches_0(known):
            caption = "Where an interval reaches 0, its bar goes down to the edge."
    layout = chart_layout(x=layout_x, y=y, height_px=300, left_px=66)
    layout["hovermode"] = "closest"
    layout["margin"]["t"] = 26
    title = f"{measure.title} along {axis_label(table, axis)}"
    return Figure(f"points-{html_id(metric)}-{axis}", title, caption, data, layout)


def sensitivity_chart(table: SweepTable, parts: Sequence[Sensitivity]) -> Figure:
    """What the variance of each figure is made of: one bar a figure, one colour an axis."""
    names = [plotly_text(Measure.of(part.metric, ()).name) for part in parts]
    rows = [
        (axis_title(table, axis), SERIES[axis % len(SERIES)],
         [100 * part.effects[axis].share for part in parts])
        for axis in varying(table)
    ]  # fmt: skip
    together = "Together only" if table.sampling == "cartesian" else "Together, and the rest"
    rows.append((together, "held", [100 * part.interaction for part in parts]))
    if len(set(table.columns["seed"])) > 1:
        rows.append(("Seeds", "padding", [100 * part.noise for part in parts]))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plotly_text(label),
            "y": list(range(len(parts))),
            "x": compact(shares, 4),
            "marker": {"color": colour(tone)},
            "customdata": names,
            "hovertemplate": f"%{{customdata}}<br>{plotly_text(label)}: %{{x:.3~g}} %"
            "<extra></extra>",
        }
        for label, tone, shares in rows
    ]
    # Shares of drawn axes are estimates, which may come to more than all.
    whole = max(100.0, *(sum(row[2][at] for row in rows) for at in range(len(parts))))
    layout = chart_layout(
        x={"title": {"text": "% of the variance over all runs"}, "range": [0, whole], "dtick": 25},
        y={
            "tickvals": list(range(len(parts))),
            "ticktext": [wrapped(name) for name in names],
            "autorange": "reversed",
            "rangemode": "normal",
        },
        height_px=80 + 44 * len(parts),
        left_px=110,
    )
    layout |= {"barmode": "stack", "hovermode": "closest", "bargap": 0.35}
    layout["yaxis"]["showgrid"] = False
    caption = (
        "An axis' share is what it explains by itself, averaged over all other axes; "
        f"“{together.lower()}” is what none explains alone."
    )
    keys = tuple(Key(label, tone, (at,)) for at, (label, tone, _) in enumerate(rows))
    return Figure("sensitivity-shares", "Which axis matters", caption, data, layout, keys)
