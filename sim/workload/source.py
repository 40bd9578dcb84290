"""Turns a workload's columns into requests, one by one, as their time comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from math import inf

from sim.request import Request, SampleGroup
from sim.workload.workload import Workload


class RequestSource:
    """Requests of a workload in order of arrival; `next_arrival_s` is always known.

    With ``max_concurrency`` set (a closed loop, as vLLM's ``--max-concurrency``) a request is held
    back by its client until fewer than that many are unfinished, and arrives only then; clients may
    think for a while after each answer. A turn of a conversation arrives a while after the answer
    that it follows.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        block_size: int,
        prefix_caching: bool,
        first: int = 0,
        stride: int = 1,
    ) -> None:
        """Every `stride`-th request of `workload`, beginning with number `first`."""
        mine = slice(first, None, stride)
        self.workload = workload
        self.samples = workload.samples
        self.total = float(len(workload))
        self._first, self._stride = first, stride
        self._arrival_s = workload.arrival_s[mine].tolist()
        self._prompt_tokens = workload.prompt_tokens[mine].tolist()
        self._output_tokens = workload.output_tokens[mine].tolist()
        self._max_tokens = workload.max_tokens[mine].tolist()
        self._labels = workload.labels
        self._leaves_s = None if workload.leaves_s is None else workload.leaves_s.tolist()
        self._sample_offsets = [] if self.samples is None else self.samples.offsets.tolist()
        self._content = workload.content if prefix_caching else None
        self._block_size = block_size
        self._next = 0
        self._free_clients = workload.max_concurrency or inf
        self._freed_s: list[float] = []  # heap: when clients will have their answers
        waits_s = workload.client_think_s
        self._client_think_s = None if waits_s is None else waits_s[mine].tolist()
        self.awaits_answers = workload.awaits_answers
        self._think_s: list[float] = []
        self._followers: dict[int, list[int]] = {}  # of each request that has not ended
        self._answered: list[tuple[float, int]] = []  # heap of followers that may come, and when
        if workload.follows is not None:
            assert stride == 1, "who follows whose answer is known to one source"
            self._think_s = workload.think_s.tolist()
            for number, followed in enumerate(workload.follows.tolist()):
                if followed >= 0:
                    self._followers.setdefault(followed, []).append(number)
        self._waits = frozenset(one for each in self._followers.values() for one in each)
        self._to_follow = set(self._waits)  # who has not come yet
        self.next_arrival_s = 0.0
        self._look_ahead(0.0)

    def take(self) -> Request:
        """The request that arrives at `next_arrival_s`."""
        arrival_s = self.next_arrival_s
        if self._answered and self._answered[0][0] <= self._next_alone_s():
            index = heappop(self._answered)[1]
            self._to_follow.remove(index)
        else:
            index = self._next
            self._next += 1
        request = self._request(index, arrival_s)
        while self._freed_s and self._freed_s[0] <= arrival_s:
            heappop(self._freed_s)
            self._free_clients += 1
        self._free_clients -= 1
        self._look_ahead(arrival_s)
        return request

    def arrived(self, now_s: float) -> Iterator[Request]:
        """Who has come by now and was not taken, in order."""
        while self.next_arrival_s <= now_s:
            yield self.take()

    def release(self, ended: Sequence[Request], now_s: float) -> None:
        """These ended at `now_s`: as many clients may send their next request, or their answer.

        Each once it has the answer, which may be a little later.
        """
        for request in ended:
            has_it_s = request.answered_s
            if not has_it_s > now_s:
                has_it_s = now_s
            free_s = has_it_s
            if self._client_think_s is not None:
                free_s += self._client_think_s[(request.index - self._first) // self._stride]
            if free_s > now_s:
                heappush(self._freed_s, free_s)
            else:
                self._free_clients += 1
            for follower in self._followers.pop(request.index, ()):
                at_s = max(self._arrival_s[follower], has_it_s + self._think_s[follower])
                heappush(self._answered, (at_s, follower))
        if self.next_arrival_s == inf or self._answered or self._freed_s:
            self._look_ahead(now_s)

    def rest(self) -> list[Request]:
        """Take everybody who has not come, and will not: nobody is left to serve them."""
        alone = set(range(self._next, len(self._arrival_s))) - self._waits
        left = [
            self._request(index, self._arrival_s[index])
            for index in sorted(alone | self._to_follow)
        ]
        self._next, self.next_arrival_s = len(self._arrival_s), inf
        self._to_follow.clear()
        self._answered.clear()
        return left

    def _next_alone_s(self) -> float:
        """When the next of those comes who follow nobody."""
        if self._waits:
            while self._next in self._waits:
                self._next += 1
        return self._arrival_s[self._next] if self._next < len(self._arrival_s) else inf

    def _look_ahead(self, now_s: float) -> None:
        if self._free_clients <= 0:
            if not self._freed_s:
                self.next_arrival_s = inf
                return
            now_s = max(now_s, self._freed_s[0])
        at_s = self._next_alone_s()
        if self._answered:
            at_s = min(at_s, self._answered[0][0])
        self.next_arrival_s = at_s if at_s > now_s else now_s

    def _request(self, index: int, arrival_s: float) -> Request:
        prompt_tokens = self._prompt_tokens[index]
        number = self._first + index * self._stride
        request = Request(
            number, arrival_s, prompt_tokens, self._output_tokens[index], self._max_tokens[index]
        )
        if self._leaves_s is not None:
            request.leaves_s = self._leaves_s[number]
        if self._labels is not None:
            request.label = self._labels[number]
        if self._content is not None:
            # Where the answer's content is known, too, a later turn of the conversation repeats it.
            request.block_hashes = self._content.block_hashes(
                number, self._block_size, prompt_tokens + request.output_tokens
            )
        if self.samples is not None:
            first, stop = self._sample_offsets[number : number + 2]
            if stop - first > 1:
                lengths = self.samples.output_tokens[first:stop].tolist()
                request.group = SampleGroup(request, lengths, self.samples.beam)
        return request
