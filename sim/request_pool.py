"""The request pool: waiting, running, swapped and finished; the only owner of a request's state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sim.decode_set import DecodeSet
from sim.records import RequestLog
from sim.request import Request


class RequestPool:
    """All requests that have reached one engine.

    ``running`` keeps the order of admission (a dict used as an ordered set): the next victim of a
    preemption is its last key. ``decodes`` are those of ``running`` that are past their prefill.
    """

    def __init__(self, block_size: int, *, track_longest: bool = False) -> None:
        self.waiting: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        self.swapped: deque[Request] = deque()
        self.decodes = DecodeSet(block_size, track_longest=track_longest)
        self.log = RequestLog()
        self.num_finished = 0
        self.num_rejected = 0

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

    def start(self, request: Request, now_s: float) -> None:
        """Move a request, already taken out of its queue, to the end of ``running``."""
        self.running[request] = None
        if request.scheduled_s != request.scheduled_s:  # NaN: never scheduled before
            request.scheduled_s = now_s
        elif request.preemptions:
            self.log.resume(request, now_s)

    def emit_first(self, request: Request, now_s: float) -> float | None:
        """A prefill ended: its token goes out. Returns the gap to the token before, if any."""
        request.num_generated_tokens += 1
        gap_s = None
        if request.first_token_s != request.first_token_s:  # NaN: its first ever
            request.first_token_s = now_s
        else:
            gap_s = now_s - request.last_token_s
        request.last_token_s = now_s
        return gap_s

    def finish(self, request: Request, now_s: float) -> None:
        """The request leaves the engine with all its tokens."""
        del self.running[request]
        request.finished_s = now_s
        self.num_finished += 1
        self.log.finish(request)

    def reject(self, request: Request) -> None:
        """The request can never be served here."""
        self.num_rejected += 1
        self.log.reject(request)

    def evict(self) -> list[Request]:
        """Take every unfinished request out, in order of arrival, set back to its beginning."""
        lost = sorted([*self.running, *self.swapped, *self.waiting], key=lambda r: r.index)
        for request in list(self.running):
            if request.joined_step >= 0:
                self.decodes.remove(request)
        self.running.clear()
        self.swapped.clear()
        self.waiting.clear()
        for request in lost:
            self.log.close(request)
            request.num_computed_tokens = request.num_generated_tokens = 0
        return lost

    def abort(self, request: Request, now_s: float) -> None:
        """The request, already taken out of its queue or of ``running``, ends without an answer."""
        self.num_rejected += 1
        self.log.abort(request, now_s)

    def preempt(self, request: Request, now_s: float) -> None:
        """Take a request out of ``running``; the caller decides what becomes of its blocks."""
        if request.joined_step >= 0:
            self.decodes.remove(request)
        del self.running[request]
        request.preemptions += 1
        self.log.preempt(request, now_s)
