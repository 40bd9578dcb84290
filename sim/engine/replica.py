"""A replica alone with its requests: one engine, or virtual engines that share its stages.

A request's next token needs its last, so one batch keeps one stage of a pipeline busy and leaves
the others idle. vLLM V0 has as many *virtual engines* as there are stages: a scheduler each with an
equal share of the KV blocks, to which requests are dealt (to the one with the fewest unfinished
ones). A virtual engine decides when the first stage is free and none of its batches is in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nextafter

from sim.engine.clock import Clock
from sim.engine.engine import Engine
from sim.engine.front_end import Arrivals

_REPORT_EVERY = 4096  # events between two calls of `progress`


class Replica:
    """Engines on one device, and the requests that are sent to them."""

    def __init__(
        self,
        clock: Clock,
        engines: Sequence[Engine],
        source: Arrivals,
        *,
        progress: Callable[[], None] | None = None,
    ) -> None:
        self.clock = clock
        self.engines = list(engines)
        self.source = source
        self.progress = progress
        self._pools = [engine.scheduler.pool for engine in engines]
        rules = self._pools[0].rules
        self._counts_unfinished = rules is not None and rules.max_unfinished is not None
        self._turns = list(engines)  # who may decide, the longest idle first
        self._events = 0
        clock.at(0.0, 0, self._go_on)

    def _go_on(self, now_s: float) -> None:
        """Collect what has ended, let requests come, decide; and ask to be called again."""
        source, awaits_answers = self.source, self.source.awaits_answers
        if self._counts_unfinished:  # who came meanwhile was counted beside those who end now
            self._take_arrivals(nextafter(now_s, -inf))
        for engine in self.engines:
            if awaits_answers and engine.due_s <= now_s:  # whoever finishes may come again
                engine.interrupt(now_s)
            finished = engine.collect(now_s)
            if finished and awaits_answers:
                # Those who came meanwhile hold their clients already.
                self._take_arrivals(now_s)
                source.release(finished, now_s)
        if source.next_arrival_s <= now_s:
            self._take_arrivals(now_s)
        for pool in self._pools:
            if pool.gives_up_s <= now_s:
                source.release(pool.expire(now_s), now_s)
                self._take_arrivals(now_s)  # whom they kept from coming
        wake_s = self._decide(now_s)
        self._events += 1
        if self.progress is not None and self._events % _REPORT_EVERY == 0:
            self.progress()
        if wake_s < inf:
            self.clock.at(wake_s, 0, self._go_on)
        else:
            assert not any(pool.num_unfinished for pool in self._pools), "the scheduler is stuck"

    def _decide(self, now_s: float) -> float:
        """Let those decide whose time has come; returns when there is something to do again."""
        source, turns = self.source, self._turns
        alone, wake_s = len(turns) == 1, inf
        for engine in turns if alone else list(turns):
            if engine.decision_s <= now_s or engine.is_idle:
                if not alone and engine.device.free_s > now_s:
                    wake_s = min(wake_s, engine.device.free_s)
                    continue
                engine.decide(now_s)
                if engine.is_idle:
                    wake_s = min(wake_s, engine.decision_s, source.next_arrival_s)
                    if engine.scheduler.pool.waiting:
                        wake_s = min(wake_s, engine.scheduler.pool.gives_up_s)
                    continue
                if not alone:
                    turns.remove(engine)
                    turns.append(engine)
            due_s = engine.due_s if source.awaits_answers else engine.decision_s
            wake_s = due_s if due_s < wake_s else wake_s
        return wake_s

    def _take_arrivals(self, now_s: float) -> None:
        source, engines = self.source, self.engines
        scheduler = engines[0].scheduler
        for request in source.arrived(now_s):
            if len(engines) > 1:
                schedulers = (engine.scheduler for engine in engines)
                scheduler = min(schedulers, key=lambda each: each.pool.num_unfinished)
            rejected = scheduler.pool.num_rejected
            scheduler.add(request)
            if scheduler.pool.num_rejected > rejected:  # its client hears so at once, and goes on
                source.release((request,), request.arrival_s)
