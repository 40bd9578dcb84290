"""`static`: request-level batching, as FasterTransformer does it.

A batch is formed from whoever waits when the engine is free, every prompt is padded to the longest,
and all rows are computed until the last sequence has its last token. Nobody joins before that, and
nobody leaves: a response is returned with its batch (the cost that Orca, section 3.1, describes).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

from sim.batch import Batch, PrefillChunk
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.scheduler import Scheduler


class StaticScheduler(Scheduler):
    """Pads, reserves for the longest, waits for the longest."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        self.pool = pool
        self.allocator = allocator
        self.config = config
        if config.queue is not None:
            if config.queue.order == "fair":
                raise ValueError("fair needs a scheduler that admits one by one: orca, paged, …")
            pool.queue_by(config.queue)
        self.wake_s = inf
        self.gaps: list[tuple[float, int]] = []
        self._padded_prompt_tokens = 0
        self._prompt_tokens = 0  # of all rows, without padding
        self._aborted: list[Request] = []  # rows that go on as padding
        self._iteration = 0  # decode iterations of the current batch

    admits_arrivals = False
    has_token_budget = False

    def servable(self, request: Request) -> bool:
        fits = request.prompt_tokens + request.output_tokens <= self.config.max_model_len
        return fits and self._row_blocks([request]) <= self.allocator.num_blocks

    def schedule(self, now_s: float) -> Batch | None:
        rows = len(self.pool.running)
        if not rows:
            return self._start_batch(now_s)
        longest = self._padded_prompt_tokens + self._iteration + 1
        context = rows * longest
        if not self.config.pads_attention:
            context = self._prompt_tokens + rows * (self._iteration + 1)
        return Batch(
            num_decodes=rows,
            context_tokens=context,
            longest_tokens=longest,
            num_tokens=rows,
            num_emitting=rows,
            num_seqs=rows,
        )

    def horizon(self, batch: Batch) -> int:
        return 1 if batch.prefills else self.pool.decodes.steps_to_next_ending()

    def extend(self, iterations: int) -> list[tuple[int, int, int]]:
        return []  # every row has its blocks since the batch began

    def growth(self, iterations: int) -> int:
        return 0

    def evict(self, now_s: float, in_flight: Sequence[Batch] = ()) -> list[Request]:
        lost = [request for request in self.pool.evict() if request not in self._aborted]
        for request in [*lost, *self._aborted]:
            self.allocator.free(request.block_table)
        self._aborted.clear()
        return lost

    def advance(self, batch: Batch, iterations: int = 1) -> None:
        pool = self.pool
        if batch.prefills:
            for request in pool.running:
                request.num_computed_tokens = request.prompt_tokens
                pool.emit_first(request, batch)
                if request.output_tokens > 1:
                    pool.decodes.add(request)
        else:
            batch.waited = pool.decodes.emissions
            pool.decodes.advance(iterations, batch.emission)
            self._iteration += iterations

    def collect(self, batch: Batch, now_s: float) -> list[Request]:
        return [] if self.pool.decodes.num_seqs else self._end_batch(now_s)

    def _end_batch(self, now_s: float) -> list[Request]:
        pool = self.pool
        finished = []
        for request in list(pool.running):
            self.allocator.free(request.block_table)
            if request in self._aborted:
                del pool.running[request]
            else:
                pool.finish(request, now_s)
                finished.append(request)
        self._aborted.clear()
        return finished

    def decoding(self) -> Collection[Request]:
        return self.pool.running  # rows that have ended, too

    def abort(self, request: Request, now_s: float) -> None:
        pool = self.pool
        pool.abort(request, now_s)
        if request not in pool.running:
            pool.waiting.remove(request)
            return
        self._aborted.append(request)
        if request.joined_step >= 0:
            pool.decodes.remove(request)
        if len(self._aborted) == len(pool.running):
            self._end_batch(now_s)

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        if batch.prefills:
            prompts = sum(request.prompt_tokens for request in self.pool.running)
            outputs = sum(request.output_tokens - 1 for request in self.pool.running)
            return batch.num_emitting, prompts, 0, outputs
        decodes = self.pool.decodes
        unfinished = decodes.num_seqs
        reserved = decodes.unwritten_tokens - unfinished
        return unfinished, decodes.context_tokens, unfinished, reserved

    # -- forming a batch --------------------------------------------------------------------

    def _batch_size(self, now_s: float) -> int:
        """How many of those waiting to take now; 0 to go on waiting until `wake_s`."""
        return min(len(self.pool.waiting), self.config.max_num_seqs)

    def _start_batch(self, now_s: float) -> Batch | None:
        pool = self.pool
        candidates = [pool.waiting[i] for i in range(self._batch_size(now_s))]
        while candidates and self._row_blocks(candidates) * len(candidates) > (
            self.allocator.num_blocks
        ):
            candidates.pop()
        if not candidates:
            return None
        blocks = self._row_blocks(candidates)
        self._padded_prompt_tokens = padded = max(r.prompt_tokens for r in candidates)
        self._prompt_tokens = sum(r.prompt_tokens for r in candidates)
        self._iteration = 0
        for request in candidates:
            pool.waiting.popleft()
            pool.start(request, now_s)
            self.allocator.allocate(request.block_table, blocks)
        rows = len(candidates)
        return Batch(
            prefills=[PrefillChunk(request, padded, 0) for request in candidates],
            num_tokens=rows * padded,
            num_emitting=rows,
            num_seqs=rows,
        )

    def _row_blocks(self, requests: list[Request]) -> int:
        """Blocks of one row: the longest prompt and the longest output, side by side.

        A row is no longer than ``max_model_len``, unless one request's prompt padded to another's
        length and its own output really are.
        """
        reserved = max(
            self.config.reserved_tokens(r.prompt_tokens, r.max_tokens, r.output_tokens)
            - r.prompt_tokens
            for r in requests
        )
        needed = max(r.output_tokens - 1 for r in requests)
        longest = max(r.prompt_tokens for r in requests)
        row = min(longest + reserved, self.config.max_model_len)
        return self.allocator.blocks_for(max(row, longest + needed))
