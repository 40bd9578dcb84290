"""A picture of runs that vLLM served for real: vLLM as marks, Orcast as lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.page.style import PALETTE
from tests.benchmarks.sharing import axes, chart, label
from tests.vllm.schedule import Schedule
from tests.vllm.served import TICKS_PER_S, Served
from tests.vllm.simulated import simulated

WINDOW_STEPS = 130
_TONES = {"synchronous": "prefill", "asynchronous": "accent"}
_TITLES = (
    "asynchronous: tokens of each batch",
    "the same: free KV blocks (×: preempts)",
    "both modes: time to first token",
)


def figure(path: Path, runs: Mapping[str, Served]) -> None:
    """Batches and free blocks where most preempt, and the time to first token of all requests."""
    import plotly.graph_objects as go

    drawn = chart(_TITLES, "vLLM, measured (marks), and Orcast, told its step durations (lines)")
    both = {mode: (run.schedule(), simulated(run.workload())) for mode, run in runs.items()}
    vllm, orcast = both["asynchronous"]
    window = _busiest(vllm)

    def marks(column: int, x: list[float], y: list[float], tone: str, **style: Any) -> None:
        mark = {"color": PALETTE[tone][0], "size": 6} | style
        trace = go.Scatter(x=x, y=y, mode="markers", marker=mark)
        drawn.add_trace(trace, row=1, col=column)

    def steps(column: int, x: list[float], y: list[float], tone: str) -> None:
        line = {"color": PALETTE[tone][0], "width": 1.2, "shape": "hv"}
        drawn.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line), row=1, col=column)

    seen, told = ([_seconds(step.start) for step in of.steps[window]] for of in (vllm, orcast))
    steps(1, told, [sum(step.tokens.values()) for step in orcast.steps[window]], "accent")
    marks(1, seen, [sum(step.tokens.values()) for step in vllm.steps[window]], "accent", size=5)
    steps(2, told, [step.free_blocks for step in orcast.steps[window]], "accent")
    marks(2, seen, [step.free_blocks for step in vllm.steps[window]], "accent", size=5)
    preempting = [step for step in vllm.steps[window] if step.preempted]
    marks(
        2,
        [_seconds(step.start) for step in preempting],
        [step.free_blocks for step in preempting],
        "preempted",
        size=10,
        symbol="x",
    )
    for mode, (measured, forecast) in both.items():
        arrived = [one.arrived / 1e9 for one in runs[mode].requests]
        x, y = (
            [1e3 * (_seconds(of.first[f"{number}"]) - at_s) for number, at_s in enumerate(arrived)]
            for of in (measured, forecast)
        )
        marks(3, x, y, _TONES[mode], size=4, opacity=0.6)
    ends = [1, 5000]
    drawn.add_trace(
        go.Scatter(x=ends, y=ends, mode="lines", line={"color": PALETTE["muted"][0], "width": 1}),
        row=1,
        col=3,
    )
    label(drawn, 3, (0.7, 3.2), "synchronous", _TONES["synchronous"], xanchor="left")
    label(drawn, 3, (0.7, 3.0), "asynchronous", _TONES["asynchronous"], xanchor="left")
    axes(
        drawn,
        {1: ("s", "tokens"), 2: ("s", "blocks"), 3: ("vLLM, ms", "Orcast, ms")},
    )
    drawn.update_xaxes(type="log", dtick=1, col=3)
    drawn.update_yaxes(type="log", dtick=1, col=3)
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def _busiest(schedule: Schedule) -> slice:
    """Steps one after the other in which most is preempted."""
    counts = [len(step.preempted) for step in schedule.steps]
    first = max(
        range(max(len(counts) - WINDOW_STEPS, 1)),
        key=lambda first: sum(counts[first : first + WINDOW_STEPS]),
    )
    return slice(first, first + WINDOW_STEPS)


def _seconds(ticks: int) -> float:
    return ticks / TICKS_PER_S
