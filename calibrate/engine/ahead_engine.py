"""The engine with decisions made an iteration ahead: the host works while the device computes.

    launch(batch k); complete(batch k)           the schedule moves on: lengths are known
    decide and prepare batch k + 1               while the device computes batch k
    collect(batch k)                             its tokens; they go into batch k + 1

So a decision sees who had arrived when the iteration before it began, and an iteration takes as
long as the slower of host and device (`sim/engine/ahead_replica.py` is the same in the simulator).
When an iteration will end is not known when the schedule moves on: the schedule runs on numbers of
iterations, and the clock's times are filled in at the end.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import torch

from calibrate.engine.engine import PHASES, Clock, Engine, Served, out_of_memory
from calibrate.engine.executor import Outcome
from calibrate.engine.in_flight import Launched, Prepared
from calibrate.engine.transformer_executor import TransformerExecutor
from sim.batch import Batch
from sim.engine.run_log import check_iteration, collect, counts_of, note, waiting_at
from sim.records import Records
from sim.request import Request


@dataclass(slots=True)
class _Flight:
    """A batch that the device computes, and who will have ended with it."""

    launched: Launched
    number: int
    start_s: float
    scheduled_s: float
    finished: list[Request]


class AheadEngine(Engine):
    """`Engine` with one batch in flight while the next one is decided.

    Ends by length only: an end-of-sequence token would be known too late for the next decision.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self._eos_token is not None:
            raise ValueError("async_scheduling ends answers by length: it cannot go with --eos")
        assert isinstance(self.executor, TransformerExecutor)
        self._device = self.executor
        self._device.compute_apart()
        self._arrived: deque[Request] = deque()  # and not seen by a decision
        self._began_s, self._ended_s = array("d"), array("d")
        self._doomed: list[Request] = []  # whose logits were not finite
        self._seen_s = 0.0  # who came by then is seen by the decision that is made

    def _serve(self) -> Served:
        clock = self._clock or Clock()
        now_s = 0.0
        flight: _Flight | None = None
        while True:
            self._seen_s = seen_s = now_s if flight is None else flight.start_s
            self._come(seen_s)
            self._show(seen_s)
            number = len(self._began_s)
            batch = None if self._stopped else self._next(number)
            scheduled_s = clock.now_s()
            prepared: Prepared | None = None
            failed: str | None = None
            if batch is not None:
                try:
                    prepared = self._device.prepare(batch, self.scheduler.decoding())
                except (torch.OutOfMemoryError, MemoryError) as error:
                    failed = out_of_memory(error)  # the batch in flight may end all the same
            if flight is not None:
                try:
                    outcome = self._device.collect(flight.launched)
                except (torch.OutOfMemoryError, MemoryError) as error:
                    self._give_up(out_of_memory(error), batch, flight, now_s)
                    break
                now_s = max(clock.now_s(), flight.start_s + 1e-9)
                self._land(flight, outcome, now_s)
                flight = None
                if batch is None and not self._stopped:
                    continue  # the device pauses: decide anew, seeing everybody
            if failed is not None:
                self._give_up(failed, batch, None, now_s)
                break
            if self._stopped:
                self._end_everybody(now_s)
                break
            if batch is None:
                wake_s = self._source.next_arrival_s
                if wake_s == inf and not self.scheduler.pool.num_unfinished:
                    break
                if wake_s < inf and wake_s > now_s:
                    clock.wait_until(wake_s, unless=lambda: self._stopped)
                    now_s = wake_s
                continue
            assert prepared is not None
            try:
                flight = self._launch(batch, prepared, number, now_s, scheduled_s)
            except (torch.OutOfMemoryError, MemoryError) as error:
                self._give_up(out_of_memory(error), batch, None, now_s)
                break
        return self._served()

    def _next(self, number: int) -> Batch | None:
        self._let_go(number)
        for request in self._doomed:
            self._forget(request)
            if request.index in self._present:
                self._abort(request, self._errors[request.index], number)
        self._doomed.clear()
        return self.scheduler.schedule(float(number))

    def _launch(
        self, batch: Batch, prepared: Prepared, number: int, start_s: float, scheduled_s: float
    ) -> _Flight:
        scheduler = self.scheduler
        launched = self._device.launch(prepared)
        self._began_s.append(start_s)
        counts = counts_of(scheduler, batch, 1)
        scheduler.advance(batch)
        batch.emission.at_s = float(number)
        note(self.log, scheduler, batch, counts, float(number), [float(number) + 1.0])
        finished = scheduler.collect(batch, float(number))
        self.log.finished(len(finished))
        for request in finished:
            self._present.pop(request.index, None)
        if self._check:
            check_iteration(scheduler, batch)
        return _Flight(launched, number, start_s, scheduled_s, finished)

    def _land(self, flight: _Flight, outcome: Outcome, now_s: float) -> None:
        """The device is done: tokens are there, answers go out, clients may come again."""
        self._ended_s.append(now_s)
        waited_s = max(flight.scheduled_s - flight.start_s, 0.0)
        for name, value_s in zip(
            PHASES,
            (waited_s, outcome.prepare_s, outcome.forward_s, outcome.sample_s),
            strict=True,
        ):
            self._phases[name].append(value_s)
        for request in outcome.not_finite:
            self._errors[request.index] = "the model's logits are not finite"
            self._doomed.append(request)
        for request in flight.finished:
            self._drop(request)
        if flight.finished:
            self._come(now_s)
            self._source.release(len(flight.finished), now_s)
        if self._progress is not None:
            pool = self.scheduler.pool
            self._progress(pool.num_finished + pool.num_rejected)

    # -- who comes and goes -------------------------------------------------------------------

    def _come(self, until_s: float) -> None:
        """Let those come who have arrived by then; what can never be served hears so at once."""
        source, scheduler = self._source, self.scheduler
        while source.next_arrival_s <= until_s:
            request = source.take()
            if scheduler.servable(request):
                self._arrived.append(request)
                continue
            scheduler.pool.reject(request)
            self._errors[request.index] = self._too_large(request)
            source.release(1, request.arrival_s)

    def _show(self, until_s: float) -> None:
        """Let the scheduler see who had arrived by then."""
        while self._arrived and self._arrived[0].arrival_s <= until_s:
            request = self._arrived.popleft()
            self.scheduler.add(request)
            self._present[request.index] = request
            self.executor.add(request, *self._prompts.of(request))

    def _drop(self, request: Request) -> None:
        answers = self.executor.drop(request)
        self._outputs[request.index] = answers[0] if answers else []

    def _by_the_clock(self, now_s: float) -> float:
        return self._seen_s  # `now_s` is an iteration's number

    def _end_everybody(self, now_s: float) -> None:
        while self._arrived:  # they came, and were not seen
            request = self._arrived.popleft()
            self._errors[request.index] = "interrupted"
            self.scheduler.pool.reject(request)
        self._end_all(float(len(self._began_s)))

    def _give_up(
        self, reason: str, batch: Batch | None, flight: _Flight | None, now_s: float
    ) -> None:
        """Nothing can go on: `batch` cannot begin, or a `flight` that counts as done is lost."""
        if flight is not None:
            self._ended_s.append(now_s)
            for name in PHASES:
                self._phases[name].append(0.0)
            for request in flight.finished:
                self._errors[request.index] = reason
                self._drop(request)
        if batch is not None:
            for chunk in batch.prefills:  # of what the scheduler counts as stored
                chunk.request.num_computed_tokens += chunk.new_tokens
        for request in list(self._present.values()):
            self._abort(request, reason, len(self._began_s))
        self._end_everybody(now_s)

    # -- records ------------------------------------------------------------------------------

    def _served(self) -> Served:
        """Numbers of iterations become the times when they began or ended."""
        began_s = np.array([*self._began_s, self._ended_s[-1] if self._ended_s else 0.0])
        ended_s = np.array(self._ended_s)
        records: Records = collect([self])
        iterations = records.iterations
        iterations["start_s"] = began_s[:-1]
        iterations["duration_s"] = ended_s - began_s[:-1]
        for name, values in self._phases.items():
            iterations[name] = np.array(values)
        requests, preemptions = records.requests, records.preemptions
        for columns, name, times_s in (
            (requests, "scheduled_s", began_s),
            (requests, "first_token_s", ended_s),
            (requests, "last_token_s", ended_s),
            (requests, "finished_s", ended_s),
            (preemptions, "preempted_s", began_s),
            (preemptions, "resumed_s", began_s),
        ):
            known = ~np.isnan(columns[name])
            columns[name][known] = times_s[columns[name][known].astype(int)]
        aborted_s = {
            request: float(began_s[min(int(number), len(began_s) - 1)])
            for request, number in self.scheduler.pool.log.aborted_s.items()
        }
        iterations["waiting"] = waiting_at(requests, iterations, aborted_s)
        # Gaps between tokens were counted in iterations; a replay knows them in seconds.
        records = replace(records, gaps_s=np.empty(0), gap_weights=np.empty(0, dtype="i8"))
        return Served(records, self._outputs, self._errors, self._samples)
