"""One engine of a cluster: it is sent requests, and may be cut short in mid-leap.

A leap is planned, and only what has come to pass of it is committed: when it ends, when an arrival
that could be admitted ends it at the next iteration's boundary, or when somebody looks inside
(`catch_up`). So an arrival for one replica leaves the leaps of all others alone, and leaping gives
the very records that stepping does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Protocol

from sim.batch import Batch
from sim.engine.run_log import check_iteration, note_iteration
from sim.latency.protocol import LatencyModel
from sim.records import IterationLog
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.scheduler import Scheduler

# What happens at the same time happens in this order, and in the order of the replicas' numbers.
ARRIVAL, ENDING, DECISION = 0, 1, 1 << 20


class Clock(Protocol):
    """Calls functions at given times, those of one time by rank, then in order of asking."""

    def at(self, time_s: float, rank: int, call: Callable[[float], None]) -> None:
        """Call `call(time_s)` then."""


class ReplicaPool(RequestPool):
    """A pool that knows how much has been asked of it and has not begun."""

    queued_tokens = 0  # of prompts that wait, or wait again

    def start(self, request: Request, now_s: float) -> None:
        self.queued_tokens -= request.prompt_tokens
        super().start(request, now_s)

    def preempt(self, request: Request, now_s: float) -> None:
        self.queued_tokens += request.prompt_tokens
        super().preempt(request, now_s)

    def evict(self) -> list[Request]:
        self.queued_tokens = 0
        return super().evict()


class ClusterReplica:
    """A scheduler and its latency model, served from an inbox.

    ``finished`` is called with the requests that ended and when, before the next decision. With
    `awaits_clients` those who have their answer, here or elsewhere, may send the next request
    before it, too.
    """

    def __init__(
        self,
        number: int,
        clock: Clock,
        scheduler: Scheduler,
        pool: ReplicaPool,
        latency: LatencyModel,
        finished: Callable[[ClusterReplica, list[Request], float], None],
        *,
        leap: bool = True,
        check: bool = False,
        awaits_clients: bool = False,
    ) -> None:
        self.number = number
        self.scheduler = scheduler
        self.pool = pool
        self.allocator = scheduler.allocator
        self.num_blocks = scheduler.allocator.num_blocks
        self.latency = latency
        self.log = IterationLog()
        self.num_outstanding = 0
        self.kv_floor = -1.0  # what `kv_share` is at least: a leap only adds to what it was
        self.came_s: list[float] = []  # when requests came, and when some left without an answer
        self.gone_s: list[float] = []
        self._clock = clock
        self._finished = finished
        self._leap = leap
        self._awaits_clients = awaits_clients
        self._check = check
        self._inbox: deque[Request] = deque()
        self._deciding = False  # a decision is due at this very time
        self._batch: Batch | None = None  # what runs now, from _start_s; its iterations' ends
        self._start_s = 0.0
        self._ends_s: list[float] = []
        self._interruptible = False
        self._ending_rank, self._decision_rank = ENDING + number, DECISION + number

    # -- from outside -------------------------------------------------------------------------

    def send(self, request: Request, now_s: float) -> None:
        """A request arrives here; one that can never be served is turned away at once."""
        self.came_s.append(now_s)
        if not self.scheduler.servable(request):
            self.gone_s.append(now_s)
            self.scheduler.pool.reject(request)
            self._finished(self, [request], now_s)
            return
        self._inbox.append(request)
        self.pool.queued_tokens += request.prompt_tokens
        self.kv_floor = -1.0
        self.num_outstanding += 1
        if self._batch is None:
            self._decide_at(now_s)
        elif self._interruptible and len(self._ends_s) > 1:
            self._interruptible = False
            last = bisect_left(self._ends_s, now_s)
            if last < len(self._ends_s) - 1:
                del self._ends_s[last + 1 :]
                self._clock.at(self._ends_s[-1], self._ending_rank, self._end)

    def wake(self, now_s: float) -> None:
        """Blocks came free from outside: if nothing runs, decide anew."""
        if self._batch is None:
            self._decide_at(now_s)

    def kv_share(self, now_s: float) -> float:
        """KV blocks in use and those that queued prompts will take, as a share of all blocks."""
        blocks = self.num_blocks - self.allocator.num_free
        blocks += -(-self.pool.queued_tokens // self.allocator.block_size)
        if self._batch is not None and self._ends_s[0] < now_s:
            blocks += self.scheduler.growth(bisect_left(self._ends_s, now_s) + 1)
        self.kv_floor = blocks / self.num_blocks
        return self.kv_floor

    def catch_up(self, now_s: float) -> None:
        """Commit the iterations that have ended before `now_s`, so that all state is that of now.

        The one that is under way begins a plan of its own: the same batch, for as long.
        """
        if self._batch is None:
            return
        passed = bisect_left(self._ends_s, now_s)
        if not passed or passed >= len(self._ends_s):
            return
        left_s, interruptible = self._ends_s[passed:], self._interruptible
        ended_s = self._ends_s[passed - 1]
        self._commit(self._ends_s[:passed])
        self._batch = self.scheduler.schedule(ended_s)
        assert self._batch is not None and not self._batch.prefills, "a leap was no leap"
        self.latency.iteration_s(self._batch)  # marks it where it leaves the measured range
        self._start_s, self._ends_s, self._interruptible = ended_s, left_s, interruptible

    def fail(self, now_s: float) -> list[Request]:
        """Lose everything: what is under way is void, and all requests come back as new."""
        self.catch_up(now_s)
        self._batch = None
        lost = self.scheduler.evict(now_s)
        for request in self._inbox:  # some come with a cache that was computed elsewhere
            request.num_computed_tokens = request.num_generated_tokens = 0
        # A replica that steps has taken in what one in mid-leap still has in its inbox.
        lost = sorted([*lost, *self._inbox], key=lambda request: request.index)
        self._inbox.clear()
        self.num_outstanding = self.pool.queued_tokens = 0
        self.kv_floor = -1.0
        self.gone_s += [now_s] * len(lost)
        return lost

    # -- iterations ---------------------------------------------------------------------------

    def _decide_at(self, now_s: float) -> None:
        if not self._deciding:
            self._deciding = True
            self._clock.at(now_s, self._decision_rank, self._decide)

    def _decide(self, now_s: float) -> None:
        self._deciding = False
        if self._batch is not None:
            return
        self.kv_floor = -1.0
        scheduler, inbox, pool = self.scheduler, self._inbox, self.scheduler.pool
        while inbox:
            request, rejected = inbox.popleft(), pool.num_rejected
            pool.enqueue(request)  # `send` has seen that it can be served
            if pool.num_rejected > rejected:
                self._lose([request], now_s)
        if pool.gives_up_s <= now_s:
            self._lose(pool.expire(now_s), now_s)
        batch = scheduler.schedule(now_s)
        if batch is None and pool.num_unfinished and not now_s < scheduler.wake_s < inf:
            batch = scheduler.schedule(now_s)  # everybody was preempted: admit again
        if batch is None:
            if now_s < scheduler.wake_s < inf:
                self._clock.at(scheduler.wake_s, self._decision_rank, self._decide)
            return
        self._batch, self._start_s = batch, now_s
        iterations = scheduler.horizon(batch) if self._leap else 1
        # Whether an arrival finds room in the queue, and when it gives up, is not known before.
        limited = pool.rules is not None and pool.rules.limits
        self._interruptible = iterations > 1 and (limited or scheduler.admits_arrivals)
        if iterations > 1:
            self._ends_s = self.latency.run_ends_s(batch, now_s, iterations, pool.gives_up_s)
        else:
            self._ends_s = [now_s + self.latency.iteration_s(batch)]
        self._clock.at(self._ends_s[-1], self._ending_rank, self._end)

    def _lose(self, requests: list[Request], now_s: float) -> None:
        """These got no place in the queue, or left it."""
        self.gone_s += [now_s] * len(requests)
        self.num_outstanding -= len(requests)
        self.pool.queued_tokens -= sum(request.prompt_tokens for request in requests)
        if requests:
            self._finished(self, requests, now_s)

    def _end(self, now_s: float) -> None:
        if self._batch is None or self._ends_s[-1] != now_s:
            return  # that plan was cut short, or lost
        finished = self._commit(self._ends_s)
        self._batch = None
        if finished:
            self.num_outstanding -= len(finished)
            self._finished(self, finished, now_s)
        if self._awaits_clients:  # also those of other replicas, whose iterations end just now
            self._decide_at(now_s)
        else:
            self._decide(now_s)

    def _commit(self, ends_s: list[float]) -> list[Request]:
        """Write down and complete the first iterations of the current plan."""
        batch, iterations = self._batch, len(ends_s)
        assert batch is not None
        note_iteration(
            self.log, self.scheduler, batch, start_s=self._start_s, end_s=ends_s[-1],
            iterations=iterations, ends_s=ends_s if iterations > 1 else None,
        )  # fmt: skip
        finished = self.scheduler.complete(batch, ends_s[-1], iterations)
        self.kv_floor = -1.0
        self.log.finished(len(finished))
        if self._check:
            check_iteration(self.scheduler, batch)
        return finished
