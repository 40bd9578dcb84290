"""The request pool: waiting, running, swapped and finished; the only owner of a request's state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

from sim.batch import Batch
from sim.decode_set import DecodeSet
from sim.queues import QueueRules, WaitingQueue
from sim.records import RequestLog
from sim.request import FanOut, Request


class RequestPool:
    """All requests that have reached one engine.

    ``running`` keeps the order of admission (a dict used as an ordered set): the next victim of a
    preemption is its last key. ``decodes`` are those of ``running`` that are past their prefill.
    """

    held_tokens = 0  # in the cache for requests that have left; see `detach`
    fans_out = False  # whether the samples of a request are requests of their own
    hands_over = False  # whether requests leave for another engine, their cache with them

    def __init__(self, block_size: int, *, track_longest: bool = False) -> None:
        self.waiting: WaitingQueue = deque()
        self.rules: QueueRules | None = None
        self.gives_up_s = inf  # nobody gives up before
        self._impatient: deque[Request] = deque()  # not yet seen to have begun, as they came
        self.running: dict[Request, None] = {}
        self.swapped: deque[Request] = deque()
        self.decodes = DecodeSet(block_size, track_longest=track_longest)
        self._block_size = block_size
        self.in_flight: list[DecodeSet] = []  # who decode, each waiting for its own batch
        self.log = RequestLog()
        self.num_finished = 0
        self.num_rejected = 0
        self._admissions = 0
        self._fanned: dict[Request, FanOut] = {}
        self._further = 0  # running samples of requests that have one running already

    def decodes_of(self, request: Request) -> DecodeSet:
        """The set in which a decoding request is."""
        return next((each for each in self.in_flight if request in each), self.decodes)

    def set_aside(self) -> DecodeSet:
        """Those who decode wait for their tokens; whoever joins decodes without them."""
        waiting, self.decodes = self.decodes, self.decodes.fresh()
        self.in_flight.append(waiting)
        return waiting

    def rejoin(self, waiting: DecodeSet) -> None:
        """Those who were set aside have their tokens."""
        self.in_flight.remove(waiting)
        if not self.decodes.num_seqs:
            self.decodes = waiting
            return
        for request in waiting.members():
            waiting.remove(request)
            self.decodes.add(request)

    @property
    def num_running(self) -> int:
        """Requests that run, however many of their samples do."""
        return len(self.running) - self._further

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.swapped)

    def tables(self) -> Iterator[list[int]]:
        """All block tables in use: one a running request, or one for each of its samples."""
        for request in self.running:
            if request.group is None or not request.group.samples:
                yield request.block_table
            else:
                for sample in request.group.samples:
                    yield sample.block_table

    def tokens(self) -> list[tuple[Request, int]]:
        """Sequences that run, and how many tokens each has, those in flight included."""
        found = []
        several, decodes = bool(self.in_flight), self.decodes
        for request in self.running:
            group = request.group
            for one in group.samples if group is not None and group.samples else (request,):
                count = one.num_generated_tokens
                if one.joined_step >= 0:
                    own = self.decodes_of(one) if several else decodes
                    count += own.step - one.joined_step
                    if count > one.output_tokens:  # it overruns its end
                        count = one.output_tokens
                found.append((one, count))
        return found

    def holds(self, request: Request) -> bool:
        """Whether the request is here and has not ended."""
        return (
            request in self.running
            or request in self._fanned
            or request in self.waiting
            or request in self.swapped
        )

    def queue_by(self, rules: QueueRules) -> None:
        """From now on wait in that order and within those limits; nobody waits yet."""
        self.waiting = rules.queue()
        self.rules = rules

    def enqueue(self, request: Request) -> None:
        """A servable request arrives; it is refused where the queue is full."""
        rules = self.rules
        if rules is not None and rules.limits and not request.was_scheduled:
            if (
                rules.max_waiting is not None and len(self.waiting) >= rules.max_waiting
            ) or self.overflows(request):
                self.refuse(request)
                return
            if rules.max_wait_s < inf:
                self._impatient.append(request)
                self.gives_up_s = min(self.gives_up_s, request.arrival_s + rules.max_wait_s)
        if request.group is None:
            self.waiting.append(request)
        else:
            for sequence in self.sequences_of(request):
                self.waiting.append(sequence)

    def overflows(self, request: Request, coming: int = 0) -> bool:
        """Whether there would be too many unfinished with it, `coming` on their way here."""
        rules = self.rules
        if rules is None or rules.max_unfinished is None or request.was_scheduled:
            return False
        unfinished = self.num_unfinished + coming + self.num_sequences(request)
        return unfinished > rules.max_unfinished

    def num_sequences(self, request: Request) -> int:
        """How many `sequences_of` a request there are."""
        if not self._splits(request):
            return 1
        assert request.group is not None
        return len(request.group.output_tokens)

    def _splits(self, request: Request) -> bool:
        """Whether its samples are served here, each by itself; their prompt may be elsewhere."""
        return request.group is not None and self.fans_out and not self.hands_over

    def sequences_of(self, request: Request) -> list[Request]:
        """What is served of a request: itself, or its samples where each is a request."""
        if not self._splits(request):
            return [request]
        if request not in self._fanned:
            self._fanned[request] = FanOut(request, self._block_size)
        return self._fanned[request].sequences

    def expire(self, now_s: float) -> list[Request]:
        """Let those go who have waited for too long without having begun; returns them."""
        assert self.rules is not None
        gone: list[Request] = []
        impatient, limit_s = self._impatient, self.rules.max_wait_s
        while impatient and impatient[0].arrival_s + limit_s <= now_s:
            request = impatient.popleft()
            if not request.was_scheduled:
                for sequence in self.sequences_of(request):
                    self.waiting.remove(sequence)
                self._fanned.pop(request, None)
                self.num_rejected += 1
                self.log.give_up(request, now_s)
                gone.append(request)
        self.gives_up_s = impatient[0].arrival_s + limit_s if impatient else inf
        return gone

    def start(self, request: Request, now_s: float) -> None:
        """Move a request, already taken out of its queue, to the end of ``running``."""
        self.running[request] = None
        self._admissions += 1
        request.admission = self._admissions
        if request.parent is not None:
            family = self._fanned[request.parent]
            family.num_running += 1
            self._further += family.num_running > 1
            if not request.parent.was_scheduled:
                request.parent.scheduled_s = now_s
        if not request.was_scheduled:
            request.scheduled_s = now_s
        elif request.preemptions:
            self.log.resume(request, now_s)

    def emit_first(self, request: Request, batch: Batch) -> None:
        """A prefill ends with `batch`, and its token goes out with it."""
        request.num_generated_tokens += 1
        if request.first_token is None:
            request.first_token = batch.emission
        elif request.last_token is not None:
            batch.resumed = {**(batch.resumed or {}), request: request.last_token}
        request.last_token = batch.emission

    def take_back(self, request: Request) -> None:
        """Its first token, still in flight, will not be used."""
        request.num_generated_tokens = 0

    def finish(self, request: Request, now_s: float) -> Request | None:
        """The sequence leaves the engine; returns the request that is answered with it, if one."""
        if request not in self.running:  # preempted while its last token was computed
            self.waiting.remove(request)
            self.log.close(request)
        elif request.parent is None:
            del self.running[request]
        else:
            self.stop(request)
        if request.parent is not None:
            family = self._fanned[request.parent]
            family.num_unfinished -= 1
            if family.num_unfinished:
                return None
            del self._fanned[request.parent]
            request = family.end(now_s)
        self.answer(request, now_s)
        return request

    def answer(self, request: Request, now_s: float) -> None:
        """The request has all that it asked for."""
        request.finished_s = now_s
        self.num_finished += 1
        self.log.finish(request)

    def stop(self, request: Request) -> None:
        """It runs no longer."""
        del self.running[request]
        if request.parent is not None:
            family = self._fanned[request.parent]
            self._further -= family.num_running > 1
            family.num_running -= 1

    def held_tables(self) -> Iterator[tuple[Request, list[int]]]:
        """Requests that have left the engine and not their blocks; see `detach`."""
        return iter(())

    def detach(self, request: Request) -> list[int]:
        """The blocks that come free as a request leaves the engine."""
        return request.block_table

    def reject(self, request: Request) -> None:
        """The request can never be served here."""
        self.num_rejected += 1
        self.log.reject(request)

    def refuse(self, request: Request) -> None:
        """The queue is full: the client hears so at once."""
        self.num_rejected += 1
        self.log.refuse(request)

    def strand(self, request: Request) -> None:
        """No replica is left to serve it."""
        self.num_rejected += 1
        self.log.strand(request)

    def evict(self) -> list[Request]:
        """Take every unfinished request out, in order of arrival, set back to its beginning."""
        lost = sorted([*self.running, *self.swapped, *self.waiting], key=lambda r: r.index)
        for decodes in (self.decodes, *self.in_flight):
            decodes.lose()
        self.decodes = self.decodes.fresh()
        self.in_flight.clear()
        for family in self._fanned.values():
            whole = family.abandon()
            whole.num_computed_tokens = whole.num_generated_tokens = 0
        self._fanned.clear()
        self._further = 0
        self.running.clear()
        self.swapped.clear()
        self.waiting.clear()
        self._impatient.clear()
        self.gives_up_s = inf
        for request in lost:
            self.log.close(request)
            request.num_computed_tokens = request.num_generated_tokens = 0
        return lost

    def abort(self, request: Request, now_s: float) -> None:
        """The request, already taken out of its queue or of ``running``, ends without an answer."""
        if request in self._fanned:
            self._fanned.pop(request).abandon()
        self.num_rejected += 1
        if request in self._impatient:
            self._impatient.remove(request)
        self.log.abort(request, now_s)

    def cancel(self, request: Request, now_s: float) -> None:
        """The client of a request that never was in a queue here is gone."""
        self.log.cancelled.add(request.index)
        self.abort(request, now_s)

    def preempt(self, request: Request, now_s: float) -> None:
        """Take a request out of ``running``; the caller decides what becomes of its blocks."""
        if request.joined_step >= 0:
            self.decodes_of(request).remove(request)
        self.stop(request)
        request.preemptions += 1
        self.log.preempt(request, now_s)
