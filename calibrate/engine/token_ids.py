"""Token ids for a workload's prompts: those of its trace, or random ones that share what it shares.

A prompt whose content is known token by token keeps its tokens. Where an id stands for many tokens
(a shared system prompt, 512 tokens of a Mooncake trace) or nothing is known, ids are drawn from a
counter-based generator, so that equal content gives equal tokens in every request and every run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.request import Request
from sim.workload.workload import Workload

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_OWN = np.uint64(1) << np.uint64(62)  # keys of a request's own tokens, away from all content ids


class TokenIds:
    """The prompts of a workload as token ids below `vocab_size`."""

    def __init__(self, workload: Workload, vocab_size: int, *, seed: int = 0) -> None:
        self._content = workload.content
        self._vocab_size = np.uint64(vocab_size)
        self._seed = np.uint64(seed)

    def of(self, request: Request) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids of a prompt, and of the answer as far as its content is known."""
        prompt, known = request.prompt_tokens, request.prompt_tokens
        if self._content is not None and request.group is None:
            answered = int(self._content.known_tokens[request.index])
            known = max(known, min(answered, prompt + request.output_tokens))
        tokens = self._first(request.index, known)
        return tokens[:prompt], tokens[prompt:]

    def _first(self, request: int, num_tokens: int) -> NDArray[np.int64]:
        """The first `num_tokens` token ids of request number `request`: [num_tokens] int64."""
        content = self._content
        known = 0 if content is None else min(num_tokens, int(content.known_tokens[request]))
        own = np.full(num_tokens - known, _OWN | np.uint64(request))
        tokens = np.empty(num_tokens, dtype=np.int64)
        tokens[known:] = self._drawn(own, np.arange(known, num_tokens))
        if content is not None and known:
            unit = content.unit_tokens
            first = int(content.offsets[request])
            ids = content.ids[first : first - (-known // unit)].astype(np.uint64)
            if unit == 1:
                tokens[:known] = (ids % self._vocab_size).astype(np.int64)
            else:
                position = np.arange(known)
                tokens[:known] = self._drawn(ids[position // unit], position)
        return tokens

    def _drawn(self, key: NDArray[np.uint64], position: NDArray[np.int64]) -> NDArray[np.int64]:
        """A token for every (key, position), by splitmix64."""
        value = _mixed(key + self._seed * _INCREMENT) + position.astype(np.uint64) * _INCREMENT
        return (_mixed(value) % self._vocab_size).astype(np.int64)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., OOPSLA'14)."""
    first, second = _MULTIPLIERS
    value = (value ^ (value >> np.uint64(30))) * first
    value = (value ^ (value >> np.uint64(27))) * second
    return value ^ (value >> np.uint64(31))
