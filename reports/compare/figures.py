"""The charts of a comparison: requests on the line of parity, distributions, load over time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reports.page.figures import TIME_HEIGHT_PX, TimeAxis, chart_layout
from reports.page.page import Figure, Key, plotly_text
from reports.page.records import Floats
from reports.page.style import colour
from reports.page.timeline import even_edges
from reports.run.latency_figures import METRICS, _span, cdf_points
from scenarios.quantity import compact, count, percent
from sim.waits import Waits

BAND = 0.1  # the parity plots' band: within 10 % of the measurement
MAX_POINTS = 2_000  # of a parity plot
LOAD_BINS = 300
LOOKS = {"ttft": METRICS["ttft"], "tpot": METRICS["tpot"], "e2e": METRICS["e2el"]}


class Side(Protocol):
    """One run of a comparison: columns by request in order of arrival, s from the first one."""

    @property
    def label(self) -> str: ...
    @property
    def recorded(self) -> bool: ...
    @property
    def has_arrivals(self) -> bool: ...
    @property
    def arrival_s(self) -> Floats: ...
    @property
    def scheduled_s(self) -> Floats: ...
    @property
    def first_token_s(self) -> Floats: ...
    @property
    def finished_s(self) -> Floats: ...
    @property
    def preempted_s(self) -> Floats: ...
    @property
    def resumed_s(self) -> Floats: ...
    @property
    def samples(self) -> Mapping[str, Floats] | None: ...


def side_names(a: Side, b: Side) -> tuple[str, str]:
    """What to call the two runs: forecast and measured, or A and B where both are of one kind."""
    if a.recorded == b.recorded:
        return "A", "B"
    return ("Measured", "Forecast") if a.recorded else ("Forecast", "Measured")


def parity(
    metric: str, a_s: Floats, b_s: Floats, names: tuple[str, str], *, labels: Sequence[str]
) -> Figure:
    """Every request as a point: the measurement across, the forecast up, equal on the diagonal.

    `labels` name the requests, one for each latency.
    """
    short, title, thing = LOOKS[metric]
    low_s, high_s = float(min(a_s.min(), b_s.min())), float(max(a_s.max(), b_s.max()))
    unit, size_s = ("s", 1.0) if high_s >= 10 else ("ms", 1e-3)
    logarithmic = low_s > 0 and high_s > 20 * low_s
    within = float((np.abs(a_s - b_s) <= BAND * b_s).mean())
    caption = f"{percent(within)} of {count(a_s.size)} requests within {BAND * 100:.0f}\u00a0%."
    shown = _sample(a_s, b_s)
    if shown.size < a_s.size:
        caption += f" {count(shown.size)} are drawn, the farthest apart among them."
    low, high = low_s / size_s, high_s / size_s
    start = low / 2 if logarithmic else 0.0
    ends = [start, 2 * high]
    band = [(1 - BAND) * end for end in ends] + [(1 + BAND) * end for end in ends[::-1]]
    x, y = b_s[shown] / size_s, a_s[shown] / size_s
    off = [f"{(value_a / value_b - 1) * 100:+.2f}" if value_b else "–" for value_a, value_b
           in zip(y.tolist(), x.tolist(), strict=True)]  # fmt: skip
    quiet = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    data: list[dict[str, Any]] = [
        quiet | {
            "name": "Within 10 %", "x": compact([*ends, *ends[::-1]], 5), "y": compact(band, 5),
            "fill": "toself", "fillcolor": colour("stalled"), "opacity": 0.35, "line": {"width": 0},
        },
        quiet | {
            "name": "Equal", "x": compact(ends, 5), "y": compact(ends, 5),
            "line": {"color": colour("muted"), "width": 1.2},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": short,
            "x": compact(x, 5),
            "y": compact(y, 5),
            "text": off,
            "customdata": [plotly_text(labels[row]) for row in shown.tolist()],
            "marker": {"color": colour(thing), "size": 5, "opacity": 0.6, "line": {"width": 0}},
            "hovertemplate": f"request %{{customdata}}<br>{names[0]} %{{y:.5~g}} {unit}<br>"
            f"{names[1]} %{{x:.5~g}} {unit}<br>%{{text}} %<extra></extra>",
        },
    ]  # fmt: skip
    note = ", log scale" if logarithmic else ""
    axis = _span(low, high, logarithmic) | {"minor": {}}
    layout = chart_layout(
        x={"title": {"text": f"{names[1]} {short} ({unit}{note})"}, **axis},
        y={"title": {"text": f"{names[0]} ({unit})"}, **axis, "rangemode": "normal"},
        height_px=320,
        left_px=62,
    )
    layout["hovermode"] = "closest"
    layout["margin"]["t"] = 26
    layout["yaxis"]["showgrid"] = False
    keys = (Key(f"± {BAND * 100:.0f}\u00a0%", "stalled", (0,)),)
    return Figure(f"parity-{metric}", title, caption, data, layout, keys)


def _sample(a_s: Floats, b_s: Floats) -> npt.NDArray[np.intp]:
    """At most MAX_POINTS rows: half of them the farthest off, the others evenly from the rest."""
    size = a_s.size
    if size <= MAX_POINTS:
        return np.arange(size)
    order = np.argsort(-np.abs(np.log(np.maximum(a_s, 1e-9) / np.maximum(b_s, 1e-9))))
    half = MAX_POINTS // 2
    even = np.linspace(half, size - 1, MAX_POINTS - half).astype(np.intp)
    return np.sort(order[np.concatenate([np.arange(half), even])])


def overlaid_cdf(metric: str, a_s: Floats, b_s: Floats, names: tuple[str, str]) -> Figure:
    """Both distributions of a latency, the measured one wide and grey below the other."""
    short, title, thing = LOOKS[metric]
    low_s, high_s = float(min(a_s.min(), b_s.min())), float(max(a_s.max(), b_s.max()))
    unit, size_s = ("s", 1.0) if high_s >= 10 else ("ms", 1e-3)
    logarithmic = low_s > 0 and high_s > 20 * low_s
    data: list[dict[str, Any]] = []
    for values_s, name, look in ((b_s, names[1], _UNDER), (a_s, names[0], _over(thing))):
        values, share = cdf_points(np.sort(values_s))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": compact(np.append(values[:1], values) / size_s, 4),
                "y": compact(np.append(0.0, share), 5),
                "line": {"shape": "hv", **look},
                "hovertemplate": f"{name}: %{{y:.4~g}} % within %{{x:.4~g}} {unit}<extra></extra>",
            }
        )
    layout = cdf_layout(f"{short} ({unit}{', log scale' if logarithmic else ''})")
    layout["xaxis"] |= _span(low_s / size_s, high_s / size_s, logarithmic)
    keys = (Key(names[0], thing, (1,)), Key(names[1], "held", (0,)))
    return Figure(f"cdf-{metric}", title, "", data, layout, keys)


def cdf_layout(title: str) -> dict[str, Any]:
    """Of shares of requests over a latency; what the latency's axis spans is yet to be said."""
    layout = chart_layout(
        x={"title": {"text": title}},
        y={"title": {"text": "% of requests"}, "range": [0, 102], "dtick": 25},
        height_px=286,
        left_px=52,
    )
    layout["margin"]["t"] = 26
    layout["hovermode"] = "closest"
    return layout


_UNDER: dict[str, Any] = {"color": colour("held"), "width": 5}


def _over(thing: str) -> dict[str, Any]:
    return {"color": colour(thing), "width": 1.8}


def load_figures(a: Side, b: Side, names: tuple[str, str]) -> Iterator[Figure]:
    """Running and waiting requests over time in both runs; nothing without arrivals in either."""
    if not (a.has_arrivals and b.has_arrivals):
        return
    end_s = max(end_s_of(a), end_s_of(b))
    if end_s <= 0:
        return
    axis = TimeAxis(end_s)
    loads = [load_over_time(side, end_s) for side in (a, b)]
    for thing, title in (("running", "Running requests"), ("waiting", "Waiting requests")):
        data: list[dict[str, Any]] = []
        for which, look in ((1, _UNDER), (0, _over(thing))):
            time_s, values, shape = loads[which][thing]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": names[which],
                    "x": axis.positions(time_s),
                    "y": compact(values, 4),
                    "line": {"shape": shape, **look},
                    "hovertemplate": "%{y:.3~s}",
                }
            )
        layout = chart_layout(
            x=axis.layout() | {"title": {"text": f"Time since the first arrival ({axis.unit[0]})"}},
            y={"title": {"text": "requests"}, "tickformat": ",~g"},
            height_px=TIME_HEIGHT_PX,
            left_px=66,
        )
        keys = (Key(names[0], thing, (1,)), Key(names[1], "held", (0,)))
        yield Figure(thing, title, LOAD_CAPTIONS[thing], data, layout, keys, group="time")


LOAD_CAPTIONS = {
    "running": "From being first in a batch to the last token, preemptions taken out where known.",
    "waiting": "From arrival until first in a batch, and while preempted where that is known.",
}


def counted(side: Side) -> bool:
    """Whether the load of a run is what its engine counted, not derived from its requests."""
    return side.samples is not None


def end_s_of(side: Side) -> float:
    ends = [side.finished_s, side.arrival_s]
    if side.samples is not None:
        ends.append(side.samples["t"])
    return max((float(np.nanmax(end)) for end in ends if np.isfinite(end).any()), default=0.0)


def load_over_time(side: Side, end_s: float) -> dict[str, tuple[Floats, Floats, str]]:
    """By state: times, requests in it, the line's shape."""
    if side.samples is not None:
        time_s = side.samples["t"]
        return {state: (time_s, side.samples[state], "linear") for state in ("running", "waiting")}
    first_s = np.where(np.isfinite(side.scheduled_s), side.scheduled_s, side.first_token_s)
    began = np.isfinite(first_s) & np.isfinite(side.finished_s)
    waits = Waits(
        _sorted(side.arrival_s[began], side.preempted_s), _sorted(first_s[began], side.resumed_s)
    )
    runs = Waits(
        _sorted(first_s[began], side.resumed_s), _sorted(side.finished_s[began], side.preempted_s)
    )
    edges_s = even_edges(end_s, LOAD_BINS)
    steps = {"running": runs.mean(edges_s), "waiting": waits.mean(edges_s)}
    return {state: (edges_s, np.append(y, y[-1:]), "hv") for state, y in steps.items()}


def _sorted(*times_s: Floats) -> Floats:
    together = np.concatenate(times_s)
    return np.sort(together[np.isfinite(together)])
