"""What a latency model answers: how long does this iteration take?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from sim.batch import Batch


class LatencyModel(Protocol):
    """Batch -> seconds. ``label`` and ``measured`` say where the seconds come from."""

    label: str
    measured: bool

    def iteration_s(self, batch: Batch) -> float:
        """Duration of one iteration in seconds."""

    def decode_run_s(self, batch: Batch, iterations: int) -> np.ndarray:
        """Durations ``[iterations]`` in seconds of as many decode iterations in a row.

        In iteration j the decodes attend to ``context_tokens + j * num_decodes`` tokens. Every
        value equals, bit for bit, what `iteration_s` gives for that iteration.
        """

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Split recorded iterations' durations into named parts that add up to them."""


class FixedLatency:
    """Every iteration takes equally long: textbook timetables and queueing formulas."""

    measured = False

    def __init__(self, iteration_s: float) -> None:
        self._iteration_s = iteration_s
        self.label = f"fixed: {iteration_s:g} s per iteration"

    def iteration_s(self, batch: Batch) -> float:
        return self._iteration_s

    def decode_run_s(self, batch: Batch, iterations: int) -> np.ndarray:
        return np.full(iterations, self._iteration_s)

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"fixed": iterations["duration_s"]}
