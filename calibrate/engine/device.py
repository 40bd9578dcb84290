"""What computes a real engine's batches: at once, or while the engine goes on deciding.

Both are an engine's device (`sim.engine.engine.Device`). The first knows when a batch has ended as
soon as it has computed it. The second has one batch computed and prepares another meanwhile; when
they end is known by waiting for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch

from calibrate.engine.executor import Outcome
from calibrate.engine.in_flight import Launched, Prepared
from calibrate.engine.transformer_executor import TransformerExecutor
from sim.batch import Batch
from sim.request import Request

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def out_of_memory(error: Exception) -> str:
    """What those hear whose batch could not be computed."""
    return f"out of memory: {(str(error).splitlines() or ['no more is known'])[0]}"


@dataclass(slots=True)
class Landed:
    """A batch that has been computed, and when; `scheduled_s` is when it had been decided."""

    outcome: Outcome
    start_s: float
    end_s: float
    scheduled_s: float


class Waiting(Protocol):
    """What an engine asks of its device besides."""

    def wait(self) -> Landed:
        """The oldest batch in flight, as soon as it has ended. Raises MemoryError where it could
        not be computed."""


class AtOnce:
    """Computes a batch as it is launched; `compute` gives up some of it where memory runs out."""

    def __init__(self, compute: Callable[[Batch, float], Landed | None]) -> None:
        self.free_s = 0.0
        self._compute = compute
        self._landed: Landed | None = None

    def run(self, batch: Batch, now_s: float) -> tuple[float, float] | None:
        self._landed = self._compute(batch, now_s)
        return None if self._landed is None else (now_s, self._landed.end_s)

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        raise AssertionError("real time cannot be leapt over")

    def wait(self) -> Landed:
        assert self._landed is not None
        return self._landed


@dataclass(slots=True)
class _Job:
    prepared: Prepared | None
    scheduled_s: float
    launched: Launched | None = None
    start_s: float = 0.0
    failed: Exception | None = None


class Apart:
    """Computes one batch while the next is decided and prepared; tokens go in as it is launched."""

    def __init__(
        self,
        executor: TransformerExecutor,
        decoding: Callable[[], Collection[Request]],
        now_s: Callable[[], float],
    ) -> None:
        self._executor = executor
        self._decoding = decoding
        self._now_s = now_s
        self._jobs: deque[_Job] = deque()
        self.free_s = 0.0
        executor.compute_apart()

    def run(self, batch: Batch, now_s: float) -> tuple[float, float] | None:
        job = _Job(None, self._now_s())
        try:
            job.prepared = self._executor.prepare(batch, self._decoding())
        except OUT_OF_MEMORY as error:
            job.failed = error  # those in flight may end all the same
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._launch(job, now_s)
        self.free_s = inf
        return now_s, inf

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        raise AssertionError("real time cannot be leapt over")

    def wait(self) -> Landed:
        job = self._jobs.popleft()
        if job.failed is not None:
            raise MemoryError(out_of_memory(job.failed))
        assert job.launched is not None
        try:
            outcome = self._executor.collect(job.launched)
        except OUT_OF_MEMORY as error:
            raise MemoryError(out_of_memory(error)) from None
        end_s = max(self._now_s(), job.start_s + 1e-9)
        if self._jobs:
            self._launch(self._jobs[0], end_s)
        else:
            self.free_s = end_s
        return Landed(outcome, job.start_s, end_s, job.scheduled_s)

    def _launch(self, job: _Job, start_s: float) -> None:
        job.start_s = start_s
        if job.prepared is None:
            return
        try:
            job.launched = self._executor.launch(job.prepared)
        except OUT_OF_MEMORY as error:
            job.failed = error
