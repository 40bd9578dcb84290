"""What policies share that batch by iteration: requests join and leave at any of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from math import inf

from sim.batch import Batch, PrefillChunk
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.answers import Answers
from sim.schedulers.engine_config import EngineConfig


class IterationScheduler:
    """Iteration-level scheduling (Orca, section 3.2): requests join and leave at any iteration."""

    has_token_budget = True
    reserves = False  # whether admission sets all of a request's blocks aside
    spare_blocks = 0  # that must be left beside a lone request

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        self.pool = pool
        self.allocator = allocator
        self.config = config
        if config.queue is not None:
            pool.queue_by(config.queue)
        self._overtakes = config.queue is not None and config.queue.overtakes
        self._rank = None if config.queue is None else config.queue.rank()
        if config.speculation is not None:
            allocator.drops_last_match = config.speculation.drops_last_match
        self.wake_s = inf
        self.gaps: list[tuple[float, int]] = []
        self.prefilling: dict[Request, None] = {}  # running, prompt only partly computed
        self._prefill_stored_tokens = 0  # of sequences that are not decoding
        self._held_back: list[Request] = []  # would decode, and sit this iteration out
        self._blocked = False  # the head of the queue waits for something to finish
        self.answers = Answers(allocator.block_size)
        self._is_pipeline = config.pipeline_stages > 1
        self._chunks: dict[Request, Batch] = {}  # of prompts, in flight through a pipeline
        self._leaving: dict[Request, Batch] = {}  # sequences whose last token is in flight
        self._leaving_tokens = 0  # that they have in the cache

    # -- arrivals ---------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        if self.servable(request):
            self.pool.enqueue(request)
        else:
            self.pool.reject(request)

    def servable(self, request: Request) -> bool:
        """Whether the request, alone in the engine, could be served to its end."""
        if request.prompt_tokens + request.output_tokens > self.config.max_model_len:
            return False
        blocks = self.allocator.blocks_for(self._final_slots(request))
        return blocks + self.spare_blocks <= self.allocator.num_blocks

    def _final_slots(self, request: Request) -> int:
        """KV slots that the request holds when it has the most."""
        return request.final_tokens

    def _decode_slots(self, request: Request) -> int:
        """KV slots that the request holds while it decodes once more."""
        return request.num_computed_tokens + 1

    @property
    def admits_arrivals(self) -> bool:
        if self.pool.waiting and not self._overtakes:
            return False
        return len(self.pool.running) - len(self._leaving) < self.config.max_num_seqs

    # -- admission --------------------------------------------------------------------------

    def _has_seats(self, request: Request) -> bool:
        """Whether `request` may be served beside those that are running."""
        return len(self.pool.running) < self.config.max_num_seqs

    def _blocks_to_start(self, request: Request) -> int:
        """Blocks that have to be there for `request` to be admitted, cached ones included."""
        return self.allocator.blocks_for(request.num_tokens)

    def _hits(self, request: Request) -> list[int]:
        """Cached blocks that `request` begins with."""
        blocks = self.allocator.cached_prefix(request)
        if request.num_computed_tokens:  # computed elsewhere; what is on the host has come, too
            blocks = list(takewhile(_on_device, blocks))
        return blocks

    def _start(self, request: Request, hits: list[int], now_s: float) -> Request:
        """Admit the head of the queue with its cached blocks; returns the sequence to prefill."""
        pool, allocator = self.pool, self.allocator
        pool.waiting.popleft()
        pool.start(request, now_s)
        if hits:
            allocator.reuse(request.block_table, hits)
        received = request.num_computed_tokens
        if received:  # elsewhere, and sent here: blocks for it, in which others find what it holds
            if not self.reserves:
                blocks = allocator.blocks_for(received)
                allocator.allocate(request.block_table, blocks - len(hits))
            if self.config.enable_prefix_caching:
                allocator.cache_prompt(request, 0, received)
        elif hits:
            request.num_computed_tokens = len(hits) * allocator.block_size
            if not request.preemptions:
                request.cached_tokens = request.num_computed_tokens
        self._prefill_stored_tokens += request.num_computed_tokens
        return request

    # -- leaping ----------------------------------------------------------------------------

    def horizon(self, batch: Batch) -> int:
        if batch.prefills or batch.preempted or batch.swap_in_blocks or self.prefilling:
            return 1
        if self._held_back:
            return 1
        if (self._leaving or not self._blocked) and (self.pool.waiting or self.pool.swapped):
            return 1
        if self.answers and self.pool.waiting and self._fills_blocks_of_next():
            return 1
        iterations = self.pool.decodes.steps_to_next_ending()
        if iterations <= 1 or self.reserves:
            return iterations
        return self.pool.decodes.steps_within(self._free_for_decoding(), iterations)

    def _fills_blocks_of_next(self) -> bool:
        """Whether decodes fill blocks that the head of the queue waits for room for."""
        head = self.pool.waiting[0]
        return self.answers.continued_by(head.block_hashes) and self._has_seats(head)

    def _free_for_decoding(self) -> int:
        return self.allocator.num_free

    def extend(self, iterations: int) -> list[tuple[int, int, int]]:
        if self.reserves:
            return []
        growth: list[tuple[int, int, int]] = []
        tables: list[list[int]] = []  # one entry for every block that is needed
        for ahead, members, times in self.pool.decodes.crossings(iterations):
            growth.append((ahead, len(members), times))
            for request in members:
                if times == 1:
                    tables.append(request.block_table)
                else:
                    tables += [request.block_table] * times
        for table, block in zip(tables, self.allocator.take(len(tables)), strict=True):
            table.append(block)
        return growth

    def growth(self, iterations: int) -> int:
        if self.reserves:
            return 0
        return sum(
            len(members) * times for _, members, times in self.pool.decodes.crossings(iterations)
        )

    def evict(self, now_s: float, in_flight: Sequence[Batch] = ()) -> list[Request]:
        for batch in in_flight:
            self._undo(batch)
        lost = self.pool.evict()
        for request in lost:
            self.allocator.free(request.block_table)
        self.allocator.forget_all()
        self.prefilling.clear()
        self._held_back.clear()
        self._prefill_stored_tokens = 0
        self._leaving.clear()
        self._leaving_tokens = 0
        self.answers.clear()
        self._chunks.clear()
        self._blocked = False
        return list(dict.fromkeys(request.whole for request in lost))

    def _undo(self, batch: Batch) -> None:
        """A batch that was advanced over never ends: nobody has a token of it."""
        for chunk in batch.prefills:
            request = chunk.request
            if request.last_token is batch.emission:
                request.last_token = (batch.resumed or {}).get(request)
            if request.first_token is batch.emission:
                request.first_token = None
        if batch.num_decodes:
            (self.pool.decodes if batch.waiting is None else batch.waiting).undo()

    def _grow(self, crossing: Collection[Request]) -> None:
        """One more block for each of these requests."""
        blocks = self.allocator.take(len(crossing))
        for request, block in zip(crossing, blocks, strict=True):
            request.block_table.append(block)

    # -- prefill ----------------------------------------------------------------------------

    def _prefill(self, batch: Batch, request: Request, new_tokens: int) -> None:
        """Put the next `new_tokens` of a prompt into the batch; blocks must be free."""
        allocator = self.allocator
        cached = request.num_computed_tokens
        end = cached + new_tokens
        if not self.reserves:
            allocator.allocate(
                request.block_table, -(-end // allocator.block_size) - len(request.block_table)
            )
        if request.block_hashes and self.config.enable_prefix_caching:
            allocator.cache_prompt(request, cached, end)
        batch.prefills.append(PrefillChunk(request, new_tokens, cached))
        batch.num_tokens += new_tokens
        if end == request.prompt_tokens + request.num_generated_tokens:
            batch.num_emitting += 1
        self._prefill_stored_tokens += new_tokens

    def _take_out(self, batch: Batch, request: Request) -> None:
        """Take what a request was given by `_prefill` out of the batch again."""
        (chunk,) = (one for one in batch.prefills if one.request is request)
        batch.prefills.remove(chunk)
        batch.num_tokens -= chunk.new_tokens
        if chunk.cached_tokens + chunk.new_tokens == request.num_tokens:
            batch.num_emitting -= 1
        self._prefill_stored_tokens -= chunk.new_tokens

    def _add_decodes(self, batch: Batch) -> Batch:
        """Let every decoding sequence take part, and close the batch."""
        decodes = self.pool.decodes
        count = decodes.num_seqs
        batch.num_decodes = count
        batch.context_tokens = decodes.context_tokens
        if decodes.tracks_longest:
            batch.longest_tokens = decodes.longest_tokens
        batch.num_tokens += count
        batch.num_emitting += count
        batch.num_seqs = count + len(batch.prefills)
        return batch

    # -- preemption -------------------------------------------------------------------------

    def _victim(self) -> Request:
        """Who gives way next: who is last in the queue's order, else whoever was admitted last."""
        running = self.pool.running
        return next(reversed(running)) if self._rank is None else max(running, key=self._rank)

    def _preempt_by_recompute(
        self, request: Request, batch: Batch, now_s: float, *, scheduled: int = 0
    ) -> None:
        """Drop the sequence's cache and send it back to the head of the queue.

        Its full blocks keep their hashes, so on its return it finds what has not been reused.
        `scheduled`: tokens that it was given by this very decision.
        """
        decoding = request.joined_step >= 0
        known = self._known_tokens(request, scheduled)
        self.answers.drop(request)
        self.pool.preempt(request, now_s)
        if request in self._leaving:
            batch_before = self._leave(request)
            if self.pool.hands_over:  # its token is worth nothing without its cache
                batch_before.ended = _without(request, batch_before.ended)
                self.pool.take_back(request)
        elif not decoding:
            self.prefilling.pop(request, None)
            self._prefill_stored_tokens -= request.num_computed_tokens
        if self.config.enable_prefix_caching:
            self.allocator.cache_all(request, known)
        self.allocator.free(request.block_table, known)
        request.num_computed_tokens = 0
        self.pool.waiting.appendleft(request)
        batch.preempted += 1

    def publish_answers(self, scheduled: int = 0) -> None:
        """Let the blocks that decodes have filled be found, where it is known what they hold.

        To be called before anybody looks and before prompts fill blocks alike: vLLM publishes each
        as it fills. `scheduled`: tokens that the latest decision has given each decode.
        """
        size = self.allocator.block_size
        for request, published in self.answers:
            given = scheduled if request.joined_step >= 0 else 0
            known = self._known_tokens(request, given)
            if known // size > published // size and request.block_table:  # not swapped out
                self.allocator.cache_prompt(request, published, known)
                self.answers.publish(request, known)

    def _known_tokens(self, request: Request, scheduled: int) -> int:
        """Tokens whose blocks can be found again: those that the schedule has written and knows.

        vLLM publishes a block as the step that fills it is scheduled, though the request that was
        given this step gives way in the same decision; and what a step in flight writes as soon as
        the token that it reads is known.
        """
        decodes = self.pool.decodes_of(request)
        decoding = request.joined_step >= 0
        computed = decodes.stored_of(request) if decoding else request.num_computed_tokens
        prefilling = not decoding and request not in self._leaving
        if prefilling or not self._in_flight(request):
            return computed + scheduled
        if decoding:
            decoded = decodes.step > request.joined_step
        else:  # its last token may be that of a prompt, or of all that it has computed again
            decoded = all(one.request is not request for one in self._leaving[request].prefills)
        return computed - 1 if decoded and not scheduled else computed

    def _in_flight(self, request: Request) -> bool:
        """Whether its latest token is still being computed."""
        if request in self._leaving or request in self._chunks:
            return True
        last = self.pool.decodes_of(request).last_token_of(request)
        return last is not None and last.at_s != last.at_s  # NaN

    # -- completion -------------------------------------------------------------------------

    def advance(self, batch: Batch, iterations: int = 1) -> None:
        pool = self.pool
        ended: list[Request] = []
        if batch.num_decodes:
            batch.waited = pool.decodes.emissions
            ended = pool.decodes.advance(iterations, batch.emission)
        for chunk in batch.prefills:
            request = chunk.request
            request.num_computed_tokens += chunk.new_tokens
            if request.num_computed_tokens < request.num_tokens:
                self.prefilling[request] = None
                continue
            self.prefilling.pop(request, None)
            self._prefill_stored_tokens -= request.num_computed_tokens
            ended += self._end_prefill(request, batch)
        if self._is_pipeline:
            batch.waiting = pool.set_aside()
            self._chunks.update((chunk.request, batch) for chunk in batch.prefills)
        if not ended:
            return
        if len(ended) > 1:  # blocks become reusable in order of admission
            ended.sort(key=_admission)
        batch.ended = ended
        for request in ended:
            self._leaving[request] = batch
            self._leaving_tokens += request.num_computed_tokens

    def collect(self, batch: Batch, now_s: float) -> list[Request]:
        if batch.waiting is not None:
            self.pool.rejoin(batch.waiting)
            for chunk in batch.prefills:
                if self._chunks.get(chunk.request) is batch:
                    del self._chunks[chunk.request]
        if not batch.ended:
            return []
        for request in batch.ended:
            if self._leaving.pop(request, None) is not None:  # else preempted meanwhile
                self._leaving_tokens -= request.num_computed_tokens
        return self._finish(batch.ended, now_s)

    def _leave(self, request: Request) -> Batch:
        """A sequence gives back what it has, its last token in flight; returns that batch."""
        self._leaving_tokens -= request.num_computed_tokens
        return self._leaving.pop(request)

    def complete(self, batch: Batch, now_s: float, iterations: int = 1) -> list[Request]:
        """`advance` and `collect` at once."""
        self.advance(batch, iterations)
        batch.emission.at_s = batch.emission.seen_s = now_s
        return self.collect(batch, now_s)

    def _end_prefill(self, request: Request, batch: Batch) -> Sequence[Request]:
        """The sequence catches up and emits a token; returns it where that is its last."""
        self.pool.emit_first(request, batch)
        if request.block_hashes and self.config.enable_prefix_caching:
            self.answers.add(request)
        decodes = self.pool.decodes
        if request.num_generated_tokens == request.output_tokens:
            if decodes.overruns and request.max_tokens > request.output_tokens:
                decodes.add_overrunning(request)
            return (request,)
        decodes.add(request)
        return ()

    def _finish(self, ended: Sequence[Request], now_s: float) -> list[Request]:
        """Sequences have emitted their last token; returns the requests that are answered."""
        answered = []
        for request in ended:
            self._leave_cache(request)
            whole = self.pool.finish(request, now_s)
            if whole is not None:
                answered.append(whole)
        return answered

    def _leave_cache(self, request: Request) -> None:
        """Give an ended sequence's blocks back; what a later turn repeats can be found again."""
        if self.answers.drop(request):
            self.allocator.cache_prompt(request, request.prompt_tokens, request.num_computed_tokens)
        self.allocator.free(self.pool.detach(request), request.num_computed_tokens)

    def decoding(self) -> Collection[Request]:
        return self.pool.decodes.members()

    def abort(self, request: Request, now_s: float) -> None:
        for sequence in self.pool.sequences_of(request):
            self._withdraw_one(sequence)
        self.pool.abort(request, now_s)

    def _withdraw_one(self, request: Request) -> None:
        """Take a sequence out of whatever it is in."""
        pool = self.pool
        if request in pool.running:
            pool.stop(request)
            self.answers.drop(request)
            if request in self._leaving:
                before = self._leave(request)
                before.ended = _without(request, before.ended)
            elif request.joined_step >= 0:
                pool.decodes_of(request).remove(request)
            else:
                self.prefilling.pop(request, None)
                if request in self._held_back:
                    self._held_back.remove(request)
                self._prefill_stored_tokens -= request.num_computed_tokens
            self.allocator.free(request.block_table, request.num_computed_tokens)
        elif request in pool.waiting:
            pool.waiting.remove(request)

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        count, decodes, rows = batch.num_decodes, self.pool.decodes, batch.num_emitting
        stored = batch.context_tokens if count else decodes.stored_tokens
        stored += self.pool.held_tokens + self._leaving_tokens
        if self.pool.in_flight:
            stored += sum(waiting.stored_tokens for waiting in self.pool.in_flight)
        if decodes.overrunning and count:  # unheard by clients: they have their answers by now
            unheard = len(decodes.overrunning)
            stored -= sum(map(decodes.stored_of, decodes.overrunning)) + unheard
            count, rows = count - unheard, rows - unheard
        reserved = 0
        if self.reserves:
            reserved = decodes.unwritten_tokens - count
            reserved += sum(waiting.unwritten_tokens for waiting in self.pool.in_flight)
            reserved += sum(chunk.request.output_tokens - 1 for chunk in batch.prefills)
        if self.pool.hands_over:  # their tokens are computed again where they go on
            rows = 0
        return rows, self._prefill_stored_tokens + stored, count, reserved


def _on_device(block: int) -> bool:
    return block >= 0


def _without(request: Request, ended: Sequence[Request]) -> list[Request]:
    return [one for one in ended if one is not request]


def _admission(sequence: Request) -> int:
    return sequence.admission if sequence.group is None else sequence.group.request.admission
