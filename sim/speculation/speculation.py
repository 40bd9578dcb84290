"""What one speculation step is, whatever the technique: its shape, and how much is accepted.

Each technique differs in four things only: what drafting costs (`drafting.py`), how many query
tokens the target verifies per sequence (`DraftShape`), how many drafted tokens it accepts
(`acceptance.py`), and the memory that the draft takes (`memory.py`). The rest is one engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sim.speculation.acceptance import Acceptance

HEADS = ("eagle", "mtp")  # one further layer, which reads the target's hidden states


@dataclass(frozen=True, slots=True)
class DraftShape:
    """The tokens one sequence brings to one verification.

    ``depth``: the longest run of drafted tokens that can be accepted. ``drafted_tokens``: all
    candidates (tree nodes, n-grams in parallel). ``query_tokens``: what the target computes, the
    sequence's own last token included. ``frontiers``: tokens that each of the ``depth`` drafting
    steps adds (a chain: one each). ``lookahead_slots``: KV slots beyond those, which vLLM allocates
    ahead for the proposals that a draft with a cache of its own makes after the verification.
    """

    depth: int
    drafted_tokens: int
    query_tokens: int
    frontiers: tuple[int, ...]
    lookahead_slots: int = 0

    @property
    def is_chain(self) -> bool:
        """Whether a budget too small for all drafts can take the first few."""
        return self.query_tokens == self.depth + 1

    @property
    def slots(self) -> int:
        """KV slots that a sequence may need beyond the tokens it has in the cache."""
        return self.query_tokens + self.lookahead_slots

    @classmethod
    def chain(cls, num_draft_tokens: int, *, lookahead_slots: int = 0) -> DraftShape:
        """`num_draft_tokens` (k) tokens one after the other: k + 1 query tokens."""
        if num_draft_tokens < 1:
            raise ValueError(f"num_draft_tokens must be at least 1, not {num_draft_tokens}")
        k = num_draft_tokens
        return cls(k, k, k + 1, (1,) * k, lookahead_slots)

    @classmethod
    def tree(cls, branching: tuple[int, ...], *, ahead: bool = False) -> DraftShape:
        """A token tree whose nodes at level i have ``branching[i]`` children each (SpecInfer).

        `ahead`: slots for the next tree are allocated with those of this one.
        """
        if not branching or min(branching) < 1:
            raise ValueError(
                f"branching {list(branching)} makes a tree without nodes; give the children of "
                "every node level by level, each at least 1, e.g. [3, 2, 1]"
            )
        levels = tuple(prod(branching[: level + 1]) for level in range(len(branching)))
        nodes = sum(levels)
        return cls(len(branching), nodes, nodes + 1, levels, nodes if ahead else 0)

    @classmethod
    def lookahead(cls, window: int, ngram: int, guesses: int) -> DraftShape:
        """Lookahead decoding: W + G branches of N - 1 tokens each in every step.

        The lookahead branch makes new n-grams from a window of W positions, the verification
        branch tries G of those found before (Fu et al., 2024, section 3). Only the latter can be
        accepted.
        """
        if window < 1 or guesses < 1 or ngram < 2:
            raise ValueError(
                f"window {window}, ngram {ngram}, guesses {guesses}: window and guesses must be "
                "at least 1 and ngram at least 2"
            )
        depth = ngram - 1
        return cls(depth, guesses * depth, (window + guesses) * depth, ())


@dataclass(frozen=True, slots=True)
class Speculation:
    """A technique as schedulers see it."""

    method: str
    shape: DraftShape
    acceptance: Acceptance

    @property
    def drops_last_match(self) -> bool:
        """Whether the last block of a cached prefix is computed again: the draft reads the target's
        hidden states, which no cache has (vLLM with EAGLE or MTP)."""
        return self.method in HEADS

    @property
    def expected_tokens_per_step(self) -> float:
        """Tokens one verification yields on average, the target's own included."""
        return 1.0 + self.acceptance.mean
