"""The page of a trace: its load over time, and how long its requests are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.page.figures import TIME_HEIGHT_PX, TimeAxis, chart_layout
from reports.page.page import Card, Figure, Row, Section, cards, escape, facts, page, warning_box
from reports.page.style import colour
from reports.run.report import FOOTER
from reports.trace.words import rows
from scenarios.quantity import compact, count, plain, seconds

BINS = 60


def trace_report(
    trace: Mapping[str, Any], prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]
) -> str:
    """Build the page of a trace, of what `describe` says and of its requests' lengths."""
    lengths = Row(
        (
            _lengths("prompts", "Prompts", prompt_tokens, "prefill"),
            _lengths("outputs", "Outputs", output_tokens, "decode"),
        )
    )
    rate = _rate(trace)
    sections = [
        *([] if rate is None else [Section("load", "Load over time", [rate])]),
        Section("lengths", "Lengths", [lengths]),
        Section("facts", "What is in it", [facts(rows(trace))]),
    ]
    mean = trace["request_rate"]
    top = [
        Card("Requests", count(trace["requests"])),
        Card("Over", seconds(trace["span_s"])),
        Card("Requests a second", "at once" if mean is None else plain(mean)),
        Card("Prompt tokens, mean", plain(trace["prompt_tokens"]["mean"])),
        Card("Output tokens, mean", plain(trace["output_tokens"]["mean"])),
    ]
    return page(
        title=f"{trace['name']} · Orcast",
        top='<header class="top"><p class="kind">A trace</p>'
        f"<h1>{escape(trace['name'])}</h1></header>{cards(top)}{warning_box(trace['notes'])}",
        sections=sections,
        footer=FOOTER,
    )


def _rate(trace: Mapping[str, Any]) -> Figure | None:
    rate = trace["rate"]
    if rate is None:
        return None
    edges_s = np.arange(len(rate["requests_per_s"]) + 1) * rate["window_s"]
    axis = TimeAxis(float(edges_s[-1]))
    values = np.array(rate["requests_per_s"])
    return Figure(
        "rate",
        "Requests a second",
        f"Of windows of {seconds(rate['window_s'])}.",
        [
            {
                "type": "scatter",
                "mode": "lines",
                "x": axis.positions(edges_s),
                "y": compact(np.append(values, values[-1:])),
                "line": {"color": colour("accent"), "width": 1.6, "shape": "hv"},
                "hovertemplate": "%{y:.4~g} requests/s<extra></extra>",
            }
        ],
        chart_layout(
            x=axis.layout() | {"title": {"text": f"Time since the first request ({axis.unit[0]})"}},
            y={"title": {"text": "requests/s"}},
            height_px=TIME_HEIGHT_PX,
            left_px=62,
        ),
    )


def _lengths(name: str, title: str, tokens: NDArray[np.int64], thing: str) -> Figure:
    """How many requests are how long, on a logarithmic axis."""
    low, high = np.log10([max(1, tokens.min()), max(2, tokens.max() + 1)])
    edges = np.logspace(low, high, BINS + 1)
    counts, _ = np.histogram(tokens, edges)
    layout = chart_layout(
        x={"title": {"text": "tokens"}, "type": "log"},
        y={"title": {"text": "requests"}},
        height_px=TIME_HEIGHT_PX,
        left_px=62,
    )
    return Figure(
        name,
        title,
        "",
        [
            {
                "type": "scatter",
                "mode": "lines",
                "fill": "tozeroy",
                "x": compact(edges),
                "y": compact(np.append(counts, counts[-1:])),
                "line": {"color": colour(thing), "width": 1.4, "shape": "hv"},
                "hovertemplate": "%{y} requests of about %{x:.4~g} tokens<extra></extra>",
            }
        ],
        layout,
    )
