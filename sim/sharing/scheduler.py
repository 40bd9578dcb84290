"""Any paged policy, with requests of several sequences: parallel sampling and beam search.

The policy stays what it is. A request is admitted when there is a seat for each of its sequences
and room for the prompt and for what each writes first; it is preempted and finished as a whole. Its
sequences decode like any others, so between two decisions they can be leapt over; beams change
their block tables with every token and are stepped through.

After a preemption by recompute the first sequence computes the prompt again; the others share its
full blocks and recompute what they had generated. What hypotheses of a beam had generated in
common is then held once for each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request, SampleGroup
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.iteration import IterationScheduler
from sim.sharing.splitting import next_hypotheses, split


class SamplingScheduler(IterationScheduler):
    """What groups of sequences add to a policy."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        self._further_seqs = 0  # of running requests, beyond one each
        self._forked: dict[SampleGroup, None] = {}  # may write to a block that others hold
        self._beams: dict[SampleGroup, None] = {}  # those that decode
        self._caught_up: dict[SampleGroup, list[Request]] = {}  # wait for the rest of their beam

    # -- admission --------------------------------------------------------------------------

    def servable(self, request: Request) -> bool:
        if not super().servable(request):
            return False
        group = request.group
        if group is None:
            return True
        blocks = group.most_blocks(self.allocator.block_size) + self.spare_blocks
        return group.num_seqs <= self.config.max_num_seqs and blocks <= self.allocator.num_blocks

    def _has_seats(self, request: Request) -> bool:
        seats = self.config.max_num_seqs - len(self.pool.running) - self._further_seqs
        return (request.group.num_seqs if request.group else 1) <= seats

    def _blocks_to_start(self, request: Request) -> int:
        group = request.group
        if group is None:
            return super()._blocks_to_start(request)
        size = self.allocator.block_size
        return group.blocks_to_resume(size) if group.started else group.blocks_to_split(size)

    def _start(self, request: Request, hits: list[int], now_s: float) -> Request:
        super()._start(request, hits, now_s)
        group = request.group
        if group is None:
            return request
        self._further_seqs += group.num_seqs - 1
        return self._resume(group) if group.started else request

    def _resume(self, group: SampleGroup) -> Request:
        """All blocks for what had been generated; returns the sample that computes the prompt."""
        request, allocator = group.request, self.allocator
        shared = request.prompt_tokens // allocator.block_size
        first, *others = group.samples
        first.block_table, request.block_table = request.block_table, []
        first.num_computed_tokens, request.num_computed_tokens = request.num_computed_tokens, 0
        allocator.allocate(first.block_table, shared - len(first.block_table))
        for sample in others:
            allocator.share(sample.block_table, first.block_table[:shared])
            sample.num_computed_tokens = shared * allocator.block_size
            self._prefill_stored_tokens += sample.num_computed_tokens
        for sample in group.samples:
            blocks = allocator.blocks_for(sample.num_tokens) - len(sample.block_table)
            allocator.allocate(sample.block_table, blocks)
        group.pending = others
        return first

    # -- decoding ---------------------------------------------------------------------------

    def horizon(self, batch: Batch) -> int:
        return 1 if batch.copies or self._forked or self._beams else super().horizon(batch)

    def _sequences(self, request: Request) -> list[Request]:
        """What a running request consists of now."""
        group = request.group
        return group.active() if group is not None and group.started else [request]

    def _stored(self, sequence: Request) -> int:
        """Tokens of the sequence that are in the cache."""
        passed = self.pool.decodes.step - sequence.joined_step if sequence.joined_step >= 0 else 0
        return sequence.num_computed_tokens + passed

    def _position(self, sequence: Request) -> int:
        """The block, counted from the first, that the sequence writes to next."""
        return self._stored(sequence) // self.allocator.block_size

    def _blocks_to_write(self, sequences: Iterable[Request]) -> int:
        """Blocks that these decoding sequences need in order to write a token each."""
        blocks = 0
        left: Counter[int] = Counter()  # tables that have given up a shared block
        for sequence in sequences:
            position, table = self._position(sequence), sequence.block_table
            if position == len(table):
                blocks += 1
            elif self.allocator.references(table[position]) - left[table[position]] > 1:
                left[table[position]] += 1
                blocks += 1
        return blocks

    def _write(self, batch: Batch, sequences: Iterable[Request]) -> None:
        """Give each decoding sequence a block of its own to write to; the blocks must be free.

        Copy-on-write (Kwon et al., section 4.4): of those who share a partial block, all but the
        last to write copy it.
        """
        copies = list(batch.copies)
        for sequence in sequences:
            position, table = self._position(sequence), sequence.block_table
            if position == len(table):
                self.allocator.allocate(table, 1)
            elif (copy := self.allocator.write(table, position)) is not None:
                copies.append(copy)
        batch.copies = copies

    # -- completion -------------------------------------------------------------------------

    def advance(self, batch: Batch, iterations: int = 1) -> None:
        super().advance(batch, iterations)
        step = self.pool.decodes.step
        for beam in self._beams:
            if batch.num_decodes and 0 <= beam.samples[0].joined_step < step:
                self._next_hypotheses(beam)
        for chunk in batch.prefills:
            group = chunk.request.group
            if group is not None and group.pending:
                self._let_follow(group, chunk.request)

    def _let_follow(self, group: SampleGroup, first: Request) -> None:
        """The others recompute their own tokens as soon as the prompt's full blocks are there."""
        if first.num_computed_tokens >= group.pending[0].num_computed_tokens:
            self.prefilling.update(dict.fromkeys(group.pending))
            group.pending = []

    def _next_hypotheses(self, group: SampleGroup) -> None:
        if next_hypotheses(group, self.allocator):
            self._forked[group] = None

    def _end_prefill(self, request: Request, batch: Batch) -> Sequence[Request]:
        group = request.group
        if group is None:
            return super()._end_prefill(request, batch)
        if request is group.request:
            return self._split(group, batch)
        if group.beam is None:
            return super()._end_prefill(request, batch)
        caught_up = self._caught_up.setdefault(group, [])
        caught_up.append(request)
        if len(caught_up) < len(group.samples):
            self._prefill_stored_tokens += request.num_computed_tokens
            return ()
        # The last one's tokens have been taken off already.
        self._prefill_stored_tokens -= sum(one.num_computed_tokens for one in caught_up[:-1])
        del self._caught_up[group]
        ended: list[Request] = []
        for hypothesis in group.samples:
            ended += super()._end_prefill(hypothesis, batch)
        if not ended:
            self._beams[group] = None
            self._next_hypotheses(group)
        return ended

    def _split(self, group: SampleGroup, batch: Batch) -> list[Request]:
        request = group.request
        if request.first_token is None:
            request.first_token = batch.emission
        split(group, self.allocator, batch.emission)
        ended = []
        for sample in group.samples:
            if sample.output_tokens == 1:
                ended.append(sample)
            else:
                self.pool.decodes.add(sample)
        if len(ended) < len(group.samples):
            self._forked[group] = None
            if group.beam is not None:
                self._beams[group] = None
        return ended

    def _finish(self, ended: Sequence[Request], now_s: float) -> list[Request]:
        answered: list[Request] = []
        for sequence in ended:
            group = sequence.group
            if group is None:
                answered += super()._finish([sequence], now_s)
                continue
            self._leave_cache(sequence)
            group.samples.remove(sequence)
            group.num_seqs -= 1
            if group.samples:
                self._further_seqs -= group.request in self.pool.running
                continue
            self._forget(group)
            group.request.last_token = sequence.last_token
            self.pool.finish(group.request, now_s)
            answered.append(group.request)
        return answered

    def _forget(self, group: SampleGroup) -> None:
        self._forked.pop(group, None)
        self._beams.pop(group, None)
        self._caught_up.pop(group, None)
        group.pending = []

    # -- preemption -------------------------------------------------------------------------

    def _withdraw(self, group: SampleGroup) -> None:
        """Take all samples out of whatever they are in; their blocks stay theirs."""
        for sample in group.samples:
            if sample in self._leaving:
                self._leave(sample)
            elif sample.joined_step >= 0:
                self.pool.decodes.remove(sample)
            else:
                self.prefilling.pop(sample, None)
                self._prefill_stored_tokens -= sample.num_computed_tokens
        self._forget(group)

    def _free_all(self, group: SampleGroup) -> None:
        for sample in reversed(group.samples):
            self.allocator.free(sample.block_table)

    def _preempt_by_recompute(
        self, request: Request, batch: Batch, now_s: float, *, scheduled: int = 0
    ) -> None:
        group = request.group
        if group is not None:
            self._further_seqs -= group.num_seqs - 1
        if group is None or not group.started:
            super()._preempt_by_recompute(request, batch, now_s, scheduled=scheduled)
            return
        self._withdraw(group)
        first, prompt = group.samples[0], request.prompt_tokens
        if self.config.enable_prefix_caching:
            request.num_computed_tokens = min(first.num_computed_tokens, prompt)
            request.block_table = first.block_table
            self.allocator.cache_all(request, request.num_computed_tokens)
            request.block_table = []
        request.num_computed_tokens = 0
        self._free_all(group)
        for sample in group.samples:
            sample.num_computed_tokens = 0
        self.pool.preempt(request, now_s)
        self.pool.waiting.appendleft(request)
        batch.preempted += 1

    def abort(self, request: Request, now_s: float) -> None:
        group = request.group
        if group is None or request not in self.pool.running:
            super().abort(request, now_s)
            return
        self._further_seqs -= group.num_seqs - 1
        if not group.started:
            super().abort(request, now_s)
            return
        self._withdraw(group)
        self._free_all(group)
        del self.pool.running[request]
        self.pool.abort(request, now_s)

    def evict(self, now_s: float, in_flight: Sequence[Batch] = ()) -> list[Request]:
        for request in self.pool.running:
            if request.group is not None and request.group.started:
                self._withdraw(request.group)
                self._free_all(request.group)
        lost = super().evict(now_s, in_flight)
        self._further_seqs = 0
        for request in lost:
            if request.group is not None:
                request.group.start_anew()
        return lost

    # -- records ----------------------------------------------------------------------------

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        emitted, stored, growth, reserved = super().accounting(batch)
        catching_up: Counter[SampleGroup] = Counter()  # hypotheses that have, in this iteration
        for chunk in batch.prefills:
            request, group = chunk.request, chunk.request.group
            if group is None or chunk.cached_tokens + chunk.new_tokens < request.num_tokens:
                continue
            if request is group.request:
                emitted += len(group.output_tokens) - 1
            elif group.beam is not None:
                catching_up[group] += 1
        for group, count in catching_up.items():
            before = len(self._caught_up.get(group, ()))
            # Their tokens go out with the last one's.
            emitted += before if before + count == len(group.samples) else -count
        if self._forked:
            stored += self._slots_missing_in_shared_blocks()
        return emitted, stored, growth, reserved

    def _slots_missing_in_shared_blocks(self) -> int:
        """Shared blocks are taken to be full; those not yet copied are not."""
        size = self.allocator.block_size
        missing = 0
        for group in self._forked:
            seen: set[int] = set()
            for sample in group.samples:
                position, filled = divmod(self._stored(sample), size)
                if position == len(sample.block_table):
                    continue
                block = sample.block_table[position]
                missing += size - filled if block in seen else 0
                seen.add(block)
        return missing
