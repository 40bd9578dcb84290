"""The real run: the simulator's own loop, schedulers and allocator over a model that computes.

Engine time is a chain: every iteration begins where the one before ended (or with the arrival that
woke the engine), and a decision knows what had arrived by then. So an iteration's duration holds
everything it cost, the host's share included where it is not hidden, and the same durations fed to
the simulator must give the same batches (`calibrate/recordings/replay.py`).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
import torch

from calibrate.engine.decoding import Decoding
from calibrate.engine.device import OUT_OF_MEMORY, Apart, AtOnce, Landed, out_of_memory
from calibrate.engine.executor import Executor, Outcome
from calibrate.engine.token_ids import TokenIds
from calibrate.engine.transformer_executor import TransformerExecutor
from calibrate.engine.wall_clock import Clock
from sim.batch import Batch
from sim.engine.engine import Engine
from sim.engine.run_log import collect
from sim.records import Records
from sim.request import Request
from sim.schedulers import Scheduler
from sim.schedulers.observed_decode_set import ObservedDecodeSet
from sim.speculation import Speculation
from sim.workload.samples import Samples
from sim.workload.source import RequestSource

REFUSED = "refused: the queue is full"
GAVE_UP = "gave up after waiting for too long"
_NOT_FINITE = "the model's logits are not finite"

PHASES = ("schedule_s", "prepare_s", "forward_s", "sample_s")


@dataclass(frozen=True, slots=True)
class Served:
    """What a run leaves behind.

    ``records.iterations`` has the host's and the device's share of each duration besides:
    schedule_s, prepare_s, forward_s, sample_s. ``outputs`` are token ids by request number, those
    of the first sample where a request has several; ``samples`` has all of them.
    ``speculation``: the technique, with all that was accepted; None where nobody speculated.
    ``errors`` says in words why a request got no whole answer.
    """

    records: Records
    outputs: Mapping[int, list[int]]
    errors: Mapping[int, str]
    samples: Mapping[int, list[list[int]]]
    speculation: Speculation | None = None


class RealEngine(Engine):
    """One engine serving a workload on the wall clock.

    Where it decides ahead it ends by length only: an end-of-sequence token would be known too late.

    Args:
        scheduler: a policy with its pool and allocator, as the simulator uses them.
        executor: computes the batches; its cache has the allocator's blocks.
        source: the requests, in order of arrival.
        prompts: their token ids.
        samples: how many answers each asks for; None: one.
        eos_token: ends a sequence early; None: every output has the workload's length.
        progress: is told the number of requests that have ended, every iteration.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        source: RequestSource,
        prompts: TokenIds,
        *,
        samples: Samples | None = None,
        eos_token: int | None = None,
        clock: Clock | None = None,
        check: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._clock = clock or Clock()
        ahead = scheduler.config.async_scheduling
        if ahead and eos_token is not None:
            raise ValueError("async_scheduling ends answers by length: it cannot go with --eos")
        self._decoding = Decoding(scheduler)
        self._waiting_for: Apart | AtOnce = AtOnce(self._compute)
        if ahead:
            assert isinstance(executor, TransformerExecutor)
            self._waiting_for = Apart(executor, self._decoding, lambda: self._clock.now_s())
        super().__init__(scheduler, self._waiting_for, leap=False, check=check)
        self.executor = executor
        self._source = source
        self._prompts = prompts
        self._asked = samples
        self._eos_token = eos_token
        self._progress = progress
        self._present: dict[int, Request] = {}
        self._outputs: dict[int, list[int]] = {}
        self._samples: dict[int, list[list[int]]] = {}
        self._errors: dict[int, str] = {}
        self._cancelled: deque[int] = deque()  # appended to by other threads
        self._phases = {name: array("d") for name in PHASES}
        self._stopped = False

    def cancel(self, request: int) -> None:
        """The client of request number `request` is gone; safe to call from another thread."""
        self._cancelled.append(request)

    def stop(self) -> None:
        """End after the current iteration: what is unfinished then ends with an error.

        Safe to call from a signal handler or another thread.
        """
        self._stopped = True

    def run(self) -> Served:
        """Serve until nothing is left, or until `stop`."""
        # Without it every view of a tensor is tracked for a gradient that nobody asks for: a third
        # of a tiny model's time.
        with torch.inference_mode():
            return self._serve()

    def _serve(self) -> Served:
        self._clock.restart()
        now_s = 0.0
        while True:
            self._let_come_and_go(now_s)
            if self._stopped:
                break
            self.decide(now_s)
            if self.is_idle:
                wake_s = min(self._source.next_arrival_s, self.decision_s)
                if self.scheduler.pool.waiting:
                    wake_s = min(wake_s, self.scheduler.pool.gives_up_s)
                if wake_s == inf:
                    break
                self._clock.wait_until(wake_s, unless=lambda: self._stopped)
                now_s = wake_s
                continue
            try:
                now_s = self._land(self._waiting_for.wait())
            except MemoryError as error:
                self._give_up(str(error), now_s)
                break
        while not self.is_idle:
            now_s = self._land(self._waiting_for.wait())
        self._end_all(now_s)
        records = collect([self])
        for name, values in self._phases.items():
            records.iterations[name] = np.array(values)
        if self._asked is not None:
            records.requests.update(self._asked.columns(records.requests["request"]))
        technique = self.scheduler.config.speculation
        return Served(records, self._outputs, self._errors, self._samples, technique)

    # -- one iteration ------------------------------------------------------------------------

    def _compute(self, batch: Batch, start_s: float) -> Landed | None:
        """Compute a batch that was decided at `start_s`; None where nothing of it is left."""
        scheduled_s = self._clock.now_s()
        outcome = self._run_or_shed(batch, start_s)
        if outcome is None:
            return None
        self._observe(batch, outcome)
        self._end_early(batch, outcome)
        # The same sum that the simulator will make of it.
        duration_s = max(self._clock.now_s() - start_s, 1e-9)
        return Landed(outcome, start_s, start_s + duration_s, scheduled_s)

    def _land(self, landed: Landed) -> float:
        """Take in the oldest batch in flight; returns when it ended."""
        flight, outcome, end_s = self.oldest, landed.outcome, landed.end_s
        flight.start_s, flight.ends_s = landed.start_s, [end_s]
        waited_s = max(landed.scheduled_s - landed.start_s, 0.0)
        for name, value_s in zip(
            PHASES,
            (waited_s, outcome.prepare_s, outcome.forward_s, outcome.sample_s),
            strict=True,
        ):
            self._phases[name].append(value_s)
        finished = self.collect(end_s)
        for request in finished:
            self._leave(request)
        if finished:
            self._take_arrivals(end_s)
            self._source.release(finished, end_s)
        for request in dict.fromkeys(map(_asked_by, outcome.not_finite)):
            self._forget(request)
            self._errors[request.index] = _NOT_FINITE
            if request.index in self._present:
                self._abort(request, _NOT_FINITE, end_s)
        if self._progress is not None:
            self._progress(self.scheduler.pool.num_finished + self.scheduler.pool.num_rejected)
        return end_s

    def _let_come_and_go(self, now_s: float) -> None:
        pool = self.scheduler.pool
        self._take_arrivals(now_s)
        if pool.gives_up_s <= now_s:
            gone = pool.expire(now_s)
            for one in gone:
                self._errors[one.index] = GAVE_UP
                self._leave(one)
            self._source.release(gone, now_s)
            self._take_arrivals(now_s)
        self._let_go(now_s)

    def _take_arrivals(self, now_s: float) -> None:
        pool, source = self.scheduler.pool, self._source
        while source.next_arrival_s <= now_s:
            request = source.take()
            rejected = pool.num_rejected
            self.scheduler.add(request)
            if request.index in pool.log.refused:
                self._errors[request.index] = REFUSED
                source.release((request,), request.arrival_s)
                continue
            if pool.num_rejected > rejected:
                self._errors[request.index] = self._too_large(request)
                source.release((request,), request.arrival_s)
                continue
            self._present[request.index] = request
            self.executor.add(request, *self._prompts.of(request))

    def _too_large(self, request: Request) -> str:
        allocator = self.scheduler.allocator
        return (
            f"{request.prompt_tokens} prompt and {request.output_tokens} output tokens do not fit: "
            f"the KV cache holds {allocator.num_blocks * allocator.block_size} and max_model_len "
            f"is {self.scheduler.config.max_model_len}"
        )

    # -- what can go wrong --------------------------------------------------------------------

    def _run_or_shed(self, batch: Batch, now_s: float) -> Outcome | None:
        """Compute `batch`; when memory runs out, give up its prompts first, then decodes.

        Where it runs out as blocks move to or from the host, those end whose blocks they are.
        """
        scheduler = self.scheduler
        while True:
            try:
                return self.executor.run(batch, self._decoding())
            except OUT_OF_MEMORY as error:
                reason = out_of_memory(error)
            if batch.swapped_out:
                request, batch.swapped_out = batch.swapped_out[0][0], batch.swapped_out[1:]
                self._abort(request, reason, now_s)
            elif batch.swapped_in:
                request, batch.swapped_in = batch.swapped_in[0], batch.swapped_in[1:]
                self._abort(request, reason, now_s)
            elif batch.prefills:
                for chunk in batch.prefills:
                    # Published to the prefix cache, and never computed.
                    self._forget(_asked_by(chunk.request))
                    chunk.request.num_computed_tokens += chunk.new_tokens
                for request in dict.fromkeys(_asked_by(c.request) for c in batch.prefills):
                    self._abort(request, reason, now_s)
                batch.prefills.clear()
            else:
                last = next(reversed(scheduler.decoding()))  # type: ignore[call-overload]
                self._abort(_asked_by(last), reason, now_s)
            self._count_decodes(batch)
            if not batch.num_decodes:
                return None

    def _observe(self, batch: Batch, outcome: Outcome) -> None:
        """Tell those who speculate what was accepted, before the schedule moves on."""
        if batch.verification is None or not batch.num_decodes:
            return
        decodes = self.scheduler.pool.decodes
        assert isinstance(decodes, ObservedDecodeSet)
        for request, tokens in outcome.answers.items():
            ends = self._eos_token in tokens  # None is no token
            if ends:
                del tokens[tokens.index(self._eos_token) + 1 :]  # type: ignore[arg-type]
            decodes.observe(request, outcome.accepted[request], len(tokens), ends=ends)
        batch.verification = decodes.verification()
        batch.verification.draft_s = outcome.draft_s

    def _count_decodes(self, batch: Batch) -> None:
        """What is left of a batch after some who were in it have ended: its decodes."""
        decodes = self.scheduler.pool.decodes
        if batch.verification is not None:
            assert isinstance(decodes, ObservedDecodeSet)
            if batch.num_decodes:
                batch.num_decodes = decodes.num_seqs
                batch.context_tokens = decodes.context_tokens
                batch.verification = decodes.verification()
            batch.num_tokens = batch.num_emitting = batch.verification.query_tokens
            batch.num_seqs = batch.num_decodes
            return
        if batch.num_decodes:  # some policies compute prompts alone
            batch.num_decodes = len(self.scheduler.decoding())
            batch.context_tokens = self.scheduler.pool.decodes.context_tokens
        batch.num_tokens = batch.num_emitting = batch.num_seqs = batch.num_decodes

    def _end_early(self, batch: Batch, outcome: Outcome) -> None:
        """Let sequences end whose new token is the end-of-sequence token."""
        if self._eos_token is None:
            return
        prefilled = {chunk.request for chunk in batch.prefills}
        for request, token in outcome.tokens.items():
            if token != self._eos_token or request.index not in self._present:
                continue
            if request in prefilled:
                request.output_tokens = request.num_generated_tokens + 1
            elif request.joined_step >= 0:
                self.scheduler.pool.decodes.end_next(request)

    def _forget(self, request: Request) -> None:
        """Nobody may find again what is in its blocks, given back by now where it has finished."""
        allocator = self.scheduler.allocator
        allocator.forget(request.block_table)
        for sample in request.group.samples if request.group is not None else ():
            allocator.forget(sample.block_table)
        for sequence in self.scheduler.pool.running:
            if sequence.parent is request:
                allocator.forget(sequence.block_table)
        for block_hash in request.block_hashes:
            while found := allocator.cached((block_hash,)):
                allocator.forget(found)

    def _let_go(self, now_s: float) -> None:
        """End those whose clients are gone; who has not been taken in yet ends when it is."""
        for _ in range(len(self._cancelled)):
            number = self._cancelled.popleft()
            request = self._present.get(number)
            if request is not None:
                self._abort(request, "cancelled", now_s)
            elif number not in self._outputs and number not in self._errors:
                self._cancelled.append(number)

    def _abort(self, request: Request, reason: str, now_s: float) -> None:
        self._errors[request.index] = reason
        self.scheduler.abort(request, now_s)
        self._leave(request)
        self._source.release((request,), now_s)

    def _give_up(self, reason: str, now_s: float) -> None:
        """What is in flight is lost, and nobody can be served any more."""
        if self._plan is not None:
            for chunk in self._plan.batch.prefills:  # of what the scheduler counts as stored
                chunk.request.num_computed_tokens += chunk.new_tokens
        self._flights.clear()
        self._plan = None
        for request in list(self._present.values()):
            self._abort(request, reason, now_s)

    def _end_all(self, now_s: float) -> None:
        for request in list(self._present.values()):
            self._abort(request, "interrupted", now_s)
        for request in self._source.rest():
            self._errors[request.index] = "interrupted"
            self.scheduler.pool.reject(request)

    def _leave(self, request: Request) -> None:
        if self._present.pop(request.index, None) is not None:
            answers = self.executor.drop(request)
            self._outputs[request.index] = answers[0] if answers else []
            if len(answers) > 1:
                self._samples[request.index] = answers


def _asked_by(sequence: Request) -> Request:
    """The request that a sequence belongs to: itself, or the one that it is a sample of."""
    return sequence.whole if sequence.group is None else sequence.group.request
