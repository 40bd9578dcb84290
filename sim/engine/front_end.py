"""The front end of an engine: what lies between its clients and itself, both ways.

HTTP, tokenizing, and the hop to the engine's process hold a request up before the engine sees it;
the hop back, detokenizing and streaming hold up every token. Both are work of the same few
processes (vLLM's ``--api-server-count``), so both queue. They are two queues here, which do not
wait for each other: tokenizing runs in threads beside the loop that streams.

*In*: requests in order of arrival, each at the process that is free first, for a time of its own
and one for every token of its prompt.

*Out*: the tokens of an iteration are one portion, handled once those before it are through and
shared evenly by the processes; the clients see them when it is through. (vLLM's engine hands them
over together, and the loop detokenizes all before it streams any.) Iterations are handled one by
one however the clock advances, so a leap gives what stepping gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import islice
from math import inf
from typing import Protocol

import numpy as np

from sim.request import Request
from sim.workload.source import RequestSource


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Seconds of one process; ``latency_s`` is each way, and keeps nobody busy."""

    api_servers: int = 1
    per_request_s: float = 0.0
    per_prompt_token_s: float = 0.0
    per_output_token_s: float = 0.0
    latency_s: float = 0.0

    @property
    def is_nothing(self) -> bool:
        """Whether it takes no time at all."""
        return not (
            self.per_request_s + self.per_prompt_token_s + self.per_output_token_s + self.latency_s
        )

    def most_per_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Requests per second of so many tokens, in the mean, beyond which one direction queues."""
        received_s = self.per_request_s + self.per_prompt_token_s * prompt_tokens
        busy_s = max(received_s, self.per_output_token_s * output_tokens)
        return self.api_servers / busy_s if busy_s > 0 else inf


class ApiServers:
    """The processes of one engine's front end, and until when they are busy."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._request_s = front_end.per_request_s
        self._prompt_token_s = front_end.per_prompt_token_s
        self._token_s = front_end.per_output_token_s / front_end.api_servers
        self._latency_s = front_end.latency_s
        self._free_s = [0.0] * front_end.api_servers  # a heap: for the next request
        self._streamed_s = 0.0  # when all tokens so far are through

    def lose(self, now_s: float) -> None:
        """The engine fails: who was on the way to it is lost, its tokens are still streamed."""
        self._free_s = [now_s] * len(self._free_s)

    def receive(self, prompt_tokens: int, sent_s: float) -> float:
        """When the engine gets a request that is sent then; to be asked in order of sending."""
        free_s = self._free_s
        busy_s = self._request_s + self._prompt_token_s * prompt_tokens
        done_s = (free_s[0] if free_s[0] > sent_s else sent_s) + busy_s
        heapreplace(free_s, done_s)
        return done_s + self._latency_s

    def earliest_s(self, sent_s: float) -> float:
        """No request that is sent then, or later, reaches the engine before."""
        return (sent_s + self._request_s) + self._latency_s

    def stream(self, ends_s: Sequence[float], tokens: int) -> tuple[float, float]:
        """When clients see the first and the last of iterations that end then, each of `tokens`."""
        busy_s, latency_s, end_s = tokens * self._token_s, self._latency_s, ends_s[0]
        streamed_s = self._streamed_s
        streamed_s = first_s = (end_s if end_s > streamed_s else streamed_s) + busy_s
        if len(ends_s) > 1:
            for end_s in islice(ends_s, 1, None):
                streamed_s = (end_s if end_s > streamed_s else streamed_s) + busy_s
        self._streamed_s = streamed_s
        return first_s + latency_s, streamed_s + latency_s

    def seen_s(self, ends_s: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The same of every iteration there was, in order; [iterations] each.

        Each portion is through once all from some one on have been handled in a row: the one for
        which that is latest.
        """
        busy_s = np.cumsum(tokens * self._token_s)
        idle_s = np.maximum.accumulate(ends_s - np.append(0.0, busy_s[:-1]))
        seen_s: np.ndarray = busy_s + idle_s + self._latency_s
        return seen_s


class Arrivals(Protocol):
    """Where an engine's requests come from."""

    awaits_answers: bool
    next_arrival_s: float  # no request comes before

    def arrived(self, now_s: float) -> Iterator[Request]:
        """Who has come by now and was not taken, in order."""

    def release(self, ended: Sequence[Request], now_s: float) -> None:
        """These have ended: their clients go on once they have heard of it."""


class Reception:
    """A source's requests as an engine gets them, after its front end."""

    def __init__(self, source: RequestSource, servers: ApiServers) -> None:
        self._source = source
        self._servers = servers
        self._inside: list[tuple[float, int, Request]] = []  # a heap by when the engine gets them
        self._count = 0
        self.awaits_answers = source.awaits_answers
        self.next_arrival_s = 0.0
        self._look_ahead(0.0)

    def arrived(self, now_s: float) -> Iterator[Request]:
        """Those that the engine gets by now."""
        if self.awaits_answers:
            self._look_ahead(now_s)
        while self.next_arrival_s <= now_s:
            request = heappop(self._inside)[2]
            self._look_ahead(now_s)
            yield request

    def release(self, ended: Sequence[Request], now_s: float) -> None:
        """These have ended: their clients go on once they have heard of it."""
        self._source.release(ended, now_s)
        self._look_ahead(now_s)

    def _look_ahead(self, now_s: float) -> None:
        """Let clients send: those of now, and of later where no answer can bring another first."""
        source, inside, waits = self._source, self._inside, self.awaits_answers
        first_s = inside[0][0] if inside else inf
        while (sent_s := source.next_arrival_s) < first_s and (sent_s <= now_s or not waits):
            request = source.take()
            request.sent_s = sent_s
            request.arrival_s = at_s = self._servers.receive(request.prompt_tokens, sent_s)
            heappush(inside, (at_s, self._count, request))
            self._count += 1
            first_s = inside[0][0]
        if waits and sent_s < first_s:
            first_s = min(first_s, self._servers.earliest_s(sent_s))
        self.next_arrival_s = first_s
