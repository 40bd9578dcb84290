"""Who held which KV blocks, iteration by iteration: for looking at small runs.

A recorder looks at an engine at the end of each iteration, before anything is given back. It asks
nothing of an engine that is not watched: `watched` gives a policy with the look built in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sim.batch import Batch
from sim.request import SAMPLE_NUMBERS, Request
from sim.schedulers.scheduler import Scheduler
from sim.schedulers.static import StaticScheduler


def watched(policy: type, recorder: BlockRecorder) -> type:
    """`policy`, attached to `recorder` and calling it whenever an iteration has ended."""

    class Watched(policy):  # type: ignore[misc]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            recorder.attach(self)

        def advance(self, batch: Batch, iterations: int = 1) -> None:
            assert iterations == 1, "a leap passes by what is to be seen"
            recorder(self, batch)
            super().advance(batch, iterations)

    return Watched


@dataclass(frozen=True, slots=True)
class TableState:
    """One block table in one iteration: its blocks and how many of their slots are what."""

    request: int
    sample: int  # 0, or which of the request's sequences
    blocks: tuple[int, ...]
    used_tokens: int  # keys and values that are in the cache
    reserved_tokens: int  # set aside for tokens that will come


@dataclass(slots=True)
class EngineHistory:
    """The tables of one engine in each of its iterations; cached blocks that no table held."""

    iterations: list[list[TableState]] = field(default_factory=list)
    idle_blocks: list[tuple[int, ...]] = field(default_factory=list)


class BlockRecorder:
    """Notes the block tables of every engine it is attached to, in order of their iterations."""

    def __init__(self) -> None:
        self.engines: dict[Scheduler, EngineHistory] = {}

    def attach(self, scheduler: Scheduler) -> None:
        """Engines are numbered in the order in which they are attached."""
        self.engines[scheduler] = EngineHistory()

    def __call__(self, scheduler: Scheduler, batch: Batch) -> None:
        history = self.engines[scheduler]
        chunks = {chunk.request: chunk for chunk in batch.prefills}
        tables = []
        for request in scheduler.pool.running:
            group = request.group
            sequences = group.samples if group is not None and group.samples else [request]
            for sequence in sequences:
                if sequence.block_table:
                    chunk = chunks.get(sequence)
                    written = 0 if chunk is None else chunk.cached_tokens + chunk.new_tokens
                    tables.append(_state(scheduler, batch, sequence, written))
        for request, table in scheduler.pool.held_tables():
            tables.append(TableState(request.index, 0, tuple(table), request.prompt_tokens, 0))
        history.iterations.append(tables)
        history.idle_blocks.append(scheduler.allocator.idle_blocks())


def _state(scheduler: Scheduler, batch: Batch, sequence: Request, prefilled: int) -> TableState:
    """`prefilled`: where a prefill of this iteration has brought the sequence, else 0."""
    by_request = isinstance(scheduler, StaticScheduler)
    decoding = sequence.joined_step >= 0
    ended = by_request and not batch.prefills and not decoding
    if decoding:
        used = scheduler.pool.decodes.stored_of(sequence) + (batch.num_decodes > 0)
    else:
        used = prefilled or sequence.num_computed_tokens
    if by_request:  # prompts are padded; rows that have ended wait for their batch
        used = 0 if ended else min(used, sequence.final_tokens)
        used = sequence.prompt_tokens if batch.prefills else used
    reserves = by_request or getattr(scheduler, "reserves", False)
    number, request = divmod(sequence.index, SAMPLE_NUMBERS)
    return TableState(
        request=request,
        sample=number,
        blocks=tuple(sequence.block_table),
        used_tokens=int(used),
        reserved_tokens=sequence.final_tokens - int(used) if reserves and not ended else 0,
    )
