"""The run's iterations under their GPU's roof: arithmetic intensity against achieved FLOP/s.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from reports.page.figures import chart_layout, log_ticks
from reports.page.page import Figure, Key, plotly_text
from reports.page.records import Columns, Floats
from reports.page.style import colour
from scenarios.quantity import compact, count, percent

# kind of an iteration: (label, whose colour, marker); the order of
# `scenarios.forecast.run_details.KINDS`
KINDS = (
    ("Prefill", "prefill", "diamond"),
    ("Mixed", "mixed", "square"),
    ("Decode", "decode", "circle"),
)
_DASHES = ("solid", "dash", "dot", "dashdot")


def roofline(work: Mapping[str, Any], iterations: Columns) -> Figure | None:
    """The sampled iterations of `work` (details.json); None where none has work and takes time."""
    rows = np.asarray(work["rows"], dtype=np.intp)
    flops, moved = (np.asarray(work[name], dtype=np.float64) for name in ("flops", "bytes"))
    kind, roof_of = (np.asarray(work[name], dtype=np.intp) for name in ("kind", "roof"))
    if rows.size and not 0 <= rows.min() <= rows.max() < len(iterations["start_s"]):
        raise ValueError("details.json is not of these iterations; delete it to do without")
    duration_s = np.asarray(iterations["duration_s"], dtype=np.float64)[rows]
    good = (duration_s > 0) & (flops > 0) & (moved > 0)
    if not good.any():
        return None
    rows, kind, roof_of = rows[good], kind[good], roof_of[good]
    flops, moved, duration_s = flops[good], moved[good], duration_s[good]
    intensity, rate = flops / moved, flops / duration_s
    peaks = np.array([roof["peak_flops_per_s"] for roof in work["roofs"]])
    bandwidths = np.array([roof["memory_bytes_per_s"] for roof in work["roofs"]])
    allowed = np.minimum(peaks[roof_of], bandwidths[roof_of] * intensity)
    reached = rate / allowed
    data: list[dict[str, Any]] = []
    keys = []
    for number, (label, thing, symbol) in enumerate(KINDS):
        mine = kind == number
        if mine.any():
            keys.append(Key(label, thing, (len(data),)))
            data.append(
                _points(label, thing, symbol, intensity[mine], rate[mine])
                | {"customdata": _hover(iterations, rows[mine], duration_s[mine], reached[mine])}
            )
    low, high = _decades(intensity, peaks / bandwidths)
    bottom, top = _decades(rate / 1e12, peaks / 1e12)
    layout = chart_layout(
        x={
            **_log_axis(low, high),
            "title": {"text": "Arithmetic intensity (FLOP/byte, log scale)"},
        },
        y={
            **_log_axis(bottom, top),
            "title": {"text": "Achieved per GPU (TFLOP/s, log scale)"},
        },
        height_px=400,
        left_px=66,
    )
    layout["margin"]["t"] = 26
    layout["hovermode"] = "closest"
    layout["annotations"] = []
    for number, roof in enumerate(work["roofs"]):
        data.append(_ceiling(roof, _DASHES[number % len(_DASHES)], low, high))
        layout["annotations"] += _names(roof, bottom, high)
    return Figure(
        "roofline",
        "Roofline of the iterations",
        _caption(work, kind, reached),
        data,
        layout,
        tuple(keys),
    )


def _caption(work: Mapping[str, Any], kind: Any, reached: Floats) -> str:
    told = []
    totals = work["of_each_kind"]
    for number, (label, _, _) in enumerate(KINDS):
        mine = kind == number
        if mine.any():
            share = percent(float(np.median(reached[mine])))
            told.append(
                f"{label.lower()} iterations ({count(int(mine.sum()))} of {count(totals[number])} "
                f"drawn) reach {share}"
            )
    return (
        f"Of what the roof allows at their intensity, {'; '.join(told)} (medians). Work is that of "
        "matrix products and attention on one GPU; time is all of the iteration, host and "
        "communication included."
        + (" Points above the roof: faster than this GPU can." if (reached > 1).any() else "")
    )


def _points(label: str, thing: str, symbol: str, x: Floats, y: Floats) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": compact(x, 4),
        "y": compact(y / 1e12, 4),
        "marker": {
            "color": colour(thing),
            "symbol": symbol,
            "size": 6,
            "opacity": 0.6,
            "line": {"width": 0},
        },
        "hovertemplate": (
            "%{customdata}<br>%{y:.3~g} TFLOP/s at %{x:.3~g} FLOP/byte<extra></extra>"
        ),
    }


def _hover(iterations: Columns, rows: Any, duration_s: Floats, reached: Floats) -> list[str]:
    tokens = np.asarray(iterations["num_tokens"])[rows].tolist()
    return [
        f"iteration {row + 1:,}: {many:,} tokens, {time_ms:.3g} ms, {100 * share:.3g} % of the roof"
        for row, many, time_ms, share in zip(
            rows.tolist(), tokens, (duration_s * 1e3).tolist(), reached.tolist(), strict=True
        )
    ]


def _decades(values: Floats, marks: Floats) -> tuple[float, float]:
    """Logarithms (base 10) of an axis that holds all values and marks with some room."""
    low = min(float(values.min()), float(marks.min()))
    high = max(float(values.max()), float(marks.max()))
    return math.log10(low) - 0.15, math.log10(high) + 0.25


def _log_axis(low: float, high: float) -> dict[str, Any]:
    return {
        "type": "log",
        "range": [low, high],
        **log_ticks(low, high),
        "tickformat": ",~g",
        "rangemode": "normal",
        "minor": {"ticks": "outside", "ticklen": 2},
    }


def _ceiling(roof: Mapping[str, Any], dash: str, low: float, high: float) -> dict[str, Any]:
    peak, bandwidth = roof["peak_flops_per_s"], roof["memory_bytes_per_s"]
    ridge = peak / bandwidth
    x = [10**low, min(max(ridge, 10**low), 10**high), 10**high]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plotly_text(str(roof["gpu"])),
        "x": compact(x, 5),
        "y": compact([min(peak, bandwidth * at) / 1e12 for at in x], 5),
        "line": {"color": colour("ink"), "width": 1.6, "dash": dash},
        "hoverinfo": "skip",
    }


def _names(roof: Mapping[str, Any], bottom: float, high: float) -> list[dict[str, Any]]:
    """The ceilings in words, each beside its line."""
    peak, bandwidth = roof["peak_flops_per_s"], roof["memory_bytes_per_s"]
    gpu = plotly_text(str(roof["gpu"]))
    words = f"{peak / 1e12:,.0f} TFLOP/s {plotly_text(str(roof['weight_dtype']))}"
    font = {"size": 12, "color": colour("muted")}
    # Where the bandwidth's slope crosses the middle of the picture.
    middle = 0.5 * (bottom + math.log10(peak / 1e12))
    return [
        {
            "x": high,
            "xanchor": "right",
            "y": math.log10(peak / 1e12),
            "yanchor": "bottom",
            "text": f"{gpu}: {words}",
            "showarrow": False,
            "font": font,
        },
        {
            "x": middle - math.log10(bandwidth / 1e12),
            "xanchor": "right",
            "y": middle,
            "yanchor": "bottom",
            "text": f"{bandwidth / 1e12:.3g} TB/s",
            "showarrow": False,
            "font": font,
        },
    ]
