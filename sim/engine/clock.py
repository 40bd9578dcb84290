"""SimPy's clock and queue, with plain calls at absolute times for its events.

A sum of delays would not end where it should, and an event object for every iteration of every
replica costs as much as the scheduler's decision.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

import simpy


class Clock(simpy.Environment):
    """Calls functions at given times."""

    reached = -1  # the highest rank that has been called at this very time

    def at(self, time_s: float, rank: int, call: Callable[[float], None]) -> None:
        """Call `call(time_s)` then; of one time, by rank, then in order of asking."""
        heappush(self._queue, (time_s, rank, next(self._eid), call))  # type: ignore[misc]

    @property
    def next_s(self) -> float:
        """When something is due; infinity: nothing is."""
        queue: list[Any] = self._queue
        return queue[0][0] if queue else inf

    def advance(self, until_s: float) -> None:
        """Call all that is due by then, and what comes of it by then."""
        queue: list[Any] = self._queue
        while queue and queue[0][0] <= until_s:
            now_s, rank, _, call = heappop(queue)
            if now_s > self._now:
                self._now, self.reached = now_s, rank
            elif rank > self.reached:
                self.reached = rank
            call(now_s)

    def run(self, until: object = None) -> None:
        """Until nothing is due any more."""
        assert until is None
        queue: list[Any] = self._queue
        # A run makes millions of small objects and no cycles: let reference counts do the work.
        collecting = gc.isenabled()
        gc.disable()
        try:
            while queue:
                now_s, rank, _, call = heappop(queue)
                if now_s > self._now:
                    self._now, self.reached = now_s, rank
                elif rank > self.reached:  # else somebody of a higher rank has asked for it
                    self.reached = rank
                call(now_s)
        finally:
            if collecting:
                gc.enable()
