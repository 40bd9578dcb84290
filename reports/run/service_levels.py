"""The service levels a scenario asks for, held against a run's latencies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.page.records import Latencies
from scenarios.quantity import figure_of
from sim.metrics import Slo


@dataclass(frozen=True, slots=True)
class Judgement:
    """One latency against its service level."""

    limit_ms: float
    within: float  # share of the completed requests that keep the limit
    percentile: float  # the share asked for, in percent

    @property
    def met(self) -> bool:
        return self.within * 100.0 >= self.percentile


@dataclass(frozen=True, slots=True)
class ServiceLevels:
    """Limits in ms by vLLM's short name (ttft, tpot, e2el), asked for at one percentile."""

    limits_ms: Mapping[str, float]
    percentile: float = 99.0

    @classmethod
    def of(cls, scenario: Mapping[str, Any]) -> "ServiceLevels":
        """Read the scenario's `slo`; no limits where it has none."""
        slo = scenario.get("slo")
        slo = slo if isinstance(slo, Mapping) else {}
        limits_ms = {}
        for metric, keys in {
            "ttft": ("ttft_ms",),
            "tpot": ("tpot_ms",),
            "e2el": ("e2el_ms", "e2e_ms"),
        }.items():
            for key in keys:
                limit_ms = figure_of(slo, key)
                if limit_ms is not None and limit_ms > 0:
                    limits_ms[metric] = limit_ms
        return cls(limits_ms, figure_of(slo, "percentile") or 99.0)

    @property
    def slo(self) -> Slo:
        """The same as the simulator has it."""
        limits_s = {f"{name}_s": limit_ms / 1e3 for name, limit_ms in self.limits_ms.items()}
        return Slo(percentile=self.percentile, **limits_s)

    def judge(
        self, latencies: Latencies, metric: str, summary: Mapping[str, Any]
    ) -> Judgement | None:
        """How a run did on `metric`; None without a limit or a completed request.

        The share is the summary's `slo_attainment` where it has one. A request of one output token
        has no TPOT that could miss.
        """
        completed = latencies.e2e_s.size
        if metric not in self.limits_ms or not completed:
            return None
        limit_ms = self.limits_ms[metric]
        attained = summary.get("slo_attainment")
        within = figure_of(attained, metric) if isinstance(attained, Mapping) else None
        if within is None:
            missed = int((latencies.named(metric) > limit_ms / 1e3).sum())
            within = 1.0 - missed / completed
        return Judgement(limit_ms, within, self.percentile)
