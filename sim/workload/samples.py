"""Requests that ask for several answers: how many, how long, and how they come about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.request import BeamSearch


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The answers that n requests ask for.

    counts: [n], int64, at least 1: samples of a request, or hypotheses of its beam.
    output_tokens: [sum of counts], int64: the length of each, request after request.
    beam: how hypotheses fork; None where samples are independent.

    Raises ValueError where these do not fit together.
    """

    counts: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    beam: BeamSearch | None = None

    def __post_init__(self) -> None:
        if (self.counts < 1).any():
            raise ValueError(f"a request asks for {self.counts.min()} samples, expected at least 1")
        if self.counts.sum() != len(self.output_tokens):
            raise ValueError(
                f"{len(self.output_tokens)} lengths for {self.counts.sum()} samples of "
                f"{len(self.counts)} requests"
            )
        if (self.output_tokens < 1).any():
            raise ValueError("every sample generates at least 1 token")
        if self.beam is not None and (self.longest != self._over_requests(np.minimum)).any():
            raise ValueError("the hypotheses of a beam are equally long")

    @property
    def longest(self) -> NDArray[np.int64]:
        """[n]: tokens of each request's longest sample."""
        return self._over_requests(np.maximum)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """[n + 1]: where each request's lengths begin."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def slice(self, start: int, stop: int) -> Samples:
        """Those of requests start to stop - 1."""
        offsets = self.offsets
        lengths = self.output_tokens[offsets[start] : offsets[stop]]
        return Samples(self.counts[start:stop], lengths, self.beam)

    def columns(self, requests: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Columns of the records: samples of these requests, and the tokens of all of them."""
        return {
            "samples": self.counts[requests],
            "sampled_tokens": self._over_requests(np.add)[requests],
        }

    def _over_requests(self, operation: np.ufunc) -> NDArray[np.int64]:
        reduced: NDArray[np.int64] = operation.reduceat(self.output_tokens, self.offsets[:-1])
        return reduced


def repeated(counts: NDArray[np.int64], output_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths for `Samples` where all samples of a request are equally long."""
    return np.repeat(output_tokens, counts)
