"""Arrival processes: when each of n requests arrives, in ascending seconds from the start.

The random ones are renewal processes that begin at time 0: the first request arrives after the
first gap. `all_at_once` is what vLLM's `bench serve` calls an infinite request rate.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
    gaps' coefficient of variation is burstiness ** -0.5. Unlike vLLM's client, the arrivals are not
    rescaled to end at exactly num_requests / rate_per_s.
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


def _rate(rate_per_s: float) -> float:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        hint = " (everything at time 0 is all_at_once)" if rate_per_s == math.inf else ""
        raise ValueError(f"rate_per_s is {rate_per_s}, expected a finite number above 0{hint}")
    return float(rate_per_s)
