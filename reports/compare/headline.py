"""What a comparison comes to, in words: the largest difference, and how far requests are off.

Two runs of one kind have no error: of those it tells what changes from B to A.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reports.compare.figures import LOOKS
from scenarios.quantity import GAP, MISSING, count, percent, plain

STATISTICS = {"mean": "Mean", "p50": "Median", "p90": "p90", "p95": "p95", "p99": "p99"}
Figures = Mapping[str, Any]  # what `orcast compare --json` prints
Names = tuple[str, str]  # what the page calls A and B
TWO: Names = ("A", "B")  # of one kind: neither measures the other
LONGEST_VALUE = 28  # of a setting in a sentence, in letters
MOST_CHANGES = 3  # of settings in a sentence
THE = {"Forecast": "the forecast", "Measured": "the measurement", "A": "A", "B": "B"}
_IN = {"Forecast": "forecast", "Measured": "measured", "A": "in A", "B": "in B"}


@dataclass(frozen=True, slots=True)
class Scale:
    """The unit in which all figures of one latency are shown, so that they compare at a glance."""

    unit: str
    ms: float

    @classmethod
    def of(cls, figures: Figures, metric: str) -> "Scale":
        values = [
            pair[side] or 0.0 for pair in figures["metrics"][metric].values() for side in "ab"
        ]
        return cls("s", 1e3) if max(values) >= 10_000 else cls("ms", 1.0)

    def text(self, value_ms: float | None) -> str:
        """Four significant digits."""
        if value_ms is None:
            return MISSING
        value = value_ms / self.ms
        digits = 3 - math.floor(math.log10(value)) if value > 0 else 0
        return f"{value:,.{max(0, min(digits, 6))}f}"


def title(figures: Figures, names: Names) -> str:
    """The comparison in a heading."""
    largest = largest_difference(figures)
    if largest is None:
        return "No latency to compare"
    if names == TWO:
        return "What changes from B to A"
    off = abs(largest[2]["diff_pct"])
    within = f"{math.ceil(off * 10) / 10:.1f}{GAP}%"
    return f"Every latency figure within {within}" if off <= 10 else f"Latencies up to {within} off"


def headline(figures: Figures, names: Names) -> str:
    """The comparison in a sentence or two: the largest difference, and how far requests are off."""
    largest = largest_difference(figures)
    if largest is None:
        return f"{count(figures['requests'])} requests, without a latency to compare."
    metric, name, pair = largest
    own, scale = figures["per_request"], Scale.of(figures, metric)
    if names == TWO:
        text = (
            f"{changed_settings(figures)}The latency figure that changes most is the "
            f"{STATISTICS[name].lower()} {LOOKS[metric][0]}, from {scale.text(pair['b'])} to "
            f"{scale.text(pair['a'])}{GAP}{scale.unit} ({signed(pair['diff_pct'])})."
        )
        if own["e2e_bias_pct"] is not None:
            text += f" A request's E2E changes by {signed(own['e2e_bias_pct'])} on average."
        return text
    text = (
        f"The largest difference among the latency figures is {signed(pair['diff_pct'])}, at the "
        f"{STATISTICS[name].lower()} {LOOKS[metric][0]}: {scale.text(pair['a'])}{GAP}{scale.unit} "
        f"{_IN[names[0]]}, {scale.text(pair['b'])}{GAP}{scale.unit} {_IN[names[1]]}."
    )
    if own["e2e_mape_pct"] is not None:
        text += (
            f" A request's E2E is off by {share(own['e2e_mape_pct'])} on average, "
            f"with a bias of {signed(own['e2e_bias_pct'])}."
        )
    return text


def changed_settings(figures: Figures) -> str:
    """What differs in the scenarios, from B to A, as a sentence; nothing where it is not known."""
    changes = figures.get("scenario")
    if changes is None:
        return ""
    if not changes:
        return "Not a single setting differs. "
    told = [
        f"{path} from {shortened(pair['b'])} to {shortened(pair['a'])}"
        for path, pair in list(changes.items())[:MOST_CHANGES]
    ]
    more = len(changes) - len(told)
    if more:
        told.append(f"{more} more setting{'s' * (more > 1)}")
    last = told.pop()
    return f"Changed: {', '.join(told)}{' and ' if told else ''}{last}. "


def shortened(value: Any) -> str:
    """A setting's value in a few letters."""
    text = MISSING if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def largest_difference(figures: Figures) -> tuple[str, str, Mapping[str, float]] | None:
    """Metric, statistic and values of the latency figure whose difference is the largest."""
    known = [
        (metric, name, pair)
        for metric, statistics in figures["metrics"].items()
        for name, pair in statistics.items()
        if pair["diff_pct"] is not None
    ]
    return max(known, key=lambda item: abs(item[2]["diff_pct"]), default=None)


def signed(value: float | None) -> str:
    """A difference in per cent with its sign."""
    if value is None:
        return MISSING
    digits = 1 if abs(value) >= 10 else 2
    text = f"{value:+.{digits}f}"
    return f"{'0' if float(text) == 0 else text.replace('-', '−')}{GAP}%"


def outcomes(figures: Figures) -> list[tuple[str, str, str, str]]:
    """Of two runs as a whole: name, B's figure, A's figure and the change, in words."""
    rows = []
    for key, (label, show, kind) in _OUTCOMES.items():
        pair = (figures.get("outcomes") or {}).get(key)
        if pair is None:
            continue
        a, b = pair["a"], pair["b"]
        change = signed(pair["diff_pct"])
        if kind != "rate" and a is not None and b is not None:
            change = f"{(a - b) * (100 if kind == 'share' else 1):+,.1f}".removesuffix(".0")
            change = "0" if a == b else change.replace("-", "−")
            change += f"{GAP}points" if kind == "share" else ""
        rows.append((label, show(b), show(a), change))
    return rows


def _usd(value: float | None) -> str:
    return MISSING if value is None else f"${value:,.2f}"


# Label, how a figure is written, and whether it is a rate, a share or a count.
_OUTCOMES: dict[str, tuple[str, Callable[[float | None], str], str]] = {
    "request_goodput": ("Goodput (requests/s)", plain, "rate"),
    "slo_attainment": ("Requests within the SLO", percent, "share"),
    "kv_utilization": ("KV memory used", percent, "share"),
    "preemptions": ("Preemptions", count, "count"),
    "usd_per_hour": ("Cost an hour", _usd, "rate"),
    "usd_per_million_output_tokens": ("Per million output tokens", _usd, "rate"),
}


def share(value: float | None) -> str:
    """A percentage that is already in per cent."""
    return MISSING if value is None else f"{plain(value, 2)}{GAP}%"
