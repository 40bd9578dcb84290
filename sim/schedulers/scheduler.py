"""What an engine asks of a scheduling policy.

A step of any engine, simulated or real, is

    batch = scheduler.schedule(now_s)
    duration_s = latency.iteration_s(batch)
    scheduler.complete(batch, now_s + duration_s)

To complete is to `advance` (the schedule moves on, and the next decision can be made) and to
`collect` (the tokens are there, and whoever has its last one gives its seat and blocks back). An
engine that keeps several batches in flight does the one when a batch is launched, the other when
it is through. A scheduler never knows whether time is real. To be leapt over it says how many
iterations its latest decision would hold (`horizon`) and can allocate for all of them at once
(`extend`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.answers import Answers
from sim.schedulers.engine_config import EngineConfig


class Scheduler(Protocol):
    """One policy over one engine's pool and allocator; a class of ours takes `add` from here."""

    pool: RequestPool
    allocator: BlockAllocator
    config: EngineConfig
    has_token_budget: bool  # whether max_num_batched_tokens limits a batch
    wake_s: float  # when to ask again though nothing arrives; infinity: never
    gaps: list[tuple[float, int]]  # (inter-token gap in s, tokens) of gaps unlike an iteration

    def add(self, request: Request) -> None:
        """Take in an arrival; one that can never be served is rejected and counted."""
        if self.servable(request):
            self.pool.enqueue(request)
        else:
            self.pool.reject(request)

    def servable(self, request: Request) -> bool:
        """Whether the request, alone in the engine, could be served to its end."""

    def schedule(self, now_s: float) -> Batch | None:
        """Decide the next iteration and allocate for it; None when there is nothing to compute."""

    def horizon(self, batch: Batch) -> int:
        """Iterations for which this decision holds, unless `admits_arrivals` and one arrives."""

    @property
    def admits_arrivals(self) -> bool:
        """Whether a request that arrived now could be admitted by the next decision."""

    def extend(self, iterations: int) -> list[tuple[int, int, int]]:
        """Allocate for `iterations` decode iterations in a row; the first has its blocks already.

        Returns (iteration, blocks, times): that many blocks are added by that iteration, and
        again every block_size iterations, so many times in all.
        """

    def growth(self, iterations: int) -> int:
        """Blocks that `extend` would allocate now."""

    def evict(self, now_s: float, in_flight: Sequence[Batch] = ()) -> list[Request]:
        """Everything is lost (the engine failed): all unfinished requests, as they came.

        `in_flight`: batches that it has advanced over, and that never end.
        """

    def advance(self, batch: Batch, iterations: int = 1) -> None:
        """The schedule moves on by so many iterations of `batch`; `batch.ended` have all theirs."""

    def collect(self, batch: Batch, now_s: float) -> list[Request]:
        """The tokens of `batch`, advanced over before, went out at `now_s`; returns who finished.

        ``batch.emission`` has that time by now.
        """

    def complete(self, batch: Batch, now_s: float, iterations: int = 1) -> list[Request]:
        """`advance` and `collect` at once."""
        self.advance(batch, iterations)
        batch.emission.at_s = batch.emission.seen_s = now_s
        return self.collect(batch, now_s)

    def decoding(self) -> Collection[Request]:
        """The sequences that are `batch.num_decodes`, between `schedule` and `complete`."""

    def abort(self, request: Request, now_s: float) -> None:
        """End an unfinished request without an answer, between two iterations (cancelled, failed).

        Its blocks are free afterwards, at the latest when its batch ends.
        """

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        """Tokens emitted, tokens stored, stored tokens added per further iteration, reserved."""


@runtime_checkable
class Answering(Protocol):
    """A scheduler whose decodes fill blocks that other requests may find."""

    answers: Answers

    def publish_answers(self, scheduled: int = 0) -> None:
        """Let the blocks be found that decodes have filled; `scheduled`: tokens in the making."""
