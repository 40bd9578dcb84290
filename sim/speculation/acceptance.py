"""How many drafted tokens a verification accepts.

Acceptance is described by *survival*: S_j, the share of verifications that accept at least j
tokens. One verification yields the accepted tokens and one of the target's own (the correction of
the first rejected token, or a bonus after the last), 1 + sum_j S_j on average.

    chain, rate a        S_j = a^j                  1 + sum = (1 - a^(k+1)) / (1 - a)
                                                    (Leviathan et al., 2023, equation 1)
    tree, rate a         S_j = prod_i (1 - (1 - a)^b_i), b_i candidates at level i
    tree, rates by rank  S_j = prod_i (p_1 + ... + p_{b_i}): the target's token is the draft's r-th
                         choice with probability p_r (SpecInfer, Miao et al., 2024)
    G n-grams, rate a    S_j = 1 - (1 - a^j)^G      (lookahead decoding, Fu et al., 2024)

What the rate *means* depends on how drafts are verified. Greedy: a draft is accepted when it is the
target's most likely token. Rejection sampling: a draft x is accepted with probability
min(1, p(x) / q(x)), on average 1 - TV(p, q) (Leviathan et al., theorem 3.5; Chen et al., 2023).
In a tree greedy candidates are the draft's most likely tokens, which exclude one another (rates by
rank); sampled candidates are independent tries (one rate).

Every request draws from a random stream of its own, one number per verification. So its answers
come in the same portions whatever the batch, the policy or the clock, and a longer draft accepts at
least as much at the same verification as a shorter one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.request import Request


class Acceptance(Protocol):
    """Accepted tokens of a request's verifications, in order."""

    @property
    def mean(self) -> float:
        """Accepted tokens of one verification, on average."""

    def draw(self, request: int, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Accepted tokens i8[steps] of the first `steps` verifications of request number `request`.

        And which of them had a draft at all, bool[steps]; None where all had.
        """


class RandomAcceptance:
    """Independent verifications with the given survival S_1 >= S_2 >= …, f8[depth]."""

    def __init__(self, survival: np.ndarray, *, match_rate: float = 1.0, seed: int = 0) -> None:
        if not 0 <= match_rate <= 1:
            raise ValueError(f"match_rate must be between 0 and 1, not {match_rate}")
        if not len(survival) or survival.min() < 0 or survival.max() > 1:
            raise ValueError(f"shares must be between 0 and 1, not {survival.tolist()}")
        if (np.diff(survival) > 0).any():
            raise ValueError(
                f"{survival.tolist()} rises: these are the shares of all verifications in which a "
                "draft is accepted (as vLLM logs them), and no draft is accepted without those "
                "before it"
            )
        self.survival = survival
        self.match_rate = match_rate
        self.seed = seed
        self._ascending = np.ascontiguousarray(survival[::-1])

    @property
    def mean(self) -> float:
        return float(self.match_rate * self.survival.sum())

    def draw(self, request: int, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, request))))
        numbers = rng.random((steps, 2)) if self.match_rate < 1 else rng.random((steps, 1))
        # As many as there are S_j above the number drawn.
        below = np.searchsorted(self._ascending, numbers[:, 0], side="right")
        accepted = len(self.survival) - below
        if self.match_rate == 1:
            return accepted, None
        drafted = numbers[:, 1] < self.match_rate
        return accepted * drafted, drafted


Verifications = Sequence[int | None]
"""Of one request, in order: drafts accepted, None where there was no draft."""


@dataclass(frozen=True, slots=True)
class RecordedAcceptance:
    """Accepted tokens as recorded: request i replays row i, both repeat from the start.

    Of several rows, those of answers of one token are empty: who has such a row and verifies all
    the same takes the next one's.
    """

    rows: tuple[Verifications, ...]

    @property
    def mean(self) -> float:
        """Of verifications: requests of equal length verify more often where less is accepted.

        So tokens per verification are the harmonic mean of the rows'.
        """
        means = [sum(count or 0 for count in row) / len(row) for row in self.rows if len(row)]
        return float(1 / np.mean([1 / (1 + mean) for mean in means]) - 1)

    def draw(self, request: int, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        at = request % len(self.rows)
        row = next(row for row in (*self.rows[at:], *self.rows[:at]) if len(row))
        return _as_drawn(row, steps)


def _as_drawn(row: Verifications, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A row of recorded verifications, repeated as often as it takes."""
    accepted = np.resize(np.array([count or 0 for count in row], dtype=np.int64), steps)
    if None not in row:
        return accepted, None
    return accepted, np.resize(np.array([count is not None for count in row]), steps)


class ObservedAcceptance:
    """What a real target accepts: nobody knows before it has verified; noted down as it is found.

    Whether a verification has a draft is decided once: who gives way before it comes back with or
    without one, as it was. So the schedule depends on nothing that its verifications do not tell.
    """

    def __init__(self, *, always: bool = True) -> None:
        """`always`: every verification has a draft. Else those that one has been found for."""
        self._drafted: dict[Request, tuple[int, bool]] | None = None if always else {}
        self.rows: dict[int, list[int | None]] = {}

    def decide(self, request: Request, found: bool) -> None:
        """Whether a draft has been found for the next verification of this sequence."""
        if self._drafted is not None:
            number = len(self.rows.get(request.index, ()))
            if self._drafted.get(request, (-1, False))[0] != number:
                self._drafted[request] = number, found

    def has_draft(self, request: Request) -> bool:
        """Whether there is one."""
        return self._drafted is None or self._drafted[request][1]

    def drop(self, request: Request) -> None:
        """This sequence verifies nothing more; what it did stays noted."""
        if self._drafted is not None:
            self._drafted.pop(request, None)

    def note(self, request: Request, accepted: int) -> None:
        """A verification of this sequence is through; the draft may have been cut to nothing."""
        row = self.rows.setdefault(request.index, [])
        row.append(accepted if self.has_draft(request) else None)

    @property
    def mean(self) -> float:
        """Accepted tokens of one verification, of those seen so far."""
        counts = [count or 0 for row in self.rows.values() for count in row]
        return sum(counts) / len(counts) if counts else 0.0

    def draw(self, request: int, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        """What was seen of a request, for a replay of its run; beyond it nothing is accepted."""
        row = self.rows.get(request, [])[:steps]
        return _as_drawn([*row, *[0] * (steps - len(row))], steps)

    def figures(self, depth: int) -> dict[str, object]:
        """What a scenario can take up: ``match_rate``, the share of verifications that had a draft,
        and ``acceptance_per_position``, the share of those that accepted the 1st, 2nd, … of
        `depth`; None where nothing was drafted."""
        counts = [count for row in self.rows.values() for count in row]
        drafted = np.array([count for count in counts if count is not None])
        survival = [float((drafted >= place).mean()) for place in range(1, depth + 1)]
        return {
            "match_rate": len(drafted) / len(counts) if counts else None,
            "acceptance_per_position": survival if len(drafted) else None,
        }

    def replayed(self) -> ReplayedAcceptance:
        """The same once more, for the simulator."""
        return ReplayedAcceptance(self)


@dataclass(frozen=True, slots=True)
class ReplayedAcceptance:
    """What an engine saw, request by request."""

    observed: ObservedAcceptance

    @property
    def mean(self) -> float:
        return self.observed.mean

    def draw(self, request: int, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        return self.observed.draw(request, steps)


def recorded(rows: Sequence[Verifications], depth: int) -> RecordedAcceptance:
    """A trace of accepted tokens, checked against the draft's depth. Raises ValueError."""
    if not any(rows):
        raise ValueError("the acceptance trace is empty")
    for number, row in enumerate(rows, start=1):
        counts = [count for count in row if count is not None]
        if counts and (min(counts) < 0 or max(counts) > depth):
            raise ValueError(
                f"line {number} of the acceptance trace accepts "
                f"{min(counts) if min(counts) < 0 else max(counts)} tokens; drafts are {depth} deep"
            )
    return RecordedAcceptance(tuple(tuple(row) for row in rows))


# -- survival, in closed form -----------------------------------------------------------------


def check_rate(rate: float, name: str = "rate") -> None:
    """Raise ValueError where a probability is none."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} must be between 0 and 1, not {rate}")


def chain(rate: float, depth: int) -> np.ndarray:
    """S_j = a^j, j = 1 … depth."""
    check_rate(rate)
    return np.cumprod(np.full(depth, rate))


def sampled_tree(rate: float, branching: Sequence[int]) -> np.ndarray:
    """Independent candidates: a level is passed unless all of its candidates are rejected."""
    check_rate(rate)
    return np.cumprod(1.0 - (1.0 - rate) ** np.array(branching))


def ranked_tree(per_rank: Sequence[float], branching: Sequence[int]) -> np.ndarray:
    """The most likely candidates: a level is passed when the target's token is among them."""
    for rate in per_rank:
        check_rate(rate, "per_rank")
    if sum(per_rank) > 1 + 1e-9:
        raise ValueError(
            f"per_rank {list(per_rank)} adds up to {sum(per_rank):g}: the target's token cannot "
            "be two of the draft's choices at once"
        )
    if len(per_rank) < max(branching):
        raise ValueError(
            f"per_rank has {len(per_rank)} rates, the tree tries up to {max(branching)} candidates"
        )
    within = np.minimum(np.cumsum(per_rank), 1.0)
    return np.cumprod(within[np.array(branching) - 1])


def parallel_guesses(rate: float, depth: int, guesses: int) -> np.ndarray:
    """The best of `guesses` independent chains."""
    return 1.0 - (1.0 - chain(rate, depth)) ** guesses
