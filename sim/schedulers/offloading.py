"""What a second tier of the prefix cache adds to a policy: copies to and from host memory."""

from __future__ import annotations

from functools import cache

from sim.batch import Batch
from sim.kv.offload import TieredAllocator
from sim.schedulers.iteration import IterationScheduler


class OffloadingScheduler(IterationScheduler):
    """What a second tier adds to a policy: its copies are part of the iteration."""

    allocator: TieredAllocator

    def schedule(self, now_s: float) -> Batch | None:
        batch: Batch | None = super().schedule(now_s)  # type: ignore[misc, safe-super]
        if batch is not None:
            batch.offloaded, batch.loaded = self.allocator.host.drain()
            batch.swap_out_blocks += len(batch.offloaded)
            batch.swap_in_blocks += len(batch.loaded)
        return batch

    def horizon(self, batch: Batch) -> int:
        return 1 if batch.offloaded or batch.loaded else super().horizon(batch)

    def _free_for_decoding(self) -> int:
        # A run of decodes evicts nothing, so that what goes to the host does so in its iteration.
        return min(super()._free_for_decoding(), self.allocator.num_without_content)


@cache
def offloading(policy: type) -> type:
    """`policy` with a `TieredAllocator`. Raises ValueError where it has no prefix cache."""
    if not issubclass(policy, IterationScheduler) or policy.reserves:
        raise ValueError(
            "offloading needs a scheduler with a prefix cache (paged, chunked): slots that are "
            "reserved for one sequence are not found again"
        )
    return type(f"Offloading{policy.__name__}", (OffloadingScheduler, policy), {})
