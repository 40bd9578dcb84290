"""`paged` with requests of several sequences: swapped out and in as one, blocks still shared."""

from __future__ import annotations

from collections import Counter

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.paged import PagedScheduler
from sim.sharing.scheduler import SamplingScheduler


class SamplingPagedScheduler(SamplingScheduler, PagedScheduler):
    """`paged` with requests of several sequences."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        self._returned: list[Request] = []  # swapped in by this iteration

    def _schedule_decodes(self, batch: Batch, now_s: float) -> None:
        pool, allocator = self.pool, self.allocator
        crossing = pool.decodes.needing_block()
        if not self._forked and allocator.num_free > len(crossing):
            self._grow(crossing)
            return
        for request in list(pool.running):
            if request not in pool.running:
                continue
            sequences = self._sequences(request)
            blocks = max(self._blocks_to_write(sequences), 1)
            while allocator.num_free < blocks and request in pool.running:
                self._preempt(self._victim(), batch, now_s)
            if request in pool.running:
                self._write(batch, sequences)
        self._forked.clear()

    # -- swap -------------------------------------------------------------------------------

    def _is_leaving(self, request: Request) -> bool:
        # One sample's last token is enough: what is left of the others is computed again.
        sequences = [request] if request.group is None else request.group.samples
        return any(sequence in self._leaving for sequence in sequences)

    def _blocks_held(self, request: Request) -> list[int]:
        group = request.group
        return super()._blocks_held(request) if group is None else group.blocks()

    def _swap_out(self, request: Request, now_s: float) -> None:
        group = request.group
        if group is None:
            super()._swap_out(request, now_s)
            return
        place = {block: number for number, block in enumerate(group.blocks())}
        group.swapped_tables = [[place[b] for b in one.block_table] for one in group.samples]
        self._withdraw(group)
        self._free_all(group)
        self._further_seqs -= group.num_seqs - 1
        self.pool.preempt(request, now_s)

    def _blocks_to_return(self, request: Request) -> int:
        group = request.group
        if group is None:
            return super()._blocks_to_return(request)
        holders = Counter(block for table in group.swapped_tables for block in table)
        blocks = len(holders)
        for sample, table in zip(group.samples, group.swapped_tables, strict=True):
            position = self._position(sample)
            if position == len(table):
                blocks += 1
            elif holders[table[position]] > 1:
                holders[table[position]] -= 1
                blocks += 1
        return blocks

    def _return(self, request: Request, batch: Batch) -> None:
        """The request's table lists what comes back, in the order in which it left, until then."""
        group = request.group
        if group is None:
            super()._return(request, batch)
            return
        blocks = self.allocator.take(1 + max(max(table) for table in group.swapped_tables))
        request.block_table = blocks
        self._returned.append(request)
        taken: set[int] = set()
        for sample, table in zip(group.samples, group.swapped_tables, strict=True):
            for number in table:
                if number in taken:
                    self.allocator.share(sample.block_table, (blocks[number],))
                else:
                    taken.add(number)
                    sample.block_table.append(blocks[number])
            self.pool.decodes.add(sample)
        group.swapped_tables = []
        self._further_seqs += group.num_seqs - 1
        if group.beam is not None:
            self._beams[group] = None
        self._write(batch, group.samples)

    def advance(self, batch: Batch, iterations: int = 1) -> None:
        for request in self._returned:
            request.block_table = []
        self._returned.clear()
        super().advance(batch, iterations)
