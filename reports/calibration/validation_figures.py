"""The charts of a validation: iterations on the line of parity, both runs' state over time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from reports.compare.figures import BAND, LOAD_BINS, MAX_POINTS
from reports.page.figures import TIME_HEIGHT_PX, TimeAxis, chart_layout
from reports.page.page import Figure, Key
from reports.page.records import Columns, Floats
from reports.page.style import colour
from reports.page.timeline import Timeline, even_edges, run_end_s
from reports.run.latency_figures import _span
from scenarios.quantity import compact, count, percent


def iteration_parity(iterations: Columns, predicted_s: Floats) -> Figure:
    """Every iteration of the engine as a point: its duration across, the prediction up."""
    size = min(len(predicted_s), len(iterations["duration_s"]))
    measured_ms = iterations["duration_s"][:size] * 1e3
    predicted_ms = predicted_s[:size] * 1e3
    within = float((np.abs(predicted_ms - measured_ms) <= BAND * measured_ms).mean())
    caption = f"{percent(within)} of {count(size)} iterations within {BAND * 100:.0f}\u00a0%."
    shown = _sample(measured_ms, predicted_ms)
    if shown.size < size:
        caption += f" {count(shown.size)} are drawn, the farthest off among them."
    low = float(min(measured_ms.min(), predicted_ms.min()))
    high = float(max(measured_ms.max(), predicted_ms.max()))
    logarithmic = low > 0 and high > 20 * low
    ends = [low / 2 if logarithmic else 0.0, 2 * high]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "hoverinfo": "skip", "name": "Equal",
            "x": compact(ends, 5), "y": compact(ends, 5),
            "line": {"color": colour("muted"), "width": 1.2},
        }
    ]  # fmt: skip
    prompts = iterations["prefill_tokens"][:size] > 0
    for name, thing, kind in (
        ("Decodes alone", "decode", ~prompts),
        ("With prompts", "prefill", prompts),
    ):
        rows = shown[kind[shown]]
        tokens = zip(
            iterations["prefill_tokens"][rows].tolist(),
            iterations["decode_seqs"][rows].tolist(),
            strict=True,
        )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": compact(measured_ms[rows], 5),
                "y": compact(predicted_ms[rows], 5),
                "text": [
                    f"{prefill} prompt tokens, {decodes} decodes" for prefill, decodes in tokens
                ],
                "customdata": rows.tolist(),
                "marker": {"color": colour(thing), "size": 5, "opacity": 0.6, "line": {"width": 0}},
                "hovertemplate": "iteration %{customdata}: %{text}<br>predicted %{y:.5~g} ms<br>"
                "measured %{x:.5~g} ms<extra></extra>",
            }
        )
    note = ", log scale" if logarithmic else ""
    axis = _span(low, high, logarithmic) | {"minor": {}}
    layout = chart_layout(
        x={"title": {"text": f"Measured duration (ms{note})"}, **axis},
        y={"title": {"text": "Predicted (ms)"}, **axis, "rangemode": "normal"},
        height_px=340,
        left_px=62,
    )
    layout["hovermode"] = "closest"
    keys = (Key("Decodes alone", "decode", (1,)), Key("With prompts", "prefill", (2,)))
    return Figure("iteration-parity", "Iteration by iteration", caption, data, layout, keys)


def _sample(a: Floats, b: Floats) -> npt.NDArray[np.intp]:
    """At most MAX_POINTS rows: half of them the farthest off, the others evenly from the rest."""
    if a.size <= MAX_POINTS:
        return np.arange(a.size)
    order = np.argsort(-np.abs(np.log(np.maximum(a, 1e-9) / np.maximum(b, 1e-9))))
    half = MAX_POINTS // 2
    even = np.linspace(half, a.size - 1, MAX_POINTS - half).astype(np.intp)
    return np.sort(order[np.concatenate([np.arange(half), even])])


def state_figures(
    engine: tuple[Columns, Columns], forecast: tuple[Columns, Columns]
) -> Iterator[Figure]:
    """Batch size and KV use over time, the engine wide and grey below the forecast.

    Each run is its requests and its iterations.
    """
    end_s = max(run_end_s(*engine), run_end_s(*forecast))
    if end_s <= 0:
        return
    axis = TimeAxis(end_s)
    edges_s = even_edges(end_s, LOAD_BINS)
    lines = [Timeline.over(run[1], edges_s) for run in (engine, forecast)]
    yield _overlay(
        "batch-size", "Requests in the batch", "requests", "running",
        axis, edges_s, [line.mean("running") for line in lines],
    )  # fmt: skip
    shares = [line.kv_shares() for line in lines]
    if all(shares):
        yield _overlay(
            "kv-use", "KV memory in use", "% of KV slots", "used",
            axis, edges_s, [100 * (1 - share["free"]) for share in shares],
        )  # fmt: skip


def _overlay(
    name: str, title: str, unit: str, thing: str, axis: TimeAxis, edges_s: Floats,
    values: list[Floats],
) -> Figure:  # fmt: skip
    looks: list[dict[str, Any]] = [
        {"color": colour("held"), "width": 5},
        {"color": colour(thing), "width": 1.8},
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": whose,
            "x": axis.positions(edges_s),
            "y": compact(np.append(each, each[-1:]), 4),
            "line": {"shape": "hv", **look},
            "hovertemplate": "%{y:.3~s}",
        }
        for whose, each, look in zip(("Measured", "Forecast"), values, looks, strict=True)
    ]
    layout = chart_layout(
        x=axis.layout(),
        y={"title": {"text": unit}, "tickformat": ",~g"},
        height_px=TIME_HEIGHT_PX,
        left_px=66,
    )
    keys = (Key("Forecast", thing, (1,)), Key("Measured", "held", (0,)))
    return Figure(name, title, "", data, layout, keys, group="time")
