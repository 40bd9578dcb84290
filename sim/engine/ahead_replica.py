"""A replica whose host decides the next iteration while the device computes this one.

The decision for iteration n + 1 is made when iteration n begins. Output lengths are known to it (an
engine knows max_tokens), so who will have ended by then has left; requests that arrive during
iteration n are not seen before the decision for n + 2. After a pause, the first decision sees
everybody who has come, and its host time is not hidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from math import inf
from typing import Any

import simpy

from sim.batch import Batch
from sim.engine.replica import Replica
from sim.engine.run_log import check_iteration, note_iteration
from sim.request import Request


class AheadReplica(Replica):
    """`Replica` with decisions made an iteration ahead."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        scheduler, source, timeout = self.scheduler, self.source, self.env.timeout
        self._arrived: deque[Request] = deque()  # and not seen by a decision
        before_s: float | None = None  # when the iteration before began; None after a pause
        asked_s = -1.0
        while True:
            now_s = self.now_s
            self._note_arrivals(now_s)
            self._show(now_s if before_s is None else before_s)
            batch = scheduler.schedule(now_s)
            if batch is None:
                if before_s is not None:  # the device pauses: decide anew, seeing everybody
                    before_s = None
                    continue
                wake_s = source.next_arrival_s
                if wake_s <= now_s or (wake_s == inf and scheduler.pool.num_unfinished):
                    assert asked_s != now_s, "the scheduler is stuck"
                    asked_s = now_s
                    continue
                if wake_s == inf:
                    return
                self.now_s = wake_s
                yield timeout(max(wake_s - self.env.now, 0.0))
                continue
            batch.decided_ahead = before_s is not None
            iterations, ends_s = self._duration(batch, now_s)
            end_s = self.now_s
            note_iteration(
                self.log, scheduler, batch, start_s=now_s, end_s=end_s, iterations=iterations,
                ends_s=ends_s,
            )  # fmt: skip
            yield timeout(max(end_s - self.env.now, 0.0))
            finished = scheduler.complete(batch, end_s, iterations)
            self.log.finished(len(finished))
            if finished:
                # In a closed loop those who came meanwhile hold their clients already.
                self._note_arrivals(end_s)
                source.release(len(finished), end_s)
            if self.check:
                check_iteration(scheduler, batch)
            if self.progress is not None:
                self.progress(scheduler.pool.num_finished + scheduler.pool.num_rejected)
            before_s = now_s if ends_s is None or len(ends_s) < 2 else ends_s[-2]

    def _note_arrivals(self, now_s: float) -> None:
        """Let those come who have arrived by now; what can never be served hears so at once."""
        source = self.source
        while source.next_arrival_s <= now_s:
            request = source.take()
            if self.scheduler.servable(request):
                self._arrived.append(request)
            else:
                self.scheduler.pool.reject(request)
                source.release(1, request.arrival_s)

    def _show(self, until_s: float) -> None:
        """Let the scheduler see who had arrived by then."""
        while self._arrived and self._arrived[0].arrival_s <= until_s:
            self.scheduler.add(self._arrived.popleft())

    def _duration(self, batch: Batch, now_s: float) -> tuple[int, list[float] | None]:
        if self._arrived and self.scheduler.admits_arrivals:
            self.now_s = now_s + self.latency.iteration_s(batch)  # the next decision sees them
            return 1, None
        return super()._duration(batch, now_s)
