"""How sequences move on through batches in flight, to their ends: the books of a schedule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

from sim.batch import Batch
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.answers import Answers
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.scheduler import Scheduler


class Progress(Scheduler):
    """What a policy that batches by iteration has given out: who computes, decodes, leaves.

    A batch is advanced over when it is launched and collected when it is through; between the two
    its tokens are in flight.
    """

    reserves = False  # whether admission sets all of a request's blocks aside

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        self.pool = pool
        self.allocator = allocator
        self.config = config
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

    # -- a batch in flight ------------------------------------------------------------------------

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

    # -- what is known of tokens in flight --------------------------------------------------------

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

    def _leave(self, request: Request) -> Batch:
        """A sequence gives back what it has, its last token in flight; returns that batch."""
        self._leaving_tokens -= request.num_computed_tokens
        return self._leaving.pop(request)

    # -- ends without an answer -------------------------------------------------------------------

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
                before.ended = without(request, before.ended)
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


def without(request: Request, ended: Sequence[Request]) -> list[Request]:
    return [one for one in ended if one is not request]


def _admission(sequence: Request) -> int:
    return sequence.admission if sequence.group is None else sequence.group.request.admission
