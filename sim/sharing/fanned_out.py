"""Requests of several sequences, each a request of its own: `chunked`'s, as in vLLM V1.

What they have in common they find in the prefix cache, full blocks only; with that off, each
computes the prompt for itself. A pool that only prefills computes it once, for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

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


@cache
def fanned_out(policy: type) -> type:
    """`policy` with a place in the pool for every sample."""
    return type(f"FannedOut{policy.__name__}", (FannedOutScheduler, policy), {})
