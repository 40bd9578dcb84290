"""A forecast held against a measurement, request by request.

`a` is the forecast, `b` the measurement: diff_pct = (a - b) / b * 100. Of two forecasts, `b` is
where one starts from. Percentiles are numpy's linear ones, over the requests that completed in
both runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.recordings.measurement import Floats, Measurement, MeasurementError

METRICS = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90, 95, 99)
SWAP_S = 1.0  # requests sent this close together may reach an engine in another order

# What becomes of a whole run, by name: where its summary says so.
OUTCOMES = {
    "request_goodput": ("request_goodput",),
    "slo_attainment": ("slo_attainment", "all"),
    "kv_utilization": ("kv_utilization",),
    "preemptions": ("preemptions",),
    "usd_per_hour": ("cost", "usd_per_hour"),
    "usd_per_million_output_tokens": ("cost", "usd_per_million_output_tokens"),
}

Rows = NDArray[np.intp]
Summary = Mapping[str, Any]  # the content of a run's summary.json


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure of both runs; None where a run does not have it."""

    a: float | None
    b: float | None

    @property
    def diff_pct(self) -> float | None:
        if self.a is None or self.b is None:
            return None
        if self.b == 0:
            return 0.0 if self.a == 0 else None
        return (self.a - self.b) / self.b * 100.0

    def as_dict(self) -> dict[str, float | None]:
        return {"a": self.a, "b": self.b, "diff_pct": self.diff_pct}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs of the same requests; row i of `rows_a` and of `rows_b` are the same request."""

    a: Measurement
    b: Measurement
    rows_a: Rows  # [requests], into a's columns: those that completed in both, by arrival
    rows_b: Rows
    notes: tuple[str, ...]  # what a reader of the figures must know
    changes: Mapping[str, tuple[Any, Any]] | None = None  # settings that differ, by path
    outcomes: Mapping[str, Pair] | None = None  # of whole runs, where both have a summary

    def paired_s(self, metric: str) -> tuple[Floats, Floats]:
        """TTFT, TPOT or E2E of the same requests in both runs; NaN for the TPOT of one token."""
        column = f"{metric}_s"
        return getattr(self.a, column)[self.rows_a], getattr(self.b, column)[self.rows_b]

    def latencies_s(self, metric: str) -> tuple[Floats, Floats]:
        """The same without those that either run does not have."""
        a, b = self.paired_s(metric)
        known = np.isfinite(a) & np.isfinite(b)
        return a[known], b[known]

    def names(self) -> list[str]:
        """What to call each request: its id in B or A, else its number in order of arrival."""
        for side, rows in ((self.b, self.rows_b), (self.a, self.rows_a)):
            if side.request_id is not None:
                return [str(name) for name in side.request_id[rows].tolist()]
        return [str(row) for row in self.rows_a.tolist()]

    def metrics(self) -> dict[str, dict[str, Pair]]:
        """Mean and percentiles of each latency in ms."""
        return {metric: _statistics(*self.latencies_s(metric)) for metric in METRICS}

    def per_request(self) -> dict[str, float | None]:
        """Mean absolute percentage errors over requests, and the mean signed one of E2E."""
        errors = {metric: _errors_pct(*self.latencies_s(metric)) for metric in METRICS}
        found = {f"{metric}_mape_pct": _mean(np.abs(each)) for metric, each in errors.items()}
        return found | {"e2e_bias_pct": _mean(errors["e2e"])}

    def makespan(self) -> Pair:
        """Seconds from the first arrival to the last token."""
        return Pair(_makespan_s(self.a, self.rows_a), _makespan_s(self.b, self.rows_b))

    def throughput(self) -> dict[str, Pair]:
        """Requests and output tokens per second of makespan."""
        span = self.makespan()
        tokens = (
            int(self.a.output_tokens[self.rows_a].sum()),
            int(self.b.output_tokens[self.rows_b].sum()),
        )
        count = len(self.rows_a)
        return {
            "request": Pair(_rate(count, span.a), _rate(count, span.b)),
            "output": Pair(_rate(tokens[0], span.a), _rate(tokens[1], span.b)),
        }

    def as_dict(self) -> dict[str, Any]:
        """What `orcast compare --json` prints: ms in metrics, s in makespan, 1/s in throughput."""
        found: dict[str, Any] = {
            "a": self.a.label,
            "b": self.b.label,
            "requests": len(self.rows_a),
            "metrics": {
                metric: {name: pair.as_dict() for name, pair in statistics.items()}
                for metric, statistics in self.metrics().items()
            },
            "per_request": self.per_request(),
            "makespan": self.makespan().as_dict(),
            "throughput": {name: pair.as_dict() for name, pair in self.throughput().items()},
        }
        if self.changes is not None:
            found["scenario"] = {path: {"a": a, "b": b} for path, (a, b) in self.changes.items()}
        if self.outcomes is not None:
            found["outcomes"] = {name: pair.as_dict() for name, pair in self.outcomes.items()}
        return found


def compare(
    a: Measurement,
    b: Measurement,
    *,
    settings: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    summaries: tuple[Summary | None, Summary | None] = (None, None),
) -> Comparison:
    """Match the requests of forecast `a` and measurement `b`, or of two forecasts.

    By request_id where both have one, else by order of arrival; requests that reached the engines
    within a second of each other may have changed places if their lengths say so. `settings` are
    those of both runs, to be told apart; `summaries` what is known of either run as a whole. Raises
    MeasurementError, naming the first request that differs, where the runs are not of the same
    requests.
    """
    a, b, left_out = _without_failed(a, b)
    rows_a, rows_b, notes = _match(a, b)
    notes += left_out
    notes[:0] = unmeasured(summaries)
    _check_lengths(a, b, rows_a, rows_b)
    both = a.completed[rows_a] & b.completed[rows_b]
    for side, rows, name in ((a, rows_a, "A"), (b, rows_b, "B")):
        missing = int((~side.completed[rows]).sum())
        if missing:
            notes.append(
                f"{missing} of {len(rows)} requests did not complete in {name} ({side.label}): "
                "rejected or failed, and left out of every figure"
            )
    if not both.any():
        raise MeasurementError(f"no request completed in both {a.label} and {b.label}")
    for side, name in ((a, "A"), (b, "B")):
        if not side.has_arrivals:
            basis = "is the duration it gives" if side.duration_s is not None else "is unknown"
            notes.append(f"{name} ({side.label}) has no arrival times: its makespan {basis}")
    changes = None if settings is None else changed_settings(*settings)
    found = _outcomes(*summaries)
    return Comparison(a, b, rows_a[both], rows_b[both], tuple(notes), changes, found)


def unmeasured(summaries: tuple[Summary | None, Summary | None]) -> list[str]:
    """That iteration times were not measured, for the runs whose summaries say so."""
    kinds: dict[str, list[str]] = {}
    for name, summary in zip("AB", summaries, strict=True):
        latency = (summary or {}).get("latency")
        if isinstance(latency, Mapping) and not latency.get("measured"):
            kinds.setdefault(str(latency.get("source")), []).append(name)
    return [
        f"iteration times of {' and '.join(names)} are unmeasured ({kind}): trust differences "
        "between settings more than absolute times"
        for kind, names in kinds.items()
    ]


def _outcomes(a: Summary | None, b: Summary | None) -> dict[str, Pair] | None:
    """The figures of whole runs that either summary has; None without both summaries."""
    if a is None or b is None:
        return None
    pairs = {name: Pair(_inside(a, path), _inside(b, path)) for name, path in OUTCOMES.items()}
    return {name: pair for name, pair in pairs.items() if (pair.a, pair.b) != (None, None)}


def _inside(summary: Summary, path: tuple[str, ...]) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def changed_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Paths like `engine.max_num_seqs` whose values differ, with both; None where there is none."""
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    return {
        path: (flat_a.get(path), flat_b.get(path))
        for path in dict.fromkeys((*flat_a, *flat_b))
        if flat_a.get(path) != flat_b.get(path)
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_failed(a: Measurement, b: Measurement) -> tuple[Measurement, Measurement, list[str]]:
    """Both runs; of a run that has as many requests more as failed in it, those that did not.

    A trace that is made of a recording leaves out what failed there.
    """
    if len(a) < len(b) and int(b.completed.sum()) == len(a):
        return a, b.only(b.completed), [_failed_note("B", b)]
    if len(b) < len(a) and int(a.completed.sum()) == len(b):
        return a.only(a.completed), b, [_failed_note("A", a)]
    return a, b, []


def _failed_note(name: str, side: Measurement) -> str:
    failed = int((~side.completed).sum())
    return (
        f"{failed} of {len(side)} requests failed in {name} ({side.label}) and are not in the "
        "other run"
    )


def _match(a: Measurement, b: Measurement) -> tuple[Rows, Rows, list[str]]:
    """Rows of the same requests in both runs, in a's order of arrival."""
    by_id = _match_ids(a, b)
    if by_id is not None:
        return by_id
    rows_a, rows_b = np.arange(len(a)), np.arange(len(b))
    if len(a) == len(b):
        swapped = _match_lengths(a, b)
        if swapped is not None:
            moved = int((swapped != rows_b).sum())
            return rows_a, swapped, _swap_notes(moved)
    return rows_a, rows_b, []


def _swap_notes(moved: int) -> list[str]:
    if not moved:
        return []
    return [
        f"{moved} requests arrived in another order, less than {SWAP_S:g} s apart: they are "
        "matched by their lengths"
    ]


def _match_ids(a: Measurement, b: Measurement) -> tuple[Rows, Rows, list[str]] | None:
    """By request_id; None where a run has none, or they have none in common."""
    if a.request_id is None or b.request_id is None:
        return None
    where_b = {name: row for row, name in enumerate(b.request_id.tolist())}
    pairs = [
        (row, where_b[name]) for row, name in enumerate(a.request_id.tolist()) if name in where_b
    ]
    if not pairs:
        return None
    for side, names, known in ((a, "A", a.request_id), (b, "B", b.request_id)):
        if len(set(known.tolist())) < len(side):
            raise MeasurementError(f"{names} ({side.label}): a request_id appears more than once")
    notes = []
    for side, name in ((a, "A"), (b, "B")):
        alone = len(side) - len(pairs)
        if alone:
            notes.append(
                f"{alone} of {len(side)} requests of {name} ({side.label}) are not in the other "
                "run, by their request_id, and are left out of every figure"
            )
    rows = np.array(pairs, np.intp)
    return rows[:, 0], rows[:, 1], notes


def _match_lengths(a: Measurement, b: Measurement) -> Rows | None:
    """b's row for each of a's, equal in lengths and next in arrival; None where there is none."""
    order_a = np.lexsort((np.arange(len(a)), a.output_tokens, a.prompt_tokens))
    order_b = np.lexsort((np.arange(len(b)), b.output_tokens, b.prompt_tokens))
    rows = np.empty(len(a), np.intp)
    rows[order_a] = order_b
    if (a.prompt_tokens != b.prompt_tokens[rows]).any():
        return None
    if (a.output_tokens != b.output_tokens[rows]).any():
        return None
    moved = np.flatnonzero(rows != np.arange(len(rows)))
    if not moved.size:
        return rows
    for side in (a, b):
        apart_s = np.abs(side.arrival_s[rows[moved]] - side.arrival_s[moved])
        if not (apart_s <= SWAP_S).all():  # also where arrivals are not known
            return None
    return rows


def _check_lengths(a: Measurement, b: Measurement, rows_a: Rows, rows_b: Rows) -> None:
    """MeasurementError that names the first request which is not the same in both runs."""
    for row_a, row_b in zip(rows_a.tolist(), rows_b.tolist(), strict=False):
        lengths_a, lengths_b = (
            (int(side.prompt_tokens[row]), int(side.output_tokens[row]))
            for side, row in ((a, row_a), (b, row_b))
        )
        if lengths_a[0] != lengths_b[0] or (
            lengths_a[1] != lengths_b[1] and a.completed[row_a] and b.completed[row_b]
        ):
            raise MeasurementError(
                f"{_name(a, b, row_a, row_b)} differs: {lengths_a[0]} prompt and {lengths_a[1]} "
                f"output tokens in A ({a.label}), {lengths_b[0]} and {lengths_b[1]} in B "
                f"({b.label}); both must serve the same requests"
            )
    if len(rows_a) != len(rows_b):
        fewer, more = ("B", "A") if len(rows_b) < len(rows_a) else ("A", "B")
        first = min(len(rows_a), len(rows_b))
        raise MeasurementError(
            f"{len(a)} requests in A ({a.label}), {len(b)} in B ({b.label}): request {first} "
            f"in order of arrival is in {more} but not in {fewer}"
        )


def _name(a: Measurement, b: Measurement, row_a: int, row_b: int) -> str:
    for side, row in ((b, row_b), (a, row_a)):
        if side.request_id is not None:
            return f"request {row_a} in order of arrival ({side.request_id[row]!s:.60})"
    return f"request {row_a} in order of arrival"


def _statistics(a_s: Floats, b_s: Floats) -> dict[str, Pair]:
    names = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
    if not a_s.size:
        return dict.fromkeys(names, Pair(None, None))
    sides = [[float(x.mean()), *np.percentile(x, PERCENTILES).tolist()] for x in (a_s, b_s)]
    pairs = zip(*sides, strict=True)
    return {name: Pair(a * 1e3, b * 1e3) for name, (a, b) in zip(names, pairs, strict=True)}


def _errors_pct(a_s: Floats, b_s: Floats) -> Floats:
    measurable = b_s > 0
    errors: Floats = (a_s[measurable] / b_s[measurable] - 1.0) * 100.0
    return errors


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _makespan_s(side: Measurement, rows: Rows) -> float | None:
    if not side.has_arrivals:
        return side.duration_s
    return float(side.finished_s[rows].max() - side.arrival_s[rows].min())


def _rate(amount: float, span_s: float | None) -> float | None:
    if span_s is None or span_s <= 0 or not math.isfinite(span_s):
        return None
    return amount / span_s
