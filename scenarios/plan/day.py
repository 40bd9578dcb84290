"""A load that varies, served by the chosen deployment over all of its time: replicas by the clock.

Twice: by as many replicas as the busiest window needs, always up, and by an autoscaler that starts
and drains them as unfinished requests come and go. Arrivals are a Poisson process of each window's
rate; requests are those that the plan was made with.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import InputError
from scenarios.forecast.deployment import Deployment
from scenarios.plan.answer import Outcome
from scenarios.plan.exploration import Task, deploy_engine
from scenarios.plan.objectives import Objective, latencies_s
from scenarios.plan.probe import is_unit, serve_replicas
from scenarios.plan.target import replicas_for
from sim.cluster.cluster import simulate_cluster
from sim.cluster.plan import Autoscaling, ClusterFacts, ReplicaGroup
from sim.records import Records
from sim.workload import PromptContent, Workload

MOST_SERVED = 200_000  # requests of one run; of a longer time that many around the peak
SEEDED = 0


def over_time(task: Task, chosen: Outcome) -> dict[str, Any] | None:
    """The chosen fleet over the load's time, with autoscaling off and on; None for a steady load.

    Units of several engines (pools, data-parallel ranks) come and go in no simulation: of those
    ``off`` alone is known. `needed`: replicas that each window's rate asks for, spares included.
    Times in s.
    """
    target, asked, explored = task.target, task.plan, chosen.explored
    if target.profile_per_s is None or chosen.replicas is None:
        return None
    assert task.candidate.scenario is not None
    needed = [replicas_for(rate, explored.low_per_s, asked) for rate in target.profile_per_s]
    first, last = _served_windows(np.array(target.profile_per_s) * target.window_s)
    rates = np.array(target.profile_per_s[first:last])
    workload = _workload(task, rates, target.window_s)
    found: dict[str, Any] = {
        "window_s": target.window_s,
        "needed": needed,
        "from_s": first * target.window_s,
        "until_s": last * target.window_s,
        "requests": 0 if workload is None else len(workload),
        "off": None,
        "on": None,
        "autoscaling": None,
    }
    if workload is None:
        return found
    deployment = deploy_engine(task.candidate.scenario, origin=task.origin, compose=task.compose)
    windows = last - first

    def run(records: Records, facts: ClusterFacts | None) -> dict[str, Any]:
        """Of a fleet that comes and goes, by its facts; None: of one that is always up."""
        assert workload is not None and chosen.replicas is not None
        ended_s = float(np.nanmax(records.requests["finished_s"], initial=0.0))
        span_s = max(windows * target.window_s, ended_s)  # what waits then is served
        up_s = chosen.replicas * span_s if facts is None else sum(facts.up_s)
        always = [float(chosen.replicas)] * windows
        return {
            "replica_hours": up_s / 3600,
            "usd": up_s / 3600 * task.candidate.price_usd_per_hour,
            "replicas": always if facts is None else _replicas(facts, windows, target.window_s),
            **_kept(task.objectives, workload, records, windows, target.window_s),
        }

    if is_unit(deployment):
        found["off"] = run(serve_replicas(deployment, workload, chosen.replicas), None)
        return found
    found["off"] = run(_served(deployment, workload, chosen.replicas, None)[0], None)
    scaling = _autoscaling(task, chosen, min(needed[first:last]))
    found["autoscaling"] = asdict(scaling)
    found["on"] = run(*_served(deployment, workload, chosen.replicas, scaling))
    return found


def _served_windows(requests: NDArray[np.float64]) -> tuple[int, int]:
    """The windows around the busiest that hold no more requests than are served."""
    first = int(np.argmax(requests))
    last, total = first + 1, float(requests[first])
    while first > 0 or last < len(requests):
        before = requests[first - 1] if first > 0 else np.inf
        after = requests[last] if last < len(requests) else np.inf
        more = float(min(before, after))
        if total + more > MOST_SERVED:
            break
        total += more
        first, last = (first - 1, last) if before <= after else (first, last + 1)
    return first, last


def _workload(task: Task, rates: NDArray[np.float64], window_s: float) -> Workload | None:
    """Requests of a Poisson process whose rate is each window's; None where nobody comes."""
    rng = np.random.default_rng([task.replications.workload.seed, len(rates)])
    counts = rng.poisson(rates * window_s)
    n = int(counts.sum())
    if not n:
        return None
    starts_s = np.repeat(np.arange(len(rates)) * window_s, counts)
    arrival_s = np.sort(starts_s + rng.random(n) * window_s)
    most = task.replications.most_requests()
    drawn = task.replications.at_unit_rate(SEEDED, n if most is None else min(n, most))
    if len(drawn) == n:
        return replace(drawn, arrival_s=arrival_s, follows=None, max_concurrency=None)
    rows = np.arange(n) % len(drawn)  # a short trace comes again
    return Workload(
        arrival_s,
        drawn.prompt_tokens[rows],
        drawn.output_tokens[rows],
        drawn.max_tokens[rows],
        content=None if drawn.content is None else _again(drawn.content, rows),
        labels=None if drawn.labels is None else [drawn.labels[row] for row in rows.tolist()],
    )


def _again(content: PromptContent, rows: NDArray[np.int64]) -> PromptContent:
    """What the requests of these rows hold."""
    first, stop = content.offsets[:-1], content.offsets[1:]
    parts = [content.ids[first[row] : stop[row]].tolist() for row in rows.tolist()]
    return PromptContent.from_lists(
        parts, unit_tokens=content.unit_tokens, known_tokens=content.known_tokens[rows]
    )


def _autoscaling(task: Task, chosen: Outcome, fewest: int) -> Autoscaling:
    """The scenario's own, or as many replicas as keep each of them where the plan has it: with no
    more unfinished requests than at its goodput, head-room kept (Little's law).

    InputError where the scenario's own asks for more replicas than there are.
    """
    assert chosen.replicas is not None
    given = task.autoscaling
    if given is not None:
        if given.min_replicas > chosen.replicas:
            raise InputError(
                f"{task.origin or 'scenario'}: cluster.autoscaling.min_replicas: "
                f"{given.min_replicas} is above the {chosen.replicas} replicas that the plan finds"
            )
        return Autoscaling(**given.model_dump())
    known = chosen.explored
    at_once = known.low_per_s * (1 - task.plan.headroom) * (known.e2e_s or 1.0)
    return Autoscaling(min(fewest, chosen.replicas), max(1.0, at_once))


def _served(
    deployment: Deployment, workload: Workload, replicas: int, scaling: Autoscaling | None
) -> tuple[Records, ClusterFacts]:
    """The run of a fleet of single engines."""
    group = ReplicaGroup(
        replicas,
        replace(
            deployment.config,
            pipeline_stages=deployment.scenario.hardware.pipeline_parallel,
        ),
        deployment.latency,
        deployment.scenario.engine.scheduler,
        deployment.memory.usable_blocks,
        gpus=deployment.parallelism.num_gpus,
    )
    router = deployment.scenario.cluster.router
    if router == "round_robin":  # of replicas that come and go, turns are no measure
        router = "least_outstanding"
    return simulate_cluster(workload, (group,), router=router, autoscaling=scaling)


def _replicas(facts: ClusterFacts, windows: int, window_s: float) -> list[float]:
    """Replicas that took requests, in the mean of each window."""
    times_s, counts = (np.array(each) for each in zip(*facts.replicas_over_time, strict=True))
    edges = np.arange(windows + 1) * window_s
    every = np.unique(np.concatenate([edges, times_s[times_s < edges[-1]]]))
    now = counts[np.searchsorted(times_s, every, side="right") - 1]
    area = np.concatenate([[0.0], np.cumsum(np.diff(every) * now[:-1])])
    means: list[float] = (np.diff(np.interp(edges, every, area)) / window_s).tolist()
    return means


def _kept(
    objectives: tuple[Objective, ...],
    workload: Workload,
    records: Records,
    windows: int,
    window_s: float,
) -> dict[str, Any]:
    """Latencies at their percentiles over all the time, and the share that keeps every limit."""
    order = np.argsort(records.requests["request"], kind="stable")
    requests = {name: column[order] for name, column in records.requests.items()}
    count = len(order)
    labels = None if workload.labels is None else np.array(workload.labels)
    good = np.ones(count, bool)
    at_rank, kept = {}, True
    for one in objectives:
        about, values_s = one.concerned(labels, count), latencies_s(requests, one)
        found_s = one.at_rank(values_s[about])
        at_rank[one.name] = found_s * 1e3 if np.isfinite(found_s) else None
        kept &= bool(found_s <= one.limit_s)
        good &= ~about | (values_s <= one.limit_s)
    window = np.minimum((workload.arrival_s / window_s).astype(np.int64), windows - 1)
    came = np.bincount(window, minlength=windows)
    within = np.bincount(window, good, minlength=windows)
    return {
        "kept": kept,
        "latencies_ms": at_rank,
        "share_kept": float(good.mean()),
        "window_share_kept": [
            float(one / all_) if all_ else None
            for one, all_ in zip(within.tolist(), came.tolist(), strict=True)
        ],
    }
