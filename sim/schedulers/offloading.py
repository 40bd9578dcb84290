"""What tiers behind the prefix cache add to a policy: copies, and whether they are worth it."""

from __future__ import annotations

from functools import cache

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.kv.offload import TieredAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.iteration import IterationScheduler


class OffloadingScheduler(IterationScheduler):
    """What tiers add to a policy: their copies are part of the iteration."""

    allocator: TieredAllocator

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        self._passed_over: list[int] = []  # blocks that the request looked at could have fetched

    def schedule(self, now_s: float) -> Batch | None:
        allocator = self.allocator
        allocator.at(now_s)
        if allocator.is_writing:
            allocator.write_through()
        batch: Batch | None = super().schedule(now_s)  # type: ignore[misc, safe-super]
        if batch is not None:
            batch.offloaded, batch.loaded, batch.tier_s = allocator.tiers.drain()
            batch.swap_out_blocks += sum(source >= 0 for source, _ in batch.offloaded)
            batch.swap_in_blocks += len(batch.loaded)
        return batch

    def horizon(self, batch: Batch) -> int:
        if batch.offloaded or batch.loaded:
            return 1
        tiers = self.allocator.tiers
        # What is written through is known as sequences end; what the next in the queue will find,
        # only when it is looked for.
        if tiers.through and (self.allocator.is_writing or self._leaving):
            return 1
        if tiers.is_timed and self.pool.waiting:
            return 1
        return super().horizon(batch)

    def _free_for_decoding(self) -> int:
        # A run of decodes evicts nothing, so that what goes to a tier does so in its iteration.
        return min(super()._free_for_decoding(), self.allocator.num_without_content)

    def _hits(self, request: Request) -> list[int]:
        hits = super()._hits(request)
        kept = self._worth_fetching(hits, request.num_tokens)
        self._passed_over = [~block for block in hits[kept:] if block < 0]
        return hits[:kept]

    def _worth_fetching(self, hits: list[int], num_tokens: int) -> int:
        """How many of these to begin with, so that the prompt is there soonest.

        What lies in tiers is fetched, with all that is on the device before it, or computed again
        with all that comes after it.
        """
        rule, size = self.config.refetch, self.allocator.block_size
        if rule is None or all(block >= 0 for block in hits):
            return len(hits)
        best, best_s = len(hits), float("inf")
        for kept in self._cuts(hits):
            below = [~block for block in hits[:kept] if block < 0]
            fetched_s = self.allocator.tiers.reading_s(below) + len(below) * rule.link_s
            total_s = fetched_s + rule.prefill_s(num_tokens - kept * size, kept * size)
            if total_s < best_s:
                best, best_s = kept, total_s
        return best

    def _cuts(self, hits: list[int]) -> list[int]:
        """Where one may stop, the longest first: at the end, and before each tier's run."""
        tier_of = self.allocator.tiers.tier_of
        at = [-1 if block >= 0 else tier_of(~block) for block in hits]
        cuts = [n for n, number in enumerate(at) if number >= 0 and (not n or at[n - 1] != number)]
        return [len(hits), *reversed(cuts)]

    def _start(self, request: Request, hits: list[int], now_s: float) -> Request:
        tiers = self.allocator.tiers
        if not request.num_computed_tokens:  # else computed elsewhere
            tiers.asked += (request.num_tokens - 1) // self.allocator.block_size
            tiers.on_device += sum(block >= 0 for block in hits)
            for block in self._passed_over:
                tiers.passed_over[tiers.tier_of(block)] += 1
        return super()._start(request, hits, now_s)

    def _prefill(self, batch: Batch, request: Request, new_tokens: int) -> None:
        first = request.num_computed_tokens // self.allocator.block_size
        super()._prefill(batch, request, new_tokens)
        if self.allocator.tiers.through:
            end = (request.num_computed_tokens + new_tokens) // self.allocator.block_size
            self.allocator.will_write(request.block_table[first:end])


@cache
def offloading(policy: type) -> type:
    """`policy` with a `TieredAllocator`. Raises ValueError where it has no prefix cache."""
    if not issubclass(policy, IterationScheduler) or policy.reserves:
        raise ValueError(
            "offloading needs a scheduler with a prefix cache (paged, chunked): slots that are "
            "reserved for one sequence are not found again"
        )
    return type(f"Offloading{policy.__name__}", (OffloadingScheduler, policy), {})
