"""Capacity planning: every candidate explored, and the cheapest that serves the load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scenarios.candidates import Candidate, candidates_of
from scenarios.deployment import Composer
from scenarios.errors import InputError
from scenarios.exploration import (
    Exploration,
    Task,
    Trial,
    Verification,
    explore,
    verified,
    verify,
)
from scenarios.objectives import objectives_of
from scenarios.plan_answer import Outcome, answer
from scenarios.plan_schema import Load, Plan
from scenarios.processes import run_tasks
from scenarios.replications import Replications
from scenarios.schema import Scenario
from scenarios.target import Target, following_share, replicas_for, target_of

MOST_VERIFIED = 50_000  # requests of one run of the chosen fleet


def plan(
    scenario: Scenario,
    *,
    origin: Path | None = None,
    compose: Composer | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The plan of a scenario as JSON-ready data; the same to the byte whatever `jobs` is.

    Raises InputError for a question that cannot be asked. A service level that no deployment
    meets is no such question: its answer has `chosen` None and the nearest miss.
    """
    asked = _plan_of(scenario, origin)
    scenario = scenario.model_copy(update={"plan": asked})
    objectives = objectives_of(scenario, origin=str(origin or "scenario"))
    assert asked.load is not None
    target = target_of(asked.load, origin=origin)
    replications = Replications(scenario.workload, scenario.engine, origin, asked.seeds)
    replications.check()
    candidates = candidates_of(scenario, origin=origin)
    tasks = [
        Task(each, asked, objectives, target, replications, origin, compose) for each in candidates
    ]
    explored = run_tasks(explore, tasks, jobs=jobs, progress=progress)
    outcomes = [
        _outcome(candidate, found, asked, target)
        for candidate, found in zip(candidates, explored, strict=True)
    ]
    chosen = cheapest(outcomes)
    check = None
    if chosen is not None:
        check = _verification(tasks[outcomes.index(chosen)], chosen, jobs)
    return answer(scenario, tasks[0], outcomes, chosen, check)


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
    # As many as the lower end of the interval needs: what is promised is what is sure.
    replicas = replicas_for(target.peak_per_s, found.low_per_s, asked)
    cost = round(replicas * candidate.price_usd_per_hour, 6)  # prices are decimals
    follow = following_share(target, found.low_per_s, asked)
    most = asked.candidates.replicas.max
    if replicas > most:
        reason = f"needs {replicas} replicas, plan.candidates.replicas.max is {most}"
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


def _verification(task: Task, chosen: Outcome, jobs: int) -> Trial:
    """The chosen fleet without its spares at the load itself, routed as the scenario says."""
    assert chosen.replicas is not None
    serving = max(1, chosen.replicas - task.plan.n_plus)
    requests = min(chosen.explored.requests * serving, MOST_VERIFIED)
    given = [Verification(task, serving, seed, requests) for seed in range(task.plan.seeds)]
    return verified(task, run_tasks(verify, given, jobs=jobs))
