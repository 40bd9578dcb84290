"""What a cache of several groups of layers adds to `chunked`: windows give blocks back on the way.

As in vLLM V1 (`KVCacheManager.allocate_slots`) a request that is served gives back what no window
of its layers looks at any more, then takes what its new tokens need, and the next one is served
after it. What counts as computed is what is known to be: tokens in flight may still be read. So a
decode gives a block back whenever its length passes a number modulo the block size, and nobody is
visited but who does, who needs a block, and who has just begun to decode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.kv.groups import GroupedAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.engine_config import EngineConfig


@cache
def grouped(policy: type) -> type:
    """`policy` with a `GroupedAllocator`. Raises ValueError where its tables cannot have groups."""
    if not issubclass(policy, ChunkedScheduler):
        raise ValueError(
            "groups of layers with tables of their own need scheduler chunked: others keep every "
            "token in every layer"
        )
    return type(f"Grouped{policy.__name__}", (GroupedScheduler, policy), {})


class GroupedScheduler(ChunkedScheduler):
    """What groups add to a policy; mixed in by `grouped`."""

    allocator: GroupedAllocator

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        if allocator.drops_last_match and any(one.kind == "chunked" for one in allocator.rules):
            raise ValueError(
                "a draft head drops the last block of a cached prefix, and chunks may not have "
                "the one before (nor has vLLM a hybrid cache then)"
            )
        # Of a decode's tokens, those that are in flight whenever it is served.
        self._lag = int(config.async_scheduling and not self._is_pipeline)
        self._size = config.block_size
        self._chunk_tokens_in_flight: dict[Request, int] = {}
        # Decodes that have just joined, and how often they have been served since.
        self._settling: dict[Request, int] = {}
        self._wanted: int | None = None  # blocks that the head of the queue waits for
        # Of requests, where others' prompts part from theirs: a state is kept there.
        self._junctions: dict[Request, int] = {}
        self._checkpoints = any(one.kind == "checkpoint" for one in self.allocator.rules)
        self._rules = [rule for rule in self.allocator.rules if rule.gives_back]

    # -- what is known to be computed ---------------------------------------------------------

    def advance(self, batch: Batch, iterations: int = 1) -> None:
        in_flight = self._chunk_tokens_in_flight
        for chunk in batch.prefills:
            in_flight[chunk.request] = in_flight.get(chunk.request, 0) + chunk.new_tokens
        super().advance(batch, iterations)
        for chunk in batch.prefills:
            if chunk.request.joined_step >= 0:
                self._junctions.pop(chunk.request, None)
                self._settling[chunk.request] = 0

    def collect(self, batch: Batch, now_s: float) -> list[Request]:
        in_flight = self._chunk_tokens_in_flight
        for chunk in batch.prefills:
            left = in_flight[chunk.request] - chunk.new_tokens
            if left:
                in_flight[chunk.request] = left
            else:
                del in_flight[chunk.request]
        return super().collect(batch, now_s)

    def _processed_tokens(self, request: Request) -> int:
        in_flight = self._chunk_tokens_in_flight.get(request, 0)
        if request.joined_step < 0:
            return request.num_computed_tokens - in_flight
        decodes = self.pool.decodes
        if self._settling.get(request) == 0:  # what it has computed, no decode had a part in
            return decodes.stored_of(request) - in_flight
        return decodes.stored_before(request, self._lag)

    # -- deciding -----------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        self._wanted = None
        self.allocator.begin_step()
        batch = super().schedule(now_s)
        decodes = self.pool.decodes
        for request, served in [*self._settling.items()]:
            if request.joined_step < 0 or (served == self._lag and request in decodes):
                del self._settling[request]
            elif request in decodes:
                self._settling[request] = served + 1
        return batch

    def _schedule_running(self, batch: Batch, now_s: float) -> int:
        decodes = self.pool.decodes
        budget = self.config.max_num_batched_tokens - decodes.query_tokens
        if budget < 0:
            return self._schedule_in_order(batch, now_s)
        crossing = decodes.needing_block()
        prefilling = self.prefilling
        alone = len(prefilling) == 1 and next(reversed(self.pool.running)) in prefilling
        most = budget if alone else self.config.max_num_batched_tokens
        chunks = {
            request: tokens
            for request in prefilling
            if (tokens := self._chunk_tokens(request, most))
        }
        blocks = len(crossing) * self.allocator.lengthening_tables + sum(
            self._blocks_to_add(request, tokens) for request, tokens in chunks.items()
        )
        if blocks > self.allocator.num_free or (
            chunks and not alone and sum(chunks.values()) > budget
        ):
            return self._schedule_in_order(batch, now_s)
        if chunks and self.answers:
            self.publish_answers(scheduled=1)
        served = dict.fromkeys((*crossing, *self._giving_back(0), *chunks))
        served.update(dict.fromkeys(one for one in self._settling if one in decodes))
        for request in sorted(served, key=_admission):
            self._give_back(request)
            if request in chunks:
                self._prefill(batch, request, chunks[request])
                budget -= chunks[request]
            else:
                self._lengthen(
                    request, decodes.needs_block(request) * self.allocator.lengthening_tables
                )
        return budget

    def _giving_back(self, ahead: int) -> Iterator[Request]:
        """Decodes that may give blocks back so many iterations from now."""
        decodes = self.pool.decodes
        for rule in self._rules:
            yield from decodes.members_at(rule.first_skipping() + self._lag, ahead)

    def _give_back(self, request: Request) -> None:
        self.allocator.give_back(request, self._processed_tokens(request))

    def _lengthen(self, request: Request, blocks: int) -> None:
        if request in self._settling:
            self._note_last_state(request, self.pool.decodes.stored_of(request) + 1 - self._lag)
        if blocks:
            table = request.block_table
            tokens = (len(table) + blocks // self.allocator.lengthening_tables) * self._size
            self.allocator.grow(table, tokens)

    def _let_go_on(self) -> None:
        self._settling.update(dict.fromkeys(self._held_back, 0))
        super()._let_go_on()

    def _blocks_to_admit(self, request: Request, hits: list[int], budget: int) -> int:
        blocks = super()._blocks_to_admit(request, hits, budget)
        if self.config.scheduler_reserve_full_isl:  # its first chunk has to fit, too
            known = request.num_computed_tokens or len(hits) * self._size
            end = known + self._first_tokens(request, hits, budget)
            first = self.allocator.blocks_to_begin(hits, known, end, bounded=False)
            blocks = max(blocks, first)
        # What it finds may change while it waits; what it needs without does not.
        self._wanted = 0 if hits else blocks
        return blocks

    # -- chunks that end where a state is kept ------------------------------------------------

    def publish_answers(self, scheduled: int = 0) -> None:
        self.allocator.is_fresh = scheduled > 0
        super().publish_answers(scheduled)
        self.allocator.is_fresh = True

    def _chunk_tokens(self, request: Request, budget: int) -> int:
        tokens = super()._chunk_tokens(request, budget)
        return self._to_checkpoint(request, request.num_computed_tokens, tokens)

    def _first_tokens(self, request: Request, hits: list[int], budget: int) -> int:
        tokens = super()._first_tokens(request, hits, budget)
        known = request.num_computed_tokens or len(hits) * self._size
        return self._to_checkpoint(request, known, tokens)

    def _prefill(self, batch: Batch, request: Request, new_tokens: int) -> None:
        super()._prefill(batch, request, new_tokens)
        self._note_last_state(request, request.num_computed_tokens + new_tokens)

    def _note_last_state(self, request: Request, known_tokens: int) -> None:
        """vLLM takes a prompt's last state for new whenever its request is served.

        That is for as long as the request has not come to the end of another block.
        """
        last = (request.prompt_tokens - 1) // self._size
        if self._checkpoints and 0 < last == known_tokens // self._size:
            self.allocator.note_fresh(request, last - 1)

    def _to_checkpoint(self, request: Request, start: int, tokens: int) -> int:
        """So many of a chunk's tokens that it ends where a state can be kept; 0: it waits.

        vLLM's ``_mamba_block_aligned_split``: chunks end at the ends of blocks, the last but one at
        the last of them, and one where prompts that begin alike part.
        """
        prefill_end = max(request.prompt_tokens, request.num_tokens - 1)
        if not self._checkpoints or start >= prefill_end:
            return tokens
        size, end = self._size, start + tokens
        if end < prefill_end:
            config = self.config
            longest = min(
                config.max_num_batched_tokens,
                config.long_prefill_token_threshold or config.max_num_batched_tokens,
            )
            aligned = end // size * size
            if aligned > start or size <= longest:
                end = aligned
        junction = self._junctions.get(request, 0)
        stops = (
            (start // size + 1) * size if start % size else 0,
            (request.num_tokens - 1) // size * size,
            start + (junction - start) // size * size if start < junction < end else 0,
        )
        end = min((stop for stop in stops if start < stop < end), default=end)
        return max(end - start, 0)

    def _has_seats(self, request: Request) -> bool:
        self._wanted = None
        return super()._has_seats(request)

    # -- leaping ------------------------------------------------------------------------------

    def horizon(self, batch: Batch) -> int:
        iterations = super().horizon(batch)
        if iterations > 1 and self._settling:
            return 1
        if iterations > 1 and self.allocator.shared_blocks and self._rules:
            iterations = self._steps_to_last_share(iterations)
        if iterations > 1 and self._blocked and self._wanted is not None:
            iterations = self._steps_to_room(iterations, self._wanted)
        return iterations

    def _steps_to_last_share(self, limit: int) -> int:
        """Iterations until a block is given back that others hold: it does not come free."""
        allocator, decodes = self.allocator, self.pool.decodes
        for ahead in range(1, limit):
            for request in self._giving_back(ahead):
                known = decodes.stored_of(request) + ahead - self._lag
                if allocator.gives_back_shared(request, known):
                    return ahead
        return limit

    def _free_for_decoding(self) -> int:
        free, tables = super()._free_for_decoding(), self.allocator.lengthening_tables
        return free // tables if tables else free + self.pool.decodes.num_seqs << 40

    def _steps_to_room(self, limit: int, wanted: int) -> int:
        """Iterations until as many blocks as that are free, since windows give some back."""
        free = self.allocator.num_free
        for ahead in range(1, limit):
            taken, given = self._change(ahead)
            free += given - taken
            if free >= wanted:
                return ahead
        return limit

    def _change(self, ahead: int) -> tuple[int, int]:
        """Blocks that decodes take and give back so many iterations from now."""
        decodes, size = self.pool.decodes, self._size
        taken = len(decodes.members_at(0, ahead)) * self.allocator.lengthening_tables
        given = 0
        for rule in self._rules:
            for request in decodes.members_at(rule.first_skipping() + self._lag, ahead):
                known = decodes.stored_of(request) + ahead - self._lag
                before = rule.skipped_blocks(known - 1, size)
                given += (rule.skipped_blocks(known, size) - before) * rule.tables
        return taken, given

    def extend(self, iterations: int) -> list[tuple[int, int, int]]:
        allocator, decodes = self.allocator, self.pool.decodes
        growth: list[tuple[int, int, int]] = []
        for ahead in range(1, iterations):
            crossing = decodes.members_at(0, ahead)
            served = dict.fromkeys((*crossing, *self._giving_back(ahead)))
            given, free = 0, allocator.num_free
            for request in sorted(served, key=_admission):
                known = decodes.stored_of(request) + ahead - self._lag
                given += allocator.give_back(request, known)
                if request in crossing:
                    self._lengthen(request, allocator.lengthening_tables)
            if taken := free - allocator.num_free + given:
                growth.append((ahead, taken, 1))
            if given:
                growth.append((ahead, -given, -1))
        return growth

    def growth(self, iterations: int) -> int:
        changes = (self._change(ahead) for ahead in range(1, iterations))
        return sum(taken - given for taken, given in changes)

    # -- ends ---------------------------------------------------------------------------------

    def _hits(self, request: Request) -> list[int]:
        self.allocator.longest_found = 0
        hits = self.allocator.cached_prefix(request)
        if self._checkpoints and not request.num_computed_tokens:
            longest = self.allocator.longest_found
            self._junctions[request] = longest * self._size if longest > len(hits) else 0
        return hits

    def evict(self, now_s: float, in_flight: Sequence[Batch] = ()) -> list[Request]:
        lost = super().evict(now_s, in_flight)
        self._settling.clear()
        self._chunk_tokens_in_flight.clear()
        self._junctions.clear()
        self._wanted = None
        return lost


def _admission(request: Request) -> int:
    return request.admission
