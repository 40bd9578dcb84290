"""Which experts tokens are sent to: how many a batch activates, and how uneven ranks' loads are.

Routing is described by the chance ``p[layer, expert]`` that a token's top-k contains an expert
(they add up to k a layer); tokens choose independently. Then, whatever the k choices of one token
have to do with each other,

    experts activated by n tokens    sum over experts of 1 - (1 - p)^n, on average exactly;
                                     uniform: E (1 - (1 - k/E)^n)
    tokens an expert is sent         n p on average

The tokens on one rank of expert parallelism are a sum of n independent terms: about normal, with
Hajek's (1964) variance for k draws without replacement (exact where all p are equal), and the
iteration waits for the largest of the ranks' loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import erf, sqrt

import numpy as np

PLACEMENTS = ("contiguous", "balanced")


@dataclass(frozen=True, slots=True)
class ExpertRouting:
    """``chances``: f8[layers or 1, experts], rows adding up to ``experts_per_token``.

    ``placement`` says which experts share a rank: consecutive ones, or dealt out by popularity so
    that ranks' expected loads are as equal as a greedy choice makes them (DeepSeek-V3, 3.4).
    """

    chances: np.ndarray
    experts_per_token: int
    is_uniform: bool = False
    placement: str = "contiguous"

    @property
    def num_experts(self) -> int:
        return int(self.chances.shape[1])

    @classmethod
    def uniform(cls, num_experts: int, experts_per_token: int) -> ExpertRouting:
        """Every expert is as likely."""
        chances = np.full((1, num_experts), experts_per_token / num_experts)
        return cls(chances, experts_per_token, is_uniform=True)

    @classmethod
    def zipf(
        cls,
        num_experts: int,
        experts_per_token: int,
        *,
        exponent: float,
        rng: np.random.Generator,
        placement: str = "contiguous",
    ) -> ExpertRouting:
        """The r-th most popular expert is sent tokens in proportion to r^-exponent.

        No expert more than every token: what is above is shared among the rest. Which expert has
        which rank is drawn from `rng`.
        """
        popularity = np.arange(1, num_experts + 1, dtype=np.float64) ** -exponent
        popularity = rng.permutation(popularity)[np.newaxis]
        return cls(_chances(popularity, experts_per_token), experts_per_token, placement=placement)

    @classmethod
    def from_counts(
        cls, counts: np.ndarray, experts_per_token: int, *, placement: str = "contiguous"
    ) -> ExpertRouting:
        """From a trace: tokens each expert was sent, [experts] or [layers, experts].

        Raises ``ValueError`` where fewer experts than ``experts_per_token`` were ever used.
        """
        table = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        if not (np.isfinite(table).all() and (table >= 0).all()):
            raise ValueError("expert counts must be finite and not negative")
        used = int((table > 0).sum(axis=1).min(initial=table.shape[1]))
        if used < experts_per_token:
            raise ValueError(
                f"expert counts name {used} experts in a layer, every token goes to "
                f"{experts_per_token}"
            )
        return cls(_chances(table, experts_per_token), experts_per_token, placement=placement)

    def activated(self, tokens: np.ndarray) -> np.ndarray:
        """Experts of a layer that ``tokens`` tokens activate, on average [tokens.shape]."""
        if self.is_uniform:
            share = self.experts_per_token / self.num_experts
            return self.num_experts * _at_least_once(share, tokens)
        return self._activated_of(self.chances, tokens)

    def activated_on_slowest_rank(self, tokens: np.ndarray, ranks: int) -> np.ndarray:
        """Experts activated on the rank that has the most of them, mean over layers."""
        if self.is_uniform or ranks == 1:
            return self.activated(tokens) / ranks
        shares = [
            [self._activated_of(row[np.newaxis, held], tokens) for held in self._placed(row, ranks)]
            for row in self.chances
        ]
        most: np.ndarray = np.max(np.array(shares), axis=1).mean(axis=0)
        return most

    def slowest_rank_load(self, tokens: np.ndarray, ranks: int) -> np.ndarray:
        """Rows (tokens x choices) on the fullest of `ranks` ranks, expected, mean over layers.

        ``tokens * k / ranks`` is the even share. Never more than every token to every expert held.
        """
        counts = np.asarray(tokens, dtype=np.float64)
        k, most_held = self.experts_per_token, self.num_experts // ranks
        if ranks == 1:
            return counts * k
        # Tabulated at eight counts an octave, always the same: the load relative to the tokens.
        octaves = int(np.ceil(np.log2(max(counts.max(initial=1), 2))))
        grid = np.unique(np.round(2.0 ** (np.arange(8 * octaves + 1) / 8)))
        loads = np.mean([self._fullest(row, grid, ranks) for row in self.chances], axis=0)
        relative = np.interp(np.log(np.maximum(counts, 1)), np.log(grid), loads / grid)
        limit = counts * min(k, most_held)
        return np.asarray(np.minimum(counts * relative, limit))

    def _fullest(self, row: np.ndarray, tokens: np.ndarray, ranks: int) -> np.ndarray:
        """Expected largest of independent normal loads, one a rank, by integration [tokens]."""
        held = self._placed(row, ranks)
        mean = np.array([row[experts].sum() for experts in held])
        spread = np.array([(row[experts] * (1 - row[experts])).sum() for experts in held])
        total = spread.sum()
        if total <= 0:  # every expert sees every token, or none
            return np.asarray(tokens * mean.max())
        experts = self.num_experts
        variance = spread * (1 - spread / total) * experts / max(experts - 1, 1)
        deviation = np.sqrt(np.maximum(variance, 1e-12) * tokens[:, np.newaxis])  # [n, ranks]
        centre = mean * tokens[:, np.newaxis]
        low = (centre - 6 * deviation).max(axis=1)
        high = (centre + 6 * deviation).max(axis=1)
        # E[max] = low + integral of P(max > x) from low on, below which the maximum never is.
        nodes = np.linspace(0.0, 1.0, 121)
        x = low[:, np.newaxis] + (high - low)[:, np.newaxis] * nodes  # [n, x]
        scaled = (x[:, :, np.newaxis] - centre[:, np.newaxis]) / deviation[:, np.newaxis]
        above = 1.0 - _normal_below(scaled).prod(axis=2)
        expected: np.ndarray = low + (high - low) * _trapezoid(above, nodes)
        return expected

    def _placed(self, row: np.ndarray, ranks: int) -> list[np.ndarray]:
        """The experts each rank holds, equally many."""
        each = self.num_experts // ranks
        if self.placement == "contiguous":
            return list(np.arange(self.num_experts).reshape(ranks, each))
        held: list[list[int]] = [[] for _ in range(ranks)]
        load = np.zeros(ranks)
        for expert in np.argsort(-row, kind="stable").tolist():
            open_ranks = [rank for rank in range(ranks) if len(held[rank]) < each]
            rank = min(open_ranks, key=load.__getitem__)
            held[rank].append(expert)
            load[rank] += row[expert]
        return [np.array(experts) for experts in held]

    @staticmethod
    def _activated_of(chances: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Mean over layers of the experts activated among these columns."""
        counts = np.asarray(tokens, dtype=np.float64)
        total = np.zeros_like(counts)
        values, times = np.unique(chances, return_counts=True)
        for chance, number in zip(values.tolist(), times.tolist(), strict=True):
            total += number * _at_least_once(chance, counts)
        return total / len(chances)


def _chances(popularity: np.ndarray, experts_per_token: int) -> np.ndarray:
    """Chances in proportion to popularity, none above one, each row adding up to k."""
    chances = np.zeros_like(popularity)
    for row, weights in zip(chances, popularity, strict=True):
        certain = np.zeros(len(weights), dtype=bool)
        while True:
            left = experts_per_token - int(certain.sum())
            rest = weights * ~certain
            row[:] = np.where(certain, 1.0, rest * (left / rest.sum() if left else 0.0))
            if not (above := row > 1.0).any():
                break
            certain |= above
    return chances


def _at_least_once(chance: float, tokens: np.ndarray) -> np.ndarray:
    """1 - (1 - chance)^tokens, exact for small chances too."""
    if chance >= 1.0:
        return np.ones_like(np.asarray(tokens, dtype=np.float64)) * (np.asarray(tokens) > 0)
    return np.asarray(-np.expm1(tokens * np.log1p(-chance)))


@cache
def _normal_table() -> tuple[np.ndarray, np.ndarray]:
    """The normal distribution, 250 values a unit: plenty for an expected maximum."""
    at = np.linspace(-6.5, 6.5, 3251)
    return at, np.array([0.5 * (1.0 + erf(value / sqrt(2.0))) for value in at.tolist()])


def _normal_below(scaled: np.ndarray) -> np.ndarray:
    return np.asarray(np.interp(scaled, *_normal_table()))


def _trapezoid(values: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    steps = np.diff(nodes)
    return np.asarray(((values[:, 1:] + values[:, :-1]) * 0.5 * steps).sum(axis=1))
