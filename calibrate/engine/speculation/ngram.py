"""Prompt lookup (Saxena 2023): what followed the last time that the text read as it does now.

The last n tokens are looked up among all earlier ones of the sequence, prompt and answer, n from
`LONGEST` down to 1; the latest match wins. Where fewer tokens follow it than are wanted, the text
goes on repeating itself: what lies between the match and the end is a period.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calibrate.engine.speculation.packed import Packing
from calibrate.engine.speculation.proposer import Proposal, Verified
from sim.batch import Batch
from sim.request import Request

LONGEST = 3  # tokens that are looked up: Saxena's default


class _Index:
    """Of every n-gram that does not end the text: where what followed it lies."""

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def lookup(self, tokens: Sequence[int], wanted: int) -> list[int]:
        """The `wanted` tokens that are likely to follow; none where nothing is found."""
        for end in range(max(self._seen, 1), len(tokens)):  # n-grams that end before `end`
            for length in range(1, min(LONGEST, end) + 1):
                self._follows[tuple(tokens[end - length : end])] = end
        self._seen = len(tokens)
        for length in range(min(LONGEST, len(tokens) - 1), 0, -1):
            start = self._follows.get(tuple(tokens[-length:]))
            if start is not None:
                period = len(tokens) - start
                return [tokens[start + place % period] for place in range(wanted)]
        return []


class NgramProposer:
    """Chains of `depth` tokens for those whose text repeats something."""

    def __init__(self, depth: int, device: torch.device) -> None:
        self._depth = depth
        self._device = device
        self._index: dict[Request, _Index] = {}
        self._drafts: dict[Request, list[int]] = {}

    def propose(self, batch: Batch, members: Sequence[Request], packing: Packing) -> Proposal:
        nothing = [0] * self._depth
        rows = [[0, *(self._drafts.get(one) or nothing)] for one in members]
        tokens = torch.tensor(rows, dtype=torch.int64, device=self._device)
        return Proposal(tokens.view(len(members), self._depth + 1))

    def verified(self, request: Request, found: Verified) -> None:
        """All that it goes by is the text."""

    def emitted(self, request: Request, tokens: Sequence[int]) -> bool:
        found = self._index.setdefault(request, _Index()).lookup(tokens, self._depth)
        if found:  # else an earlier one stands, for who had one and gave way before it was tried
            self._drafts[request] = found
        return bool(found)

    def drop(self, request: Request) -> None:
        self._index.pop(request, None)
        self._drafts.pop(request, None)
