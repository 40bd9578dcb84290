"""One load tried on one deployment: several runs, judged in their steady part.

A run starts from an empty engine and ends when the last request is served, so its first and last
requests meet less company than they would in service. The first WARM_UP and the last COOL_DOWN of
the arrivals load the engine but are not judged. A load is *sustained* if besides keeping every
objective it leaves no queue behind that grows for as long as requests come: a loose limit, or one
on TPOT alone, would be kept in any run that is short enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scenarios.breaking import Bottleneck, bottleneck
from scenarios.deployment import Deployment
from scenarios.objectives import Objective, latencies_s
from sim.simulation import simulate
from sim.workload import Workload

WARM_UP, COOL_DOWN = 0.2, 0.1  # shares of a run's requests
# A run of ten times as many requests as are in the system at once has time to settle.
RESIDENTS_PER_RUN = 10
GROWTH = 0.02  # requests that stay behind for each that arrives, above which a queue grows


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run says, over its judged requests.

    latencies_s: one array for each objective, of the requests it is about. growth: requests more
    in the system per request that arrived (least squares). resident: requests in the system that
    an arrival found, in the mean. completed_per_s: how fast requests left.
    """

    latencies_s: tuple[NDArray[np.float64], ...]
    tpot_s: NDArray[np.float64]
    growth: float
    resident: float
    completed_per_s: float
    bottleneck: Bottleneck

    def stress(self, objectives: Sequence[Objective]) -> float:
        """The worst latency at its rank over its limit; at most 1 where all are kept."""
        return max(
            one.at_rank(values) / one.limit_s
            for one, values in zip(objectives, self.latencies_s, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """One load, over all runs that were tried. Rates in requests per second."""

    rate_per_s: float
    samples: tuple[Sample, ...]
    at_rank_s: tuple[float, ...]  # pooled over the runs, by objective
    stress: float  # pooled: the worst of them over its limit
    growing: bool
    whole: bool  # whether every seed was run: a load far too high is given up early

    @property
    def sustained(self) -> bool:
        return self.stress <= 1.0 and not self.growing

    @property
    def growth(self) -> float:
        return float(np.mean([sample.growth for sample in self.samples]))

    @property
    def resident(self) -> float:
        return float(np.mean([sample.resident for sample in self.samples]))

    @property
    def tpot_s(self) -> float:
        """Median over requests of more than one token; NaN where there is none."""
        pooled = np.concatenate([sample.tpot_s for sample in self.samples])
        return float(np.median(pooled)) if len(pooled) else float("nan")


def judged(count: int) -> slice:
    """Which of a run's requests, in order of arrival, are judged."""
    return slice(int(WARM_UP * count), count - int(COOL_DOWN * count))


def run_sample(
    deployment: Deployment,
    workload: Workload,
    objectives: Sequence[Objective],
    *,
    replicas: int = 1,
) -> Sample:
    """Serve `workload` and judge the requests of its steady part."""
    records = simulate(
        workload,
        deployment.config,
        deployment.latency,
        scheduler=deployment.scenario.engine.scheduler,
        num_blocks=deployment.memory.num_gpu_blocks,
        replicas=replicas,
    )
    window = judged(len(workload))
    every = records.requests
    order = np.argsort(every["request"], kind="stable")
    requests = {name: column[order][window] for name, column in every.items()}
    labels = None if workload.labels is None else np.array(workload.labels[window])
    chosen = [one.concerned(labels, len(requests["request"])) for one in objectives]
    pairs = zip(objectives, chosen, strict=True)
    growth, resident = _in_system(every["arrival_s"], every["finished_s"], window)
    served = ~requests["rejected"] & (requests["output_tokens"] > 1)
    talking = {name: column[served] for name, column in requests.items()}
    tpot = (talking["finished_s"] - talking["first_token_s"]) / (talking["output_tokens"] - 1)
    return Sample(
        latencies_s=tuple(latencies_s(requests, one)[about] for one, about in pairs),
        tpot_s=tpot,
        growth=growth,
        resident=resident,
        completed_per_s=_completed_per_s(requests["arrival_s"], every["finished_s"]),
        bottleneck=bottleneck(
            records.iterations,
            requests,
            between_s=(float(requests["arrival_s"][0]), float(requests["arrival_s"][-1])),
            max_num_seqs=deployment.config.max_num_seqs,
        ),
    )


def _in_system(
    arrival_s: NDArray[np.float64], finished_s: NDArray[np.float64], window: slice
) -> tuple[float, float]:
    """Slope per arrival, and mean, of the requests that each judged arrival finds."""
    arrivals, gone = np.sort(arrival_s), np.sort(finished_s[~np.isnan(finished_s)])
    rejected = len(arrivals) - len(gone)
    number = np.arange(len(arrivals))[window]
    # Rejected requests never were in the system; their even part is near enough.
    served = number * (1 - rejected / len(arrivals))
    found = served - np.searchsorted(gone, arrivals[window], side="right")
    if len(number) < 3:
        return 0.0, float(found.mean())
    centred = number - number.mean()
    return float(centred @ found / (centred @ centred)), float(found.mean())


def _completed_per_s(judged_s: NDArray[np.float64], finished_s: NDArray[np.float64]) -> float:
    """Requests that left per second, from the first judged arrival to the last."""
    start_s, end_s = float(judged_s[0]), float(judged_s[-1])
    left = np.sum((finished_s > start_s) & (finished_s <= end_s))
    return float(left) / (end_s - start_s) if end_s > start_s else inf


def pooled(
    rate_per_s: float,
    samples: Sequence[Sample],
    objectives: Sequence[Objective],
    *,
    confidence: float,
    whole: bool = True,
) -> Probe:
    """All runs of a load as one."""
    at_rank = tuple(
        one.at_rank(np.concatenate([sample.latencies_s[index] for sample in samples]))
        for index, one in enumerate(objectives)
    )
    stress = max(
        value_s / one.limit_s for value_s, one in zip(at_rank, objectives, strict=True)
    )
    growths = np.array([sample.growth for sample in samples])
    return Probe(
        rate_per_s=rate_per_s,
        samples=tuple(samples),
        at_rank_s=at_rank,
        stress=stress,
        growing=_grows(growths, confidence),
        whole=whole,
    )


def _grows(growths: NDArray[np.float64], confidence: float) -> bool:
    """Whether queues grow: in the mean by more than GROWTH, and not by chance."""
    mean = float(growths.mean())
    if mean <= GROWTH:
        return False
    if len(growths) < 2:
        return mean > 5 * GROWTH
    error = float(growths.std(ddof=1)) / len(growths) ** 0.5
    return mean > float(stats.t.ppf(confidence, len(growths) - 1)) * error


def log_stress(value: float) -> float:
    """The logarithm of a stress, kept finite: 0 is nothing at all, infinity a rejected request."""
    return log(min(max(value, 1e-6), 1e6))
