"""Service-level objectives, and how far a set of requests is from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import InputError, did_you_mean
from scenarios.forecast.verdict import NAMES
from scenarios.schema.scenario import Scenario
from sim.metrics import request_times_s


@dataclass(frozen=True, slots=True)
class Objective:
    """`percentile` per cent of the requests (of a class) keep `limit_s` of one latency.

    The share of requests within the limit reaches the percentile exactly where the latency at
    that rank (the inverse of the empirical distribution, no interpolation) is within it.
    """

    metric: str  # ttft, tpot or e2el, vLLM's names
    limit_s: float
    percentile: float
    request_class: str | None = None

    @property
    def name(self) -> str:
        """As people write it: ``TTFT p99``, ``TPOT p95 of chat``."""
        of = "" if self.request_class is None else f" of {self.request_class}"
        return f"{NAMES[self.metric]} p{self.percentile:g}{of}"

    def concerned(self, labels: NDArray[np.str_] | None, count: int) -> NDArray[np.bool_]:
        """Which of `count` requests it is about."""
        if self.request_class is None:
            return np.ones(count, bool)
        assert labels is not None
        return np.asarray(labels == self.request_class)

    def at_rank(self, values_s: NDArray[np.float64]) -> float:
        """The latency in seconds that `percentile` per cent of the values keep; 0 for none."""
        if not len(values_s):
            return 0.0
        return float(np.quantile(values_s, self.percentile / 100, method="inverted_cdf"))


def objectives_of(scenario: Scenario, *, origin: str = "scenario") -> tuple[Objective, ...]:
    """What the plan asks for, or else the scenario's slo.

    Raises InputError where there is no limit at all, or a class that the workload does not have.
    """
    assert scenario.plan is not None
    groups: Sequence = scenario.plan.objectives or [scenario.slo]
    found = []
    for index, group in enumerate(groups):
        request_class = getattr(group, "request_class", None)
        if request_class is not None:
            _check_class(scenario, request_class, f"{origin}: plan.objectives[{index}]")
        found += [
            Objective(metric, limit_ms / 1e3, group.percentile, request_class)
            for metric in NAMES
            if (limit_ms := getattr(group, f"{metric}_ms")) is not None
        ]
    if not found:
        raise InputError(
            f"{origin}: slo: no limit to plan for; give ttft_ms, tpot_ms or e2el_ms, "
            "e.g. --set slo.ttft_ms=500"
        )
    return tuple(found)


def _check_class(scenario: Scenario, name: str, where: str) -> None:
    workload = scenario.workload
    if workload.classes is not None and name not in workload.classes:
        hint = did_you_mean(name, workload.classes)
        raise InputError(f"{where}.request_class: no class {name!r} in workload.classes; {hint}")
    if workload.classes is None and workload.class_column is None:
        raise InputError(
            f"{where}.request_class: the workload has no classes; give workload.classes, "
            "or workload.class_column of a trace"
        )


def latencies_s(requests: Mapping[str, NDArray], objective: Objective) -> NDArray[np.float64]:
    """One latency of every request: infinite where rejected, 0 where there is none to miss."""
    values = request_times_s(requests)[objective.metric]
    # A one-token answer has no TPOT.
    values = np.where(np.isnan(values), 0.0, values)
    return np.where(requests["rejected"], np.inf, values)
