"""The distributions of a run's latencies as plain Plotly JSON, with their service levels."""

import math
from typing import Any

import numpy as np

from reports.page.figures import chart_layout, log_ticks
from reports.page.page import Figure
from reports.page.records import Floats, Latencies
from reports.page.style import colour
from reports.run.service_levels import Judgement
from scenarios.quantity import compact, milliseconds, percent

CDF_POINTS = 400

# vLLM's short name: (abbreviation, title, whose colour in the palette)
METRICS = {
    "ttft": ("TTFT", "Time to first token", "prefill"),
    "tpot": ("TPOT", "Time per output token", "decode"),
    "e2el": ("E2E", "End-to-end latency", "e2e"),
}


def cdf_points(values: Floats) -> tuple[Floats, Floats]:
    """The empirical distribution of sorted `values` in at most `CDF_POINTS` points.

    Returns values and the percentage of requests at or below each; the tail above p98 has a
    quarter of the points, because that is where service levels are decided.
    """
    size = values.size
    if size <= CDF_POINTS:
        return values, 100.0 * np.arange(1, size + 1) / size
    body = np.linspace(0.0, 0.98, CDF_POINTS * 3 // 4, endpoint=False)
    tail = np.linspace(0.98, 1.0, CDF_POINTS - body.size)
    rank = np.unique(np.round(np.concatenate([body, tail]) * (size - 1)).astype(np.intp))
    return values[rank], 100.0 * (rank + 1) / size


def latency_cdf(metric: str, latencies: Latencies, judgement: Judgement | None) -> Figure | None:
    """The distribution of one latency over requests, with its SLO; None where nobody has one."""
    short, title, thing = METRICS[metric]
    values_s = np.sort(latencies.named(metric))
    if not values_s.size:
        return None
    in_seconds = float(values_s[-1]) >= 10
    unit, size_s = ("s", 1.0) if in_seconds else ("ms", 1e-3)
    values, share = cdf_points(values_s)
    middle = values_s[[int(0.05 * (values_s.size - 1)), int(0.99 * (values_s.size - 1))]]
    slo_s = judgement.limit_ms / 1e3 if judgement else 0.0
    logarithmic = bool(values_s[0] > 0 and max(middle[1], slo_s) > 8 * middle[0])
    median, p99 = (float(q) * 1e3 for q in np.percentile(values_s, [50, 99]))
    x = compact(np.append(values[:1], values) / size_s, 4)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": short,
            "x": x,
            "y": compact(np.append(0.0, share), 5),
            "line": {"shape": "hv", "color": colour(thing), "width": 2.2},
            "hovertemplate": f"%{{y:.4~g}} % of requests within %{{x:.4~g}} {unit}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "Percentiles",
            "x": compact([median / 1e3 / size_s, p99 / 1e3 / size_s], 4),
            "y": [50, 99],
            "text": ["Median", "p99"],
            "marker": {"color": colour(thing), "size": 8, "line": {"width": 0}},
            "hovertemplate": f"%{{text}} %{{x:.4~g}} {unit}<extra></extra>",
        },
    ]
    caption = f"Median {milliseconds(median)}, p99 {milliseconds(p99)}."
    layout = chart_layout(
        x={"title": {"text": f"{short} ({unit}{', log scale' if logarithmic else ''})"}},
        y={"title": {"text": "% of requests"}, "range": [0, 102], "dtick": 25},
        height_px=286,
        left_px=52,
    )
    layout["margin"]["t"] = 26  # the buttons' row, clear of the curve's upper end
    layout["hovermode"] = "closest"
    layout["hoverdistance"] = 40
    low, high = float(values_s[0]) / size_s, float(values_s[-1]) / size_s
    if judgement is not None:
        caption += f" {percent(judgement.within)} within the SLO of "
        caption += f"{milliseconds(judgement.limit_ms)}."
        line = slo_s / size_s
        low, high = min(low, line), max(high, line)
        middle_x = math.sqrt(low * high) if logarithmic else 0.5 * (low + high)
        _slo_line(layout, line, logarithmic, label_left=line > middle_x)
    layout["xaxis"] |= _span(low, high, logarithmic)
    return Figure(f"cdf-{metric}", title, caption, data, layout)


def _slo_line(layout: dict[str, Any], x: float, logarithmic: bool, *, label_left: bool) -> None:
    layout["shapes"] = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": colour("ink"), "width": 1.4, "dash": "dash"},
        }
    ]
    layout["annotations"] = [
        {
            "x": math.log10(x) if logarithmic else x,
            "xanchor": "right" if label_left else "left",
            "yref": "paper",
            "y": 0.04,
            "yanchor": "bottom",
            "text": " SLO ",
            "showarrow": False,
            "font": {"size": 12, "color": colour("ink")},
        }
    ]


def _span(low: float, high: float, logarithmic: bool) -> dict[str, Any]:
    """An axis from just below `low` to just above `high`."""
    if logarithmic:
        bottom, top = math.log10(low), math.log10(high)
        spare = 0.04 * max(top - bottom, 0.1)
        ticks = log_ticks(bottom, top)
        return {
            "type": "log",
            "range": [bottom - spare, top + spare],
            **ticks,
            "tickformat": ",~g",
            "minor": {"ticks": "outside", "ticklen": 2},
        }
    spare = 0.04 * (high - low) or 0.5 * max(high, 1e-6)
    return {"range": [max(0.0, low - spare), high + spare], "nticks": 6, "tickformat": ",~g"}
