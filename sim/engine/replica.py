"""One engine as a SimPy process: iteration after iteration, or leap by leap.

*Step* mode yields one timeout per iteration. *Leap* mode asks the scheduler how long its decision
holds and jumps there in one timeout; both see the same batches at the same times. Both compute an
iteration's end as the sum of the end before and its duration, so that not even rounding differs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import inf
from typing import Any

import simpy

from sim.batch import Batch
from sim.engine.run_log import check_iteration, note_iteration
from sim.latency.protocol import LatencyModel
from sim.records import IterationLog
from sim.schedulers.scheduler import Scheduler
from sim.workload.source import RequestSource

_REPORT_EVERY = 4096  # decisions between two calls of `progress`


class Replica:
    """A scheduler, its latency model and the requests sent to it, on a simulated clock."""

    def __init__(
        self,
        env: simpy.Environment,
        scheduler: Scheduler,
        latency: LatencyModel,
        source: RequestSource,
        *,
        leap: bool = True,
        check: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.env = env
        self.scheduler = scheduler
        self.latency = latency
        self.source = source
        self.leap = leap
        self.check = check
        self.progress = progress
        self.log = IterationLog()
        self.now_s = 0.0
        rules = scheduler.pool.rules
        self._patience_s = inf if rules is None else rules.max_wait_s
        self.process = env.process(self._run())

    def _run(self) -> Generator[simpy.Event, Any, None]:
        scheduler, source, timeout = self.scheduler, self.source, self.env.timeout
        pool = scheduler.pool
        decisions = 0
        asked_s = -1.0
        while True:
            now_s = self.now_s
            if source.next_arrival_s <= now_s:
                self._take_arrivals(now_s)
            if pool.gives_up_s <= now_s:
                source.release(len(pool.expire(now_s)), now_s)
                if source.next_arrival_s <= now_s:  # whom they kept from coming
                    self._take_arrivals(now_s)
            batch = scheduler.schedule(now_s)
            if batch is None:
                wake_s = min(source.next_arrival_s, scheduler.wake_s)
                if pool.waiting:
                    wake_s = min(wake_s, pool.gives_up_s)
                if wake_s <= now_s or (wake_s == inf and scheduler.pool.num_unfinished):
                    # Everybody was preempted: the next decision, at the same time, admits again.
                    assert asked_s != now_s, "the scheduler is stuck"
                    asked_s = now_s
                    continue
                if wake_s == inf:
                    return
                self.now_s = wake_s
                yield timeout(max(wake_s - self.env.now, 0.0))
                continue

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
                self._take_arrivals(end_s)
                source.release(len(finished), end_s)
            if self.check:
                check_iteration(scheduler, batch)
            decisions += 1
            if self.progress is not None and decisions % _REPORT_EVERY == 0:
                self.progress(scheduler.pool.num_finished + scheduler.pool.num_rejected)

    def _take_arrivals(self, now_s: float) -> None:
        scheduler, source = self.scheduler, self.source
        pool = scheduler.pool
        rejected = pool.num_rejected
        while source.next_arrival_s <= now_s:
            request = source.take()
            scheduler.add(request)
            if pool.num_rejected > rejected:  # its client hears so at once, and goes on
                rejected = pool.num_rejected
                source.release(1, request.arrival_s)

    def _duration(self, batch: Batch, now_s: float) -> tuple[int, list[float] | None]:
        """Advance the clock over this decision: how many iterations, and where each ends."""
        iterations = self.scheduler.horizon(batch) if self.leap else 1
        if iterations == 1:
            self.now_s = now_s + self.latency.iteration_s(batch)
            return 1, None
        next_s = self.source.next_arrival_s
        until_s = next_s if self.scheduler.admits_arrivals else inf
        if self._patience_s < inf:
            # Who gives up first: somebody here, or whoever comes next.
            until_s = min(until_s, self.scheduler.pool.gives_up_s, next_s + self._patience_s)
        ends_s = self.latency.run_ends_s(batch, now_s, iterations, until_s)
        self.now_s = ends_s[-1]
        return len(ends_s), ends_s
