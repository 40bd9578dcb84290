"""A scenario's queue: its order, its limits, and what they did to each class of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from scenarios.schema.engine import Engine
from scenarios.schema.workload import Workload
from sim.metrics import request_times_s
from sim.queues import QueueRules

# What an order needs to know of every class of requests.
_NEEDS = {"priority": "class_priority", "earliest_deadline": "class_deadline_ms"}


def queue_rules(
    engine: Engine, workload: Workload, labels: Sequence[str] | None
) -> QueueRules | None:
    """The rules of a scenario's queue; None for the plain one.

    `labels` are the classes of the requests drawn. Raises ValueError for an order whose classes,
    priorities or deadlines are not given, saying which.
    """
    order, limit_s = engine.scheduling_policy, engine.max_queue_time_s
    most = engine.max_num_waiting, engine.max_num_queued_reqs
    if order == "fcfs" and most == (None, None) and limit_s is None:
        return None
    needed = _NEEDS.get(order)
    if labels is None and (needed is not None or order == "fair"):
        raise ValueError(
            f"scheduling_policy {order} tells requests apart by class: give workload.classes, or "
            "workload.class_column of a trace"
        )
    if needed is not None:
        given = getattr(workload, needed)
        missing = sorted({*(labels or ())} - set(given))
        if missing:
            raise ValueError(
                f"scheduling_policy {order} needs workload.{needed} of every class; "
                f"{missing[0]!r} has none"
            )
    return QueueRules(
        order,
        priority=dict(workload.class_priority),
        deadline_s={name: limit_ms / 1e3 for name, limit_ms in workload.class_deadline_ms.items()},
        max_waiting=engine.max_num_waiting,
        max_unfinished=engine.max_num_queued_reqs,
        max_wait_s=inf if limit_s is None else limit_s,
    )


def unknown_classes(workload: Workload, labels: Sequence[str] | None) -> list[str]:
    """Notes on classes that are given a priority or a deadline and do not occur."""
    known = {*(labels or ())}
    return [
        f"workload.{name}.{label}: no request is of that class"
        for name in _NEEDS.values()
        for label in getattr(workload, name)
        if label not in known
    ]


def by_class(requests: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Requests, completions, output tokens and latencies of each class, JSON-ready."""
    labels, served = requests["request_class"], ~requests["rejected"]
    found = {}
    for name in np.unique(labels).tolist():
        mine = labels == name
        done = mine & served
        figures: dict[str, Any] = {
            "requests": int(mine.sum()),
            "completed": int(done.sum()),
            "output_tokens": int(requests["output_tokens"][done].sum()),
        }
        times_s = request_times_s({key: column[done] for key, column in requests.items()})
        for metric in ("ttft", "tpot", "e2el"):
            values = times_s[metric][~np.isnan(times_s[metric])] * 1e3
            figures[f"mean_{metric}_ms"] = float(values.mean()) if len(values) else None
            figures[f"p95_{metric}_ms"] = float(np.percentile(values, 95)) if len(values) else None
        found[name] = figures
    return found
