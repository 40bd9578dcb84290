"""What policies share that batch by iteration: requests join and leave at any of them."""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile

from sim.batch import Batch, PrefillChunk
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.progress import Progress, without


class IterationScheduler(Progress):
    """Iteration-level scheduling (Orca, section 3.2): requests join and leave at any iteration."""

    has_token_budget = True
    spare_blocks = 0  # that must be left beside a lone request

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        if config.queue is not None:
            pool.queue_by(config.queue)
        self._overtakes = config.queue is not None and config.queue.overtakes
        self._rank = None if config.queue is None else config.queue.rank()
        if config.speculation is not None:
            allocator.drops_last_match = config.speculation.drops_last_match

    # -- arrivals ---------------------------------------------------------------------------------

    def servable(self, request: Request) -> bool:
        """Whether the request, alone in the engine, could be served to its end."""
        if request.prompt_tokens + request.output_tokens > self.config.max_model_len:
            return False
        blocks = self.allocator.most_blocks(self._final_slots(request))
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
        return len(self.pool.running) - len(self._leaving) < self.config.max_num_seqs

    # -- admission --------------------------------------------------------------------------------

    def _has_seats(self, request: Request) -> bool:
        """Whether `request` may be served beside those that are running."""
        return len(self.pool.running) < self.config.max_num_seqs

    def _blocks_to_start(self, request: Request) -> int:
        """Blocks that have to be there for `request` to be admitted, cached ones included."""
        return self.allocator.blocks_for(request.num_tokens)

    def _hits(self, request: Request) -> list[int]:
        """Cached blocks that `request` begins with."""
        blocks = self.allocator.cached_prefix(request)
        if request.num_computed_tokens:  # computed elsewhere; what is on the host has come, too
            blocks = list(takewhile(_on_device, blocks))
        return blocks

    def _start(self, request: Request, hits: list[int], now_s: float) -> Request:
        """Admit the head of the queue with its cached blocks; returns the sequence to prefill."""
        pool, allocator = self.pool, self.allocator
        pool.waiting.popleft()
        pool.start(request, now_s)
        received = request.num_computed_tokens
        if hits or allocator.rules:
            allocator.adopt(request, hits, received or len(hits) * allocator.block_size)
        if received:  # elsewhere, and sent here: blocks for it, in which others find what it holds
            if not self.reserves:
                allocator.grow(request.block_table, received)
            if self.config.enable_prefix_caching:
                allocator.cache_prompt(request, 0, received)
        elif hits:
            request.num_computed_tokens = len(hits) * allocator.block_size
            if not request.preemptions:
                request.cached_tokens = request.num_computed_tokens
        self._prefill_stored_tokens += request.num_computed_tokens
        return request

    # -- computing --------------------------------------------------------------------------------

    def _prefill(self, batch: Batch, request: Request, new_tokens: int) -> None:
        """Put the next `new_tokens` of a prompt into the batch; blocks must be free."""
        allocator = self.allocator
        cached = request.num_computed_tokens
        end = cached + new_tokens
        if not self.reserves:
            allocator.grow(request.block_table, end)
        if request.block_hashes and self.config.enable_prefix_caching:
            allocator.cache_prompt(request, cached, end)
        batch.prefills.append(PrefillChunk(request, new_tokens, cached))
        batch.num_tokens += new_tokens
        if end == request.prompt_tokens + request.num_generated_tokens:
            batch.num_emitting += 1
        self._prefill_stored_tokens += new_tokens

    def _take_out(self, batch: Batch, request: Request) -> None:
        """Take what a request was given by `_prefill` out of the batch again."""
        (chunk,) = (one for one in batch.prefills if one.request is request)
        batch.prefills.remove(chunk)
        batch.num_tokens -= chunk.new_tokens
        if chunk.cached_tokens + chunk.new_tokens == request.num_tokens:
            batch.num_emitting -= 1
        self._prefill_stored_tokens -= chunk.new_tokens

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

    def _lengthen(self, request: Request, blocks: int) -> None:
        """So many more blocks for a request that decodes."""
        self.allocator.allocate(request.block_table, blocks)

    def _grow(self, crossing: Collection[Request]) -> None:
        """One more block for each of these requests."""
        blocks = self.allocator.take(len(crossing))
        for request, block in zip(crossing, blocks, strict=True):
            request.block_table.append(block)

    # -- leaping ----------------------------------------------------------------------------------

    def horizon(self, batch: Batch) -> int:
        if batch.prefills or batch.preempted or batch.swap_in_blocks or self.prefilling:
            return 1
        if self._held_back:
            return 1
        if (self._leaving or not self._blocked) and (self.pool.waiting or self.pool.swapped):
            return 1
        if self.answers and self.pool.waiting and self._fills_blocks_of_next():
            return 1
        iterations = self.pool.decodes.steps_to_next_ending()
        if iterations <= 1 or self.reserves:
            return iterations
        return self.pool.decodes.steps_within(self._free_for_decoding(), iterations)

    def _fills_blocks_of_next(self) -> bool:
        """Whether decodes fill blocks that the head of the queue waits for room for."""
        head = self.pool.waiting[0]
        return self.answers.continued_by(head.block_hashes) and self._has_seats(head)

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

    # -- preemption -------------------------------------------------------------------------------

    def _victim(self) -> Request:
        """Who gives way next: who is last in the queue's order, else whoever was admitted last."""
        running = self.pool.running
        return next(reversed(running)) if self._rank is None else max(running, key=self._rank)

    def _preempt_by_recompute(
        self, request: Request, batch: Batch, now_s: float, *, scheduled: int = 0
    ) -> None:
        """Drop the sequence's cache and send it back to the head of the queue.

        Its full blocks keep their hashes, so on its return it finds what has not been reused.
        `scheduled`: tokens that it was given by this very decision.
        """
        decoding = request.joined_step >= 0
        known = self._known_tokens(request, scheduled)
        self.answers.drop(request)
        self.pool.preempt(request, now_s)
        if request in self._leaving:
            batch_before = self._leave(request)
            if self.pool.hands_over:  # its token is worth nothing without its cache
                batch_before.ended = without(request, batch_before.ended)
                self.pool.take_back(request)
        elif not decoding:
            self.prefilling.pop(request, None)
            self._prefill_stored_tokens -= request.num_computed_tokens
        if self.config.enable_prefix_caching:
            self.allocator.cache_all(request, known)
        self.allocator.free(request.block_table, known)
        request.num_computed_tokens = 0
        self.pool.waiting.appendleft(request)
        batch.preempted += 1


def _on_device(block: int) -> bool:
    return block >= 0
