"""The load to be served: a rate, what users ask for, or a trace's busiest window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor
from pathlib import Path

import numpy as np

from scenarios.errors import InputError
from scenarios.forecast.trace_opening import read_scenario_trace
from scenarios.schema.plan import Load, Plan


@dataclass(frozen=True, slots=True)
class Target:
    """Requests per second to be served: the peak, and over time where a trace says how it varies.

    `profile_per_s` has one mean rate for each window of `window_s` seconds; None without a trace.
    How much `users` ask for goes by how fast they are answered: see `answered_in`.
    """

    peak_per_s: float
    profile_per_s: tuple[float, ...] | None = None
    window_s: float = 0.0
    users: float | None = None
    think_time_s: float = 0.0

    def answered_in(self, e2e_s: float | None) -> Target:
        """The load on a deployment whose answers take so long in the mean.

        By Little's law each user sends one request every `think_time_s` + `e2e_s` seconds.
        Arrivals are still taken to be those of many users that know nothing of each other, which
        is no easier to serve.
        """
        if self.users is None or not e2e_s:
            return self
        return replace(self, peak_per_s=self.users / (self.think_time_s + e2e_s))

    @property
    def mean_per_s(self) -> float:
        if self.profile_per_s is None:
            return self.peak_per_s
        return float(np.mean(self.profile_per_s))


def target_of(load: Load, *, origin: Path | None = None) -> Target:
    """The load that a plan names. Raises InputError for a trace that cannot be read, or is shorter
    than one window."""
    if load.users is not None:
        return Target(0.0, users=load.users, think_time_s=load.think_time_s)
    if load.trace is None:
        assert load.request_rate is not None
        return Target(load.request_rate)
    where = f"{origin or 'scenario'}: plan.load"
    beside = None if origin is None else origin.parent
    try:
        trace = read_scenario_trace(load.trace, beside=beside, format=load.format)
    except ValueError as error:
        raise InputError(f"{where}.trace: {error}") from None
    span_s = float(trace.arrival_s[-1])
    windows = floor(span_s / load.window_s)
    if windows < 1:
        raise InputError(
            f"{where}.window_s: {load.window_s:g} s is longer than the trace ({span_s:g} s)"
        )
    # What is left after the last whole window is too little to give a rate.
    edges_s = np.arange(windows + 1) * load.window_s
    counts, _ = np.histogram(trace.arrival_s, edges_s)
    profile = counts / load.window_s * load.growth
    return Target(float(profile.max()), tuple(profile.tolist()), load.window_s)


def replicas_for(rate_per_s: float, goodput_per_s: float, plan: Plan) -> int:
    """Replicas that carry a rate with the plan's head-room, and the spare ones on top."""
    usable = goodput_per_s * (1 - plan.headroom)
    needed = max(1, ceil(rate_per_s / usable - 1e-9))
    return max(needed + plan.n_plus, plan.candidates.replicas.min)


def following_share(target: Target, goodput_per_s: float, plan: Plan) -> float | None:
    """Replica hours of a fleet that follows the load, window by window, over those of a fixed one.

    Starting a replica is taken to cost nothing and no time; None where the load does not vary.
    """
    if target.profile_per_s is None:
        return None
    fixed = replicas_for(target.peak_per_s, goodput_per_s, plan)
    each = [replicas_for(rate, goodput_per_s, plan) for rate in target.profile_per_s]
    return float(np.mean(each)) / fixed
