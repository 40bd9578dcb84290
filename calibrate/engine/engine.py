"""The real run: the simulator's schedulers and allocator over a model that really computes.

    batch = scheduler.schedule(now_s)
    outcome = executor.run(batch, scheduler.decoding())
    scheduler.complete(batch, clock())

Engine time is a chain: every iteration begins where the one before ended (or with the arrival that
woke the engine), and a decision knows what had arrived by then. So an iteration's duration holds
everything it cost, the host's share included, and the same durations fed to the simulator must
give the same batches (`calibrate/recordings/replay.py`).
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
import torch

from calibrate.engine.executor import Executor, Outcome
from calibrate.engine.token_ids import TokenIds
from sim.batch import Batch
from sim.engine.run_log import check_iteration, collect, counts_of, note
from sim.records import IterationLog, Records
from sim.request import Request
from sim.schedulers import Scheduler
from sim.workload.samples import Samples
from sim.workload.source import RequestSource

_SPIN_S = 1e-3  # sleeping is no more exact than this

REFUSED = "refused: the queue is full"
GAVE_UP = "gave up after waiting for too long"
_NOT_FINITE = "the model's logits are not finite"

PHASES = ("schedule_s", "prepare_s", "forward_s", "sample_s")


def out_of_memory(error: Exception) -> str:
    """What those hear whose batch could not be computed."""
    return f"out of memory: {(str(error).splitlines() or ['no more is known'])[0]}"


class Clock:
    """Wall-clock seconds since its creation, minus the time that was skipped."""

    def __init__(self, *, skip_idle: bool = False) -> None:
        """`skip_idle`: an engine with nothing to do jumps to the next arrival and does not wait."""
        self._start_s = time.perf_counter()
        self._skip_idle = skip_idle

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def wait_until(self, at_s: float, *, unless: Callable[[], bool]) -> None:
        """Return at `at_s`, at once where that has passed, or soon after `unless` holds."""
        if self._skip_idle:
            self._start_s = min(self._start_s, time.perf_counter() - at_s)
            return
        while (left_s := at_s - self.now_s()) > 0:
            if unless():
                return
            if left_s > _SPIN_S:
                time.sleep(min(left_s - _SPIN_S, 0.1))


@dataclass(frozen=True, slots=True)
class Served:
    """What a run leaves behind.

    ``records.iterations`` has the host's and the device's share of each duration besides:
    schedule_s, prepare_s, forward_s, sample_s. ``outputs`` are token ids by request number, those
    of the first sample where a request has several; ``samples`` has all of them.
    ``errors`` says in words why a request got no whole answer.
    """

    records: Records
    outputs: Mapping[int, list[int]]
    errors: Mapping[int, str]
    samples: Mapping[int, list[list[int]]]


class Engine:
    """One engine serving a workload on the wall clock.

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
        self.scheduler = scheduler
        self.executor = executor
        self.log = IterationLog()
        self._source = source
        self._prompts = prompts
        self._asked = samples
        self._eos_token = eos_token
        self._clock = clock
        self._check = check
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
        clock = self._clock or Clock()
        now_s = 0.0
        while True:
            now_s, batch = self._decide(clock, now_s)
            if batch is None:
                break
            now_s = self._iterate(clock, batch, now_s)
        records = collect([self])
        for name, values in self._phases.items():
            records.iterations[name] = np.array(values)
        if self._asked is not None:
            records.requests.update(self._asked.columns(records.requests["request"]))
        return Served(records, self._outputs, self._errors, self._samples)

    # -- one iteration ------------------------------------------------------------------------

    def _decide(self, clock: Clock, now_s: float) -> tuple[float, Batch | None]:
        """The next batch and when it begins; None when nothing is left to do."""
        scheduler, source = self.scheduler, self._source
        while True:
            self._take_arrivals(now_s)
            if scheduler.pool.gives_up_s <= now_s:
                gone = scheduler.pool.expire(now_s)
                for one in gone:
                    self._errors[one.index] = GAVE_UP
                    self._leave(one)
                source.release(len(gone), now_s)
                self._take_arrivals(now_s)
            self._let_go(now_s)
            if self._stopped:
                self._end_all(now_s)
                return now_s, None
            batch = scheduler.schedule(now_s)
            if batch is not None:
                return now_s, batch
            wake_s = min(source.next_arrival_s, scheduler.wake_s)
            if scheduler.pool.waiting:
                wake_s = min(wake_s, scheduler.pool.gives_up_s)
            if wake_s <= now_s or (wake_s == inf and scheduler.pool.num_unfinished):
                continue  # everybody was preempted: the next decision admits again
            if wake_s == inf:
                return now_s, None
            clock.wait_until(wake_s, unless=lambda: self._stopped)
            now_s = wake_s

    def _iterate(self, clock: Clock, batch: Batch, start_s: float) -> float:
        """Compute a batch that was decided at `start_s`; returns when it ended."""
        scheduler = self.scheduler
        scheduled_s = clock.now_s()
        outcome = self._run_or_shed(batch, start_s)
        if outcome is None:
            return start_s
        self._end_early(batch, outcome)
        # The same sum that the simulator will make of it.
        duration_s = max(clock.now_s() - start_s, 1e-9)
        end_s = start_s + duration_s
        counts = counts_of(scheduler, batch, 1)
        scheduler.advance(batch)
        batch.emission.at_s = end_s
        note(self.log, scheduler, batch, counts, start_s, [end_s])
        for name, value_s in zip(
            PHASES,
            (scheduled_s - start_s, outcome.prepare_s, outcome.forward_s, outcome.sample_s),
            strict=True,
        ):
            self._phases[name].append(value_s)
        finished = scheduler.collect(batch, end_s)
        self.log.finished(len(finished))
        for request in finished:
            self._leave(request)
        if finished:
            self._take_arrivals(end_s)
            self._source.release(len(finished), end_s)
        for request in dict.fromkeys(map(_asked_by, outcome.not_finite)):
            self._forget(request)
            self._errors[request.index] = _NOT_FINITE
            if request.index in self._present:
                self._abort(request, _NOT_FINITE, end_s)
        if self._check:
            check_iteration(scheduler, batch)
        if self._progress is not None:
            self._progress(scheduler.pool.num_finished + scheduler.pool.num_rejected)
        return end_s

    def _take_arrivals(self, now_s: float) -> None:
        pool, source = self.scheduler.pool, self._source
        while source.next_arrival_s <= now_s:
            request = source.take()
            rejected = pool.num_rejected
            self.scheduler.add(request)
            if request.index in pool.log.refused:
                self._errors[request.index] = REFUSED
                source.release(1, request.arrival_s)
                continue
            if pool.num_rejected > rejected:
                self._errors[request.index] = self._too_large(request)
                source.release(1, request.arrival_s)
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
                return self.executor.run(batch, scheduler.decoding())
            except (torch.OutOfMemoryError, MemoryError) as error:
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

    def _count_decodes(self, batch: Batch) -> None:
        """What is left of a batch after some who were in it have ended: its decodes."""
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
        self._source.release(1, self._by_the_clock(now_s))

    def _by_the_clock(self, now_s: float) -> float:
        """When the clients hear of what the scheduler does at `now_s`."""
        return now_s

    def _end_all(self, now_s: float) -> None:
        for request in list(self._present.values()):
            self._abort(request, "interrupted", now_s)
        while self._source.next_arrival_s < inf:
            request = self._source.take()
            self._errors[request.index] = "interrupted"
            self.scheduler.pool.reject(request)
            self._source.release(1, request.arrival_s)

    def _leave(self, request: Request) -> None:
        if self._present.pop(request.index, None) is not None:
            answers = self.executor.drop(request)
            self._outputs[request.index] = answers[0] if answers else []
            if len(answers) > 1:
                self._samples[request.index] = answers


def _asked_by(sequence: Request) -> Request:
    """The request that a sequence belongs to: itself, or the one that it is a sample of."""
    return sequence if sequence.group is None else sequence.group.request
