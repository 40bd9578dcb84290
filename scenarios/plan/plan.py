"""Capacity planning: every candidate explored, and the cheapest that serves the load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scenarios.errors import InputError
from scenarios.forecast.latency_source import Composer
from scenarios.plan.answer import Outcome, answer
from scenarios.plan.candidates import Candidate, candidates_of
from scenarios.plan.day import over_time
from scenarios.plan.exploration import (
    Exploration,
    Rerun,
    Task,
    Trial,
    explore,
    put_together,
    rerun,
)
from scenarios.plan.objectives import objectives_of
from scenarios.plan.racing import race
from scenarios.plan.replications import Replications
from scenarios.plan.space import has_pools
from scenarios.plan.target import Target, following_share, replicas_for, target_of
from scenarios.schema.plan import Load, Plan
from scenarios.schema.scenario import Scenario
from scenarios.sweep.processes import Processes, TaskWorkers

# Statuses of what cannot be tried at all; a service level that is missed is no such thing.
IMPOSSIBLE = {"refused": "refused", "memory": "too large", "unmeasured": "without latency data"}
MOST_CHECKED = 50_000  # requests of one run of the chosen fleet
CURVE = (0.25, 0.5, 0.7, 0.85, 1.0, 1.1, 1.25)  # of the chosen deployment's goodput


def plan(
    scenario: Scenario,
    *,
    origin: Path | None = None,
    compose: Composer | None = None,
    jobs: int = 1,
    workers: TaskWorkers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The plan of a scenario as JSON-ready data; the same to the byte whatever `jobs` is.

    `workers` do the work in the place of so many processes, those of a cluster for instance.
    Raises InputError for a question that cannot be asked. A service level that no deployment
    meets is no such question: its answer has `chosen` None and the nearest miss.
    """
    varies = scenario.plan is not None and scenario.plan.load is not None
    varies = varies and scenario.plan.load.trace is not None  # type: ignore[union-attr]
    scaling = scenario.cluster.autoscaling if varies else None
    if scaling is not None:  # for the chosen fleet, over the trace's time
        cluster = scenario.cluster.model_copy(update={"autoscaling": None})
        scenario = scenario.model_copy(update={"cluster": cluster})
    unlike = scenario.cluster.groups and not has_pools(scenario)
    for name, value, given in (
        ("groups", "[]", unlike),
        ("failures", "[]", scenario.cluster.failures),
        ("autoscaling", "null", scenario.cluster.autoscaling),
    ):
        if given:  # nothing of a scenario is left out silently
            raise InputError(
                f"{origin or 'scenario'}: cluster.{name}: a plan is for replicas, or units of "
                f"prefill and decode pools, that are alike and always up; "
                f"--set cluster.{name}={value}, or `orcast sweep` this scenario"
            )
    asked = _plan_of(scenario, origin)
    scenario = scenario.model_copy(update={"plan": asked})
    objectives = objectives_of(scenario, origin=str(origin or "scenario"))
    assert asked.load is not None
    target = target_of(asked.load, origin=origin)
    replications = Replications(scenario.workload, scenario.engine, origin, asked.seeds)
    replications.check()
    candidates = candidates_of(scenario, origin=origin)
    tasks = [
        Task(each, asked, objectives, target, replications, origin, compose, scaling)
        for each in candidates
    ]
    with Processes(jobs) if workers is None else workers as processes:
        if asked.explore == "cheapest" and target.users is None:
            explored = race(tasks, processes, progress)
        else:  # how much users ask for is known only once their answers' times are
            explored = processes.run(explore, tasks, progress=progress)
        return _answered(scenario, tasks, explored, processes)


def _answered(
    scenario: Scenario, tasks: list[Task], explored: Sequence[Exploration], processes: TaskWorkers
) -> dict[str, Any]:
    """The cheapest of what was explored, tried as a whole, and everything else."""
    origin, asked, target = tasks[0].origin, tasks[0].plan, tasks[0].target
    candidates = [task.candidate for task in tasks]
    if all(one.status in IMPOSSIBLE for one in explored):
        raise InputError(f"{origin or 'scenario'}: {_none_is_possible(candidates, explored)}")
    outcomes = [
        _outcome(candidate, found, asked, target)
        for candidate, found in zip(candidates, explored, strict=True)
    ]
    chosen = cheapest(outcomes)
    check, curve, day = None, list[Trial](), None
    if chosen is not None:
        task = tasks[outcomes.index(chosen)]
        check, curve = _checked(task, chosen, processes)
        day = over_time(task, chosen)
    return answer(scenario, tasks[0], outcomes, chosen, check, curve) | {"over_time": day}


def _none_is_possible(candidates: Sequence[Candidate], explored: Sequence[Exploration]) -> str:
    """Why nothing could even be tried: how many for which kind of reason, and the first in full."""
    kinds = Counter(IMPOSSIBLE[one.status] for one in explored).most_common()
    told = ", ".join(f"{number} {kind}" for kind, number in kinds)
    many = f"none of the {len(explored)} candidates can" if len(explored) > 1 else "it cannot"
    return (
        f"plan.candidates: {many} be deployed ({told}): {candidates[0].label}: {explored[0].reason}"
    )


def _plan_of(scenario: Scenario, origin: Path | None) -> Plan:
    """The scenario's plan; without a load of its own, for the load the scenario has."""
    asked = scenario.plan or Plan()
    if asked.load is not None:
        return asked
    arrivals, scale = scenario.workload.arrivals, scenario.workload.time_scale
    if arrivals is None or arrivals.request_rate is None:
        raise InputError(
            f"{origin or 'scenario'}: plan.load: missing; say what is to be served, "
            "e.g. --set plan.load.request_rate=40"
        )
    return asked.model_copy(update={"load": Load(request_rate=arrivals.request_rate / scale)})


def _outcome(candidate: Candidate, found: Exploration, asked: Plan, target: Target) -> Outcome:
    if found.status != "meets":
        return Outcome(candidate, found, found.status, found.reason, found.miss)
    target = target.answered_in(found.e2e_s)
    # As many as the lower end of the interval needs: what is promised is what is sure.
    replicas = replicas_for(target.peak_per_s, found.low_per_s, asked)
    cost = round(replicas * candidate.price_usd_per_hour, 6)  # prices are decimals
    follow = following_share(target, found.low_per_s, asked)
    most = asked.candidates.replicas.max
    if replicas > most:
        reason = f"needs {replicas} replicas, plan.candidates.replicas.max is {most}"
        middle = replicas_for(target.peak_per_s, found.goodput_per_s, asked)
        if middle <= most:
            reason += f"; {middle} would do at the estimate: raise plan.seeds or plan.requests"
        return Outcome(
            candidate, found, "replicas", reason, replicas / most, replicas, cost, follow
        )
    return Outcome(candidate, found, "meets", "", 1.0, replicas, cost, follow)


def cheapest(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The least USD per hour; then the fewest GPUs, then the most to spare, then the first."""

    def rank(one: Outcome) -> tuple[float, int, float]:
        assert one.usd_per_hour is not None and one.gpus is not None and one.replicas is not None
        return one.usd_per_hour, one.gpus, -one.replicas * one.explored.low_per_s

    return min((one for one in outcomes if one.meets), key=rank, default=None)


def _checked(task: Task, chosen: Outcome, processes: TaskWorkers) -> tuple[Trial, list[Trial]]:
    """The chosen fleet without its spares at the load itself; one replica at loads up to and
    beyond its goodput, for a curve."""
    assert chosen.replicas is not None
    serving = max(1, chosen.replicas - task.plan.n_plus)
    longest = chosen.explored.requests
    load_per_s = task.target.answered_in(chosen.explored.e2e_s).peak_per_s
    asked = [(load_per_s, serving, min(longest * serving, MOST_CHECKED))]
    asked += [(part * chosen.explored.goodput_per_s, 1, longest) for part in CURVE]
    seeds = range(task.plan.seeds)
    given = [
        Rerun(task, rate_per_s, replicas, seed, requests)
        for rate_per_s, replicas, requests in asked
        for seed in seeds
    ]
    samples = processes.run(rerun, given)
    whole, *curve = [
        put_together(asked[at][0], samples[at * len(seeds) : (at + 1) * len(seeds)], task)
        for at in range(len(asked))
    ]
    return whole, curve
