"""The charts of a calibration: measured against predicted, roofline, spread, classes, attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reports.page.figures import chart_layout
from reports.page.page import Figure, Key
from reports.page.records import Floats
from reports.page.style import colour
from reports.run.latency_figures import _span
from scenarios.quantity import compact, count, percent

# part -> its name for readers, its colour
PARTS = {
    "linear": ("Linear layers", "running"),
    "prefill_attention": ("Prefill attention", "prefill"),
    "decode_attention": ("Decode attention", "decode"),
    "decode_skew": ("Uneven contexts", "preempted"),
    "logits": ("Logits and sampling", "e2e"),
    "moe": ("Experts", "waiting"),
    "copy": ("Block copy", "reserved"),
    "swap": ("Block swap", "used"),
    "host": ("Host", "held"),
}
AXES = {
    "tokens": "tokens",
    "sequences": "sequences",
    "new_tokens": "new tokens",
    "cached_tokens": "cached tokens",
    "context_tokens": "context tokens",
    "longest_tokens": "longest context",
    "experts": "experts",
    "blocks": "blocks",
}
CLASSES = {"contractions": "decode", "normalisation": "waiting", "element-wise": "prefill"}
# Ivanov et al., "Data movement is all you need" (MLSys 2021), table 1: a BERT layer on a V100.
PUBLISHED = {
    "share_of_flops": {"contractions": 0.998, "normalisation": 0.0017, "element-wise": 0.0003},
    "share_of_time": {"contractions": 0.61, "normalisation": 0.255, "element-wise": 0.135},
}
MOST_CURVES = 6
# On a page of a processor: its times by class, and its speed-up, are no miniature of a GPU's.
NO_FUSION = (
    "This teaches nothing about fusion: a processor's caches hold what a GPU would send to memory "
    "and back, and no Triton kernel ran here. "
)
Columns = Mapping[str, Floats]


def parity(name: str, title: str, groups: Mapping[str, tuple[str, Floats, Floats]]) -> Figure:
    """Predicted over measured µs: one group of points a colour, equal on the diagonal.

    `groups` has by label a colour, measured and predicted times.
    """
    every = np.concatenate([np.concatenate(pair[1:]) for pair in groups.values()])
    low, high = float(every.min()), float(every.max())
    unit, size = ("ms", 1e3) if high >= 2000 else ("µs", 1.0)
    ends = [low / 2 / size, 2 * high / size]
    band = [0.95 * end for end in ends] + [1.05 * end for end in ends[::-1]]
    quiet = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    data: list[dict[str, Any]] = [
        quiet
        | {
            "x": compact([*ends, *ends[::-1]], 5),
            "y": compact(band, 5),
            "fill": "toself",
            "fillcolor": colour("stalled"),
            "opacity": 0.35,
            "line": {"width": 0},
        },
        quiet
        | {
            "x": compact(ends, 5),
            "y": compact(ends, 5),
            "line": {"color": colour("muted"), "width": 1.2},
        },
    ]
    keys = [Key("± 5\u00a0%", "stalled", (0,))]
    for label, (thing, measured, predicted) in groups.items():
        off = [f"{value:+.1f}" for value in ((predicted / measured - 1) * 100).tolist()]
        data.append(
            _points(label, thing, measured / size, predicted / size)
            | {
                "text": off,
                "hovertemplate": f"measured %{{x:.4~g}} {unit}<br>predicted %{{y:.4~g}} {unit}"
                "<br>%{text} %<extra></extra>",
            }
        )
        keys.append(Key(label, thing, (len(data) - 1,)))
    axis = _span(low / size, high / size, True) | {"minor": {}}
    layout = _layout(
        x={"title": {"text": f"measured ({unit}, log scale)"}, **axis},
        y={"title": {"text": f"predicted ({unit})"}, **axis, "rangemode": "normal"},
    )
    errors = np.concatenate([np.abs(p / m - 1) for _, m, p in groups.values()])
    caption = (
        f"{count(errors.size)} points; median error {percent(float(np.median(errors)))}, "
        f"p95 {percent(float(np.percentile(errors, 95)))}."
    )
    return Figure(name, title, caption, data, layout, tuple(keys))


def curves(part: str, columns: Columns, axes: Sequence[str]) -> Figure:
    """A part's times along its first axis, a line for some values of the second."""
    title, thing = PARTS[part]
    x_name, times = axes[0], columns["time_us"]
    unit, size = ("ms", 1e3) if times.max() >= 2000 else ("µs", 1.0)
    data, keys = [], []
    lines: list[tuple[str, np.ndarray]] = [(title, np.ones(len(times), dtype=bool))]
    if len(axes) > 1:
        others = columns[axes[1]]
        shown = _some(np.unique(others))
        lines = [(f"{value:,.0f} {AXES[axes[1]]}", others == value) for value in shown]
    for index, (label, rows) in enumerate(lines):
        order = np.argsort(columns[x_name][rows])
        x, y = columns[x_name][rows][order], times[rows][order] / size
        drawn = [value > 0 for value in x.tolist()]
        look = _shades(thing, index, len(lines))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": compact(x[drawn], 5),
                "y": compact(y[drawn], 4),
                "line": {"width": 1.4, **look["line"]},
                "marker": {"size": 5, **look["marker"]},
                "opacity": look["opacity"],
                "hovertemplate": f"{label}: %{{y:.4~g}} {unit}<extra></extra>",
            }
        )
    keys = [Key(title, thing, tuple(range(len(data))))]
    caption = ""
    if len(lines) > 1:
        values = ", ".join(label.split()[0] for label, _ in lines)
        caption = f"One line for {values} {AXES[axes[1]]}; the fainter, the fewer."
    x = columns[x_name][columns[x_name] > 0]
    layout = _layout(
        x={
            "title": {"text": f"{AXES[x_name]} (log scale)"},
            **_span(float(x.min()), float(x.max()), True),
        },
        y={
            "title": {"text": f"{unit} (log scale)"},
            **_span(float(times.min()) / size, float(times.max()) / size, True),
            "rangemode": "normal",
        },
    )
    return Figure(f"part-{part}", title, caption, data, layout, tuple(keys))


def roofline(parts: Mapping[str, Columns], copy_tb_per_s: float, tflop_per_s: float) -> Figure:
    """Achieved rate over arithmetic intensity, below the two measured roofs."""
    data: list[dict[str, Any]] = []
    keys: list[Key] = []
    xs, ys = [], []
    for part, columns in parts.items():
        rows = (columns["flops"] > 0) & (columns["time_us"] > 0)
        if not rows.any():
            continue
        intensity = columns["flops"][rows] / columns["bytes"][rows]
        achieved = columns["flops"][rows] / columns["time_us"][rows] / 1e6
        title, thing = PARTS[part]
        data.append(
            _points(title, thing, intensity, achieved)
            | {
                "hovertemplate": f"{title}<br>%{{y:.3~g}} TFLOP/s at %{{x:.3~g}} FLOP/byte"
                "<extra></extra>"
            }
        )
        keys.append(Key(title, thing, (len(data) - 1,)))
        xs.append(intensity)
        ys.append(achieved)
    every_x, every_y = np.concatenate(xs), np.concatenate(ys)
    low, high = float(every_x.min()) / 2, float(every_x.max()) * 2
    ridge = tflop_per_s / copy_tb_per_s
    corners = sorted({low, min(max(ridge, low), high), high})
    roof = [min(x * copy_tb_per_s, tflop_per_s) for x in corners]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Measured ceilings",
            "x": compact(corners, 5),
            "y": compact(roof, 5),
            "line": {"color": colour("ink"), "width": 1.6},
            "hoverinfo": "skip",
        }
    )
    keys.append(Key("Measured ceilings", "ink", (len(data) - 1,)))
    layout = _layout(
        x={"title": {"text": "FLOP/byte (log scale)"}, **_span(low, high, True)},
        y={
            "title": {"text": "TFLOP/s (log scale)"},
            **_span(float(every_y.min()), max(float(every_y.max()), max(roof)), True),
            "rangemode": "normal",
        },
        height_px=380,
    )
    caption = (
        "Each point is one measured shape. Bytes are the least that have to move, so a point above "
        "the slope found part of its data in a cache."
    )
    return Figure("roofline-chart", "Roofline", caption, data, layout, tuple(keys))


def spread(parts: Mapping[str, Columns]) -> Figure:
    """How far repeats of a point lie apart, over its time."""
    data: list[dict[str, Any]] = []
    keys = []
    times = np.concatenate([columns["time_us"] for columns in parts.values()])
    shares = np.concatenate([c["spread_us"] / c["time_us"] * 100 for c in parts.values()])
    for part, columns in parts.items():
        title, thing = PARTS[part]
        y = columns["spread_us"] / columns["time_us"] * 100
        data.append(
            _points(title, thing, columns["time_us"], y)
            | {"hovertemplate": f"{title}<br>%{{x:.4~g}} µs, spread %{{y:.2~g}} %<extra></extra>"}
        )
        keys.append(Key(title, thing, (len(data) - 1,)))
    layout = _layout(
        x={
            "title": {"text": "time (µs, log scale)"},
            **_span(float(times.min()), float(times.max()), True),
        },
        y={"title": {"text": "spread (%)"}},
    )
    caption = (
        "The larger of p90 − p10 within a measurement and the distance between measurements, "
        f"relative to the time; median {percent(float(np.median(shares)) / 100)}."
    )
    return Figure("spread-chart", "Spread of repeats", caption, data, layout, tuple(keys))


def operator_classes(found: Mapping[str, Any], *, on_gpu: bool) -> Figure:
    """Shares of operations and of time by class: published, ours before fusion, ours after."""
    bars = {
        "Published FLOPs": PUBLISHED["share_of_flops"],
        "Published time": PUBLISHED["share_of_time"],
        "FLOPs here": found["unfused"]["share_of_flops"],
        "Time, unfused": found["unfused"]["share_of_time"],
        "Time, our kernels" if on_gpu else "Time, reference": found["fused"]["share_of_time"],
    }
    names = list(bars)[::-1]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": names,
            "x": [round(bars[bar][name] * 100, 3) for bar in names],
            "marker": {"color": colour(thing)},
            "hovertemplate": f"{name}: %{{x:.4~g}} %<extra></extra>",
        }
        for name, thing in CLASSES.items()
    ]
    layout = _layout(
        x={"title": {"text": "share (%)"}, "range": [0, 100]},
        y={"automargin": True, "rangemode": "normal"},
        left_px=120,
    )
    layout["barmode"] = "stack"
    keys = tuple(Key(name, thing, (index,)) for index, (name, thing) in enumerate(CLASSES.items()))
    caption = (
        f"One dense layer, one prompt of {found['tokens']:,} tokens. Before fusion it takes "
        f"{found['unfused']['layer_us']:,.0f} µs, "
        f"{'in our kernels' if on_gpu else 'in our float32 reference for processors'} "
        f"{found['fused']['layer_us']:,.0f} µs; a fused kernel counts for what it mainly computes. "
        f"{'' if on_gpu else NO_FUSION}"
        "Published: a BERT layer on a V100 (Ivanov et al., MLSys 2021)."
    )
    return Figure("classes", "Time by class of operation", caption, data, layout, keys)


def flash(rows: Sequence[Mapping[str, float]], on_gpu: bool) -> Figure:
    """Fused attention's speed-up over materialised scores, by length."""
    x = np.array([row["tokens"] for row in rows], dtype=float)
    y = np.array([row["speed_up"] for row in rows], dtype=float)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "Speed-up",
            "x": compact(x, 5),
            "y": compact(y, 4),
            "line": {"color": colour("prefill"), "width": 1.8},
            "hovertemplate": "%{y:.3~g} × at %{x} tokens<extra></extra>",
        }
    ]
    layout = _layout(
        x={
            "title": {"text": "tokens (log scale)"},
            **_span(float(x.min()), float(x.max()), True),
        },
        y={"title": {"text": "× faster"}},
    )
    what = "our kernels" if on_gpu else "torch's fused attention on this processor"
    caption = (
        f"One prompt: {what} against scores in memory. {'' if on_gpu else NO_FUSION}"
        "Published for GPUs: 2 to 4 ×."
    )
    return Figure("flash", "Fused against standard attention", caption, data, layout)


def _layout(
    *, x: dict[str, Any], y: dict[str, Any], height_px: int = 300, left_px: int = 62
) -> dict[str, Any]:
    layout = chart_layout(x=x, y=y, height_px=height_px, left_px=left_px)
    layout["hovermode"] = "closest"
    layout["margin"]["t"] = 20
    return layout


def _points(name: str, thing: str, x: Floats, y: Floats) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": compact(x, 5),
        "y": compact(y, 5),
        "marker": {"color": colour(thing), "size": 6, "opacity": 0.7, "line": {"width": 0}},
    }


def _shades(thing: str, index: int, lines: int) -> dict[str, Any]:
    """One colour, fainter for smaller values: the palette has no more to tell lines apart by."""
    opacity = 1.0 if lines == 1 else 0.35 + 0.65 * index / (lines - 1)
    look = {"color": colour(thing)}
    return {"line": look, "marker": look, "opacity": round(opacity, 3)}


def _some(values: Floats) -> Floats:
    if len(values) <= MOST_CURVES:
        return values
    chosen = np.unique(np.linspace(0, len(values) - 1, MOST_CURVES).round().astype(int))
    shown: Floats = values[chosen]
    return shown
