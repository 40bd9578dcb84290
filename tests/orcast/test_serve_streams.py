"""Streams without a server: what is written when, to clients that read and to those that do not."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests import needs

pytest.importorskip("starlette", reason=needs.SERVE)
pytest.importorskip("prometheus_client", reason=needs.SERVE)
pytest.importorskip("uvicorn", reason=needs.SERVE)
pytest.importorskip("httptools", reason=needs.SERVE)

from orcast.serve.answers import Answer, Choice, Format, Prompt
from orcast.serve.composing import Wanted, composed
from orcast.serve.stream import Line, Stream
from orcast.serve.texts import Characters, Filler
from reports.page.own_names import LOOPBACK

TOKENS = 40


class Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


class Client:
    """A stream over a transport that does nothing, and what its answer is given."""

    def __init__(self, *, choices: int = 1, kind: str = "text", **more: Any) -> None:
        self.answer, self.transport, self.sent = Answer(), Transport(), list[dict[str, Any]]()
        self.choices = [Choice(one, 7 * one, TOKENS, "length", self.answer)
                        for one in range(choices)]  # fmt: skip
        self.answer.prompts.append(Prompt(1, self.choices))
        made = Format(kind, name="x", model="m", created=1, filler=Filler(Characters()), **more)
        self.line = Line(self.transport)  # type: ignore[arg-type]
        self.stream = Stream(self.answer, made, self.line)
        self.running: asyncio.Task[None] | None = None

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self) -> None:
        """From now on it writes."""
        self.running = asyncio.ensure_future(self.stream.run(self.send))
        await asyncio.sleep(0)

    def hear(self, count: int, due: bytes = b"") -> None:
        """Every choice has so many tokens."""
        for choice in self.choices:
            choice.count = count
            self.stream.hear(choice, due)

    async def end(self) -> None:
        self.answer.prompts[0].over = True
        self.answer.wake()
        assert self.running is not None
        await self.running

    def events(self) -> list[dict[str, Any]]:
        """All that were written or sent, of chunks that are as long as they say."""
        found = []
        for part in self.transport.written:
            size, _, rest = part.partition(b"\r\n")
            assert rest.endswith(b"\r\n") and len(rest) == int(size, 16) + 2
            found.append(rest[:-2])
        found += [message["body"] for message in self.sent if "body" in message]
        lines = b"".join(found).decode().split("\n\n")
        return [json.loads(line.rpartition("data: ")[2]) for line in lines
                if line and not line.endswith("[DONE]")]  # fmt: skip


def text(events: list[dict[str, Any]], number: int = 0) -> str:
    return "".join(one["choices"][0]["text"] for one in events
                   if one["choices"] and one["choices"][0]["index"] == number)  # fmt: skip


def test_every_token_is_one_write_and_nobody_is_woken_for_it() -> None:
    async def tried() -> None:
        client = Client(choices=2)
        await client.run()
        for count in range(1, TOKENS + 1):
            client.hear(count)  # without giving any coroutine a turn
            assert len(client.transport.written) == 2 * count
        await client.end()
        events = client.events()
        for choice in client.choices:
            words = Filler(Characters()).text(choice.place, 0, TOKENS)
            assert text(events, choice.number) == words
        reasons = [one["choices"][0]["finish_reason"] for one in events]
        assert reasons == [None] * (2 * TOKENS - 2) + ["length"] * 2

    asyncio.run(tried())


def test_a_client_that_does_not_read_gets_what_it_missed_as_one_event() -> None:
    async def tried() -> None:
        client = Client()
        await client.run()
        client.hear(1, b": due 1.0\n")
        client.line.fill()
        for count in range(2, 30):
            client.hear(count, b": due %d.0\n" % count)
        assert len(client.transport.written) == 1, "nothing is kept of what cannot be written"
        client.line.drain()
        assert len(client.transport.written) == 2
        assert client.transport.written[1].count(b": due ") == 1
        assert b": due 2.0\n" in client.transport.written[1], "when the first of them was due"
        client.line.fill()
        client.hear(TOKENS)
        await client.end()
        assert text(client.events()) == Filler(Characters()).text(0, 0, TOKENS)

    asyncio.run(tried())


def test_tokens_that_come_before_the_response_begins_are_its_first_event() -> None:
    async def tried() -> None:
        client = Client(kind="chat")
        client.hear(3, b": due 1.5\n")
        assert not client.transport.written
        await client.run()
        assert client.sent[0]["status"] == 200 and len(client.transport.written) == 1
        events = client.events()
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        words = Filler(Characters()).text(0, 0, 3)
        assert events[1]["choices"][0]["delta"] == {"content": words}
        assert re.findall(rb": due (.*)\n", client.transport.written[0]) == [b"1.5"]
        await client.end()

    asyncio.run(tried())


def test_usage_is_told_with_every_event_where_it_is_asked_for() -> None:
    async def tried() -> None:
        client = Client(usage=True, continuous=True)
        await client.run()
        for count in (1, 2, TOKENS):
            client.hear(count)
        await client.end()
        usage = [one["usage"]["completion_tokens"] for one in client.events()]
        assert usage == [1, 2, TOKENS, TOKENS]

    asyncio.run(tried())


def test_a_request_counts_from_when_it_came_and_not_from_when_it_was_read(tmp_path: Path) -> None:
    """Parsing takes this machine's time, which is not the deployment's."""
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "{name: x, model: llama-3.1-8b, hardware: {gpu: h200-sxm}, latency: {source: roofline}, "
        "workload: {arrivals: {process: all_at_once}, num_requests: 1, lengths: {prompt: "
        "{distribution: fixed, tokens: 8}, output: {distribution: fixed, tokens: 8}}}}"
    )

    async def tried() -> None:
        engine = composed(Wanted(str(scenario)), LOOPBACK).engine
        now_s, arrivals_s = time.monotonic(), []
        for ago_s in (0.5, 0.3, 0.4):  # the third was read before, by another connection
            answer = Answer()
            answer.prompts.append(Prompt(8, [Choice(0, 0, 8, "length", answer)]))
            engine.submit(answer.prompts[0], max_tokens=8, block_hashes=(), label="",
                          came_s=now_s - ago_s)  # fmt: skip
            request = answer.prompts[0].request
            assert request is not None
            arrivals_s.append(request.sent_s)
        assert arrivals_s[:2] == pytest.approx([0.0, 0.2], abs=1e-5)
        assert arrivals_s[1] < arrivals_s[2] < arrivals_s[1] + 0.1, "as soon as may be"
        engine.close()

    asyncio.run(tried())
