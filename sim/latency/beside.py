"""What every iteration takes beside the model's own work, by how many sequences are in it.

Thin matrices of LoRA adapters, and host time that answers bound to a grammar wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sim.batch import Batch
from sim.latency.protocol import HostOverhead, LatencyModel, ends_one_by_one


class BesideLatency:
    """A latency model, plus `extra_s(num_seqs)` in every iteration, as the part and class `part`.

    It is on the way of every token: scheduling ahead hides nothing of it.
    """

    def __init__(
        self, latency: LatencyModel, extra_s: Callable[[int], float], *, part: str, operator: str
    ) -> None:
        self.inner = latency
        self._of, self._part, self._operator = extra_s, part, operator
        self._known: dict[int, float] = {}
        self.label = latency.label
        self.measured = latency.measured
        self.uses_longest = latency.uses_longest
        self.host: HostOverhead | None = getattr(latency, "host", None)
        if hasattr(latency, "host_s"):
            self.host_s = latency.host_s
        if hasattr(latency, "further_queries_s"):
            self.further_queries_s = latency.further_queries_s

    def extra_s(self, num_seqs: int) -> float:
        """What an iteration of so many sequences takes besides."""
        found = self._known.get(num_seqs)
        if found is None:
            found = self._known[num_seqs] = self._of(num_seqs) if num_seqs else 0.0
        return found

    def iteration_s(self, batch: Batch) -> float:
        return self.inner.iteration_s(batch) + self.extra_s(batch.num_seqs)

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        return ends_one_by_one(batch, start_s, iterations, until_s, self.iteration_s)

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        extra_s, rest = self._split(iterations)
        parts = self.inner.parts_s(rest)
        return {**parts, self._part: parts.get(self._part, 0.0) + extra_s}

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by class of operation."""
        extra_s, rest = self._split(iterations)
        classes = self.inner.operators_s(rest)
        return {**classes, self._operator: classes.get(self._operator, 0.0) + extra_s}

    def _split(
        self, iterations: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        seqs = iterations["num_seqs"]
        each = np.array([self.extra_s(n) for n in range(int(seqs.max(initial=0)) + 1)])
        extra_s = each[seqs]
        return extra_s, {**iterations, "duration_s": iterations["duration_s"] - extra_s}
