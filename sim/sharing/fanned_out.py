"""Requests of several sequences, each a request of its own: `chunked`'s, as in vLLM V1.

What they have in common they find in the prefix cache, full blocks only; with that off, each
computes the prompt for itself. A pool that only prefills computes it once, for all of them: its
logits are the first token of each.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.iteration import IterationScheduler


class FannedOutScheduler(IterationScheduler):
    """What independent samples add to a policy; mixed in by `fanned_out`."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        pool.fans_out = True

    def servable(self, request: Request) -> bool:
        group = request.group
        if group is None or self.pool.hands_over:
            return super().servable(request)
        return super().servable(replace(request, output_tokens=max(group.output_tokens)))

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        emitted, stored, growth, reserved = super().accounting(batch)
        for chunk in batch.prefills:
            request, group = chunk.request, chunk.request.group
            if group is not None and chunk.cached_tokens + chunk.new_tokens == request.num_tokens:
                emitted += len(group.output_tokens) - 1
        return emitted, stored, growth, reserved


@cache
def fanned_out(policy: type) -> type:
    """`policy` with a place in the pool for every sample."""
    return type(f"FannedOut{policy.__name__}", (FannedOutScheduler, policy), {})
