"""Two or more runs of one kind, side by side: what becomes of each figure from run to run.

Changes are counted from the first run. Where one of several was measured and the others are
forecasts of it, they are counted from the measurement instead. Figures are over the requests that
completed in every run; of runs that served different requests, over each one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.recordings.comparison import (
    METRICS,
    OUTCOMES,
    Pair,
    Rows,
    Summary,
    errors_pct,
    figure_inside,
    flat,
    makespan_s,
    matched,
    rate,
    statistics_ms,
)
from calibrate.recordings.measurement import Floats, Measurement, MeasurementError

NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the runs, in the order given
ALIKE = 5e-4  # relative: figures this close are both the best, as three digits show them equal
# What is better of a figure: 1 more, -1 less, 0 neither.
BETTER = {
    "request_goodput": 1,
    "slo_attainment": 1,
    "kv_utilization": 0,
    "preemptions": -1,
    "usd_per_hour": -1,
    "usd_per_million_output_tokens": -1,
}


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Runs, and the rows of each that are looked at, [requests] into its columns."""

    runs: tuple[Measurement, ...]
    rows: tuple[Rows, ...]
    same_requests: bool  # then row i of every run's rows is the same request
    notes: tuple[str, ...]
    settings: Mapping[str, tuple[Any, ...]] | None = None  # those that differ, by path
    outcomes: Mapping[str, tuple[float | None, ...]] | None = None  # of whole runs
    slo_met: tuple[bool | None, ...] = ()
    base: int = 0  # the run that changes are counted from
    measured: bool = False  # whether the base is a measurement of what the others forecast

    def latency_s(self, metric: str, run: int) -> Floats:
        """TTFT, TPOT or E2E of a run's requests; NaN for the TPOT of one token."""
        found: Floats = getattr(self.runs[run], f"{metric}_s")[self.rows[run]]
        return found

    def as_dict(self) -> dict[str, Any]:
        """What `orcast compare --json` prints: a list in order of runs for every figure."""
        spans = [makespan_s(*both) for both in zip(self.runs, self.rows, strict=True)]
        tokens = [
            int(run.output_tokens[rows].sum())
            for run, rows in zip(self.runs, self.rows, strict=True)
        ]
        counts = [len(rows) for rows in self.rows]
        rates = {"request": counts, "output": tokens}
        found: dict[str, Any] = {
            "runs": [run.label for run in self.runs],
            "names": list(NAMES[: len(self.runs)]),
            "base": self.base,
            "base_is_measured": self.measured,
            "same_requests": self.same_requests,
            "requests": counts,
            "slo_met": list(self.slo_met),
            "metrics": {
                metric: {
                    name: self._figure(values, -1) for name, values in self._statistics(metric)
                }
                for metric in METRICS
            },
            "per_request": self._per_request(),
            "makespan": self._figure(spans, -1),
            "throughput": {
                name: self._figure(
                    [rate(amount, span) for amount, span in zip(each, spans, strict=True)], 1
                )
                for name, each in rates.items()
            },
        }
        if self.settings is not None:
            found["scenario"] = {path: list(values) for path, values in self.settings.items()}
        if self.outcomes is not None:
            found["outcomes"] = {
                name: self._figure(values, BETTER[name]) for name, values in self.outcomes.items()
            }
        return found | {"notes": list(self.notes)}

    def _statistics(self, metric: str) -> Iterator[tuple[str, list[float | None]]]:
        every = [self.latency_s(metric, run) for run in range(len(self.runs))]
        if self.same_requests:
            known = np.logical_and.reduce([np.isfinite(each) for each in every])
            every = [each[known] for each in every]
        else:
            every = [each[np.isfinite(each)] for each in every]
        each_run = [statistics_ms(values) for values in every]
        for name in each_run[0]:
            yield name, [found[name] for found in each_run]

    def _per_request(self) -> dict[str, list[float | None]] | None:
        """How far the requests of each run are from the same ones of the base, in per cent."""
        if not self.same_requests:
            return None
        found: dict[str, list[float | None]] = {}
        for metric in METRICS:
            base_s = self.latency_s(metric, self.base)
            errors = [
                errors_pct(self.latency_s(metric, run), base_s) for run in range(len(self.runs))
            ]
            known = [each[np.isfinite(each)] for each in errors]
            found[f"{metric}_mape_pct"] = [
                float(np.abs(each).mean()) if each.size else None for each in known
            ]
            if metric == "e2e":
                found["e2e_bias_pct"] = [
                    float(each.mean()) if each.size else None for each in known
                ]
        return found

    def _figure(self, values: Sequence[float | None], better: int) -> dict[str, Any]:
        """The figure in every run, its change from the base in per cent, and where it is best."""
        base = values[self.base]
        return {
            "values": list(values),
            "change_pct": [Pair(value, base).diff_pct for value in values],
            "best": self._best(values, better),
        }

    def _best(self, values: Sequence[float | None], better: int) -> list[int]:
        """Runs whose figure is the best, or the closest to what was measured; none where all are
        alike, or neither more nor less is better."""
        known = {run: value for run, value in enumerate(values) if value is not None}
        worth = {run: better * value for run, value in known.items()}
        if self.measured:
            measured = known.pop(self.base, None)
            if measured is None:
                return []
            worth = {run: -abs(value - measured) for run, value in known.items()}
        elif better == 0:
            return []
        if not worth:
            return []
        top = max(worth.values())
        best = [run for run, value in worth.items() if value >= top - ALIKE * abs(top)]
        return [] if len(best) == len(worth) > 1 else best


def side_by_side(
    runs: Sequence[Measurement],
    *,
    settings: Sequence[Mapping[str, Any] | None] = (),
    summaries: Sequence[Summary | None] = (),
    notes: Sequence[str] = (),
) -> SideBySide:
    """Lay runs side by side; `settings` and `summaries` are what is known of each run as a
    whole, `notes` what a reader has to know of them.

    Raises MeasurementError for fewer than two runs, more than there are letters, or where not one
    request completed anywhere.
    """
    if not 2 <= len(runs) <= len(NAMES):
        raise MeasurementError(f"{len(runs)} runs: 2 to {len(NAMES)} can be compared")
    recorded = [at for at, run in enumerate(runs) if run.recorded]
    measured = len(recorded) == 1 and len(runs) > 2
    base = recorded[0] if measured else 0
    rows, found, same = _rows(runs, base)
    if not any(len(each) for each in rows):
        raise MeasurementError("not one request completed in any of the runs")
    summaries = summaries or [None] * len(runs)
    return SideBySide(
        tuple(runs),
        rows,
        same,
        (*notes, *found, *_without_arrivals(runs)),
        _differing(settings),
        _outcomes(summaries),
        tuple(None if each is None else each.get("slo_met") for each in summaries),
        base,
        measured,
    )


def _rows(runs: Sequence[Measurement], base: int) -> tuple[tuple[Rows, ...], list[str], bool]:
    """The rows of every run that are looked at, what to know of them, and whether they match."""
    own = tuple(np.flatnonzero(run.completed) for run in runs)
    notes: list[str] = []
    places = []
    for at, run in enumerate(runs):
        try:
            rows_base, rows_run, told = matched(runs[base], run, names=(NAMES[base], NAMES[at]))
        except MeasurementError as error:
            why = f"the runs served different requests ({error})"
            return own, [f"{why}: each figure is of a run's own, none is request by request"], False
        notes += [note for note in told if note not in notes]
        place = np.full(len(runs[base]), -1)
        place[rows_base] = rows_run
        places.append(place)
    there = np.logical_and.reduce([place >= 0 for place in places])
    for run, place in zip(runs, places, strict=True):
        there[there] = run.completed[place[there]]
    if not there.any():
        return own, ["no request completed in every run: each figure is of a run's own"], False
    for at, run in enumerate(runs):
        missing = int((~run.completed).sum())
        if missing:
            notes.append(
                f"{missing} of {len(run)} requests did not complete in {NAMES[at]} ({run.label}): "
                "rejected or failed, and left out of every latency"
            )
    return tuple(place[there] for place in places), notes, True


def _without_arrivals(runs: Sequence[Measurement]) -> Iterator[str]:
    for name, run in zip(NAMES, runs, strict=False):
        if not run.has_arrivals:
            basis = "is the duration it gives" if run.duration_s is not None else "is unknown"
            yield f"{name} ({run.label}) has no arrival times: its makespan {basis}"


def _differing(
    settings: Sequence[Mapping[str, Any] | None],
) -> dict[str, tuple[Any, ...]] | None:
    """Paths like `engine.max_num_seqs` whose values are not the same in all runs that have a
    scenario, with the values of all; None where fewer than two have one."""
    every = [None if each is None else dict(flat(each)) for each in settings]
    known = [each for each in every if each is not None]
    if len(known) < 2:
        return None
    return {
        path: tuple(None if each is None else each.get(path) for each in every)
        for path in dict.fromkeys(path for each in known for path in each)
        if any(each.get(path) != known[0].get(path) for each in known)
    }


def _outcomes(
    summaries: Sequence[Summary | None],
) -> dict[str, tuple[float | None, ...]] | None:
    """The figures of whole runs that any summary has; None where no run has a summary."""
    if all(each is None for each in summaries):
        return None
    found = {
        name: tuple(None if each is None else figure_inside(each, path) for each in summaries)
        for name, path in OUTCOMES.items()
    }
    return {name: values for name, values in found.items() if any(v is not None for v in values)}
