"""Faults on purpose: errors, streams that break off, a slow start."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from math import inf

import numpy as np

from orcast.serve.errors import ApiError
from scenarios.errors import InputError
from sim.cluster.plan import Failure

_FAILURE = re.compile(r"(\d+)@(\d+(?:\.\d*)?)(?:\+(\d+(?:\.\d*)?))?")


@dataclass(slots=True)
class Faults:
    """Shares of requests that get an error, or whose stream breaks off; both can be changed."""

    error_rate: float = 0.0
    drop_rate: float = 0.0
    slow_start_s: float = 0.0  # on the wall clock
    seed: int = 0
    _rng: np.random.Generator = field(init=False)
    _began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 0x6661756C])
        self._began_s = time.monotonic()

    @property
    def loading(self) -> bool:
        """Whether the server has not started yet."""
        return time.monotonic() - self._began_s < self.slow_start_s

    def strike(self) -> None:
        """Raise ApiError for a request that is to fail."""
        if self.loading:
            raise ApiError("The model is being loaded.", kind="Service Unavailable", status=503)
        if self.error_rate and self._rng.random() < self.error_rate:
            raise ApiError("Internal server error", kind="InternalServerError", status=500)

    def breaks_off(self, tokens: int) -> int | None:
        """After how many of its tokens a stream breaks off; None: it does not."""
        if self.drop_rate and self._rng.random() < self.drop_rate:
            return int(self._rng.integers(tokens))
        return None


def failure(text: str, replicas: int) -> Failure:
    """``replica@seconds`` or ``replica@seconds+seconds until it is back``. Raises InputError."""
    found = _FAILURE.fullmatch(text)
    if found is None:
        raise InputError(f"--fail {text}: expected REPLICA@SECONDS or REPLICA@SECONDS+SECONDS")
    number = int(found[1])
    if number >= replicas:
        raise InputError(
            f"--fail {text}: there is no replica {number}: the last of {replicas} is {replicas - 1}"
        )
    return Failure(number, float(found[2]), float(found[3]) if found[3] else inf)
