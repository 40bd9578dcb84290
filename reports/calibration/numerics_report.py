"""The page of the study of numeric deviation: flash against standard attention in low precision."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reports.page.figures import chart_layout
from reports.page.page import Card, Figure, Key, Row, Section, cards, escape, page, panel, table
from reports.page.style import colour
from reports.run.latency_figures import _span
from reports.run.report import FOOTER
from scenarios.quantity import compact, count, plain

# what is compared -> its name, its colour
METHODS = {
    "standard": ("Standard attention", "prefill"),
    "flash": ("Flash attention", "decode"),
    "flash_rounded": ("Flash, every intermediate rounded", "waiting"),
    "weights": ("Weights rounded", "running"),
}
RUNS = {
    "flash": METHODS["flash"],
    "flash_rounded": METHODS["flash_rounded"],
    "low_precision": ("Weights in low precision", "running"),
    "another_seed": ("Another initialisation", "e2e"),
}
SOURCE = "Golden et al., Is Flash Attention Stable?, 2024"
Rows = Sequence[Mapping[str, Any]]


def numerics_report(figures: Mapping[str, Any]) -> str:
    """Build the page from what `orcast calibrate numerics --json` prints."""
    rows, drifts = figures["deviations"], figures["drifts"]
    setting = figures["training"]
    steps = max(row["step"] for row in drifts)
    last = {row["run"]: row for row in drifts if row["step"] == steps}
    weights = [[RUNS[name][0], *_weights(row, last)] for name, row in last.items()]
    head = ("After training", "Wasserstein distance", "of low precision's", "Largest", "Loss")
    layers = (
        f"A decoder of {setting['layers']} layers, {setting['width']} wide, over {count(steps)} "
        f"steps of {setting['batch']} × {setting['tokens']} tokens, trained as often as there are "
        "lines, on the same data in the same order. The baseline computes standard attention in "
        f"{figures['dtype']}; each run does one thing otherwise. Weights are compared tensor by "
        "tensor."
    )
    return page(
        title="Numeric deviation · Orcast",
        top=_top(figures, last),
        sections=[
            Section(
                "forward",
                "One forward pass",
                [Row((_by_length(rows), _by_block(rows))), panel(_deviation_table(rows))],
                "One random head, each method with its roundings explicit, against attention in "
                "float64 of the same rounded inputs.",
            ),
            Section(
                "weights",
                "What training makes of it",
                [Row((_by_step(drifts),)), panel(table(head, weights))],
                layers,
            ),
        ],
        footer=FOOTER,
    )


def headline(figures: Mapping[str, Any]) -> str:
    """The study in three sentences."""
    rows, drifts = figures["deviations"], figures["drifts"]
    last = {row["run"]: row for row in drifts}
    ratios = [row["flash"] / row["standard"] for row in rows]
    rounded = [row["flash_rounded"] / row["standard"] for row in rows]
    low = last["low_precision"]["wasserstein"]
    shares = {name: last[name]["wasserstein"] / low for name in ("flash", "flash_rounded")}
    return (
        f"In {figures['dtype']}, flash attention that keeps its statistics in float32 lies "
        f"{plain(min(ratios))} to {plain(max(ratios))} times as far from exact attention as the "
        f"standard one; with every intermediate rounded {plain(min(rounded))} to "
        f"{plain(max(rounded))} times. In trained weights that comes to {plain(shares['flash'])} "
        f"and {plain(shares['flash_rounded'])} times what rounding the weights comes to, and "
        f"another initialisation to {plain(last['another_seed']['wasserstein'] / low)} times. "
        f"Published: ten times as far in a forward pass, a half to a fifth in weights ({SOURCE})."
    )


def _top(figures: Mapping[str, Any], last: Mapping[str, Mapping[str, Any]]) -> str:
    low = last["low_precision"]["wasserstein"]
    found = [
        Card(RUNS[name][0], f"{plain(row['wasserstein'] / low)} ×", "of low precision's distance")
        for name, row in last.items()
        if name != "low_precision"
    ]
    return (
        '<header class="top"><p class="kind">Numeric deviation</p>'
        "<h1>Flash against standard attention in low precision</h1>"
        f'<p class="setting">{escape(figures["dtype"])}, emulated on a processor with torch '
        f"{escape(figures['torch'])}</p>"
        f'<p class="verdict">{escape(headline(figures))}</p></header>' + cards(found)
    )


def _by_length(rows: Rows) -> Figure:
    """Deviation by length, at the smallest block: the most rescalings."""
    block = min(row["block_tokens"] for row in rows)
    own = [row for row in rows if row["block_tokens"] == block]
    lines = {name: ([row["tokens"] for row in own], [row[name] for row in own]) for name in METHODS}
    caption = f"Keys in blocks of {block}. Rounded weights: exact attention of a rounded model."
    return _lines("by-length", "By length", caption, lines, METHODS, "tokens", "deviation")


def _by_block(rows: Rows) -> Figure:
    """Deviation by flash block size, at the greatest length."""
    tokens = max(row["tokens"] for row in rows)
    own = [row for row in rows if row["tokens"] == tokens]
    lines = {
        name: ([row["block_tokens"] for row in own], [row[name] for row in own])
        for name in ("standard", "flash", "flash_rounded")
    }
    caption = f"{count(tokens)} tokens. The smaller the blocks, the more often sums are rescaled."
    return _lines("by-block", "By block size", caption, lines, METHODS, "keys a block", "deviation")


def _by_step(drifts: Rows) -> Figure:
    lines = {
        name: (
            [row["step"] for row in drifts if row["run"] == name],
            [row["wasserstein"] for row in drifts if row["run"] == name],
        )
        for name in RUNS
    }
    caption = "Distance of weights from the baseline's, mean over tensors (log scale)."
    return _lines("by-step", "Weights apart", caption, lines, RUNS, "steps", "Wasserstein distance")


def _lines(
    name: str,
    title: str,
    caption: str,
    lines: Mapping[str, tuple[list[Any], list[Any]]],
    looks: Mapping[str, tuple[str, str]],
    x_title: str,
    y_title: str,
) -> Figure:
    data, keys = [], []
    for index, (line, (x, y)) in enumerate(lines.items()):
        label, thing = looks[line]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": x,
                "y": compact(np.array(y), 4),
                "line": {"color": colour(thing), "width": 1.8},
                "hovertemplate": f"{label}: %{{y:.3~g}}<extra></extra>",
            }
        )
        keys.append(Key(label, thing, (index,)))
    every = sorted({value for x, _ in lines.values() for value in x})
    logarithmic = x_title != "steps"
    axis = _span(every[0], every[-1], logarithmic)
    if logarithmic:  # few values, each a power of two: a tick each
        axis |= {"tickvals": every, "ticktext": [count(value) for value in every], "minor": {}}
    layout = chart_layout(
        x={"title": {"text": x_title}, **axis},
        y={"title": {"text": y_title}, "type": "log", "rangemode": "normal", "exponentformat": "e"},
        height_px=320,
        left_px=70,
    )
    return Figure(name, title, caption, data, layout, tuple(keys))


def _deviation_table(rows: Rows) -> str:
    head = ("Tokens", "Block", *(label for label, _ in METHODS.values()), "Flash ÷ standard")
    body = [
        [
            count(row["tokens"]),
            count(row["block_tokens"]),
            *(_small(row[name]) for name in METHODS),
            f"{plain(row['flash'] / row['standard'])} ×",
        ]
        for row in rows
    ]
    return table(head, body, caption="‖o − o₆₄‖ ÷ ‖o₆₄‖")


def _weights(row: Mapping[str, Any], last: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        _small(row["wasserstein"]),
        f"{plain(row['wasserstein'] / last['low_precision']['wasserstein'])} ×",
        _small(row["largest"]),
        f"{row['loss']:.4f} ({row['loss'] - row['baseline_loss']:+.4f})",
    ]


def _small(value: float) -> str:
    return f"{value:.2e}"
