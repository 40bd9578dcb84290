"""The charts of a plan over load and time: what breaks first and when, and a load that varies."""

from collections.abc import Mapping
from typing import Any

from reports.page.figures import chart_layout
from reports.page.page import Figure, Key, plotly_text
from reports.page.style import colour
from reports.plan.figures import BREAKS
from reports.plan.words import row_of
from scenarios.quantity import compact, plain

Answer = Mapping[str, Any]
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross", "star")  # of the objectives


def until_it_breaks(answer: Answer) -> Figure | None:
    """The chosen deployment's latencies over their limits, against the load of all its replicas."""
    chosen = row_of(answer, answer["chosen"])
    if chosen is None:
        return None
    serving = chosen["serving"]
    trials = sorted([*chosen["trials"], *answer["curve"]], key=lambda one: one["request_rate"])
    load = answer["load"]["request_rate"]
    data: list[dict[str, Any]] = []
    keys = []
    highest = 2.0
    for index, one in enumerate(answer["objectives"]):
        points = [
            (trial["request_rate"] * serving, trial["latencies_ms"][one["name"]] / one["limit_ms"])
            for trial in trials
            if trial["latencies_ms"][one["name"]] is not None
        ]
        thing = BREAKS.get(one["name"].partition(" ")[0], "held")
        shape = SHAPES[index % len(SHAPES)]
        keys.append(Key(one["name"], thing, (index,)))
        highest = max(highest, *(y for _, y in points), 0.0)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(one["name"]),
                "x": compact([x for x, _ in points], 5),
                "y": compact([y for _, y in points]),
                "line": {"color": colour(thing), "width": 1.8},
                "marker": {"color": colour(thing), "symbol": shape, "size": 7},
                "hovertemplate": f"{plotly_text(one['name'])}: %{{y:.3~g}} × its limit at "
                "%{x:.4~g} requests/s<extra></extra>",
            }
        )
    rates = [trial["request_rate"] * serving for trial in trials]
    left, right = min(load, *rates), max(load, chosen["breaks_at"], *rates)
    layout = chart_layout(
        x={
            "title": {"text": "requests/s, all serving replicas together"},
            "range": [0.94 * left, right + 0.06 * left],
        },
        y={"title": {"text": "latency over its limit"}, "range": [0, min(highest, 3.0)]},
        height_px=320,
        left_px=62,
    )
    layout["hovermode"] = "closest"
    layout["shapes"] = [
        _line("y", 1.0, "ink"),
        _line("x", load, "accent"),
        {
            "type": "rect",
            "yref": "paper",
            "x0": serving * chosen["goodput_low"],
            "x1": serving * chosen["goodput_high"],
            "y0": 0,
            "y1": 1,
            "fillcolor": colour("stalled"),
            "opacity": 0.4,
            "line": {"width": 0},
            "layer": "below",
        },
    ]
    layout["annotations"] = [
        _mark(load, "the load", "left"),
        # A line lower: on a narrow page the two are close together.
        _mark(chosen["breaks_at"], "breaks", "right") | {"y": 0.9},
    ]
    return Figure(
        "until-it-breaks",
        "Until it breaks",
        f"{plain(chosen['breaks_at'])} requests/s: the grey band is the "
        f"{answer['confidence']:.0%} interval, the blue line the load. Every point is "
        f"{answer['seeds']} runs; at 1 the limit is reached.",
        data,
        layout,
        tuple(keys),
    )


def _line(axis: str, at: float, thing: str) -> dict[str, Any]:
    other = "x" if axis == "y" else "y"
    return {
        "type": "line",
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        f"{axis}0": at,
        f"{axis}1": at,
        "line": {"color": colour(thing), "width": 1.4, "dash": "dash"},
    }


def _mark(x: float, text: str, side: str) -> dict[str, Any]:
    return {
        "x": x,
        "xanchor": side,
        "yref": "paper",
        "y": 0.98,
        "yanchor": "top",
        "text": f" {text} ",
        "showarrow": False,
        "font": {"size": 12, "color": colour("ink")},
    }


def load_profile(answer: Answer) -> Figure | None:
    """The load over time against what the chosen deployment can carry; None without a trace."""
    profile, chosen = answer["load"]["profile_request_rate"], row_of(answer, answer["chosen"])
    if not profile:
        return None
    window_s = answer["load"]["window_s"]
    unit, size_s = ("h", 3600.0) if window_s * len(profile) > 2 * 3600 else ("min", 60.0)
    edges = [number * window_s / size_s for number in range(len(profile) + 1)]
    top = max(profile)
    layout = chart_layout(
        x={"title": {"text": f"time in the trace ({unit})"}, "range": [0, edges[-1]]},
        y={"title": {"text": "requests/s"}},
        height_px=270,
        left_px=62,
    )
    if chosen is not None:
        carried = chosen["breaks_at"] * (1 - answer["headroom"])
        top = max(top, carried)
        layout["shapes"] = [_line("y", carried, "good")]
        layout["annotations"] = [
            _mark(0, "what the chosen deployment carries, head-room kept", "left")
            | {"yref": "y", "y": carried, "yanchor": "bottom"}
        ]
    layout["yaxis"]["range"] = [0, 1.15 * top]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "load",
            "x": compact(edges, 6),
            "y": compact([*profile, profile[-1]]),
            "line": {"shape": "hv", "color": colour("accent"), "width": 1.8},
            "hovertemplate": "%{y:.4~g} requests/s<extra></extra>",
        }
    ]
    return Figure(
        "load-over-time",
        "The load over time",
        f"Mean rate in windows of {plain(window_s)} s; the busiest decides.",
        data,
        layout,
    )


def replicas_over_time(answer: Answer) -> Figure | None:
    """Replicas hour by hour: those that the load asks for, and what an autoscaler had."""
    found = answer.get("over_time")
    if not found or not found["off"]:
        return None
    size_s = 3600.0 if found["window_s"] * len(found["needed"]) > 2 * 3600 else 60.0
    edges = [number * found["window_s"] / size_s for number in range(len(found["needed"]) + 1)]
    began = round(found["from_s"] / found["window_s"])
    rows = [("asked for by the load", "held", edges, found["needed"])]
    if found["on"]:
        rows.append(("autoscaled", "accent", edges[began:], found["on"]["replicas"]))
    rows.append(("always up", "good", edges[began:], found["off"]["replicas"]))
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": compact(x[: len(y) + 1], 6),
            "y": compact([*y, y[-1]]),
            "line": {"shape": "hv", "color": colour(thing), "width": 1.8},
            "hovertemplate": f"{name}: %{{y:.3~g}} replicas<extra></extra>",
        }
        for name, thing, x, y in rows
    ]
    unit = "h" if size_s == 3600.0 else "min"
    layout = chart_layout(
        x={"title": {"text": f"time in the trace ({unit})"}, "range": [0, edges[-1]]},
        y={"title": {"text": "replicas"}, "rangemode": "tozero"},
        height_px=270,
        left_px=62,
    )
    return Figure(
        "replicas-over-time",
        "Replicas over the day",
        "Means of each window; the autoscaler goes by unfinished requests, and takes its time.",
        data,
        layout,
        tuple(Key(name, thing, (at,)) for at, (name, thing, _, _) in enumerate(rows)),
    )
