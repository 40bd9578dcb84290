"""What prompts contain, as far as the prefix cache can tell: ids, and the hash chain of KV blocks.

A request's content is a sequence of ids, each standing for `unit_tokens` tokens:

- token ids: unit 1;
- Mooncake `hash_ids`: unit 512, the last id of a request covering what is left of its prompt. An id
  there stands for its unit *and* everything before it (Qin et al., Mooncake, FAST'25, section 4 of
  the technical report: a block's hash is determined by its own tokens and its prefix);
- a shared system prompt: one id for the whole of it (`sim/workload/sessions.py`).

The hash of the prefix that ends at token e, which lies in unit k, is

    mix(e * GAMMA + sum over j <= k of scramble(id_j) * weight(j))   (mod 2^64, top 63 bits)

so a block's hash is its parent's plus what the block adds, and every block of a prompt comes out of
one cumulative sum. Ids are summed from the first one on, so the answer is right whether an id names
its unit alone or its whole prefix. Two prefixes that share an id's unit only in part count as
different there: what lies inside a unit is not known. Collisions are those of a 63-bit hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment: 2^64 / golden ratio, odd
_FIRST = np.uint64(0xBF58476D1CE4E5B9)  # and its two multipliers
_SECOND = np.uint64(0x94D049BB133111EB)
_ONE, _TWENTY_SEVEN, _THIRTY, _THIRTY_ONE = (np.uint64(shift) for shift in (1, 27, 30, 31))


@dataclass(frozen=True, slots=True, eq=False)
class PromptContent:
    """Content ids of n requests, one after another in one array.

    ids: [total], integers >= 0; request i's are ids[offsets[i]:offsets[i + 1]].
    offsets: [n + 1], int64, ascending.
    known_tokens: [n], int64: how many of a request's first tokens its ids describe. Whatever lies
        beyond (generated tokens, the unshared part of a prompt) is that request's own.
    unit_tokens: tokens an id stands for.

    Raises ValueError when these do not fit together.
    """

    ids: NDArray[np.integer]
    offsets: NDArray[np.int64]
    known_tokens: NDArray[np.int64]
    unit_tokens: int = 1

    def __post_init__(self) -> None:
        if self.unit_tokens < 1:
            raise ValueError(f"unit_tokens is {self.unit_tokens}, expected at least 1")
        if len(self.offsets) != len(self.known_tokens) + 1:
            raise ValueError(
                f"{len(self.offsets)} offsets for {len(self.known_tokens)} requests, "
                "expected one more than requests"
            )
        counts = np.diff(self.offsets)
        if self.offsets[0] < 0 or self.offsets[-1] > len(self.ids) or (counts < 0).any():
            raise ValueError(f"offsets must ascend within the {len(self.ids)} ids")
        if (self.ids < 0).any():
            at = int(np.argmax(self.ids < 0))
            raise ValueError(f"content id {at} is {self.ids[at]}, expected 0 or more")
        wrong = (self.known_tokens < 0) | (self.known_tokens > counts * self.unit_tokens)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"request {at}: known_tokens is {self.known_tokens[at]}, but its {counts[at]} ids "
                f"of {self.unit_tokens} tokens describe 0 to {counts[at] * self.unit_tokens}"
            )

    @classmethod
    def from_lists(
        cls,
        ids: Sequence[Sequence[int]],
        *,
        unit_tokens: int = 1,
        known_tokens: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> PromptContent:
        """Content from one sequence of ids a request; by default every id is a whole unit."""
        counts = np.fromiter((len(row) for row in ids), np.int64, len(ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(offsets[-1]))
        known = counts * unit_tokens if known_tokens is None else known_tokens
        return cls(flat, offsets, np.asarray(known, np.int64), unit_tokens)

    def __len__(self) -> int:
        """Requests described."""
        return len(self.known_tokens)

    def slice(self, start: int, stop: int) -> PromptContent:
        """The content of requests start to stop - 1, sharing the ids' memory."""
        return PromptContent(
            self.ids,
            self.offsets[start : stop + 1],
            self.known_tokens[start:stop],
            self.unit_tokens,
        )

    def block_hashes(self, request: int, block_size: int, num_tokens: int) -> list[int]:
        """Hashes of a request's full KV blocks among its first num_tokens tokens, in order.

        Block i covers tokens [i * block_size, (i + 1) * block_size). For one block size, equal
        hashes mean equal tokens from the first one to the block's last. The list ends before the
        first block that reaches beyond known_tokens: nobody else can have that one. All hashes are
        in [0, 2^63), the same in every process.

        Raises IndexError for a request that is not there, ValueError for a block size below 1 or a
        negative number of tokens.
        """
        if not 0 <= request < len(self):
            raise IndexError(f"request {request} of a content with {len(self)} requests")
        if block_size < 1 or num_tokens < 0:
            raise ValueError(
                f"block_size is {block_size} and num_tokens {num_tokens}, expected at least 1 and 0"
            )
        known_tokens = min(num_tokens, int(self.known_tokens[request]))
        end = known_tokens // block_size * block_size
        if not end:
            return []
        ends = np.arange(block_size, end + 1, block_size)
        sums = self._prefix_sums(request, end)[(ends - 1) // self.unit_tokens]
        hashes: list[int] = (_mix(ends.astype(np.uint64) * _GAMMA + sums) >> _ONE).tolist()
        return hashes

    def _prefix_sums(self, request: int, num_tokens: int) -> NDArray[np.uint64]:
        """Sums of the weighted ids up to each unit that the first num_tokens tokens touch."""
        first = int(self.offsets[request])
        units = -(-num_tokens // self.unit_tokens)
        terms = self.ids[first : first + units].astype(np.uint64)
        terms += _ONE
        terms *= _FIRST
        terms ^= terms >> _THIRTY
        terms *= _position_weights(1 << (units - 1).bit_length())[:units]
        return np.cumsum(terms, dtype=np.uint64)


@lru_cache(maxsize=32)
def _position_weights(count: int) -> NDArray[np.uint64]:
    """An odd pseudo-random 64-bit factor for each of the first `count` positions."""
    return _mix(np.arange(1, count + 1, dtype=np.uint64) * _GAMMA) | _ONE


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, a bijection on 64-bit words (Steele et al., OOPSLA'14)."""
    values = (values ^ (values >> _THIRTY)) * _FIRST
    values = (values ^ (values >> _TWENTY_SEVEN)) * _SECOND
    return values ^ (values >> _THIRTY_ONE)
