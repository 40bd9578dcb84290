"""Ranks that share out a mixture's experts: each schedules for itself, all step together.

Every step goes through all ranks (vLLM's data parallelism of a mixture): their tokens meet at the
experts, so a step begins on all of them at once and lasts as long as the slowest one's. A rank with
nothing to compute takes part with an empty batch, which nobody waits for; it neither delays a
request that comes to it beyond the step's end nor is it in the records. A wave begins as soon as
any rank has work and ends with the last. (vLLM looks whether all ranks are done every 32 steps and
goes on with empty batches until then, which is left out.)

`Lockstep` decides for all its ranks at the same times and tells each what `Engine` would have
decided alone: when its batch begins and ends, and when to decide next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from sim.batch import Batch
from sim.cluster.replica import DECISION, ClusterReplica
from sim.engine.clock import Clock
from sim.engine.engine import Flight
from sim.engine.front_end import ApiServers
from sim.latency.protocol import LatencyModel
from sim.records import Columns
from sim.request import Request
from sim.schedulers.scheduler import Scheduler


class Lockstep:
    """Steps of several ranks, all of one depth, from when they are decided to when they end."""

    def __init__(self, clock: Clock, number: int) -> None:
        """`number`: its first rank's, by which it is called among others at the same time."""
        self.clock = clock
        self.ranks: list[Rank] = []
        self.free_s = 0.0  # when the next step can begin
        self.decision_s = inf
        self.number = number
        self._ends_s: list[float] = []  # of steps that all schedules have moved on over …
        self._plan_s: list[float] = []  # … and of the latest launch, which can be cut short
        self._next_s = -inf  # when stepping decides what follows the first of those
        self._deciding = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight on any rank."""
        return not any(rank.in_flight for rank in self.ranks)

    def decide_at(self, now_s: float) -> None:
        """Decide then, once all that happens before decisions has happened."""
        if not self._deciding:
            self._deciding = True
            self.clock.at(now_s, DECISION + self.number, self._decide)

    def _decide(self, now_s: float) -> None:
        self._deciding = False
        if now_s < self.decision_s and not self.is_idle:
            return  # an arrival had asked for it when all was idle: it has been made
        ranks = self.ranks
        for rank in ranks:
            rank.note_change()
            rank.take_in(now_s)
        while True:
            self._ends_s = [end_s for end_s in (*self._ends_s, *self._plan_s) if end_s > now_s]
            self._plan_s = []
            batches = [rank.choose(now_s) for rank in ranks]
            if all(batch is None for batch in batches):
                wake_s = min(rank.wake_s(now_s) for rank in ranks)
                self.decision_s = self._ends_s[0] if self._ends_s else wake_s
                break
            self._launch(batches, now_s)
            if self.decision_s > now_s:
                break
        for rank in ranks:
            rank.expect(self.decision_s)

    def _launch(self, batches: Sequence[Batch | None], now_s: float) -> None:
        ranks, start_s = self.ranks, max(now_s, self.free_s)
        given = [(rank, batch) for rank, batch in zip(ranks, batches, strict=True) if batch]
        fullest = max(batch.num_tokens for _, batch in given)
        together = sum(batch.num_tokens for _, batch in given)
        for rank, batch in given:
            batch.fullest_tokens, batch.all_tokens = fullest, together
            batch.decided_ahead = rank.depth > 1 and self.free_s > now_s
        iterations = min(rank.alike(batch) for rank, batch in zip(ranks, batches, strict=True))
        until_s = min(rank.until_s() for rank in ranks)
        ends_s = step_ends_s(given, start_s, int(iterations), until_s)
        self._next_s = self._ends_s[-1] if self._ends_s else -inf
        for rank, batch in given:
            rank.launched(Flight(batch, start_s, ends_s.copy(), self._next_s))
        self._plan_s, self.free_s = ends_s, ends_s[-1]
        self._expect(now_s)

    def _expect(self, now_s: float) -> None:
        """Decide again once all but `depth` - 1 of the steps launched are through."""
        all_s = self._ends_s + self._plan_s
        last = len(all_s) - self.ranks[0].depth
        self.decision_s = now_s if last < 0 else all_s[last]

    def interrupt(self, at_s: float) -> None:
        """Something happens to a rank that its plan does not know of: decide as stepping would."""
        plan_s = self._plan_s
        if not plan_s or at_s >= self.decision_s:
            return
        ahead = self.ranks[0].depth > 1 and self._next_s < at_s
        kept = 1 + bisect_left(plan_s, at_s) + ahead
        if kept >= len(plan_s):
            return
        del plan_s[kept:]
        self.free_s = plan_s[-1]
        self._expect(at_s)
        for rank in self.ranks:
            rank.cut(self.free_s)
            rank.expect(self.decision_s)


def step_ends_s(
    given: Sequence[tuple[Rank, Batch]], start_s: float, steps: int, until_s: float
) -> list[float]:
    """When each of up to `steps` steps of these batches ends, the first at or after `until_s` last.

    After the first, every rank decodes on. A run is wholly inside what each rank's latency model
    has measured or, for that rank, wholly outside.
    """
    start_s += max(rank.latency.iteration_s(batch) for rank, batch in given)
    ends_s = [start_s]
    if steps == 1 or start_s >= until_s:
        return ends_s
    extrapolated = [batch.extrapolated for _, batch in given]
    ahead = [replace(batch, decided_ahead=rank.depth > 1) for rank, batch in given]
    models = [rank.latency.iteration_s for rank, _ in given]
    while len(ends_s) < steps and start_s < until_s:
        longest_s = 0.0
        for step, iteration_s in zip(ahead, models, strict=True):
            step.context_tokens += step.num_decodes
            step.longest_tokens += 1
            step_s = iteration_s(step)
            if step_s > longest_s:
                longest_s = step_s
        if [step.extrapolated for step in ahead] != extrapolated:
            break
        start_s += longest_s
        ends_s.append(start_s)
    return ends_s


def tokens_by_step(iterations: Mapping[str, np.ndarray], locksteps: np.ndarray) -> Columns:
    """Columns beside those of recorded iterations: tokens of the fullest rank of their step, and of
    all its ranks. `locksteps` [replicas]: which one each belongs to, as numbers.

    Of one lockstep all that begins at one time is one step.
    """
    tokens, start_s = iterations["num_tokens"], iterations["start_s"]
    mine = locksteps[iterations["replica"]]
    order = np.lexsort((start_s, mine))
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(start_s[order]) != 0) | (np.diff(mine[order]) != 0)
    step = np.empty(len(order), dtype=np.int64)
    step[order] = np.cumsum(begins) - 1
    fullest, together = (np.zeros(int(begins.sum()), dtype="i4") for _ in range(2))
    np.maximum.at(fullest, step, tokens)
    np.add.at(together, step, tokens)
    return {"fullest_tokens": fullest[step], "all_tokens": together[step]}


class _Shared:
    """A rank's device: all its steps are told by the lockstep."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    @property
    def free_s(self) -> float:
        return self._rank.lockstep.free_s

    @free_s.setter
    def free_s(self, at_s: float) -> None:
        self._rank.lockstep.free_s = at_s

    def run(self, batch: Batch, now_s: float) -> None:
        """A step that is under way, seen by itself: marks it where it leaves what was measured."""
        batch.fullest_tokens, batch.all_tokens = self._rank.together
        self._rank.latency.iteration_s(batch)

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        raise AssertionError("ranks leap together")


class Rank(ClusterReplica):
    """An engine whose steps are those of its lockstep."""

    def __init__(
        self,
        lockstep: Lockstep,
        number: int,
        scheduler: Scheduler,
        latency: LatencyModel,
        finished: Callable[[ClusterReplica, list[Request], float], None],
        *,
        servers: ApiServers | None,
        leap: bool,
        check: bool,
    ) -> None:
        super().__init__(
            number, lockstep.clock, scheduler, _Shared(self), finished,
            servers=servers, leap=leap, check=check, awaits_clients=True,
        )  # fmt: skip
        self.lockstep = lockstep
        self.latency = latency
        self.depth = scheduler.config.batches_in_flight
        self.together = 0, 0  # tokens of the fullest rank and of all, in the latest launch
        lockstep.ranks.append(self)

    # -- what its lockstep asks and tells -------------------------------------------------------

    @property
    def in_flight(self) -> bool:
        """Whether this rank itself has a batch in flight."""
        return self._plan is not None or bool(self._flights)

    def alike(self, batch: Batch | None) -> float:
        """How many steps in a row this rank's decision holds, if nobody comes."""
        if not self._leap:
            return 1
        if batch is None:  # who is here though nothing can be computed waits for something
            return 1 if self.pool.num_unfinished else inf
        return self.scheduler.horizon(batch)

    def until_s(self) -> float:
        """When a leap that begins now ends at the latest, as far as is known."""
        return self._until_s()

    def launched(self, flight: Flight) -> None:
        """This is the latest launch."""
        self.together = flight.batch.fullest_tokens, flight.batch.all_tokens
        self._plan = flight

    def cut(self, last_s: float) -> None:
        """The latest launch ends with the step that ends then."""
        if self._plan is not None:
            ends_s = self._plan.ends_s
            del ends_s[bisect_right(ends_s, last_s) :]
            assert ends_s, "a step that was decided cannot be cut"

    def expect(self, decision_s: float) -> None:
        """The next decision is due then."""
        self.decision_s = decision_s
        self._call_when_due()

    # -- as an engine behind a router -----------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no rank has anything in flight: this one alone takes part in others' steps."""
        return self.lockstep.is_idle

    def interrupt(self, at_s: float, *, leaving: bool = False) -> None:
        if self._plan is None or leaving or self._heeds_arrivals():
            self.lockstep.interrupt(at_s)

    def _decide_at(self, now_s: float) -> None:
        self.lockstep.decide_at(now_s)
