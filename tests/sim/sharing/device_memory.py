"""Device and host memory in which every slot says which token's keys and values it holds.

Drives a scheduler as a real engine would, does to the memory exactly what its batches say (swap and
offload out, swap and load in, copy, write), and looks before every iteration whether each sequence
finds its own past through its block table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sim.batch import Batch
from sim.engine.policy import block_allocator, scheduler_class
from sim.request import SAMPLE_NUMBERS, Request, SampleGroup
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from sim.workload.source import RequestSource

Token = Any  # what identifies a token: its place in a known text, or in a sequence of its own


class DeviceMemory:
    """One engine's blocks, on the device and on the host, slot by slot."""

    def __init__(
        self, workload: Workload, config: EngineConfig, *, scheduler: str, num_blocks: int
    ) -> None:
        self._content = workload.content
        self._size = config.block_size
        self._device: dict[int, list[Token]] = {
            block: [None] * config.block_size for block in range(num_blocks)
        }
        self._swapped: dict[Request, list[list[Token]]] = {}
        self._host: dict[int, list[Token]] = {}
        self._past: dict[Request, list[Token]] = {}  # of sequences that have one
        self.copied: list[tuple[int, int]] = []
        self.batches: list[Batch] = []
        policy = scheduler_class(scheduler, config, samples=workload.samples)
        allocator = block_allocator(config, num_blocks)
        self.scheduler = policy(RequestPool(config.block_size), allocator, config)
        source = RequestSource(
            replace(workload, max_concurrency=None),
            block_size=config.block_size,
            prefix_caching=config.enable_prefix_caching,
        )
        for _ in range(len(workload)):
            self.scheduler.add(source.take())

    def serve(self, watch: Callable[[Batch], None] | None = None) -> None:
        """Serve everything, an iteration a second; AssertionError where a token is not found."""
        scheduler, now_s, idle = self.scheduler, 0.0, 0
        while scheduler.pool.num_unfinished:
            batch = scheduler.schedule(now_s)
            if batch is None:
                idle += 1
                assert idle < 3, "stuck"
                continue
            idle = 0
            self._move(batch)
            self._compute(batch)
            self.batches.append(batch)
            if watch is not None:
                watch(batch)
            now_s += 1.0
            before = {
                sample: list(sample.block_table)
                for request in scheduler.pool.running
                if request.group is not None and request.group.beam is not None
                for sample in request.group.samples
            }
            scheduler.complete(batch, now_s)
            self._follow_forks(before)
            scheduler.allocator.check(scheduler.pool.tables())
        assert scheduler.allocator.num_free == scheduler.allocator.num_blocks

    # -- what a batch says --------------------------------------------------------------------

    def _move(self, batch: Batch) -> None:
        device = self._device
        for request, blocks in batch.swapped_out:
            self._swapped[request] = [list(device[block]) for block in blocks]
        for source, slot in batch.offloaded:
            self._host[slot] = list(device[source] if source >= 0 else self._host[~source])
        for request in batch.swapped_in:
            held = self._swapped.pop(request)
            for block, tokens in zip(request.block_table, held, strict=False):
                device[block] = tokens
        for slot, block in batch.loaded:
            device[block] = list(self._host[slot])
        for source, target in batch.copies:
            device[target] = list(device[source])
        self.copied += batch.copies
        assert len(batch.swapped_in) == 0 or batch.swap_in_blocks
        assert batch.swap_out_blocks >= sum(source >= 0 for source, _ in batch.offloaded)

    def _compute(self, batch: Batch) -> None:
        """Read each sequence's past, then write; several write in one iteration, each its own."""
        written: set[tuple[int, int]] = set()
        for chunk in batch.prefills:
            request, end = chunk.request, chunk.cached_tokens + chunk.new_tokens
            past = self._past_of(request, end)
            for position in range(chunk.cached_tokens, end):
                self._write(request, position, past[position], written)
        decoding = self.scheduler.decoding() if batch.num_decodes else ()
        assert len(decoding) == batch.num_decodes
        step = self.scheduler.pool.decodes.step
        for request in decoding:
            position = request.num_computed_tokens + step - request.joined_step
            past = self._past_of(request, position + 1)
            self._write(request, position, past[position], written)
        for chunk in batch.prefills:
            self._read(chunk.request, chunk.cached_tokens + chunk.new_tokens)
        for request in decoding:
            self._read(request, request.num_computed_tokens + step - request.joined_step + 1)

    def _write(
        self, request: Request, position: int, token: Token, written: set[tuple[int, int]]
    ) -> None:
        place = request.block_table[position // self._size], position % self._size
        assert place not in written, "two sequences write to one slot"
        written.add(place)
        self._device[place[0]][place[1]] = token

    def _read(self, request: Request, num_tokens: int) -> None:
        past = self._past_of(request, num_tokens)
        for position in range(num_tokens):
            block = request.block_table[position // self._size]
            found = self._device[block][position % self._size]
            assert found == past[position], (
                f"request {request.index} at {position}: {found} for {past[position]}"
            )

    # -- what should be there -----------------------------------------------------------------

    def _past_of(self, request: Request, num_tokens: int) -> list[Token]:
        past = self._past.setdefault(request, [])
        for position in range(len(past), num_tokens):
            past.append(self._token(request, position))
        return past

    def _token(self, request: Request, position: int) -> Token:
        group = request.group
        asked = request.whole if group is None else group.request
        content = self._content
        # What is known of an answer is the first sample's.
        own = position >= request.prompt_tokens and request is not asked
        first = request.index == asked.index + SAMPLE_NUMBERS
        known = content is not None and position < content.known_tokens[asked.index]
        if content is not None and known and (not own or first):
            begin = int(content.offsets[asked.index])
            unit = position // content.unit_tokens
            return tuple(content.ids[begin : begin + unit + 1].tolist()), position
        return (request.index if own else asked.index), position

    def _follow_forks(self, before: dict[Request, list[int]]) -> None:
        """A hypothesis whose table changed has the past of the one whose table it now shares."""
        changed = [
            sample
            for sample, table in before.items()
            if sample.block_table and sample.block_table != table
        ]
        past = {sample: list(tokens) for sample, tokens in self._past.items()}
        for sample in changed:
            group: SampleGroup | None = sample.group
            assert group is not None
            sources = [
                other
                for other in group.samples
                if other not in changed and other.block_table == sample.block_table
            ]
            assert sources, "a fork of nobody"
            self._past[sample] = past[sources[0]]
