"""Requests that nobody knows before they come: those of clients that are really there."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf

import numpy as np

from sim.request import Request, SampleGroup
from sim.workload.content import PromptContent
from sim.workload.samples import Samples
from sim.workload.workload import Workload

# What tells a policy that requests may ask for several answers.
_SEVERAL = Samples(np.array([1]), np.array([1]))


class LiveSource:
    """Requests as they are pushed, in order of arrival.

    What has come can become a `Workload` afterwards, so that the very same requests can be
    simulated again; a source that does not keep them takes no memory for them.
    """

    awaits_answers = False

    def __init__(self, block_size: int, *, several: bool = False, keep: bool = False) -> None:
        """`several`: whether requests may ask for several answers; `keep`: for `workload`."""
        self.samples = _SEVERAL if several else None
        self.next_arrival_s = inf
        self.total = inf
        self.count = 0  # requests so far
        self.block_size = block_size
        self._coming: deque[Request] = deque()
        self._kept = _Kept() if keep else None

    def push(
        self,
        arrival_s: float,
        *,
        prompt_tokens: int,
        output_tokens: Sequence[int],
        max_tokens: int,
        block_hashes: Sequence[int] = (),
        label: str = "",
    ) -> Request:
        """A request arrives then, no earlier than any before it, for answers of these lengths.

        `block_hashes` are those of its full blocks, and of its first answer's behind them. They
        must not be negative.
        """
        longest = max(output_tokens)
        request = Request(
            self.count, arrival_s, prompt_tokens, longest, max(longest, max_tokens), block_hashes
        )
        request.label = label
        if len(output_tokens) > 1:
            assert self.samples is not None, "the policy serves one answer a request"
            request.group = SampleGroup(request, output_tokens)
        self.count += 1
        self._coming.append(request)
        self.next_arrival_s = self._coming[0].arrival_s
        if self._kept is not None:
            self._kept.add(request, output_tokens)
        return request

    def leaves(self, request: Request, now_s: float) -> None:
        """The request's client is gone."""
        if self._kept is not None:
            self._kept.leaves_s[request.index] = max(now_s, self._kept.arrival_s[request.index])

    def close(self) -> None:
        """No more will come."""
        self.total = float(self.count)

    def take(self) -> Request:
        """The request that arrives at `next_arrival_s`."""
        request = self._coming.popleft()
        self.next_arrival_s = self._coming[0].arrival_s if self._coming else inf
        return request

    def arrived(self, now_s: float) -> Iterator[Request]:
        """Who has come by now and was not taken, in order."""
        while self.next_arrival_s <= now_s:
            yield self.take()

    def release(self, ended: Sequence[Request], now_s: float) -> None:
        """Clients go on as they like."""

    def rest(self) -> list[Request]:
        """Everybody who was not taken."""
        left = list(self._coming)
        self._coming.clear()
        self.next_arrival_s = inf
        return left

    @property
    def workload(self) -> Workload:
        """All that came, as requests to be simulated. ValueError where there was none."""
        assert self._kept is not None, "a source that does not keep its requests"
        return self._kept.workload(self.block_size)


class _Kept:
    """The columns of a workload, as they grow."""

    def __init__(self) -> None:
        self.arrival_s = array("d")
        self.leaves_s = array("d")
        self.counts = array("q")  # samples
        self._prompt_tokens = array("q")
        self._max_tokens = array("q")
        self._samples = array("q")  # tokens of each
        self._ids = array("q")
        self._offsets = array("q", [0])
        self._labels: list[str] = []

    def add(self, request: Request, output_tokens: Sequence[int]) -> None:
        self.arrival_s.append(request.arrival_s)
        self.leaves_s.append(inf)
        self._prompt_tokens.append(request.prompt_tokens)
        self._max_tokens.append(request.max_tokens)
        self.counts.append(len(output_tokens))
        self._samples.extend(output_tokens)
        self._labels.append(request.label)
        self._ids.extend(request.block_hashes)
        self._offsets.append(len(self._ids))

    def workload(self, block_size: int) -> Workload:
        offsets = np.array(self._offsets)
        samples = Samples(np.array(self.counts), np.array(self._samples))
        leaves_s = np.array(self.leaves_s)
        content = None
        if self._ids:
            # A hash tells its block and all that is before it, as an id may.
            known = np.diff(offsets) * block_size
            content = PromptContent(np.array(self._ids), offsets, known, block_size)
        return Workload(
            arrival_s=np.array(self.arrival_s),
            prompt_tokens=np.array(self._prompt_tokens),
            output_tokens=samples.longest if len(self.counts) else np.zeros(0, np.int64),
            max_tokens=np.array(self._max_tokens),
            content=content,
            name="served",
            samples=samples if max(self.counts, default=1) > 1 else None,
            leaves_s=leaves_s if np.isfinite(leaves_s).any() else None,
            labels=self._labels if any(self._labels) else None,
        )
