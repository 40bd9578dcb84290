"""`chunked` against vLLM V1's scheduling loop, written out plainly.

The plain loop below keeps a counter per request and visits every running request in every
iteration; it knows nothing of decode sets, residue classes or runs.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from sim.batch import Batch, PrefillChunk
from sim.request import Emission, Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import LinearLatency, engines, run, workloads


class PlainCache:
    """Blocks as objects in an explicit free list; a cached block is looked up by its hash."""

    def __init__(self, num_blocks: int) -> None:
        self.free = list(range(num_blocks))
        self.references = [0] * num_blocks
        self.hashes: list[object] = [None] * num_blocks
        self.order: list[int] = []  # blocks with a hash, in the order of their publication

    def find(self, block_hash: object) -> int | None:
        # The one published first wins, as long as it lives.
        found = [block for block in self.order if self.hashes[block] == block_hash]
        return found[0] if found else None


class PlainEngine:
    """One iteration after the other, every request visited."""

    def __init__(self, workload: Workload, config: EngineConfig, num_blocks: int) -> None:
        self.config, self.size = config, config.block_size
        self.cache = PlainCache(num_blocks)
        self.num_blocks = num_blocks
        self.latency = LinearLatency()
        self.caught_up: set[Request] = set()  # past their prefill: they decode
        self.requests = [
            Request(i, float(a), int(p), int(o), int(o))
            for i, (a, p, o) in enumerate(
                zip(workload.arrival_s, workload.prompt_tokens, workload.output_tokens, strict=True)
            )
        ]
        for request in self.requests:
            if workload.content is not None and config.enable_prefix_caching:
                request.block_hashes = workload.content.block_hashes(
                    request.index, self.size, request.prompt_tokens
                )
        self.iterations: list[tuple[float, float, int, int, int]] = []
        self.longest = 0  # chunk of a prompt in this iteration; 0: as long as the budget

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def hash_of(self, request: Request, position: int) -> object:
        if position < len(request.block_hashes):
            return request.block_hashes[position]
        return ("own", request.index, position)

    def allocate(self, request: Request, tokens: int) -> None:
        while len(request.block_table) < self.blocks(tokens):
            block = self.cache.free.pop(0)
            if self.cache.hashes[block] is not None:
                self.cache.order.remove(block)
            self.cache.hashes[block] = None
            self.cache.references[block] = 1
            request.block_table.append(block)
        if self.config.enable_prefix_caching:
            for position in range(tokens // self.size):
                block = request.block_table[position]
                if self.cache.hashes[block] is None:
                    self.cache.hashes[block] = self.hash_of(request, position)
                    self.cache.order.append(block)

    def release(self, request: Request) -> None:
        """Blocks with a hash are reused last, the others first: a table's last block before all."""
        first: list[int] = []
        for block in reversed(request.block_table):
            self.cache.references[block] -= 1
            if not self.cache.references[block]:
                (self.cache.free if self.cache.hashes[block] is not None else first).append(block)
        self.cache.free[:0] = first
        request.block_table.clear()

    def hits(self, request: Request) -> list[int]:
        found: list[int] = []
        if self.config.enable_prefix_caching:
            for position in range((request.num_tokens - 1) // self.size):
                block = self.cache.find(self.hash_of(request, position))
                if block is None:
                    break
                found.append(block)
        return found

    def serve(self) -> None:
        arrivals = list(self.requests)
        waiting: list[Request] = []
        running: list[Request] = []
        now_s = 0.0
        while arrivals or waiting or running:
            if not waiting and not running:
                now_s = max(now_s, arrivals[0].arrival_s)
            while arrivals and arrivals[0].arrival_s <= now_s:
                request = arrivals.pop(0)
                if self.blocks(request.final_tokens) <= self.num_blocks:
                    waiting.append(request)
            alone = len(running) + len(waiting) == 1
            self.longest = 0 if alone else self.config.long_prefill_token_threshold
            scheduled: dict[Request, int] = {}
            budget = self.config.max_num_batched_tokens
            preempted = 0
            index = 0
            while index < len(running) and budget > 0:
                request = running[index]
                tokens = self.chunk(request, budget)
                missing = self.blocks(request.num_computed_tokens + tokens) - len(
                    request.block_table
                )
                while missing > len(self.cache.free):
                    victim = running.pop()
                    self.release(victim)
                    victim.num_computed_tokens = 0
                    victim.preemptions += 1
                    self.caught_up.discard(victim)
                    waiting.insert(0, victim)
                    preempted += 1
                    if victim is request:
                        break
                else:
                    self.allocate(request, request.num_computed_tokens + tokens)
                    scheduled[request] = tokens
                    budget -= tokens
                    index += 1
                    continue
                break
            while (
                waiting and budget > 0 and not preempted and len(running) < self.config.max_num_seqs
            ):
                request = waiting[0]
                hits = self.hits(request)
                idle = sum(not self.cache.references[block] for block in hits)
                if self.blocks(request.num_tokens) - len(hits) + idle > len(self.cache.free):
                    break
                waiting.pop(0)
                running.append(request)
                for block in hits:
                    if not self.cache.references[block]:
                        self.cache.free.remove(block)
                    self.cache.references[block] += 1
                    request.block_table.append(block)
                request.num_computed_tokens = len(hits) * self.size
                if np.isnan(request.scheduled_s):
                    request.scheduled_s = now_s
                    request.cached_tokens = request.num_computed_tokens
                tokens = self.chunk(request, budget)
                self.allocate(request, request.num_computed_tokens + tokens)
                scheduled[request] = tokens
                budget -= tokens
            if not scheduled:
                continue
            now_s = self.compute(scheduled, running, now_s, preempted)

    def compute(
        self, scheduled: dict[Request, int], running: list[Request], now_s: float, preempted: int
    ) -> float:
        batch = Batch()
        for request, tokens in scheduled.items():
            batch.num_tokens += tokens
            if request in self.caught_up:
                batch.num_decodes += 1
                batch.context_tokens += request.num_tokens
            else:
                batch.prefills.append(PrefillChunk(request, tokens, request.num_computed_tokens))
        end_s = now_s + self.latency.iteration_s(batch)
        self.iterations.append((now_s, end_s, len(running), batch.num_tokens, preempted))
        for request, tokens in scheduled.items():
            request.num_computed_tokens += tokens
            if request.num_computed_tokens < request.num_tokens:
                continue
            self.caught_up.add(request)
            request.num_generated_tokens += 1
            if request.num_generated_tokens == 1:
                request.first_token = Emission(end_s)
            if request.num_generated_tokens == request.output_tokens:
                request.finished_s = end_s
                running.remove(request)
                self.release(request)
        return end_s

    def chunk(self, request: Request, budget: int) -> int:
        tokens = request.num_tokens - request.num_computed_tokens
        if 0 < self.longest < tokens:
            tokens = self.longest
        return min(tokens, budget)


@settings(max_examples=300, deadline=None)
@given(workload=workloads(), engine=engines())
def test_chunked_does_what_the_plain_loop_does(
    workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    if workload.max_concurrency is not None:
        workload = Workload(
            workload.arrival_s,
            workload.prompt_tokens,
            workload.output_tokens,
            content=workload.content,
        )
    plain = PlainEngine(workload, config, num_blocks)
    plain.serve()
    records = run(workload, config, scheduler="chunked", num_blocks=num_blocks)
    iterations = records.iterations
    ours = zip(
        iterations["running"].tolist(),
        iterations["num_tokens"].tolist(),
        iterations["preempted"].tolist(),
        strict=True,
    )
    assert list(ours) == [row[2:] for row in plain.iterations]
    for name in ("scheduled_s", "first_token_s", "finished_s"):
        expected = [getattr(request, name) for request in plain.requests]
        np.testing.assert_allclose(records.requests[name], expected, rtol=1e-9, err_msg=name)
    assert records.requests["preemptions"].tolist() == [r.preemptions for r in plain.requests]
    assert records.requests["cached_tokens"].tolist() == [r.cached_tokens for r in plain.requests]
