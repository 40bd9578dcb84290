"""A forecast held against what a tool says of a whole run: its statistics, and no request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.recordings.client_records import STATISTICS, Aggregates
from calibrate.recordings.comparison import METRICS, PERCENTILES, Pair
from calibrate.recordings.measurement import Measurement, MeasurementError


@dataclass(frozen=True, slots=True)
class AggregateComparison:
    """Statistics of a forecast's requests beside those that were measured."""

    a: Measurement
    b: Aggregates
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `orcast compare --json` prints, with nothing per request."""
        done = self.a.completed
        span_s = None
        if self.a.has_arrivals:
            span_s = float(self.a.finished_s[done].max() - self.a.arrival_s[done].min())
        rates: tuple[float | None, float | None] = (None, None)
        if span_s:
            rates = (int(done.sum()) / span_s, int(self.a.output_tokens[done].sum()) / span_s)
        return {
            "a": self.a.label,
            "b": self.b.label,
            "requests": int(done.sum()),
            "metrics": {metric: self._statistics(metric) for metric in METRICS},
            "per_request": dict.fromkeys(
                [*(f"{metric}_mape_pct" for metric in METRICS), "e2e_bias_pct"]
            ),
            "makespan": Pair(span_s, self.b.duration_s).as_dict(),
            "throughput": {
                "request": Pair(rates[0], self.b.request_per_s).as_dict(),
                "output": Pair(rates[1], self.b.output_per_s).as_dict(),
            },
        }

    def _statistics(self, metric: str) -> dict[str, dict[str, float | None]]:
        values = getattr(self.a, f"{metric}_s")[self.a.completed]
        values = values[np.isfinite(values)] * 1e3
        mine: list[float | None] = [None] * len(STATISTICS)
        if values.size:
            mine = [float(values.mean()), *np.percentile(values, PERCENTILES).tolist()]
        told = self.b.metrics[metric]
        return {
            name: Pair(one, told.get(name)).as_dict()
            for name, one in zip(STATISTICS, mine, strict=True)
        }


def compare_aggregates(
    a: Measurement, b: Aggregates, *, notes: Sequence[str] = ()
) -> AggregateComparison:
    """Hold forecast `a` against the aggregates `b`; `notes` are what a reader has to know of `a`.

    Raises MeasurementError where nothing of `a` completed.
    """
    if not a.completed.any():
        raise MeasurementError(f"no request completed in {a.label}")
    notes = [
        *notes,
        "B has aggregates alone: only they are compared, not request by request",
        *b.notes,
    ]
    done = int(a.completed.sum())
    if b.requests is not None and b.requests != done:
        notes.append(f"{done} requests completed in A, {b.requests} in B: not the same load")
    return AggregateComparison(a, b, tuple(notes))
