"""The rate curve of a deployment: which loads to try, and where the knee is."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from pathlib import Path

import numpy as np

from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.forecast.latency_source import Composer
from scenarios.schema.scenario import Scenario
from scenarios.schema.workload import Arrivals
from scenarios.sweep.axes import Axis
from scenarios.sweep.statistics import intervals
from scenarios.sweep.table import SweepTable

RATE = "workload.arrivals.request_rate"
LOADS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)  # of what a full deployment serves
FILLED = (0.2, 0.8)  # of the requests ended: between, the deployment is full
CURVES = ("p99_ttft_ms", "p99_e2el_ms", "mean_ttft_ms")  # whose knee is looked for, the first known


def rate_axis(scenario: Scenario, *, origin: Path, compose: Composer | None) -> Axis:
    """Rates from a tenth of what a full deployment serves to a third more than that.

    Raises InputError for a workload whose rate cannot be set.
    """
    arrivals = scenario.workload.arrivals
    if arrivals is None or arrivals.request_rate is None:
        raise InputError(
            f"{origin}: workload.arrivals.request_rate: there is none to vary; give arrivals with "
            "one, for a trace as well"
        )
    at_once = scenario.workload.model_copy(update={"arrivals": Arrivals(process="all_at_once")})
    full = forecast(
        scenario.model_copy(update={"workload": at_once}), origin=origin, compose=compose
    )
    requests = full.records.requests
    ends_s = np.sort(requests["finished_s"][~requests["rejected"]])
    first, last = (int(part * (len(ends_s) - 1)) for part in FILLED)
    if last <= first or ends_s[last] <= ends_s[first]:
        raise InputError(f"{origin}: workload: too few requests to find what is served at most")
    most_per_s = (last - first) / float(ends_s[last] - ends_s[first])
    rates = dict.fromkeys(_rounded(load * most_per_s) for load in LOADS)
    return Axis((RATE,), tuple((rate,) for rate in rates))


def _rounded(rate: float) -> float:
    return round(rate, 2 - floor(log10(rate)))


@dataclass(frozen=True, slots=True)
class Knee:
    """Where a latency leaves its flat part, in requests per second.

    `kept` is the highest rate up to which the SLO is met, None where there is none; `missed` the
    next one tried.
    """

    metric: str
    rate: float
    kept: float | None
    missed: float | None


def knee_of(table: SweepTable) -> Knee | None:
    """The knee of a sweep over rates alone; None of another sweep, or where there is no knee.

    It is the rate at which the latency lies farthest below the chord from the first to the last
    (Satopää et al., 2011, "Finding a Kneedle in a Haystack").
    """
    varied = [axis for axis in range(len(table.axes)) if len(table.levels(axis)) > 1]
    if len(varied) != 1 or table.axes[varied[0]] != (RATE,):
        return None
    metric = next((name for name in CURVES if name in table.columns), None)
    if metric is None:
        return None
    found = intervals(table, metric)
    points = sorted(
        (float(table.level(varied[0], setting)[0]), one.mean)
        for setting, one in enumerate(found)
        if one is not None
    )
    if len(points) < 4:
        return None
    rates, values = np.array(points).T
    across = (rates - rates[0]) / (rates[-1] - rates[0])
    rise = values[-1] - values[0]
    if rise <= 0:
        return None
    below = across - (values - values[0]) / rise
    at = int(np.argmax(below))
    if below[at] < 0.1:  # as good as a straight line
        return None
    return Knee(metric, float(rates[at]), *_kept(table, varied[0]))


def _kept(table: SweepTable, axis: int) -> tuple[float | None, float | None]:
    met = [
        (float(table.level(axis, setting)[0]), all(value == 1.0 for value in values))
        for setting, values in enumerate(table.by_setting("slo_met"))
        if values and None not in values
    ]
    met.sort()
    kept = None
    for rate, good in met:
        if not good:
            return kept, rate
        kept = rate
    return kept, None
