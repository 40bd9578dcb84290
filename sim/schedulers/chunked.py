"""`chunked`: one token budget for prefill and decode, as in vLLM V1 and Sarathi-Serve.

Every iteration hands out at most ``max_num_batched_tokens``: first to running requests in order
of admission, each catching up to the length it has reached, then to waiting ones. A decode is
merely a request that is one token behind (Agrawal et al., OSDI 2024; vLLM V1 scheduler).
"""

from __future__ import annotations

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.iteration import IterationScheduler


class ChunkedScheduler(IterationScheduler):
    """First come first served; preempts the latest admitted by recompute; never to admit."""

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        # Who decodes in a pipeline has waited for the token before.
        pool.decodes.overruns = config.async_scheduling and not self._is_pipeline
        self._longest_chunk = 0  # of a prompt, in this iteration; 0: as long as the budget

    def schedule(self, now_s: float) -> Batch | None:
        batch = Batch()
        if self.config.long_prefill_token_threshold:
            # Nobody has to be kept from waiting for a long prompt that is alone.
            others = len(self.pool.running) + len(self.pool.waiting) > 1
            self._longest_chunk = self.config.long_prefill_token_threshold if others else 0
        if self._held_back:
            self._let_go_on()
        budget = self._schedule_running(batch, now_s)
        self._blocked = False
        if self.pool.waiting and not batch.preempted:
            self._admit(batch, budget, now_s)
        self._add_decodes(batch)
        return batch if batch.num_tokens else None

    def _schedule_running(self, batch: Batch, now_s: float) -> int:
        """Serve those already running; returns what is left of the budget."""
        decodes = self.pool.decodes
        budget = self.config.max_num_batched_tokens - decodes.query_tokens
        if budget < 0:
            return self._schedule_in_order(batch, now_s)
        crossing = decodes.needing_block()
        if not self.prefilling:
            if len(crossing) > self.allocator.num_free:
                return self._schedule_in_order(batch, now_s)
            if crossing:
                self._grow(crossing)
            return budget

        alone = len(self.prefilling) == 1 and next(reversed(self.pool.running)) in self.prefilling
        # Whoever decodes behind a prompt may find its tokens gone.
        most = budget if alone else self.config.max_num_batched_tokens
        chunks = {request: self._chunk_tokens(request, most) for request in self.prefilling}
        blocks = len(crossing) + sum(
            self._blocks_to_add(request, tokens) for request, tokens in chunks.items()
        )
        if blocks > self.allocator.num_free or (not alone and sum(chunks.values()) > budget):
            return self._schedule_in_order(batch, now_s)
        self._grow(crossing)
        if self.answers:
            self.publish_answers(scheduled=1)
        for request, tokens in chunks.items():
            self._prefill(batch, request, tokens)
            budget -= tokens
        return budget

    def _schedule_in_order(self, batch: Batch, now_s: float) -> int:
        """The general rule, when tokens or blocks are short: strictly in order of admission."""
        pool, decodes, leaving = self.pool, self.pool.decodes, self._leaving
        budget = self.config.max_num_batched_tokens
        if self.answers:
            self.publish_answers()
        given: dict[Request, int] = {}  # tokens of those already served by this decision
        for request in list(pool.running):
            decoding = request.joined_step >= 0
            if request not in pool.running or (request in leaving and not decoding):
                continue
            if decoding and pool.in_flight and request not in decodes:
                continue
            if budget == 0:
                if decoding and request in leaving:
                    decodes.remove(request)
                elif decoding:
                    self._hold_back(request)
                continue
            if decoding:
                self._give_back(request)
                tokens = decodes.limit(request, budget)
                blocks = decodes.needs_block(request) * self.allocator.lengthening_tables
            else:
                tokens = self._chunk_tokens(request, budget)
                if not tokens:
                    continue
                self._give_back(request)
                blocks = self._blocks_to_add(request, tokens)
            while blocks > self.allocator.num_free and request in pool.running:
                budget += self._give_way(self._victim(), given, batch, now_s)
            if request not in pool.running:
                budget = 0  # nobody behind it is served either
                continue
            if decoding:
                self._lengthen(request, blocks)
            else:
                self._prefill(batch, request, tokens)
            given[request] = tokens
            budget -= tokens
        return budget

    def _give_way(
        self, victim: Request, given: dict[Request, int], batch: Batch, now_s: float
    ) -> int:
        """Preempt a request; returns the tokens that this decision had given it."""
        tokens = given.pop(victim, 0)
        if tokens and victim.joined_step < 0:
            self._take_out(batch, victim)
        self._preempt_by_recompute(victim, batch, now_s, scheduled=tokens)
        return tokens

    def _hold_back(self, request: Request) -> None:
        """No token is left for this sequence: it sits this iteration out."""
        self.pool.decodes.remove(request)
        self._held_back.append(request)
        self._prefill_stored_tokens += request.num_computed_tokens

    def _let_go_on(self) -> None:
        for request in self._held_back:
            self._prefill_stored_tokens -= request.num_computed_tokens
            self.pool.decodes.add(request)
        self._held_back.clear()

    def _admit(self, batch: Batch, budget: int, now_s: float) -> None:
        pool, allocator = self.pool, self.allocator
        if self.answers:
            self.publish_answers(scheduled=1)
        skipped: list[Request] = []  # what they had computed when they gave way is still in flight
        while pool.waiting and budget > 0:
            request = pool.waiting[0]
            if not self._has_seats(request):
                self._blocked = True
                break
            if request.preemptions and self._in_flight(request):
                skipped.append(pool.waiting.popleft())
                continue
            hits = self._hits(request)
            if allocator.rules and not self._first_tokens(request, hits, budget):
                break  # no chunk would end where its state can be kept
            blocks = self._blocks_to_admit(request, hits, budget)
            if blocks > allocator.num_free:
                self._blocked = True
                break
            request = self._start(request, hits, now_s)
            tokens = self._chunk_tokens(request, budget)
            self._prefill(batch, request, tokens)
            budget -= tokens
        for request in reversed(skipped):
            pool.waiting.appendleft(request)

    def _blocks_to_admit(self, request: Request, hits: list[int], budget: int) -> int:
        """Those of the whole sequence, or, where that is not asked for, of its first chunk."""
        allocator = self.allocator
        known = request.num_computed_tokens or len(hits) * allocator.block_size
        if self.config.scheduler_reserve_full_isl:
            return allocator.blocks_to_begin(hits, known, request.num_tokens)
        tokens = self._first_tokens(request, hits, budget)
        return allocator.blocks_to_begin(hits, known, known + tokens, bounded=False)

    def _first_tokens(self, request: Request, hits: list[int], budget: int) -> int:
        """What the first chunk of a request that begins with these would have."""
        known = request.num_computed_tokens or len(hits) * self.allocator.block_size
        return min(request.num_tokens - known, budget, self._longest_chunk or budget)

    def _chunk_tokens(self, request: Request, budget: int) -> int:
        tokens = request.num_tokens - request.num_computed_tokens
        if 0 < self._longest_chunk < tokens:
            tokens = self._longest_chunk
        return min(tokens, budget)

    def _blocks_to_add(self, request: Request, tokens: int) -> int:
        return self.allocator.blocks_to_grow(
            request.block_table, request.num_computed_tokens + tokens
        )

    def _give_back(self, request: Request) -> None:
        """What a running request does not need any more, before it is given what it needs."""
