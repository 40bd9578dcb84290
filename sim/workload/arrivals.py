"""Arrival processes: when each of n requests arrives, in ascending seconds from the start.

The random ones are renewal processes that begin at time 0: the first request arrives after the
first gap. `all_at_once` is what vLLM's `bench serve` calls an infinite request rate.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.workload.workload import whole_number


def poisson(
    rng: np.random.Generator, num_requests: int, *, rate_per_s: float
) -> NDArray[np.float64]:
    """Independent exponential gaps with mean 1 / rate_per_s."""
    n, rate_per_s = whole_number("num_requests", num_requests), _rate(rate_per_s)
    return np.cumsum(rng.exponential(1.0 / rate_per_s, n))


def gamma(
    rng: np.random.Generator, num_requests: int, *, rate_per_s: float, burstiness: float
) -> NDArray[np.float64]:
    """Independent gamma gaps of shape `burstiness` and mean 1 / rate_per_s.

    The meaning of vLLM's `--burstiness`: 1 is Poisson, below 1 burstier, above 1 more regular; the
    gaps' coefficient of variation is burstiness ** -0.5. vLLM's client goes on to stretch them:
    `rescaled`.
    """
    n, rate_per_s = whole_number("num_requests", num_requests), _rate(rate_per_s)
    if not (math.isfinite(burstiness) and burstiness > 0):
        hint = " (perfectly regular arrivals are constant_rate)" if burstiness == math.inf else ""
        raise ValueError(f"burstiness is {burstiness}, expected a finite number above 0{hint}")
    return np.cumsum(rng.gamma(burstiness, 1.0 / (rate_per_s * burstiness), n))


def constant_rate(num_requests: int, *, rate_per_s: float) -> NDArray[np.float64]:
    """One request every 1 / rate_per_s seconds, the first at time 0."""
    n, rate_per_s = whole_number("num_requests", num_requests), _rate(rate_per_s)
    return np.arange(n) / rate_per_s


def all_at_once(num_requests: int) -> NDArray[np.float64]:
    """Every request at time 0."""
    return np.zeros(whole_number("num_requests", num_requests))


def rescaled(arrival_s: NDArray[np.float64], *, rate_per_s: float) -> NDArray[np.float64]:
    """Arrivals stretched so that the last of n comes at n / rate_per_s, as vLLM's `bench serve`
    does with what it draws."""
    if not arrival_s[-1] > 0:
        return arrival_s
    last_s = len(arrival_s) / _rate(rate_per_s)
    return np.asarray(arrival_s * (last_s / arrival_s[-1]))


def along(
    arrival_s: NDArray[np.float64],
    times_s: ArrayLike,
    multiples: ArrayLike,
    *,
    repeat: bool = False,
) -> NDArray[np.float64]:
    """Arrivals whose rate follows a profile: so many times what it was, linear between the points.

    times_s: ascending from 0; two points at one time are a step. multiples: 0 or more. After the
    last point its multiple stays, or the profile repeats. A Poisson process stays one, of the
    profile's rate (time change by the cumulative rate).

    Raises ValueError for a profile that is none, or lets nothing come in the end.
    """
    at, rate = np.asarray(times_s, np.float64), np.asarray(multiples, np.float64)
    if len(at) < 2 or len(at) != len(rate) or at[0] != 0 or (np.diff(at) < 0).any():
        raise ValueError("a profile needs two points or more, their times ascending from 0")
    if not (np.isfinite(at).all() and np.isfinite(rate).all() and (rate >= 0).all()):
        raise ValueError("a profile's times and multiples are finite, its multiples 0 or more")
    widths = np.diff(at)
    areas = np.concatenate([[0.0], np.cumsum(widths * (rate[:-1] + rate[1:]) / 2)])
    if areas[-1] <= 0 if repeat else rate[-1] <= 0:
        raise ValueError(
            "a profile that repeats lets somebody come, another one has a last multiple above 0"
        )
    rounds = np.floor(arrival_s / areas[-1]) if repeat else np.zeros(len(arrival_s))
    left = arrival_s - rounds * areas[-1] if repeat else arrival_s
    part = np.clip(np.searchsorted(areas, left, side="right") - 1, 0, len(widths) - 1)
    rest = left - areas[part]
    slope = np.divide(np.diff(rate), widths, out=np.zeros(len(widths)), where=widths > 0)[part]
    root = np.sqrt(np.maximum(rate[part] ** 2 + 2 * slope * rest, 0.0))
    steps = rate[part] + root
    inside = np.divide(2 * rest, steps, out=np.zeros(len(rest)), where=steps > 0)
    found = at[part] + np.minimum(inside, widths[part])
    if not repeat:
        later = left > areas[-1]
        found[later] = at[-1] + (left[later] - areas[-1]) / rate[-1]
    timed: NDArray[np.float64] = np.maximum.accumulate(rounds * at[-1] + found)
    return timed


def _rate(rate_per_s: float) -> float:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        hint = " (everything at time 0 is all_at_once)" if rate_per_s == math.inf else ""
        raise ValueError(f"rate_per_s is {rate_per_s}, expected a finite number above 0{hint}")
    return float(rate_per_s)
