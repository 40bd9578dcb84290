"""`paged`: vLLM V0, prefills first and alone, with preemption by recompute or by swap.

The rules of PagedAttention's engine (Kwon et al., SOSP 2023, section 4.5; vLLM's first scheduler):
while nothing is swapped out, waiting prompts are admitted as long as a watermark of blocks stays
free, and an iteration computes either prompts or decodes. When a decode finds no free block, the
latest arrival gives way. V0 refused prompts longer than the token budget; here they are computed
over consecutive prefill iterations, so that policies can be compared by changing one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.iteration import IterationScheduler


class PagedScheduler(IterationScheduler):
    """First come first served, paged KV cache, prefill before decode."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        self._watermark_blocks = int(config.watermark * allocator.num_blocks)
        # V0 wants a block to spare before every decode: a lone sequence must leave it one.
        self.spare_blocks = max(self._watermark_blocks, 1)
        self._free_swap_blocks = config.swap_blocks if config.preemption == "swap" else 0
        self._swapped_blocks: dict[Request, int] = {}

    def schedule(self, now_s: float) -> Batch | None:
        batch = Batch()
        self._blocked = False
        if not self.pool.swapped:
            self._schedule_prefills(batch, now_s)
        if not batch.prefills:
            self._schedule_decodes(batch, now_s)
            if not batch.preempted:
                self._swap_in(batch, now_s)
            self._add_decodes(batch)
        batch.num_seqs = len(batch.prefills) or batch.num_decodes
        return batch if batch.num_tokens else None

    # -- prefill ----------------------------------------------------------------------------

    def _schedule_prefills(self, batch: Batch, now_s: float) -> None:
        pool, allocator = self.pool, self.allocator
        budget = self.config.max_num_batched_tokens
        for request in self.prefilling:  # a prompt longer than one budget goes on
            tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            if not tokens:
                return
            self._prefill(batch, request, tokens)
            budget -= tokens
        if self.answers and pool.waiting:
            self.publish_answers()
        while pool.waiting:
            request = pool.waiting[0]
            if not self._has_seats(request):
                self._blocked = True
                return
            hits = self._hits(request)
            known = request.num_computed_tokens or len(hits) * allocator.block_size
            # Only a batch's first prompt may be split.
            if request.num_tokens - known > budget and batch.prefills:
                return
            blocks = self._blocks_to_start(request) - len(hits)
            if hits:
                blocks += allocator.num_idle(hits)
            if allocator.num_free - blocks < self._watermark_blocks:
                self._blocked = True
                return
            request = self._start(request, hits, now_s)
            # The whole sequence is allocated at once, also when it is computed in pieces.
            allocator.allocate(
                request.block_table,
                allocator.blocks_for(request.num_tokens) - len(request.block_table),
            )
            tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            self._prefill(batch, request, tokens)
            budget -= tokens
            if budget <= 0:
                return

    # -- decode -----------------------------------------------------------------------------

    def _schedule_decodes(self, batch: Batch, now_s: float) -> None:
        pool, allocator = self.pool, self.allocator
        crossing = pool.decodes.needing_block()
        if allocator.num_free > len(crossing):
            self._grow(crossing)
            return
        for request in list(pool.running):
            if request not in pool.running or request.joined_step < 0:
                continue
            # V0 asks for one free block per sequence, whether it crosses a boundary or not.
            blocks = int(pool.decodes.needs_block(request))
            while allocator.num_free < max(blocks, 1) and request in pool.running:
                self._preempt(self._victim(), batch, now_s)
            if request in pool.running:
                allocator.allocate(request.block_table, blocks)

    def _free_for_decoding(self) -> int:
        return self.allocator.num_free - 1

    # -- preemption -------------------------------------------------------------------------

    def _preempt(self, request: Request, batch: Batch, now_s: float) -> None:
        held = self._blocks_held(request)
        # With the host's swap space full the victim is recomputed; V0 gave up there. Who only waits
        # for its last token has nothing to come back for.
        recomputed = self.config.preemption == "recompute" or self._is_leaving(request)
        if recomputed or len(held) > self._free_swap_blocks:
            self._preempt_by_recompute(request, batch, now_s)
            return
        self._swap_out(request, now_s)
        batch.swapped_out = [*batch.swapped_out, (request, held)]
        self._free_swap_blocks -= len(held)
        self._swapped_blocks[request] = len(held)
        self.pool.swapped.appendleft(request)
        batch.swap_out_blocks += len(held)
        batch.preempted += 1

    def _is_leaving(self, request: Request) -> bool:
        """Whether its last token is in flight."""
        return request in self._leaving

    def _blocks_held(self, request: Request) -> list[int]:
        return list(request.block_table)

    def _swap_out(self, request: Request, now_s: float) -> None:
        """Swapped out: its blocks are free for others."""
        self.pool.preempt(request, now_s)
        self.allocator.free(request.block_table)

    def _blocks_to_return(self, request: Request) -> int:
        # One more block than it left with, where the token it is about to write needs one.
        needed = self.allocator.blocks_for(self._decode_slots(request))
        return max(self._swapped_blocks[request], needed)

    def _return(self, request: Request, batch: Batch) -> None:
        """Swapped in, to blocks that are there."""
        self.allocator.allocate(request.block_table, self._blocks_to_return(request))
        self.pool.decodes.add(request)

    def _swap_in(self, batch: Batch, now_s: float) -> None:
        pool, allocator = self.pool, self.allocator
        while pool.swapped:
            request = pool.swapped[0]
            left = allocator.num_free - self._blocks_to_return(request)
            if not self._has_seats(request) or left < self._watermark_blocks:
                self._blocked = True
                return
            pool.swapped.popleft()
            pool.start(request, now_s)
            self._return(request, batch)
            blocks = self._swapped_blocks.pop(request)
            self._free_swap_blocks += blocks
            batch.swapped_in = [*batch.swapped_in, request]
            batch.swap_in_blocks += blocks

    def abort(self, request: Request, now_s: float) -> None:
        if request in self._swapped_blocks:
            self.pool.swapped.remove(request)
            self._free_swap_blocks += self._swapped_blocks.pop(request)
            self.pool.abort(request, now_s)
        else:
            super().abort(request, now_s)

    def evict(self, now_s: float, in_flight: Sequence[Batch] = ()) -> list[Request]:
        self._free_swap_blocks += sum(self._swapped_blocks.values())
        self._swapped_blocks.clear()
        return super().evict(now_s, in_flight)
