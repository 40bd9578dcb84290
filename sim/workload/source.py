"""Turns a workload's columns into requests, one by one, as their time comes."""

from __future__ import annotations

from math import inf

from sim.request import Request, SampleGroup
from sim.workload.workload import Workload


class RequestSource:
    """Requests of a workload in order of arrival; `next_arrival_s` is always known.

    With ``max_concurrency`` set (a closed loop, as vLLM's ``--max-concurrency``) a request is held
    back by its client until fewer than that many are unfinished, and arrives only then.
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
        self._first, self._stride = first, stride
        self._arrival_s = workload.arrival_s[mine].tolist()
        self._prompt_tokens = workload.prompt_tokens[mine].tolist()
        self._output_tokens = workload.output_tokens[mine].tolist()
        self._max_tokens = workload.max_tokens[mine].tolist()
        self._labels = workload.labels
        self._samples = workload.samples
        self._sample_offsets = [] if self._samples is None else self._samples.offsets.tolist()
        self._content = workload.content if prefix_caching else None
        self._block_size = block_size
        self._next = 0
        self._free_clients = workload.max_concurrency or inf
        self.is_closed = workload.max_concurrency is not None
        self.next_arrival_s = 0.0
        self._look_ahead(0.0)

    @property
    def remaining(self) -> int:
        """Requests that have not arrived yet."""
        return len(self._arrival_s) - self._next

    def take(self) -> Request:
        """The request that arrives at `next_arrival_s`."""
        request = self._request(self._next, self.next_arrival_s)
        self._next += 1
        self._free_clients -= 1
        self._look_ahead(self.next_arrival_s)
        return request

    def release(self, count: int, now_s: float) -> None:
        """`count` requests ended at `now_s`: as many clients may send their next one."""
        self._free_clients += count
        if self.next_arrival_s == inf:
            self._look_ahead(now_s)

    def _look_ahead(self, now_s: float) -> None:
        if self._next < len(self._arrival_s) and self._free_clients > 0:
            self.next_arrival_s = max(self._arrival_s[self._next], now_s)
        else:
            self.next_arrival_s = inf

    def _request(self, index: int, arrival_s: float) -> Request:
        prompt_tokens = self._prompt_tokens[index]
        number = self._first + index * self._stride
        request = Request(
            number, arrival_s, prompt_tokens, self._output_tokens[index], self._max_tokens[index]
        )
        if self._labels is not None:
            request.label = self._labels[number]
        if self._content is not None:
            # Where the answer's content is known, too, a later turn of the conversation repeats it.
            request.block_hashes = self._content.block_hashes(
                number, self._block_size, prompt_tokens + request.output_tokens
            )
        if self._samples is not None:
            first, stop = self._sample_offsets[number : number + 2]
            if stop - first > 1:
                lengths = self._samples.output_tokens[first:stop].tolist()
                request.group = SampleGroup(request, lengths, self._samples.beam)
        return request
