"""A forecast held against a measurement, request by request.

`a` is the forecast, `b` the measurement: diff_pct = (a - b) / b * 100. Percentiles are numpy's
linear ones, over the requests that completed in both runs. Runs of one kind lie `side_by_side`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.recordings.measurement import Floats, Measurement, MeasurementError

METRICS = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90, 95, 99)
TWO = ("A", "B")  # what the runs are called
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
        errors = {metric: errors_pct(*self.latencies_s(metric)) for metric in METRICS}
        found = {f"{metric}_mape_pct": _mean(np.abs(each)) for metric, each in errors.items()}
        return found | {"e2e_bias_pct": _mean(errors["e2e"])}

    def makespan(self) -> Pair:
        """Seconds from the first arrival to the last token."""
        return Pair(makespan_s(self.a, self.rows_a), makespan_s(self.b, self.rows_b))

    def throughput(self) -> dict[str, Pair]:
        """Requests and output tokens per second of makespan."""
        span = self.makespan()
        tokens = (
            int(self.a.output_tokens[self.rows_a].sum()),
            int(self.b.output_tokens[self.rows_b].sum()),
        )
        count = len(self.rows_a)
        return {
            "request": Pair(rate(count, span.a), rate(count, span.b)),
            "output": Pair(rate(tokens[0], span.a), rate(tokens[1], span.b)),
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
    notes: Sequence[str] = (),
) -> Comparison:
    """Match the requests of forecast `a` and measurement `b`.

    By request_id where both have one, else by order of arrival; requests that reached the engines
    within a second of each other may have changed places if their lengths say so. `settings` are
    those of both runs, to be told apart; `summaries` what is known of either run as a whole,
    `notes` what a reader has to know of them. Raises MeasurementError, naming the first request
    that differs, where the runs are not of the same requests.
    """
    a, b, left_out = _without_failed(a, b, TWO)
    rows_a, rows_b, found = _match(a, b, TWO)
    notes = [*notes, *found, *left_out]
    _check_lengths(a, b, rows_a, rows_b, TWO)
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
    whole = _outcomes(*summaries)
    return Comparison(a, b, rows_a[both], rows_b[both], tuple(notes), changes, whole)


def matched(a: Measurement, b: Measurement, names: tuple[str, str]) -> tuple[Rows, Rows, list[str]]:
    """The same requests of two runs, called by `names`: rows of `a`, those of `b`, and notes.

    As `compare` matches them, completed or not. Raises MeasurementError as it does.
    """
    kept_a, kept_b, notes = _without_failed(a, b, names)
    rows_a, rows_b, found = _match(kept_a, kept_b, names)
    _check_lengths(kept_a, kept_b, rows_a, rows_b, names)
    if kept_a is not a:
        rows_a = np.flatnonzero(a.completed)[rows_a]
    if kept_b is not b:
        rows_b = np.flatnonzero(b.completed)[rows_b]
    return rows_a, rows_b, [*found, *notes]


def _outcomes(a: Summary | None, b: Summary | None) -> dict[str, Pair] | None:
    """The figures of whole runs that either summary has; None without both summaries."""
    if a is None or b is None:
        return None
    pairs = {
        name: Pair(figure_inside(a, path), figure_inside(b, path))
        for name, path in OUTCOMES.items()
    }
    return {name: pair for name, pair in pairs.items() if (pair.a, pair.b) != (None, None)}


def figure_inside(summary: Summary, path: tuple[str, ...]) -> float | None:
    """The finite number at `path` of a summary, or None."""
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def changed_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Paths like `engine.max_num_seqs` whose values differ, with both; None where there is none."""
    flat_a, flat_b = dict(flat(a)), dict(flat(b))
    return {
        path: (flat_a.get(path), flat_b.get(path))
        for path in dict.fromkeys((*flat_a, *flat_b))
        if flat_a.get(path) != flat_b.get(path)
    }


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting inside sections with its path."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_failed(
    a: Measurement, b: Measurement, names: tuple[str, str]
) -> tuple[Measurement, Measurement, list[str]]:
    """Both runs; of a run that has as many requests more as failed in it, those that did not.

    A trace that is made of a recording leaves out what failed there.
    """
    if len(a) < len(b) and int(b.completed.sum()) == len(a):
        return a, b.only(b.completed), [_failed_note(names[1], b)]
    if len(b) < len(a) and int(a.completed.sum()) == len(b):
        return a.only(a.completed), b, [_failed_note(names[0], a)]
    return a, b, []


def _failed_note(name: str, side: Measurement) -> str:
    failed = int((~side.completed).sum())
    return (
        f"{failed} of {len(side)} requests failed in {name} ({side.label}) and are not in the "
        "other run"
    )


def _match(a: Measurement, b: Measurement, names: tuple[str, str]) -> tuple[Rows, Rows, list[str]]:
    """Rows of the same requests in both runs, in a's order of arrival."""
    by_id = _match_ids(a, b, names)
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


def _match_ids(
    a: Measurement, b: Measurement, called: tuple[str, str]
) -> tuple[Rows, Rows, list[str]] | None:
    """By request_id; None where a run has none, or they have none in common."""
    if a.request_id is None or b.request_id is None:
        return None
    where_b = {name: row for row, name in enumerate(b.request_id.tolist())}
    pairs = [
        (row, where_b[name]) for row, name in enumerate(a.request_id.tolist()) if name in where_b
    ]
    if not pairs:
        return None
    for side, name, known in zip((a, b), called, (a.request_id, b.request_id), strict=True):
        if len(set(known.tolist())) < len(side):
            raise MeasurementError(f"{name} ({side.label}): a request_id appears more than once")
    notes = []
    for side, name in zip((a, b), called, strict=True):
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


def _check_lengths(
    a: Measurement, b: Measurement, rows_a: Rows, rows_b: Rows, names: tuple[str, str]
) -> None:
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
                f"output tokens in {names[0]} ({a.label}), {lengths_b[0]} and {lengths_b[1]} in "
                f"{names[1]} ({b.label}); both must serve the same requests"
            )
    if len(rows_a) != len(rows_b):
        fewer, more = names[::-1] if len(rows_b) < len(rows_a) else names
        first = min(len(rows_a), len(rows_b))
        raise MeasurementError(
            f"{len(a)} requests in {names[0]} ({a.label}), {len(b)} in {names[1]} ({b.label}): "
            f"request {first} in order of arrival is in {more} but not in {fewer}"
        )


def _name(a: Measurement, b: Measurement, row_a: int, row_b: int) -> str:
    for side, row in ((b, row_b), (a, row_a)):
        if side.request_id is not None:
            return f"request {row_a} in order of arrival ({side.request_id[row]!s:.60})"
    return f"request {row_a} in order of arrival"


def _statistics(a_s: Floats, b_s: Floats) -> dict[str, Pair]:
    a, b = statistics_ms(a_s), statistics_ms(b_s)
    return {name: Pair(a[name], b[name]) for name in a}


def statistics_ms(values_s: Floats) -> dict[str, float | None]:
    """Mean and percentiles in ms; None of nothing."""
    names = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
    if not values_s.size:
        return dict.fromkeys(names)
    found = [float(values_s.mean()), *np.percentile(values_s, PERCENTILES).tolist()]
    return {name: value * 1e3 for name, value in zip(names, found, strict=True)}


def errors_pct(a_s: Floats, b_s: Floats) -> Floats:
    """How far each of `a_s` is from the one of `b_s`, in per cent, where that is above 0."""
    measurable = b_s > 0
    errors: Floats = (a_s[measurable] / b_s[measurable] - 1.0) * 100.0
    return errors


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def makespan_s(side: Measurement, rows: Rows) -> float | None:
    """From the first arrival to the last token of these requests; None where not known."""
    if not side.has_arrivals:
        return side.duration_s
    return float(side.finished_s[rows].max() - side.arrival_s[rows].min())


def rate(amount: float, span_s: float | None) -> float | None:
    """Per second; None of no time."""
    if span_s is None or span_s <= 0 or not math.isfinite(span_s):
        return None
    return amount / span_s
