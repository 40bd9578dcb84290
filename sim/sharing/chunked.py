"""`chunked` with requests of several sequences: each gets its share of the token budget."""

from __future__ import annotations

from sim.batch import Batch
from sim.request import Request, SampleGroup
from sim.schedulers.chunked import ChunkedScheduler
from sim.sharing.scheduler import SamplingScheduler


class SamplingChunkedScheduler(SamplingScheduler, ChunkedScheduler):
    """`chunked` with requests of several sequences."""

    def _schedule_running(self, batch: Batch, now_s: float) -> int:
        if self._forked:
            return self._schedule_in_order(batch, now_s)
        return super()._schedule_running(batch, now_s)

    def _schedule_in_order(self, batch: Batch, now_s: float) -> int:
        """As `ChunkedScheduler` does; a request's sequences get their blocks together or not."""
        pool, allocator = self.pool, self.allocator
        budget = self.config.max_num_batched_tokens
        for request in list(pool.running):
            if request not in pool.running:  # preempted
                continue
            decoding, held_back, chunks = self._share_out(request, budget)
            blocks = self._blocks_to_write(decoding)
            blocks += sum(self._blocks_to_add(one, tokens) for one, tokens in chunks)
            while blocks > allocator.num_free and request in pool.running:
                self._preempt_by_recompute(self._victim(), batch, now_s)
            if request not in pool.running:
                break
            self._write(batch, decoding)
            for sequence, tokens in chunks:
                self._prefill(batch, sequence, tokens)
            for sequence in held_back:
                self._hold_back(sequence)
            if not held_back and request.group is not None:
                self._forked.pop(request.group, None)
            budget -= len(decoding) + sum(tokens for _, tokens in chunks)
        return budget

    def _share_out(
        self, request: Request, budget: int
    ) -> tuple[list[Request], list[Request], list[tuple[Request, int]]]:
        """Who of a request's sequences decodes, who sits it out, and chunks of prefill."""
        sequences = self._sequences(request)
        ready = [sequence for sequence in sequences if sequence.joined_step >= 0]
        places = min(len(ready), budget)
        if request.group is not None and request.group.beam is not None and places < len(ready):
            places = 0  # the hypotheses of a beam stay equally long
        budget -= places
        chunks = []
        for sequence in sequences:
            if budget > 0 and sequence in self.prefilling:
                tokens = self._chunk_tokens(sequence, budget)
                chunks.append((sequence, tokens))
                budget -= tokens
        return ready[:places], ready[places:], chunks

    def _blocks_to_add(self, request: Request, tokens: int) -> int:
        return max(super()._blocks_to_add(request, tokens), 0)  # some have them already

    def _withdraw(self, group: SampleGroup) -> None:
        self._held_back = [one for one in self._held_back if one not in group.samples]
        super()._withdraw(group)
