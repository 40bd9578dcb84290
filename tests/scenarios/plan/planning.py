"""What the tests of planning share: a small scenario, and queues whose answers are known."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from math import exp, factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from scenarios.plan.breaking import Bottleneck
from scenarios.plan.objectives import Objective
from scenarios.plan.probe import COOL_DOWN, WARM_UP, Sample, Saturation
from scenarios.schema.load import apply_overrides, parse_scenario
from scenarios.schema.scenario import Scenario

SMALL: dict[str, Any] = {
    "name": "small",
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100-sxm"},
    "engine": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
    "workload": {
        "arrivals": {"process": "poisson", "request_rate": 30},
        "lengths": {
            "prompt": {"distribution": "lognormal", "mean": 300, "sigma": 0.6, "max": 2000},
            "output": {"distribution": "lognormal", "mean": 40, "sigma": 0.5, "max": 200},
        },
        "num_requests": 300,
    },
    "slo": {"ttft_ms": 200, "tpot_ms": 25, "percentile": 90},
    "plan": {
        "load": {"request_rate": 40},
        "candidates": {"gpus": ["h100-sxm"]},
        "seeds": 4,
        "requests": 200,
        "tolerance": 0.1,
    },
}


def small(*settings: str) -> Scenario:
    """The small scenario with some paths set, as ``--set`` does."""
    content = deepcopy(SMALL)
    overridden = apply_overrides(content, settings)
    return parse_scenario(content, origin="small", overridden=overridden)


def deterministic_server_load(limit: float, share: float) -> float:
    """The load at which this share of waits in an M/D/1 queue is within `limit` services.

    Erlang (1909): P(W <= t) = (1 - rho) sum over k to floor(t) of
    exp(rho (t - k)) (-rho (t - k))^k / k!, time in services.
    """

    def within(load: float) -> float:
        terms = (
            exp(load * (limit - k)) * (-load * (limit - k)) ** k / factorial(k)
            for k in range(int(limit) + 1)
        )
        return (1 - load) * sum(terms)

    return float(brentq(lambda load: within(load) - share, 0.01, 0.999))


class DeterministicServer:
    """An M/D/1 queue by Lindley's recursion, as the search for a goodput sees a deployment.

    A service takes 1 s, and its TTFT is the wait and the service.
    """

    def __init__(self, seed: int, limit: float, share: float) -> None:
        self.objectives = (Objective("ttft", limit + 1, 100 * share),)
        self.tried: list[float] = []

        @cache
        def arrivals(run: int, requests: int) -> NDArray[np.float64]:
            rng = np.random.default_rng([seed, run])
            return np.cumsum(rng.exponential(1.0, requests))

        self._arrivals = arrivals

    def trial(self, rate_per_s: float, seed: int, requests: int, head_start: int) -> Sample:
        self.tried.append(rate_per_s)
        window = slice(int(WARM_UP * requests), requests - int(COOL_DOWN * requests))
        arrival_s = self._arrivals(seed, requests) / rate_per_s
        early_s = arrival_s[min(head_start, window.start)] if head_start else 0.0
        arrival_s = np.maximum(arrival_s - early_s, 0.0)
        steps = np.concatenate(([0.0], np.cumsum(1.0 - np.diff(arrival_s))))
        ttft_s = steps - np.minimum.accumulate(steps) + 1.0
        found = np.arange(requests) - np.searchsorted(arrival_s + ttft_s, arrival_s, side="right")
        return Sample((ttft_s[window],), np.zeros(0), float(found[window].mean()), NOTHING)

    @staticmethod
    def fill(seed: int, requests: int) -> Saturation:
        return Saturation(1.0, 1, True, NOTHING)


NOTHING = Bottleneck.none()
