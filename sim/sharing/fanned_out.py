"""`chunked` with requests of several sequences: each is a request of its own, as in vLLM V1.

What they have in common they find in the prefix cache, full blocks only; with that off, each
computes the prompt for itself.
"""

from __future__ import annotations

from dataclasses import replace

from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.engine_config import EngineConfig


class FannedOutChunkedScheduler(ChunkedScheduler):
    """`chunked`, its pool with a place for every sample."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        pool.fans_out = True

    def servable(self, request: Request) -> bool:
        group = request.group
        if group is None or self.pool.hands_over:
            return super().servable(request)
        return super().servable(replace(request, output_tokens=max(group.output_tokens)))
