"""SimPy's clock and queue, with plain calls at absolute times for its events.

A sum of delays would not end where it should, and an event object for every iteration of every
replica costs as much as the scheduler's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy


class Clock(simpy.Environment):
    """Calls functions at given times."""

    def at(self, time_s: float, rank: int, call: Callable[[float], None]) -> None:
        """Call `call(time_s)` then; of one time, by rank, then in order of asking."""
        heappush(self._queue, (time_s, rank, next(self._eid), call))  # type: ignore[misc]

    def run(self, until: object = None) -> None:
        """Until nothing is due any more."""
        assert until is None
        queue: list[Any] = self._queue
        while queue:
            now_s, _, _, call = heappop(queue)
            self._now = now_s
            call(now_s)
