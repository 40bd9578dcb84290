"""What a comparison comes to, in words: the largest difference, and how far requests are off."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.compare.figures import LOOKS
from scenarios.quantity import GAP, MISSING, count, plain

STATISTICS = {"mean": "Mean", "p50": "Median", "p90": "p90", "p95": "p95", "p99": "p99"}
Figures = Mapping[str, Any]  # what `orcast compare --json` prints
Names = tuple[str, str]  # what the page calls A and B
TENFOLD_PCT = 900  # from ten times on, per cent say nothing
THE = {"Forecast": "the forecast", "Measured": "the measurement"}


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


def title(figures: Figures) -> str:
    """The comparison in a heading."""
    largest = largest_difference(figures)
    if largest is None:
        return "No latency to compare"
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
    text = (
        f"The largest difference among the latency figures is {signed(pair['diff_pct'])}, at the "
        f"{STATISTICS[name].lower()} {LOOKS[metric][0]}: {scale.text(pair['a'])}{GAP}{scale.unit} "
        f"{names[0].lower()}, {scale.text(pair['b'])}{GAP}{scale.unit} {names[1].lower()}."
    )
    if own["e2e_mape_pct"] is not None:
        text += (
            f" A request's E2E is off by {share(own['e2e_mape_pct'])} on average, "
            f"with a bias of {signed(own['e2e_bias_pct'])}."
        )
    return text


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
    """A difference in per cent with its sign; from ten times on, up or down, as a ratio."""
    if value is None:
        return MISSING
    if value >= TENFOLD_PCT:
        return f"×{GAP}{plain(1 + value / 100)}"
    if -100 < value <= 100 / (1 + TENFOLD_PCT / 100) - 100:
        return f"÷{GAP}{plain(1 / (1 + value / 100))}"
    digits = 1 if abs(value) >= 10 else 2
    text = f"{value:+.{digits}f}"
    return f"{'0' if float(text) == 0 else text.replace('-', '−')}{GAP}%"


def changed(base: float | None, value: float | None) -> str:
    """From `base` to `value`, as `signed` writes it."""
    if base is None or value is None or (base == 0 and value != 0):
        return MISSING
    return signed(0.0 if value == base else (value / base - 1) * 100)


def share(value: float | None) -> str:
    """A percentage that is already in per cent."""
    return MISSING if value is None else f"{plain(value, 2)}{GAP}%"
