"""One candidate, explored: ruled out with the reason, or its goodput and what breaks first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isinf, isnan
from pathlib import Path
from typing import Any

from scenarios.errors import InputError
from scenarios.forecast.basis import basis
from scenarios.forecast.deployment import Deployment, deploy, group_scenarios
from scenarios.forecast.energy import idle_watts
from scenarios.forecast.latency_source import Composer
from scenarios.plan.breaking import Bottleneck
from scenarios.plan.candidates import Candidate
from scenarios.plan.ceiling import SLACK, Ceiling, Engines, ceiling
from scenarios.plan.goodput import Goodput, TooLow, find_goodput
from scenarios.plan.objectives import Objective
from scenarios.plan.probe import (
    Probe,
    Sample,
    Saturation,
    is_unit,
    pooled,
    run_sample,
    run_saturated,
)
from scenarios.plan.replications import Replications
from scenarios.plan.target import Target, replicas_for
from scenarios.quantity import plain
from scenarios.schema.cluster import Autoscaling
from scenarios.schema.plan import Plan
from scenarios.schema.scenario import Scenario
from scenarios.schema.workload import Workload
from scenarios.sweep.processes import check_stop

SURVEYED = 2000  # requests that the bounds are computed from


@dataclass(frozen=True, slots=True)
class Task:
    """What a process needs to explore one candidate."""

    candidate: Candidate
    plan: Plan
    objectives: tuple[Objective, ...]
    target: Target
    replications: Replications
    origin: Path | None
    compose: Composer | None
    autoscaling: Autoscaling | None = None  # the scenario's, of a load that varies
    to_beat_usd: float = inf  # an hour: a deployment that costs more is not wanted
    bounds: Exploration | None = None  # what `bounded` found, where that was asked before

    def usd_per_hour(self, goodput_per_s: float) -> float:
        """What the candidate costs where a replica is promised so many requests per second."""
        if goodput_per_s <= 0:
            return inf
        replicas = replicas_for(self.target.peak_per_s, goodput_per_s, self.plan)
        return round(replicas * self.candidate.price_usd_per_hour, 6)  # prices are decimals


@dataclass(frozen=True, slots=True)
class Trial:
    """One load that was tried, in plain figures."""

    request_rate: float
    kept: bool
    stress: float  # the worst latency over its limit
    latencies_ms: dict[str, float]  # at its percentile, by objective
    tpot_ms: float | None  # median


@dataclass(frozen=True, slots=True)
class Exploration:
    """What is known of a candidate. Rates are requests per second of one replica.

    `status`: ``meets``, or why no number of replicas can: ``refused`` by the schema, ``memory``,
    ``unmeasured`` (the scenario's latency source has no times for it),
    ``idle`` (too slow even alone), ``ceiling`` (the roofline is below the load), ``no_load``
    (every load tried broke an objective), or ``dearer`` (it costs more than another that meets, and
    was given up). `miss` is how many times too much it is, for those that
    can be compared; `reason` says it in words.
    """

    status: str
    reason: str = ""
    miss: float = inf
    ceiling_per_s: float | None = None
    idle_share: float = 0.0  # the lowest latencies that there can be, over their limits: the worst
    saturated_per_s: float | None = None  # what leaves an engine whose queue is never empty
    goodput_per_s: float = 0.0
    low_per_s: float = 0.0
    high_per_s: float = 0.0
    breaks: str = ""  # which objective, first
    breaks_at_per_s: float | None = None
    why: str = ""
    bottleneck: Bottleneck | None = None
    tpot_s: float | None = None  # median at the goodput
    e2e_s: float | None = None  # mean there
    # of one replica at `goodput_per_s`, and without work, estimated; None where power is not known
    watts: float | None = None
    idle_watts: float | None = None
    requests: int = 0
    settled: bool = True
    trials: tuple[Trial, ...] = ()
    latency: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def known_before(self) -> dict[str, Any]:
        """What is known of a candidate before any load is tried."""
        names = ("ceiling_per_s", "idle_share", "latency", "notes", "idle_watts")
        return {name: getattr(self, name) for name in names}

    def fleet_watts(self, load_per_s: float, replicas: int) -> float | None:
        """What a fleet draws at a load: each replica's draw grows with its share of the load."""
        if self.watts is None or self.idle_watts is None or self.goodput_per_s <= 0:
            return None
        more = (self.watts - self.idle_watts) * load_per_s / self.goodput_per_s
        return replicas * self.idle_watts + more


def bounded(task: Task) -> Exploration:
    """A candidate that is not simulated yet: ruled out, or ``open`` and its ceiling known."""
    found = _bounded(task)
    return found if isinstance(found, Exploration) else Exploration("open", **found[1])


def _bounded(task: Task) -> Exploration | tuple[Deployment, dict[str, Any]]:
    check_stop()
    scenario = task.candidate.scenario
    if scenario is None:
        return Exploration("refused", task.candidate.refused)
    try:
        deployment = deploy_engine(scenario, origin=task.origin, compose=task.compose)
    except InputError as error:
        refusal = undeployable(error, task.origin)
        if refusal is None:
            raise
        return Exploration(*refusal)
    sample = task.replications.at_unit_rate(0, SURVEYED)
    bounds = ceiling(engines_of(deployment, task), sample, task.objectives)
    known: dict[str, Any] = {
        "ceiling_per_s": None if isinf(bounds.requests_per_s) else bounds.requests_per_s,
        "idle_share": max(
            idle_s / one.limit_s for one, idle_s in zip(task.objectives, bounds.idle_s, strict=True)
        ),
        "latency": {
            "label": deployment.latency.label,
            "measured": deployment.latency.measured,
            "basis": basis(deployment.latency),
        },
        "notes": deployment.notes,
    }
    known["idle_watts"] = idle_watts(deployment)
    ruled_out = _ruled_out(bounds, task)
    if ruled_out is not None:
        status, miss, reason = ruled_out
        return Exploration(status, reason, miss, **known)
    return deployment, known


def explore(task: Task) -> Exploration:
    """Rule a candidate out by its schema, memory or roofline, or search its goodput."""
    if task.bounds is None:
        found = _bounded(task)
        if isinstance(found, Exploration):
            return found
        deployment, known = found
    else:
        assert task.bounds.status == "open" and task.candidate.scenario is not None
        scenario, known = task.candidate.scenario, task.bounds.known_before
        deployment = deploy_engine(scenario, origin=task.origin, compose=task.compose)

    def trial(rate_per_s: float, seed: int, requests: int, head_start: int) -> Sample:
        check_stop()
        workload = task.replications.at_unit_rate(seed, requests).scaled(1 / rate_per_s)
        return run_sample(deployment, workload, task.objectives, head_start=head_start)

    def fill(seed: int, requests: int) -> Saturation:
        check_stop()
        return run_saturated(deployment, task.replications.at_unit_rate(seed, requests))

    goodput = find_goodput(
        trial,
        fill,
        task.objectives,
        seeds=task.plan.seeds,
        requests=task.plan.requests,
        confidence=task.plan.confidence,
        tolerance=task.plan.tolerance,
        most_requests=task.replications.most_requests(),
        # What serves nothing at all has a better reason than its price.
        enough=lambda rate_per_s: (
            rate_per_s <= 0 or task.usd_per_hour(rate_per_s) <= task.to_beat_usd
        ),
    )
    if isinstance(goodput, TooLow):
        known |= _tried(goodput.known, task.objectives)
        return dearer(task, goodput.most_per_s, known)
    return _explored(goodput, task.objectives, known)


def dearer(task: Task, most_per_s: float, known: dict[str, Any]) -> Exploration:
    """Given up: at no more than so many requests per second of a replica it costs too much."""
    usd, beaten = task.usd_per_hour(most_per_s), task.to_beat_usd
    most = "as few replicas as there may be"
    if most_per_s < inf:
        most = f"no more than {most_per_s:.3g} requests/s a replica"
    return Exploration(
        "dearer",
        f"costs at least {usd / beaten - 1:.1%} more: {most}; given up, plan.explore is cheapest",
        **known,
    )


def undeployable(error: InputError, origin: Path | None) -> tuple[str, str] | None:
    """Status and reason, where the error says that a deployment cannot be.

    A model that is too large is an answer, and so are times that nobody measured for this
    deployment; a model that is not there is no answer: None.
    """
    words = str(error).removeprefix(f"{origin or 'scenario'}: ")
    where, _, words = words.partition(": ")
    if where.startswith("cluster.groups["):  # of one of a unit's pools
        inside, _, rest = words.partition(": ")
        if inside not in UNDEPLOYABLE:
            return "refused", words
        where, words = inside, rest
    status = UNDEPLOYABLE.get(where.partition(".")[0])
    return None if status is None else (status, words)


# Sections whose errors are about the deployment, not about the question.
UNDEPLOYABLE = {
    "hardware": "memory",
    "latency": "unmeasured",
    "cluster": "refused",
    "speculation": "refused",
}


def engines_of(deployment: Deployment, task: Task) -> list[Engines]:
    """The engines that a replica of the deployment is made of, by pool."""
    if not is_unit(deployment):
        return [Engines(deployment, 1, "both")]
    found = []
    for group, mine, _ in group_scenarios(deployment.scenario):
        one = deploy_engine(mine, origin=task.origin, compose=task.compose)
        ranks = mine.hardware.data_parallel
        found.append(Engines(one, group.replicas * ranks, group.role))
    return found


def deploy_engine(
    scenario: Scenario, *, origin: Path | None, compose: Composer | None
) -> Deployment:
    """The deployment of a scenario without drawing its workload."""
    one = {"distribution": "fixed", "tokens": 1}
    asked = scenario.workload
    kinds = {name: {"share": each.share} for name, each in (asked.classes or {}).items()}
    lengths = {"prompt": one, "output": one}
    stub = Workload.model_validate(
        {
            "arrivals": {"process": "all_at_once"},
            "num_requests": 1,
            # What is asked for is the engine's to serve, whoever asks for it.
            **asked.model_dump(include={"sampling", "structured_output"}),
        }
        | (
            {"classes": {name: one | {"lengths": lengths} for name, one in kinds.items()}}
            | {"adapters": asked.adapters}
            if kinds and asked.adapters
            else {"lengths": lengths}
        )
    )
    return deploy(scenario.model_copy(update={"workload": stub}), origin=origin, compose=compose)


def _ruled_out(bounds: Ceiling, task: Task) -> tuple[str, float, str] | None:
    """Status, how many times too much, and why, where the bounds alone decide."""
    for one, idle_s in zip(task.objectives, bounds.idle_s, strict=True):
        if idle_s > one.limit_s * (1 + SLACK):
            return (
                "idle",
                idle_s / one.limit_s,
                (
                    f"{one.name} is at best {plain(idle_s * 1e3)} ms on an idle engine, "
                    f"the limit is {one.limit_s * 1e3:,g} ms"
                ),
            )
    plan, most = task.plan, task.plan.candidates.replicas.max
    serving = most - plan.n_plus
    needed = task.target.peak_per_s / (bounds.requests_per_s * (1 + SLACK) * (1 - plan.headroom))
    if needed > serving:
        return (
            "ceiling",
            needed / serving,
            (
                f"at most {bounds.requests_per_s:.3g} requests/s per replica by its roofline: "
                f"{needed:.0f} replicas would have to serve, {serving} may"
            ),
        )
    return None


def _explored(
    goodput: Goodput, objectives: tuple[Objective, ...], known: dict[str, Any]
) -> Exploration:
    known |= _tried(goodput, objectives)
    kept, broken = goodput.kept, goodput.broken
    if kept is None:
        if broken is None:
            return Exploration("no_load", "every request is larger than the KV cache", **known)
        worst, value_s = _worst(broken, objectives)
        value = f"{plain(value_s * 1e3)} ms" if value_s < inf else "missed by rejected requests"
        return Exploration(
            "no_load",
            f"{worst.name} is {value} even at {broken.rate_per_s:.2g} requests/s, "
            f"the limit is {worst.limit_s * 1e3:,g} ms",
            value_s / worst.limit_s,
            breaks=worst.name,
            **known,
        )
    if broken is None:
        bottleneck = Bottleneck.mean([one.bottleneck for one in goodput.saturated])
        breaks, breaks_at_per_s = "throughput", goodput.saturated_per_s
        why = f"the engine is full; {bottleneck.why_queueing()}"
    else:
        bottleneck = Bottleneck.mean([one.bottleneck for one in broken.samples])
        worst, value_s = _worst(broken, objectives)
        breaks, breaks_at_per_s = worst.name, broken.rate_per_s
        why = _why(worst, value_s, bottleneck)
    return Exploration(
        "meets",
        goodput_per_s=goodput.rate_per_s,
        low_per_s=goodput.low_per_s,
        high_per_s=goodput.high_per_s,
        breaks=breaks,
        breaks_at_per_s=breaks_at_per_s,
        why=why,
        bottleneck=bottleneck,
        tpot_s=None if isnan(kept.tpot_s) else kept.tpot_s,
        e2e_s=kept.e2e_s,
        watts=kept.watts,
        **known,
    )


def _tried(goodput: Goodput, objectives: tuple[Objective, ...]) -> dict[str, Any]:
    return {
        "saturated_per_s": goodput.saturated_per_s,
        "requests": goodput.requests,
        "settled": goodput.settled,
        "trials": tuple(_plain(one, objectives) for one in goodput.probes),
    }


def _worst(probe: Probe, objectives: tuple[Objective, ...]) -> tuple[Objective, float]:
    """The objective that is missed by most, and its latency in seconds."""
    pairs = zip(objectives, probe.at_rank_s, strict=True)
    return max(pairs, key=lambda pair: pair[1] / pair[0].limit_s)


def _why(objective: Objective, value_s: float, found: Bottleneck) -> str:
    """Why the lowest load that is too high breaks its objective."""
    if value_s == inf:
        return "requests are rejected: they are larger than the KV cache"
    waits = found.waiting >= 0.5 and found.queued >= 0.5
    if objective.metric == "ttft" or (objective.metric == "e2el" and waits):
        return found.why_queueing()
    return found.why_slow_tokens()


def _plain(probe: Probe, objectives: tuple[Objective, ...]) -> Trial:
    pairs = zip(objectives, probe.at_rank_s, strict=True)
    return Trial(
        request_rate=probe.rate_per_s,
        kept=probe.kept,
        stress=probe.stress,
        latencies_ms={one.name: value_s * 1e3 for one, value_s in pairs},
        tpot_ms=None if isnan(probe.tpot_s) else probe.tpot_s * 1e3,
    )


@dataclass(frozen=True, slots=True)
class Rerun:
    """One run of a candidate at a given load, by so many replicas."""

    task: Task
    rate_per_s: float
    replicas: int
    seed: int
    requests: int


def rerun(given: Rerun) -> Sample:
    """Serve a load on one replica, or on a whole fleet, routed as the scenario says."""
    check_stop()
    task = given.task
    assert task.candidate.scenario is not None
    deployment = deploy_engine(task.candidate.scenario, origin=task.origin, compose=task.compose)
    workload = task.replications.at_unit_rate(given.seed, given.requests)
    return run_sample(
        deployment,
        workload.scaled(1 / given.rate_per_s),
        task.objectives,
        replicas=given.replicas,
    )


def put_together(rate_per_s: float, samples: Sequence[Sample], task: Task) -> Trial:
    """All runs of a load as one."""
    return _plain(pooled(rate_per_s, samples, task.objectives), task.objectives)
