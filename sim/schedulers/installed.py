"""Policies that other packages bring: one class, one entry point.

    [project.entry-points."orcast.schedulers"]
    longest_prompt_first = "my_package:LongestPromptFirst"

A policy is a class that is made with (pool, allocator, config) and does what
`sim.schedulers.scheduler.Scheduler` says; deriving it from a policy here is the shortest way.
"""

from __future__ import annotations

from importlib.metadata import entry_points

GROUP = "orcast.schedulers"
METHODS = (
    *("add", "servable", "schedule", "horizon", "admits_arrivals", "extend", "growth"),
    *("evict", "advance", "collect", "decoding", "abort", "accounting"),
)


def installed_names() -> list[str]:
    """Names of the policies that installed packages bring."""
    return sorted(entry_points(group=GROUP).names)


def installed_policy(name: str) -> type | None:
    """That policy's class; None where no package brings it.

    Raises ValueError where it cannot be loaded or is no policy.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            policy = entry.load()
        except Exception as error:
            raise ValueError(f"{name}: {entry.value} cannot be loaded: {error}") from None
        missing = [method for method in METHODS if not hasattr(policy, method)]
        if not isinstance(policy, type) or missing:
            lacks = f"it has no {missing[0]}" if missing else "it is not a class"
            raise ValueError(f"{name}: {entry.value} is no scheduling policy: {lacks}")
        return policy
    return None
