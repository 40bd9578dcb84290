"""What the what-if page shows of a forecast: a few figures, and charts against the setting before.

A forecast is kept as a *snapshot* of plain JSON, small enough to travel to the browser and back.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reports.page.figures import TimeAxis, chart_layout
from reports.page.records import RunRecords, request_latencies
from reports.page.style import colour, dark_of_light, template
from reports.page.timeline import Timeline, even_edges, run_end_s
from reports.run.headline import report_warnings
from reports.run.latency_figures import METRICS, _span, cdf_points
from reports.what_if.table import figures_of, limits_of
from scenarios.quantity import compact

BINS = 160
Snapshot = dict[str, Any]


def snapshot(records: RunRecords, summary: Mapping[str, Any]) -> Snapshot:
    """The part of a forecast that the page shows."""
    latencies = request_latencies(records.requests)
    curves = {}
    for metric in METRICS:
        values_s = np.sort(latencies.named(metric))
        if values_s.size:
            values, share = cdf_points(values_s)
            curves[metric] = [compact(values * 1e3, 4), compact(share, 4)]
    found: Snapshot = {
        "figures": figures_of(summary),
        "limits": limits_of(summary),
        "warnings": report_warnings(summary),
        "verdict": list((summary.get("verdict") or {}).get("words") or ()),
        "curves": curves,
    }
    end_s = run_end_s(records.requests, records.iterations)
    if len(records.iterations["start_s"]) and end_s > 0:
        edges_s = even_edges(end_s, BINS)
        line = Timeline.over(records.iterations, edges_s)
        shares = line.kv_shares()
        taken = 100 * (1 - shares["free"]) if shares else np.zeros(BINS)
        found["time"] = {
            "edges_s": compact(edges_s, 6),
            "running": compact(line.mean("running"), 4),
            "waiting": compact(line.mean("waiting"), 4),
            "kv": compact(taken, 4),
        }
    return found


def figures(now: Snapshot, before: Snapshot | None, *, dark: bool) -> dict[str, dict[str, Any]]:
    """The page's charts as Plotly JSON, by name."""
    found = {}
    for metric, (short, _, thing) in METRICS.items():
        lines = [
            (which["curves"][metric][0], which["curves"][metric][1], look)
            for which, look in ((before, _BEFORE), (now, _now(thing)))
            if which and metric in which["curves"]
        ]
        shown = [x for xs, _, _ in lines for x in xs if x]
        low, high = min(shown, default=1.0), max(shown, default=1.0)
        logarithmic = high > 8 * low
        note = ", log scale" if logarithmic else ""
        axis: dict[str, Any] = {"title": {"text": f"{short} (ms{note})"}}
        axis |= _span(low, high, logarithmic)
        found[metric] = _chart(lines, axis, {"title": {"text": "% of requests"}, "range": [0, 102]})
    seen = [which["time"] for which in (now, before) if which and "time" in which]
    end_s = max((time["edges_s"][-1] for time in seen), default=1.0)
    over_time = TimeAxis(end_s)
    for name, thing, title in (
        ("running", "running", "requests in the batch"),
        ("waiting", "waiting", "requests waiting"),
        ("kv", "used", "% of KV slots taken"),
    ):
        lines = [
            (over_time.positions(np.array(time["edges_s"])), [*time[name], time[name][-1]], look)
            for which, look in ((before, _BEFORE), (now, _now(thing)))
            if which and (time := which.get("time"))
        ]
        found[name] = _chart(
            lines, over_time.layout(), {"title": {"text": title}, "tickformat": ",~g"}
        )
    return {name: _themed(figure, dark=dark) for name, figure in found.items()}


_BEFORE: dict[str, Any] = {"name": "Before", "color": colour("held"), "width": 5}


def _now(thing: str) -> dict[str, Any]:
    return {"name": "Now", "color": colour(thing), "width": 2}


def _chart(
    lines: list[tuple[list[Any], list[Any], dict[str, Any]]], x: dict[str, Any], y: dict[str, Any]
) -> dict[str, Any]:
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": look["name"],
            "x": xs,
            "y": ys,
            "line": {"shape": "hv", "color": look["color"], "width": look["width"]},
            "hovertemplate": "%{y:.4~g}",
        }
        for xs, ys, look in lines
    ]
    return {"data": data, "layout": chart_layout(x=x, y=y, height_px=230, left_px=56)}


def _themed(figure: dict[str, Any], *, dark: bool) -> dict[str, Any]:
    figure["layout"]["template"] = template(dark=dark)
    return _recoloured(figure, dark_of_light()) if dark else figure  # type: ignore[no-any-return]


def _recoloured(value: Any, colours: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _recoloured(inner, colours) for key, inner in value.items()}
    if isinstance(value, list):
        return [_recoloured(inner, colours) for inner in value]
    return colours.get(value, value) if isinstance(value, str) else value
