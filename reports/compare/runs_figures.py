"""The charts of runs of one kind: distributions over each other, load and outcomes side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reports.compare.figures import LOOKS, Side, cdf_layout, end_s_of, load_over_time
from reports.compare.runs_words import OUTCOMES, Beside
from reports.page.figures import TIME_HEIGHT_PX, TimeAxis, chart_layout, log_ticks
from reports.page.page import Figure, Key
from reports.page.records import Floats
from reports.page.style import colour
from reports.run.latency_figures import cdf_points
from scenarios.quantity import compact

OVERLAID = 6  # lines that one chart still keeps apart; more runs get a chart each
# Far apart in hue and in lightness, also for those who do not see all hues.
LINES = ("decode", "prefill", "running", "e2e", "preempted", "waiting")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
UNITS = {
    "output": "tokens/s",
    "request_goodput": "requests/s",
    "slo_attainment": "%",
    "kv_utilization": "%",
    "preemptions": "preemptions",
    "usd_per_hour": "USD",
    "usd_per_million_output_tokens": "USD",
}
SHARES = {"slo_attainment", "kv_utilization"}


def distributions(names: Sequence[str], latencies_s: Mapping[str, list[Floats]]) -> list[Figure]:
    """By metric the distribution of every run: over each other, or each over the first run's."""
    figures = []
    for metric, every in latencies_s.items():
        known = [np.sort(values[np.isfinite(values)]) for values in every]
        some = [values for values in known if values.size]
        if not some:
            continue
        low_s = min(float(values[0]) for values in some)
        high_s = max(float(values[-1]) for values in some)
        if len(names) <= OVERLAID:
            groups = [tuple(range(len(names)))]
        else:
            groups = [(0, at) for at in range(1, len(names))]
        figures += [_cdf(metric, names, known, group, (low_s, high_s)) for group in groups]
    return figures


def _cdf(
    metric: str,
    names: Sequence[str],
    every: Sequence[Floats],
    shown: tuple[int, ...],
    span_s: tuple[float, float],
) -> Figure:
    short, title, _ = LOOKS[metric]
    low_s, high_s = span_s
    unit, size_s = ("s", 1.0) if high_s >= 10 else ("ms", 1e-3)
    logarithmic = low_s > 0 and high_s > 20 * low_s
    data: list[dict[str, Any]] = []
    keys = []
    for place, run in enumerate(shown):
        if not every[run].size:
            continue
        values, share = cdf_points(every[run])
        keys.append(Key(names[run], LINES[place], (len(data),)))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": names[run],
                "x": compact(np.append(values[:1], values) / size_s, 4),
                "y": compact(np.append(0.0, share), 5),
                "line": {"shape": "hv", "width": 1.8, **_line(place)},
                "hovertemplate": f"{names[run]}: %{{y:.4~g}} % within %{{x:.4~g}} {unit}"
                "<extra></extra>",
            }
        )
    layout = cdf_layout(f"{short} ({unit}{', log scale' if logarithmic else ''})")
    low, high = low_s / size_s, high_s / size_s
    if logarithmic:
        ends = [float(np.log10(low)), float(np.log10(high))]
        layout["xaxis"] |= {"type": "log", "range": ends, **log_ticks(*ends)}
    else:
        layout["xaxis"] |= {"range": [0, high * 1.02]}
    each = "" if len(shown) == len(names) else f"-{names[shown[-1]]}"
    beside = "" if not each else f" · {names[shown[-1]]}"
    return Figure(f"cdf-{metric}{each}", f"{title}{beside}", "", data, layout, tuple(keys))


def _line(place: int) -> dict[str, Any]:
    return {"color": colour(LINES[place]), "dash": DASHES[place]}


def loads(names: Sequence[str], runs: Sequence[Side]) -> Iterator[Figure]:
    """Running and waiting requests over time, a chart for each run, all on the same scales."""
    known = [(name, run) for name, run in zip(names, runs, strict=True) if run.has_arrivals]
    end_s = max((end_s_of(run) for _, run in known), default=0.0)
    if end_s <= 0:
        return
    axis = TimeAxis(end_s)
    each = [(name, load_over_time(run, end_s)) for name, run in known]
    top = max(float(y.max(initial=0)) for _, load in each for _, y, _ in load.values())
    for name, load in each:
        data: list[dict[str, Any]] = [
            {
                "type": "scatter",
                "mode": "lines",
                "name": thing.capitalize(),
                "x": axis.positions(load[thing][0]),
                "y": compact(load[thing][1], 4),
                "line": {"shape": load[thing][2], "color": colour(thing), "width": 1.8},
                "hovertemplate": "%{y:.3~s}",
            }
            for thing in ("waiting", "running")
        ]
        layout = chart_layout(
            x=axis.layout() | {"title": {"text": f"Time since the first arrival ({axis.unit[0]})"}},
            y={
                "title": {"text": "requests"},
                "tickformat": ",~g",
                "range": [0, 1.04 * top or 1],
            },
            height_px=TIME_HEIGHT_PX,
            left_px=66,
        )
        keys = (Key("Running", "running", (1,)), Key("Waiting", "waiting", (0,)))
        yield Figure(f"load-{name}", f"{name}", "", data, layout, keys, group="time")


def outcomes(beside: Beside) -> Iterator[Figure]:
    """A small chart for every figure of whole runs that is not the same everywhere."""
    figures = dict(beside.get("outcomes") or {})
    figures = {"output": beside["throughput"]["output"], **figures}
    for key, figure in figures.items():
        values = figure["values"]
        if len(set(values)) < 2:
            continue
        label = "Output tokens/s" if key == "output" else OUTCOMES[key][0]
        shown = [None if v is None else v * (100 if key in SHARES else 1) for v in values]
        best = figure["best"]
        data: list[dict[str, Any]] = [
            {
                "type": "bar",
                "x": list(beside["names"]),
                "y": compact([np.nan if v is None else v for v in shown], 4),
                "marker": {
                    "color": [colour("good" if at in best else "held") for at in range(len(values))]
                },
                "hovertemplate": "%{x}: %{y:.4~g}<extra></extra>",
            }
        ]
        layout = chart_layout(
            x={"type": "category", "range": [-0.6, len(values) - 0.4]},
            y={"title": {"text": UNITS[key]}, "tickformat": ",~g"},
            height_px=200,
            left_px=66,
        )
        layout["hovermode"] = "closest"
        yield Figure(f"outcome-{key.replace('_', '-')}", label, "", data, layout)
