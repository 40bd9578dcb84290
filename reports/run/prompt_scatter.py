"""Time to first token against prompt length: what the prompt explains, and what the queue does."""

import math
from typing import Any

import numpy as np

from reports.page.figures import chart_layout, log_ticks
from reports.page.page import Figure, Key
from reports.page.records import Columns, Floats
from reports.page.style import colour
from scenarios.quantity import compact, count, percent

MAX_POINTS = 2_000
FEW_POINTS = 200  # drawn larger
MAX_BINS = 16
MIN_IN_BIN = 60  # requests, for a p95 to mean something


def prompt_scatter(requests: Columns) -> Figure | None:
    """Every request up to `MAX_POINTS`, evenly chosen ones beyond; None where none had a token."""
    arrival_s, scheduled_s, first_s = (
        np.asarray(requests[name], dtype=np.float64)
        for name in ("arrival_s", "scheduled_s", "first_token_s")
    )
    prompt = np.asarray(requests["prompt_tokens"], dtype=np.float64)
    done = np.isfinite(first_s) & np.isfinite(scheduled_s) & (first_s > arrival_s) & (prompt > 0)
    if not done.any():
        return None
    numbers = np.asarray(requests["request"])[done]
    prompt, ttft_s = prompt[done], (first_s - arrival_s)[done]
    queue_s = (scheduled_s - arrival_s)[done]
    waited = queue_s > 0.5 * ttft_s
    unit, size_s = ("s", 1.0) if float(np.median(ttft_s)) >= 10 else ("ms", 1e-3)
    shown = np.arange(prompt.size)
    if prompt.size > MAX_POINTS:
        shown = np.linspace(0, prompt.size - 1, MAX_POINTS).round().astype(np.intp)
    few = shown.size <= FEW_POINTS
    data: list[dict[str, Any]] = []
    keys = []
    for label, thing, mine in (
        ("Mostly computed", "prefill", shown[~waited[shown]]),
        ("Mostly queued", "waiting", shown[waited[shown]]),
    ):
        if mine.size:
            keys.append(Key(label, thing, (len(data),)))
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": label,
                    "x": prompt[mine].astype(np.int64).tolist(),
                    "y": compact(ttft_s[mine] / size_s, 4),
                    "customdata": numbers[mine].tolist(),
                    "text": [f"{100 * share:.3g}" for share in (queue_s / ttft_s)[mine].tolist()],
                    "marker": {
                        "color": colour(thing),
                        "size": 9 if few else 5,
                        "opacity": 0.85 if few else 0.55,
                    },
                    "hovertemplate": (
                        "request %{customdata}: %{x:,} prompt tokens, TTFT %{y:.4~g} "
                        f"{unit}, %{{text}} % of it queued<extra></extra>"
                    ),
                }
            )
    data += _lines(prompt, ttft_s / size_s, unit)
    layout = chart_layout(
        x={"title": {"text": "Prompt (tokens, log scale)"}, **_log_span(prompt)},
        y={"title": {"text": f"TTFT ({unit}, log scale)"}, **_log_span(ttft_s / size_s)},
        height_px=340,
        left_px=66,
    )
    layout["hovermode"] = "closest"
    drawn = (
        "Every request is a point."
        if shown.size == prompt.size
        else f"{count(shown.size)} of {count(prompt.size)} requests are drawn, evenly chosen in "
        "order of arrival; the lines are over all of them."
    )
    said = f"{percent(float(waited.mean()))} spent most of their TTFT in the queue. {drawn}"
    return Figure("ttft-by-prompt", "TTFT against prompt length", said, data, layout, tuple(keys))


def _lines(prompt: Floats, ttft: Floats, unit: str) -> list[dict[str, Any]]:
    """Median and p95 over bins of like prompts, where they have enough requests."""
    bins = min(MAX_BINS, prompt.size // MIN_IN_BIN)
    if bins < 3:
        return []
    order = np.argsort(prompt, kind="stable")
    middle: list[float] = []
    quantiles: list[Floats] = []
    for some in np.array_split(order, bins):
        at = float(np.median(prompt[some]))
        if middle and at <= middle[-1]:
            continue
        middle.append(at)
        quantiles.append(np.percentile(ttft[some], [50, 95]).astype(np.float64))
    if len(middle) < 3:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines+text",
            "name": name,
            "text": [*[""] * (len(middle) - 1), f" {name}"],
            "textposition": "middle right",
            "cliponaxis": False,
            "textfont": {"color": colour("ink"), "size": 12},
            "x": compact(middle, 4),
            "y": compact([one[which] for one in quantiles], 4),
            "line": {"color": colour("ink"), "width": 2, "dash": dash},
            "hovertemplate": f"{name} %{{y:.4~g}} {unit} around %{{x:,}} tokens<extra></extra>",
        }
        for which, (name, dash) in enumerate((("Median", "solid"), ("p95", "dot")))
    ]


def _log_span(values: Floats) -> dict[str, Any]:
    low, high = math.log10(float(values.min())), math.log10(float(values.max()))
    spare = 0.04 * max(high - low, 0.3)
    return {
        "type": "log",
        "range": [low - spare, high + spare],
        **log_ticks(low, high),
        "tickformat": ",~g",
        "rangemode": "normal",
    }
