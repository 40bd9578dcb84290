"""Only as much of every candidate as says that it is not the cheapest.

Racing with bounds that hold for certain, so that whatever is chosen is what exploring everything
would choose: no fleet needs fewer replicas than its roofline's ceiling asks for, none is promised
more than a load that broke, or than a full engine serves. Who costs more by such a bound than a
fleet that is known to serve the load is given up; who costs as much is explored to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from scenarios.plan.ceiling import SLACK
from scenarios.plan.exploration import Exploration, Task, bounded, dearer, explore
from scenarios.plan.target import replicas_for
from scenarios.sweep.processes import TaskWorkers

ABREAST = 2  # candidates explored at once; a fixed number, for the same answer with any `jobs`


def race(
    tasks: Sequence[Task],
    processes: TaskWorkers,
    progress: Callable[[int, int], None] | None = None,
) -> list[Exploration]:
    """What is known of each task's candidate once the cheapest is found."""
    known = list(processes.run(bounded, tasks))
    least = [
        task.usd_per_hour(_most_per_s(one)) if one.status == "open" else inf
        for task, one in zip(tasks, known, strict=True)
    ]
    order = [at for at in range(len(tasks)) if known[at].status == "open"]
    order.sort(key=lambda at: (_expected_usd(tasks[at], known[at]), at))
    best_usd = inf
    while order := [at for at in order if least[at] <= best_usd]:
        abreast, order = order[:ABREAST], order[ABREAST:]
        running = [replace(tasks[at], to_beat_usd=best_usd, bounds=known[at]) for at in abreast]
        for at, found in zip(abreast, processes.run(explore, running), strict=True):
            known[at] = found
            if found.status == "meets" and _is_fleet(tasks[at], found.low_per_s):
                best_usd = min(best_usd, tasks[at].usd_per_hour(found.low_per_s))
        if progress is not None:
            progress(sum(one.status != "open" for one in known), len(known))
    return [
        _never_begun(replace(task, to_beat_usd=best_usd), one) if one.status == "open" else one
        for task, one in zip(tasks, known, strict=True)
    ]


def _expected_usd(task: Task, found: Exploration) -> float:
    """By which the likely ones go first: what follows is given up the sooner.

    Where a latency grows as 1 / (1 - load), it comes to its limit at a load of one less the share
    of that limit that it has without company.
    """
    left = 1 - found.idle_share
    return task.usd_per_hour(_most_per_s(found) * left) if left > 0 else inf


def _most_per_s(found: Exploration) -> float:
    """What a replica serves at most; infinity where its roofline sets no bound."""
    return inf if found.ceiling_per_s is None else found.ceiling_per_s * (1 + SLACK)


def _is_fleet(task: Task, low_per_s: float) -> bool:
    """Whether as many replicas may be had as are needed."""
    needed = replicas_for(task.target.peak_per_s, low_per_s, task.plan)
    return needed <= task.plan.candidates.replicas.max


def _never_begun(task: Task, found: Exploration) -> Exploration:
    return dearer(task, _most_per_s(found), found.known_before)
