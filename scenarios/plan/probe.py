"""One load tried on one deployment: several runs, judged in their steady part; and the load at
which a deployment is full.

A run ends when the last request is served, so its last requests meet less company than they would
in service, and its first ones too if it starts empty. The first WARM_UP and the last COOL_DOWN of
the arrivals load the engine but are not judged, and a run has a *head start*: as many requests as
a lower load is known to keep in the system are there at time 0. Processor sharing settles slowly
near saturation, far more slowly than one request takes.

Keeping the objectives in a run is not enough: a loose limit, or one on TPOT alone, is kept in any
run that is short enough while the queue grows. So a load is *sustained* only below the rate at
which the same requests leave an engine whose queue is never empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from scenarios.forecast.deployment import Deployment
from scenarios.forecast.energy import replica_watts, unit_watts
from scenarios.forecast.served import serve
from scenarios.plan.breaking import Bottleneck, bottleneck
from scenarios.plan.objectives import Objective, latencies_s
from sim.engine.simulation import simulate
from sim.records import Records
from sim.workload import Workload

WARM_UP, COOL_DOWN = 0.2, 0.1  # shares of a run's requests
STEADY = (0.3, 0.7)  # shares of a saturated unit's requests that have left
FILLED = 0.3  # of a saturated run's requests have left before its rate is taken
QUEUED_PER_ROW = 4  # requests of a saturated run for each that runs at once


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run says, over its judged requests.

    latencies_s: one array for each objective, of the requests it is about. resident: requests in
    the system that an arrival found, in the mean.
    """

    latencies_s: tuple[NDArray[np.float64], ...]
    tpot_s: NDArray[np.float64]
    resident: float
    bottleneck: Bottleneck
    watts: float | None = None  # of one replica, in the mean; None where power is not known

    def stress(self, objectives: Sequence[Objective]) -> float:
        """The worst latency at its rank over its limit; at most 1 where all are kept."""
        return max(
            one.at_rank(values) / one.limit_s
            for one, values in zip(objectives, self.latencies_s, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Saturation:
    """Requests per second of an engine whose queue is never empty; `peak` ran at once.

    `full` says whether the run had enough requests to say so.
    """

    rate_per_s: float
    peak: int
    full: bool
    bottleneck: Bottleneck


@dataclass(frozen=True, slots=True)
class Probe:
    """One load in requests per second, over all runs that were tried."""

    rate_per_s: float
    samples: tuple[Sample, ...]
    at_rank_s: tuple[float, ...]  # pooled over the runs, by objective
    stress: float  # pooled: the worst of them over its limit
    whole: bool = True  # whether every seed was run: a load far too high is given up early

    @property
    def kept(self) -> bool:
        return self.stress <= 1.0

    @property
    def resident(self) -> float:
        return float(np.mean([sample.resident for sample in self.samples]))

    @property
    def e2e_s(self) -> float:
        """Mean time from arrival to the last token, by Little's law."""
        return self.resident / self.rate_per_s

    @property
    def watts(self) -> float | None:
        """Of one replica; None where power is not known."""
        known = [sample.watts for sample in self.samples if sample.watts is not None]
        return float(np.mean(known)) if len(known) == len(self.samples) else None

    @property
    def tpot_s(self) -> float:
        """Median over requests of more than one token; NaN where there is none."""
        together = np.concatenate([sample.tpot_s for sample in self.samples])
        return float(np.median(together)) if len(together) else float("nan")


def run_sample(
    deployment: Deployment,
    workload: Workload,
    objectives: Sequence[Objective],
    *,
    head_start: int = 0,
    replicas: int = 1,
) -> Sample:
    """Serve `workload` and judge the requests of its steady part.

    The first `head_start` requests, at most the warm-up, are there when the clock starts.
    """
    count = len(workload)
    window = slice(int(WARM_UP * count), count - int(COOL_DOWN * count))
    early_s = workload.arrival_s[min(head_start, window.start)]
    if head_start:
        workload = replace(workload, arrival_s=np.maximum(workload.arrival_s - early_s, 0.0))
    records = serve_replicas(deployment, workload, replicas)
    every = records.requests
    order = np.argsort(every["request"], kind="stable")
    requests = {name: column[order][window] for name, column in every.items()}
    labels = None if workload.labels is None else np.array(workload.labels[window])
    chosen = [one.concerned(labels, len(requests["request"])) for one in objectives]
    talking = ~requests["rejected"] & (requests["output_tokens"] > 1)
    spoken_s = (requests["finished_s"] - requests["first_token_s"])[talking]
    return Sample(
        latencies_s=tuple(
            latencies_s(requests, one)[about] for one, about in zip(objectives, chosen, strict=True)
        ),
        tpot_s=spoken_s / (requests["output_tokens"][talking] - 1),
        resident=_resident(every),
        bottleneck=bottleneck(
            records.iterations,
            requests,
            between_s=(float(requests["arrival_s"][0]), float(requests["arrival_s"][-1])),
            config=deployment.config,
        ),
        watts=_watts(deployment, records, replicas),
    )


def run_saturated(deployment: Deployment, workload: Workload) -> Saturation:
    """The rate at which requests like these leave an engine that they all wait for.

    Tokens are counted, not requests, from when a share FILLED has left until the queue is empty:
    which request ends just inside is chance. The queue is the engine's: what its front end lets
    through at most is the rate where that is less.
    """
    records = serve_replicas(
        deployment, replace(workload, arrival_s=np.zeros(len(workload))), 1, fronted=False
    )
    requests, iterations = records.requests, records.iterations
    served = ~requests["rejected"]
    peak = _peak(deployment, iterations)
    nothing = Bottleneck.none()
    if not served.any():
        return Saturation(0.0, peak, True, nothing)
    start_s = float(np.quantile(requests["finished_s"][served], FILLED))
    end_s = float(requests["scheduled_s"][served].max())
    full = len(workload) >= QUEUED_PER_ROW * peak and end_s > start_s
    if end_s <= start_s:
        start_s, end_s = 0.0, float(requests["finished_s"][served].max())
    if is_unit(deployment):  # where decode is the bottleneck, nothing waits for a first batch
        start_s, end_s = (
            float(np.quantile(requests["finished_s"][served], share)) for share in STEADY
        )
        full = len(workload) >= QUEUED_PER_ROW * peak
    inside = (iterations["start_s"] >= start_s) & (iterations["start_s"] < end_s)
    # Of several engines side by side each second counts once.
    busy_s = (
        end_s - start_s if is_unit(deployment) else float(iterations["duration_s"][inside].sum())
    )
    emitted = float(iterations["emitted"][inside].sum())
    tokens = float(requests["output_tokens"][served].mean())
    rate_per_s = emitted / busy_s / tokens / float(served.mean()) if busy_s > 0 else inf
    found = bottleneck(iterations, requests, between_s=(start_s, end_s), config=deployment.config)
    passes_per_s = _front_end_per_s(deployment, workload.prompt_tokens.mean(), tokens)
    if passes_per_s < rate_per_s:
        rate_per_s, found = passes_per_s, replace(found, fronted=1.0)
    return Saturation(rate_per_s, peak, full, found)


def _front_end_per_s(deployment: Deployment, prompt_tokens: float, output_tokens: float) -> float:
    """Requests per second that one replica's front ends let through, in all pools they pass."""
    if not is_unit(deployment):
        front_end = deployment.front_end
        return inf if front_end is None else front_end.most_per_s(prompt_tokens, output_tokens)
    pools: dict[str, float] = {}
    for group in deployment.groups:
        if group.front_end is not None:
            streamed = 1.0 if group.role == "prefill" else output_tokens
            each_per_s = group.front_end.most_per_s(prompt_tokens, streamed)
            pools[group.role] = pools.get(group.role, 0.0) + group.replicas * each_per_s
    return min(pools.values(), default=inf)


def is_unit(deployment: Deployment) -> bool:
    """Whether a replica of the deployment is several engines: pools, or data-parallel ranks."""
    return sum(group.replicas for group in deployment.groups) > 1


def _times(deployment: Deployment, replicas: int, *, fronted: bool = True) -> Deployment:
    """So many units as one cluster."""
    groups = tuple(
        replace(
            group,
            replicas=replicas * group.replicas,
            front_end=group.front_end if fronted else None,
        )
        for group in deployment.groups
    )
    return replace(deployment, groups=groups)


def _watts(deployment: Deployment, records: Records, replicas: int) -> float | None:
    """Mean draw of one replica."""
    if not is_unit(deployment):
        return replica_watts(deployment, records)
    watts = unit_watts(_times(deployment, replicas), records)
    return None if watts is None else watts / replicas


def _peak(deployment: Deployment, iterations: Mapping[str, NDArray]) -> int:
    """Sequences that ran at once, in all engines of one replica together."""
    if not is_unit(deployment):
        return int(iterations["running"].max(initial=0))
    peaks = [
        int(iterations["running"][iterations["replica"] == engine].max())
        for engine in np.unique(iterations["replica"])
    ]
    return sum(peaks)


def serve_replicas(
    deployment: Deployment, workload: Workload, replicas: int, *, fronted: bool = True
) -> Records:
    """The run of so many replicas, each one engine or a unit of several, behind its front end."""
    if is_unit(deployment):
        units = _times(deployment, replicas, fronted=fronted)
        records, _ = serve(replace(units, workload=workload))
        return records
    return simulate(
        workload,
        deployment.config,
        deployment.latency,
        scheduler=deployment.scenario.engine.scheduler,
        num_blocks=deployment.memory.usable_blocks,
        front_end=deployment.front_end if fronted else None,
        replicas=replicas,
    )


def _resident(requests: Mapping[str, NDArray]) -> float:
    """Requests in the system that the judged arrivals found, in the mean."""
    served = ~requests["rejected"]
    arrivals, gone = (np.sort(requests[name][served]) for name in ("arrival_s", "finished_s"))
    if not len(arrivals):
        return 0.0
    within = slice(int(WARM_UP * len(arrivals)), len(arrivals) - int(COOL_DOWN * len(arrivals)))
    number = np.arange(len(arrivals))[within]
    return float(np.mean(number - np.searchsorted(gone, arrivals[within], side="right")))


def pooled(
    rate_per_s: float,
    samples: Sequence[Sample],
    objectives: Sequence[Objective],
    *,
    whole: bool = True,
) -> Probe:
    """All runs of a load as one."""
    at_rank = tuple(
        one.at_rank(np.concatenate([sample.latencies_s[index] for sample in samples]))
        for index, one in enumerate(objectives)
    )
    pairs = zip(at_rank, objectives, strict=True)
    stress = max(value_s / one.limit_s for value_s, one in pairs)
    return Probe(rate_per_s, tuple(samples), at_rank, stress, whole)
