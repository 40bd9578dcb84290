"""`orca`: iteration-level scheduling with slots reserved at admission (Yu et al., OSDI 2022).

Algorithm 1 of the paper: requests enter in order of arrival while the batch is smaller than
``max_num_seqs`` and the slots reserved so far plus the request's own ``max_tokens`` do not exceed
the slots there are. Since every admitted request owns all the memory it can ever need, none can
be stuck half-way. A whole prompt is one iteration's work, and there is no token budget.

Attention kernels of the time want a request's keys and values in one piece: where that lies is
``EngineConfig.placement`` (Kwon et al., SOSP 2023, section 6.1, assume buddies).
"""

from __future__ import annotations

from sim.batch import Batch
from sim.request import Request
from sim.schedulers.iteration import IterationScheduler


class OrcaScheduler(IterationScheduler):
    """First come first served, contiguous reservation, no preemption."""

    has_token_budget = False
    reserves = True

    def servable(self, request: Request) -> bool:
        return super().servable(request) and self.allocator.could_fit(self._blocks(request))

    def schedule(self, now_s: float) -> Batch | None:
        pool, allocator = self.pool, self.allocator
        batch = Batch()
        self._blocked = False
        while pool.waiting:
            blocks = self._blocks(pool.waiting[0])
            if len(pool.running) >= self.config.max_num_seqs or not allocator.fits(blocks):
                self._blocked = True
                break
            request = pool.waiting[0]
            allocator.allocate(request.block_table, blocks)
            self._start(request, [], now_s)
            self._prefill(batch, request, request.prompt_tokens - request.num_computed_tokens)
        self._add_decodes(batch)
        return batch if batch.num_tokens else None

    def _blocks(self, request: Request) -> int:
        tokens = self.config.reserved_tokens(
            request.prompt_tokens, request.max_tokens, request.output_tokens
        )
        return self.allocator.blocks_for(max(tokens, self._final_slots(request)))
