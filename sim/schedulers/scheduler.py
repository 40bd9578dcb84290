"""What every scheduling policy does, and what those that batch by iteration share.

A step of any engine, simulated or real, is

    batch = scheduler.schedule(now_s)
    duration_s = latency.iteration_s(batch)
    scheduler.complete(batch, now_s + duration_s)

A scheduler never knows whether time is real. To be leapt over it says how many iterations its
latest decision would hold (`horizon`) and can allocate for all of them at once (`extend`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf
from typing import Protocol

from sim.batch import Batch, PrefillChunk
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig


class Scheduler(Protocol):
    """One policy over one engine's pool and allocator."""

    pool: RequestPool
    allocator: BlockAllocator
    config: EngineConfig
    has_token_budget: bool  # whether max_num_batched_tokens limits a batch
    wake_s: float  # when to ask again though nothing arrives; infinity: never
    gaps: list[tuple[float, int]]  # (inter-token gap in s, tokens) of gaps unlike an iteration

    def add(self, request: Request) -> None:
        """Take in an arrival; one that can never be served is rejected and counted."""

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

    def evict(self, now_s: float) -> list[Request]:
        """Everything is lost (the engine failed): all unfinished requests, as they came."""

    def complete(self, batch: Batch, now_s: float, iterations: int = 1) -> list[Request]:
        """The last of `iterations` ended at `now_s`: emit tokens; returns who finished."""

    def decoding(self) -> Collection[Request]:
        """The sequences that are `batch.num_decodes`, between `schedule` and `complete`."""

    def abort(self, request: Request, now_s: float) -> None:
        """End an unfinished request without an answer, between two iterations (cancelled, failed).

        Its blocks are free afterwards, at the latest when its batch ends.
        """

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        """Tokens emitted, tokens stored, stored tokens added per further iteration, reserved."""


class IterationScheduler:
    """Iteration-level scheduling (Orca, section 3.2): requests join and leave at any iteration."""

    has_token_budget = True
    reserves = False  # whether admission sets all of a request's blocks aside
    spare_blocks = 0  # that must be left beside a lone request

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        self.pool = pool
        self.allocator = allocator
        self.config = config
        if config.queue is not None:
            pool.queue_by(config.queue)
        self._overtakes = config.queue is not None and config.queue.overtakes
        self.wake_s = inf
        self.gaps: list[tuple[float, int]] = []
        self.prefilling: dict[Request, None] = {}  # running, prompt only partly computed
        self._prefill_stored_tokens = 0  # of sequences that are not decoding
        self._blocked = False  # the head of the queue waits for something to finish

    # -- arrivals ---------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        if self.servable(request):
            self.pool.enqueue(request)
        else:
            self.pool.reject(request)

    def servable(self, request: Request) -> bool:
        """Whether the request, alone in the engine, could be served to its end."""
        if request.prompt_tokens + request.output_tokens > self.config.max_model_len:
            return False
        blocks = self.allocator.blocks_for(self._final_slots(request))
        return blocks + self.spare_blocks <= self.allocator.num_blocks

    def _final_slots(self, request: Request) -> int:
        """KV slots that the request holds when it has the most."""
        return request.final_tokens

    def _decode_slots(self, request: Request) -> int:
        """KV slots that the request holds while it decodes once more."""
        return request.num_computed_tokens + 1

    @property
    def admits_arrivals(self) -> bool:
        if self.pool.waiting and not self._overtakes:
            return False
        return len(self.pool.running) < self.config.max_num_seqs

    # -- admission --------------------------------------------------------------------------

    def _has_seats(self, request: Request) -> bool:
        """Whether `request` may be served beside those that are running."""
        return len(self.pool.running) < self.config.max_num_seqs

    def _blocks_to_start(self, request: Request) -> int:
        """Blocks that have to be there for `request` to be admitted, cached ones included."""
        return self.allocator.blocks_for(request.num_tokens)

    def _start(self, request: Request, hits: list[int], now_s: float) -> Request:
        """Admit the head of the queue with its cached blocks; returns the sequence to prefill."""
        pool, allocator = self.pool, self.allocator
        pool.waiting.popleft()
        pool.start(request, now_s)
        if hits:
            allocator.reuse(request.block_table, hits)
            request.num_computed_tokens = len(hits) * allocator.block_size
            if not request.preemptions:
                request.cached_tokens = request.num_computed_tokens
        self._prefill_stored_tokens += request.num_computed_tokens
        return request

    # -- leaping ----------------------------------------------------------------------------

    def horizon(self, batch: Batch) -> int:
        if batch.prefills or batch.preempted or batch.swap_in_blocks or self.prefilling:
            return 1
        if not self._blocked and (self.pool.waiting or self.pool.swapped):
            return 1
        iterations = self.pool.decodes.steps_to_next_ending()
        if iterations <= 1 or self.reserves:
            return iterations
        return self.pool.decodes.steps_within(self._free_for_decoding(), iterations)

    def _free_for_decoding(self) -> int:
        return self.allocator.num_free

    def extend(self, iterations: int) -> list[tuple[int, int, int]]:
        if self.reserves:
            return []
        growth: list[tuple[int, int, int]] = []
        tables: list[list[int]] = []  # one entry for every block that is needed
        for ahead, members, times in self.pool.decodes.crossings(iterations):
            growth.append((ahead, len(members), times))
            for request in members:
                if times == 1:
                    tables.append(request.block_table)
                else:
                    tables += [request.block_table] * times
        for table, block in zip(tables, self.allocator.take(len(tables)), strict=True):
            table.append(block)
        return growth

    def growth(self, iterations: int) -> int:
        if self.reserves:
            return 0
        return sum(
            len(members) * times for _, members, times in self.pool.decodes.crossings(iterations)
        )

    def evict(self, now_s: float) -> list[Request]:
        lost = self.pool.evict()
        for request in lost:
            self.allocator.free(request.block_table)
        self.allocator.forget_all()
        self.prefilling.clear()
        self._prefill_stored_tokens = 0
        self._blocked = False
        return lost

    def _grow(self, crossing: Collection[Request]) -> None:
        """One more block for each of these requests."""
        blocks = self.allocator.take(len(crossing))
        for request, block in zip(crossing, blocks, strict=True):
            request.block_table.append(block)

    # -- prefill ----------------------------------------------------------------------------

    def _prefill(self, batch: Batch, request: Request, new_tokens: int) -> None:
        """Put the next `new_tokens` of a prompt into the batch; blocks must be free."""
        allocator = self.allocator
        cached = request.num_computed_tokens
        end = cached + new_tokens
        if not self.reserves:
            allocator.allocate(
                request.block_table, -(-end // allocator.block_size) - len(request.block_table)
            )
        if request.block_hashes and self.config.enable_prefix_caching:
            allocator.cache_prompt(request, cached, end)
        batch.prefills.append(PrefillChunk(request, new_tokens, cached))
        batch.num_tokens += new_tokens
        if end == request.prompt_tokens + request.num_generated_tokens:
            batch.num_emitting += 1
        self._prefill_stored_tokens += new_tokens

    def _join(self, request: Request, tokens: int, now_s: float) -> None:
        """Admit the head of the queue, computed elsewhere: it decodes, with blocks for `tokens`."""
        allocator = self.allocator
        self.pool.waiting.popleft()
        self.pool.start(request, now_s)
        allocator.allocate(request.block_table, allocator.blocks_for(tokens))
        self.pool.decodes.add(request, request.last_token_s)

    def _add_decodes(self, batch: Batch) -> Batch:
        """Let every decoding sequence take part, and close the batch."""
        decodes = self.pool.decodes
        count = decodes.num_seqs
        batch.num_decodes = count
        batch.context_tokens = decodes.context_tokens
        if decodes.tracks_longest:
            batch.longest_tokens = decodes.longest_tokens
        batch.num_tokens += count
        batch.num_emitting += count
        batch.num_seqs = count + len(batch.prefills)
        return batch

    # -- preemption -------------------------------------------------------------------------

    def _preempt_by_recompute(self, request: Request, batch: Batch, now_s: float) -> None:
        """Drop the sequence's cache and send it back to the head of the queue.

        Its full blocks keep their hashes, so on its return it finds what has not been reused.
        """
        decoding = request.joined_step >= 0
        self.pool.preempt(request, now_s)
        if not decoding:
            self.prefilling.pop(request, None)
            self._prefill_stored_tokens -= request.num_computed_tokens
        if self.config.enable_prefix_caching:
            self.allocator.cache_all(request)
        self.allocator.free(request.block_table)
        request.num_computed_tokens = 0
        self.pool.waiting.appendleft(request)
        batch.preempted += 1

    # -- completion -------------------------------------------------------------------------

    def complete(self, batch: Batch, now_s: float, iterations: int = 1) -> list[Request]:
        pool = self.pool
        finished: list[Request] = []
        if batch.num_decodes:
            finished = pool.decodes.advance(iterations, now_s)
        for chunk in batch.prefills:
            request = chunk.request
            request.num_computed_tokens += chunk.new_tokens
            if request.num_computed_tokens < request.num_tokens:
                self.prefilling[request] = None
                continue
            self.prefilling.pop(request, None)
            self._prefill_stored_tokens -= request.num_computed_tokens
            finished += self._end_prefill(request, now_s)
        if len(finished) > 1 and self.config.long_prefill_token_threshold:
            # A long prompt in chunks ends its prefill after later ones: back to admission order,
            # which is the order in which blocks become reusable.
            order = {request: number for number, request in enumerate(pool.running)}
            finished.sort(key=lambda one: order[one.group.request if one.group else one])
        return self._finish(finished, now_s) if finished else finished

    def _end_prefill(self, request: Request, now_s: float) -> Sequence[Request]:
        """The sequence has caught up and emits a token; returns it where that was its last."""
        pool = self.pool
        gap_s = pool.emit_first(request, now_s)
        if gap_s is not None:
            self.gaps.append((gap_s, 1))
        if request.num_generated_tokens == request.output_tokens:
            return (request,)
        pool.decodes.add(request, now_s)
        return ()

    def _finish(self, ended: list[Request], now_s: float) -> list[Request]:
        """Sequences have emitted their last token; returns the requests that are answered."""
        for request in ended:
            self._leave_cache(request)
            self.pool.finish(request, now_s)
        return ended

    def _leave_cache(self, request: Request) -> None:
        """Give an ended sequence's blocks back; what a later turn repeats can be found again."""
        if request.block_hashes and self.config.enable_prefix_caching:
            self.allocator.cache_prompt(request, request.prompt_tokens, request.num_computed_tokens)
        self.allocator.free(self.pool.detach(request))

    def decoding(self) -> Collection[Request]:
        return self.pool.decodes.members()

    def abort(self, request: Request, now_s: float) -> None:
        pool = self.pool
        if request in pool.running:
            del pool.running[request]
            if request.joined_step >= 0:
                pool.decodes.remove(request)
            else:
                self.prefilling.pop(request, None)
                self._prefill_stored_tokens -= request.num_computed_tokens
            self.allocator.free(request.block_table)
        else:
            pool.waiting.remove(request)
        pool.abort(request, now_s)

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        count, decodes = batch.num_decodes, self.pool.decodes
        stored = batch.context_tokens if count else decodes.stored_tokens
        stored += self.pool.held_tokens
        reserved = 0
        if self.reserves:
            reserved = decodes.unwritten_tokens - count
            reserved += sum(chunk.request.output_tokens - 1 for chunk in batch.prefills)
        return batch.num_emitting, self._prefill_stored_tokens + stored, count, reserved
