"""A streamed answer: its events are written to the connection as its tokens are heard.

Nobody is woken for a token, and nothing of it is kept: where a client does not read, nothing is
written, and what has come meanwhile is one event as soon as there is room for it again.
"""

from __future__ import annotations

import asyncio

from starlette.types import Message, Send

from orcast.serve.answers import Answer, Choice, Format

LINE = "orcast.line"  # among a request's extensions: the `Line` that it came by
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Line:
    """A connection, as streams see it."""

    __slots__ = ("came_s", "is_full", "stream", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.stream: Stream | None = None  # that it carries at present
        self.came_s = 0.0  # when the latest request was all there, on the monotonic clock
        self.is_full = False  # or broken

    def fill(self) -> None:
        """No more for now."""
        self.is_full = True

    def drain(self) -> None:
        """There is room again."""
        self.is_full = False
        if self.stream is not None:
            self.stream.catch_up()


class Stream:
    """Of one answer; begins to hear at once, and to write once it runs."""

    __slots__ = ("_answer", "_breaks_off", "_format", "_line")

    def __init__(
        self, answer: Answer, made: Format, line: Line, *, breaks_off: int | None = None
    ) -> None:
        """`breaks_off`: after how many tokens it does, if it does."""
        self._answer, self._format, self._line = answer, made, line
        self._breaks_off = breaks_off
        answer.stream = self

    def hear(self, choice: Choice, due: bytes) -> None:
        """See `Hearer`."""
        choice.due = choice.due or due
        line = self._line
        if line.stream is not self or line.is_full:
            return
        data = self._format.unsent(choice)
        line.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if self._breaks_off is not None and self._sent > self._breaks_off:
            line.stream = None
            line.transport.close()

    def catch_up(self) -> None:
        """Write what has come while nothing could be written."""
        for choice in self._answer.choices:
            if choice.sent < choice.count:
                self.hear(choice, b"")

    @property
    def _sent(self) -> int:
        return sum(choice.sent for choice in self._answer.choices)

    async def run(self, send: Send) -> None:
        """From the response's head to its end, unless the connection breaks off before."""
        answer, made, line = self._answer, self._format, self._line
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        line.stream = self
        try:
            self.catch_up()
            await answer.end()
        finally:
            line.stream = None
        if answer.dropped:
            return
        rest = b"".join([made.unsent(choice) for choice in answer.choices])
        await send(_part(rest + made.last(answer)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}
