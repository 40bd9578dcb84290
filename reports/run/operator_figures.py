"""Where the time goes: an iteration's operator classes, in all and over time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reports.page.figures import TIME_HEIGHT_PX, TimeAxis, chart_layout
from reports.page.page import Figure, Key, plotly_text
from reports.page.style import colour
from scenarios.quantity import compact, percent, seconds

# class: (label, whose colour); in the order in which they are stacked. `OPERATORS` in
# sim/latency/protocol.py says what each one holds.
CLASSES: dict[str, tuple[str, str]] = {
    "contractions": ("Matrix products", "contractions"),
    "layers": ("Layers but attention", "contractions"),
    "fixed": ("Iteration, given", "contractions"),
    "experts": ("Experts", "experts"),
    "attention": ("Attention", "attention"),
    "stages": ("Attention, stage waits", "attention"),
    "elementwise": ("Norms, activations", "elementwise"),
    "sampling": ("Sampling", "sampling"),
    "logits": ("Head and sampling", "sampling"),
    "all_reduce": ("All-reduce", "all-reduce"),
    "all_to_all": ("All-to-all", "all-to-all"),
    "gather_and_send": ("Gathers, sends", "gather"),
    "swap": ("Swaps and copies", "swap"),
    "draft": ("Drafting", "draft"),
    "host": ("Host", "host"),
    "launch": ("Kernel launches", "launch"),
    "others": ("Others on the GPU", "stalled"),
}
# What the summary's parts are called where nothing finer is known.
PARTS: dict[str, str] = {
    "linear": "layers",
    "moe": "experts",
    "logits": "logits",
    "communication": "all_reduce",
    "attention_and_stage_waits": "stages",
    "copy": "swap",
    "forward": "layers",
    "recorded": "fixed",
}
_LABEL_PX = 140


def of_parts(time_parts_s: Mapping[str, Any]) -> dict[str, float]:
    """Total seconds by class from a summary's ``time_parts_s``; strangers keep their names."""
    found: dict[str, float] = {}
    for part, time_s in time_parts_s.items():
        if isinstance(time_s, (int, float)) and time_s > 0:
            name = PARTS.get(str(part), str(part))
            found[name] = found.get(name, 0.0) + float(time_s)
    return found


def _look(name: str) -> tuple[str, str]:
    return CLASSES.get(name, (plotly_text(name), "stalled"))


def operator_totals(total_s: Mapping[str, float], *, replicas: int) -> Figure | None:
    """Seconds of all iterations by class, longest first; None where nothing took time."""
    shown = sorted(((s, name) for name, s in total_s.items() if s > 0), reverse=True)
    if not shown:
        return None
    whole_s = sum(time_s for time_s, _ in shown)
    labels = [_look(name)[0] for _, name in shown]
    shares = [100 * time_s / whole_s for time_s, _ in shown]
    times = [seconds(time_s) for time_s, _ in shown]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": "Share",
            "x": compact(shares, 4),
            "y": list(range(len(shown))),
            "text": [percent(share / 100) for share in shares],
            "textposition": "outside",
            "cliponaxis": False,
            "textfont": {"color": colour("ink"), "size": 12},
            "marker": {"color": [colour(_look(name)[1]) for _, name in shown]},
            "customdata": [f"{one}: {time}" for one, time in zip(labels, times, strict=True)],
            "hovertemplate": "%{customdata}, %{text}<extra></extra>",
        }
    ]
    layout = chart_layout(
        x={
            "title": {"text": "% of the iterations' time"},
            "range": [0, 1.32 * shares[0]],
            "rangemode": "tozero",
            "nticks": 6,
        },
        y={
            "range": [len(shown) - 0.45, -0.55],
            "tickmode": "array",
            "tickvals": list(range(len(shown))),
            "ticktext": [
                f"{one}<br><b>{time}</b>" for one, time in zip(labels, times, strict=True)
            ],
            "showgrid": False,
            "zeroline": False,
        },
        height_px=40 * len(shown) + 62,
        left_px=_LABEL_PX,
    )
    layout |= {"hovermode": "closest", "bargap": 0.28, "bargroupgap": 0}
    of = f", those of {replicas} replicas together" if replicas > 1 else ""
    return Figure(
        "operator-totals",
        "Where the iterations' time goes",
        f"{seconds(whole_s)} of iterations{of}, by class of operation.",
        data,
        layout,
    )


def operators_over_time(
    operators: Mapping[str, Any], axis: TimeAxis, *, lanes: int
) -> Figure | None:
    """Each class's share of the time, stacked; what is blank is idle. `lanes`: iterations that
    can be under way at once."""
    edges_s = np.asarray(operators["edges_s"], dtype=np.float64)
    width_s = np.diff(edges_s) * lanes
    found = operators["seconds"]
    names = [name for name in CLASSES if name in found]
    names += [name for name in found if name not in CLASSES]
    if not names:
        return None
    x = axis.positions(edges_s)
    shares = {name: 100 * np.asarray(found[name], dtype=np.float64) / width_s for name in names}
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _look(name)[0],
            "x": x,
            "y": compact(np.append(shares[name], shares[name][-1:]), 3),
            "line": {"shape": "hv", "color": colour(_look(name)[1]), "width": 0},
            "stackgroup": "all",
            "fillcolor": colour(_look(name)[1]),
            "hovertemplate": "%{y:.3~g} %",
        }
        for name in names
    ]
    layout = chart_layout(
        x=axis.layout(),
        y={"title": {"text": "% of the time"}, "range": [0, 100], "tickformat": "~g"},
        height_px=TIME_HEIGHT_PX,
        left_px=66,
    )
    busy = float(sum((share * width_s).sum() for share in shares.values()) / width_s.sum()) / 100
    each = " Replicas are averaged." if lanes > 1 else ""
    return Figure(
        "operators-over-time",
        "Where the time goes, over time",
        f"Blank is idle: no iteration runs for {percent(max(0.0, 1 - busy))} of the time.{each}",
        data,
        layout,
        tuple(Key(*_look(name), (index,)) for index, name in enumerate(names)),
        group="time",
    )
