"""One engine: a scheduler, a device, and the batches in flight between them.

    batch = scheduler.schedule(now_s)          decide
    ends_s = device.run(batch, now_s)          run
    scheduler.advance(batch)                   the schedule moves on: the next decision can be made
    scheduler.collect(batch, end_s)            its tokens are there, and room for others

An engine decides again as soon as fewer than `depth` batches are in flight, and waits for the
oldest one where there is nothing to decide (vLLM's `step_with_batch_queue`). With depth 1 it
decides when the device is free; with depth 2 it decides an iteration ahead, while the device
computes the one before (vLLM's asynchronous scheduling).

*Step* mode makes every decision. *Leap* mode asks the scheduler how long its decision holds and
jumps there. A leap is planned, and the schedule moves on over it when the next decision is due; so
it can be cut short by an arrival, and both modes see the same batches at the same times. Both
compute an iteration's end as the sum of the end before and its duration, so that not even rounding
differs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from sim.batch import Batch
from sim.client_log import ClientLog
from sim.engine.front_end import ApiServers, Arrivals
from sim.engine.run_log import EMITTED, Checks, Counts, counts_of, cut, note
from sim.records import IterationLog
from sim.request import Request
from sim.schedulers.scheduler import Scheduler


class Device(Protocol):
    """What computes an engine's batches, one after the other or over several stages."""

    free_s: float  # when the next batch can begin

    def run(self, batch: Batch, now_s: float) -> tuple[float, float] | None:
        """When a batch that is launched now begins and ends; None where nothing is left of it."""

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        """When each of up to `iterations` of it ends, the first at or after `until_s` the last."""


class Listener(Protocol):
    """Who hears of tokens as they go out, from an engine that does not leap."""

    def iteration(self, engine: Engine, batch: Batch, tokens: Tokens) -> None:
        """An iteration is through; ``batch.emission`` has the times of its tokens."""

    def ended(self, requests: Sequence[Request], now_s: float) -> None:
        """These are answered, or will not be."""

    def lost(self, requests: Sequence[Request], now_s: float) -> None:
        """Their replica has failed; they begin anew."""


Tokens = list[tuple[Request, int]]
"""Sequences that run, and how many tokens each has got so far."""

_NOBODY: list[Request] = []


@dataclass(slots=True)
class Flight:
    """A launched batch, or a leap over many alike: when it begins, when each iteration ends."""

    batch: Batch
    start_s: float
    ends_s: list[float]
    next_s: float = -inf  # when stepping decides what follows its first iteration; none: at once
    counts: Counts | None = None  # for its records, once the schedule has moved on
    tokens: Tokens | None = None  # who will have how many, for a listener


class Engine:
    """Decides, launches and collects; who calls it and when is a driver's business.

    A driver calls `collect` at `due_s`, and `decide` at `decision_s` and whenever an idle engine is
    given a request.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        device: Device,
        *,
        arrivals: Arrivals | None = None,
        servers: ApiServers | None = None,
        leap: bool = True,
        check: bool = False,
    ) -> None:
        """`arrivals`: where its requests come from, if nobody else is sent any of them.

        `servers`: the front end that its tokens go out through.
        """
        self.scheduler = scheduler
        self.servers = servers
        if servers is not None:
            scheduler.pool.log = ClientLog()
        self.device = device
        self.log = IterationLog()
        self.listener: Listener | None = None
        self.decision_s = inf  # when to decide next, unless a request comes before
        self._arrivals = arrivals
        self._depth = scheduler.config.batches_in_flight
        self._is_pipeline = scheduler.config.pipeline_stages > 1
        self._leap = leap and not self._is_pipeline
        self._checks = Checks() if check else None
        self._flights: deque[Flight] = deque()  # the schedule has moved on over these …
        self._plan: Flight | None = None  # … and not over the latest, which can be cut short
        self._departed: list[Request] = []  # whose clients are gone since the latest decision

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight."""
        return self._plan is None and not self._flights

    @property
    def oldest(self) -> Flight:
        """Of what is in flight."""
        flight = self._flights[0] if self._flights else self._plan
        assert flight is not None, "nothing is in flight"
        return flight

    @property
    def due_s(self) -> float:
        """When to call next: to decide, or since requests have their last tokens."""
        flights = self._flights
        if flights and flights[0].batch.ended:
            return min(flights[0].ends_s[-1], self.decision_s)
        return self.decision_s

    # -- deciding -----------------------------------------------------------------------------

    def decide(self, now_s: float) -> None:
        """Launch batches until as many are in flight as may be, or nothing is left to compute.

        What has ended by now has been collected.
        """
        flights = self._flights
        while True:
            batch = self.choose(now_s)
            if batch is None:
                self.decision_s = flights[0].ends_s[-1] if flights else self.wake_s(now_s)
                return
            self._launch(batch, now_s)
            if self.decision_s > now_s:
                return

    def choose(self, now_s: float) -> Batch | None:
        """What to compute next, once the schedule has moved on over the latest launch."""
        if self._plan is not None:
            self._move_on()
        if self._departed:
            self.let_go(now_s)
        batch = self.scheduler.schedule(now_s)
        return self._ask_again(now_s) if batch is None else batch

    def let_go(self, now_s: float) -> None:
        """End those whose clients are gone: the schedule has moved on over all that is launched."""
        raise NotImplementedError

    def _ask_again(self, now_s: float) -> Batch | None:
        """Where everybody was preempted, the next decision, at the same time, admits again."""
        scheduler = self.scheduler
        if self._flights or not scheduler.pool.num_unfinished or now_s < scheduler.wake_s < inf:
            return None
        return scheduler.schedule(now_s)

    def wake_s(self, now_s: float) -> float:
        """When to ask an idle scheduler again though nobody comes."""
        wake_s = self.scheduler.wake_s
        return wake_s if wake_s > now_s else inf

    def _launch(self, batch: Batch, now_s: float) -> None:
        device, depth = self.device, self._depth
        if depth > 1:
            batch.decided_ahead = device.free_s > now_s
        iterations = self.scheduler.horizon(batch) if self._leap else 1
        if iterations > 1:
            start_s = max(now_s, device.free_s)
            ends_s = device.leap(batch, now_s, iterations, self._until_s())
        else:
            times_s = device.run(batch, now_s)
            if times_s is None:
                self.decision_s = now_s
                return
            start_s, ends_s = times_s[0], [times_s[1]]
        self._plan = Flight(batch, start_s, ends_s)
        if depth == 1:
            self.decision_s = ends_s[-1]
            return
        if self._flights:
            self._plan.next_s = self._flights[-1].ends_s[-1]
        self._expect(now_s)
        if self._is_pipeline:  # what decodes next is another batch's
            self._move_on()

    def _until_s(self) -> float:
        """When a leap that begins now ends at the latest, as far as is known."""
        pool, source = self.scheduler.pool, self._arrivals
        until_s = pool.gives_up_s
        if source is not None:
            if self.scheduler.admits_arrivals:
                until_s = min(until_s, source.next_arrival_s)
            if pool.rules is not None:  # somebody may come, and give up
                until_s = min(until_s, source.next_arrival_s + pool.rules.max_wait_s)
        return until_s

    def _expect(self, now_s: float) -> None:
        """Decide again once all but `depth` - 1 of the iterations launched are through."""
        assert self._plan is not None
        flights, ends_s = self._flights, self._plan.ends_s
        last = len(flights) + len(ends_s) - self._depth
        if last < 0:
            self.decision_s = now_s
        elif last < len(flights):
            self.decision_s = flights[last].ends_s[-1]
        else:
            self.decision_s = ends_s[last - len(flights)]

    def _move_on(self) -> None:
        """Let the schedule move on over the latest launch."""
        plan, scheduler = self._plan, self.scheduler
        assert plan is not None
        iterations = len(plan.ends_s)
        plan.counts = counts_of(scheduler, plan.batch, iterations)
        scheduler.advance(plan.batch, iterations)
        if self.listener is not None:
            assert iterations == 1, "a leap passes by what is to be heard"
            plan.tokens = scheduler.pool.tokens()
        self._flights.append(plan)
        self._plan = None

    # -- collecting ---------------------------------------------------------------------------

    def collect(self, now_s: float) -> list[Request]:
        """Take in what has ended by now; returns the requests that finished."""
        flights, finished = self._flights, _NOBODY
        while (oldest := flights[0] if flights else self._plan) and oldest.ends_s[-1] <= now_s:
            if not flights:
                self._move_on()
            if found := self._take(flights.popleft()):
                finished = [*finished, *found] if finished else found
        return finished

    def _take(self, flight: Flight) -> list[Request]:
        batch, ends_s, scheduler = flight.batch, flight.ends_s, self.scheduler
        end_s = ends_s[-1]
        assert flight.counts is not None
        self._note(flight, ends_s, flight.counts)
        if self.listener is not None:
            self.listener.iteration(self, batch, flight.tokens or [])
        finished = scheduler.collect(batch, end_s)
        self.log.finished(len(finished))
        if self._checks is not None:
            self._checks.after(scheduler, batch)
        return finished

    def _note(self, flight: Flight, ends_s: list[float], counts: Counts) -> None:
        """Write down what has ended, once its tokens are on their way to the clients."""
        emission = flight.batch.emission
        emission.at_s = emission.seen_s = ends_s[-1]
        first_s = ends_s[0]
        if self.servers is not None:
            first_s, emission.seen_s = self.servers.stream(ends_s, counts[0][EMITTED])
        note(self.log, self.scheduler, flight.batch, counts, flight.start_s, ends_s, first_s)

    def growth(self, at_s: float) -> int:
        """Blocks that stepping has allocated before then, beyond those that are allocated."""
        return 0 if self._plan is None else self.scheduler.growth(self._decided(at_s))

    def _decided(self, at_s: float) -> int:
        """Iterations of the plan that stepping decides before then, at least the first."""
        plan = self._plan
        assert plan is not None
        # Each is decided as the one before it ends, or, ahead, as the one before begins.
        return 1 + bisect_left(plan.ends_s, at_s) + (self._depth > 1 and plan.next_s < at_s)

    # -- leaps that are cut short -------------------------------------------------------------

    def interrupt(self, at_s: float, *, leaving: bool = False) -> None:
        """Something happens then that the plan does not know of: decide as stepping would.

        `leaving`: a client is gone, which every decision heeds; else somebody has come.
        """
        plan = self._plan
        if plan is None or at_s >= self.decision_s or not (leaving or self._heeds_arrivals()):
            return
        ends_s, kept = plan.ends_s, self._decided(at_s)
        if kept < len(ends_s):
            del ends_s[kept:]
            self.device.free_s = ends_s[-1]
            self._expect(at_s)

    def _heeds_arrivals(self) -> bool:
        """Whether an arrival can change what is decided."""
        rules = self.scheduler.pool.rules
        # Whether it finds room in the queue, and when it gives up, is not known before.
        return self.scheduler.admits_arrivals or (rules is not None and rules.limits)

    def catch_up(self, ended_s: float, decided_s: float) -> None:
        """Bring all state to what it would be if every iteration were stepped through.

        What ends before `ended_s` has been collected then, and no decision been made but those
        before `decided_s`. The latest iteration decided stays in flight though it has ended.
        """
        plan = self._plan
        if plan is None:
            return
        ends_s, free_s, decided = plan.ends_s, self.device.free_s, self._decided(decided_s)
        passed = min(bisect_left(ends_s, ended_s), decided - 1)
        plan.ends_s = ends_s[: passed or 1]
        began_s = ends_s[passed - 1] if passed else plan.start_s
        if began_s < ended_s:
            finished = self.collect(began_s)
            assert not finished, "a leap went past the end of a sequence"
        for number in range(passed or 1, decided):
            if self._plan is not None:
                self._move_on()
            start_s = ends_s[number - 1]
            batch = self.scheduler.schedule(start_s)
            assert batch is not None and not batch.prefills, "a leap was no leap"
            batch.decided_ahead = self._depth > 1
            self.device.run(batch, start_s)  # marks it where it leaves the measured range
            self._plan = Flight(batch, start_s, [ends_s[number]], start_s)
        assert self._plan is not None
        self._plan.ends_s = ends_s[decided - 1 :]
        self.device.free_s = free_s

    def void(self, now_s: float) -> list[Request]:
        """The engine fails: what has ended before now has ended, the rest never will.

        Returns all unfinished requests, as they came.
        """
        flights, plan = self._flights, self._plan
        while flights and flights[0].ends_s[-1] < now_s:
            finished = self._take(flights.popleft())
            assert not finished, "who had finished was not collected in time"
        if plan is not None:
            passed = bisect_left(plan.ends_s, now_s)
            if passed:  # of a leap: nobody ends in the midst of one
                del plan.ends_s[passed:]
                self._move_on()
                self._take(flights.popleft())
        if flights and len(flights[0].ends_s) > 1:
            self._take_all_but_the_last(flights.popleft())
        in_flight = [flight.batch for flight in flights]
        flights.clear()
        self._plan = None
        self.decision_s = inf
        self.device.free_s = now_s
        return self.scheduler.evict(now_s, in_flight)

    def _take_all_but_the_last(self, flight: Flight) -> None:
        """Of the iterations of a leap that the schedule has moved on over only the last is lost."""
        ends_s = flight.ends_s[:-1]
        assert flight.counts is not None
        counts = cut(flight.counts, len(ends_s), self.scheduler.allocator.block_size)
        self._note(flight, ends_s, counts)
        self.log.finished(0)
