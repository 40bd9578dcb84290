"""Answers in the making: those that others repeat, whose blocks can be found as they fill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim.request import Request


class Answers:
    """Running requests with an answer of known content, and how much of it can be found."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._published: dict[Request, int] = {}
        self._begun: dict[int, int] = {}  # hashes of their first blocks, and how many have each

    def add(self, request: Request) -> None:
        """Its prompt is computed, and found as far as it fills blocks; its answer has begun."""
        if len(request.block_hashes) > request.prompt_tokens // self._block_size:
            if request not in self._published:
                first = self._first(request)
                self._begun[first] = self._begun.get(first, 0) + 1
            self._published[request] = request.num_computed_tokens

    def drop(self, request: Request) -> bool:
        """The request runs no longer; returns whether its answer was one of these."""
        if self._published.pop(request, None) is None:
            return False
        first = self._first(request)
        self._begun[first] -= 1
        if not self._begun[first]:
            del self._begun[first]
        return True

    def clear(self) -> None:
        """Nobody runs any more."""
        self._published.clear()
        self._begun.clear()

    def __bool__(self) -> bool:
        return bool(self._published)

    def __iter__(self) -> Iterator[tuple[Request, int]]:
        """Each request, and how many of its tokens have been published."""
        return iter(self._published.items())

    def publish(self, request: Request, tokens: int) -> None:
        """So many of its tokens have been."""
        self._published[request] = tokens

    def continued_by(self, hashes: Sequence[int]) -> bool:
        """Whether a prompt with blocks of these hashes goes on with one of the answers."""
        return bool(self._begun) and not self._begun.keys().isdisjoint(hashes)

    def _first(self, request: Request) -> int:
        """A block's hash tells all that comes before it, too."""
        return request.block_hashes[request.prompt_tokens // self._block_size]
