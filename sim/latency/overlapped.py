"""Scheduling ahead: the host decides the next iteration while the device computes this one.

What vLLM calls asynchronous scheduling, and SGLang the overlap scheduler ("SGLang v0.4", 2024). An
iteration then takes as long as the slower of the two; only the first one after a pause still pays
for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sim.batch import Batch
from sim.latency.protocol import (
    HostOverhead,
    LatencyModel,
    Steps,
    ends_one_by_one,
    steps_one_by_one,
)


class OverlappedLatency:
    """A latency model whose host time is hidden behind the device's, where a batch says so.

    Where a model has no host (iterations of given length) there is nothing to hide.
    """

    def __init__(self, latency: LatencyModel) -> None:
        self.inner = latency
        self.label = latency.label
        self.measured = latency.measured
        self.uses_longest = latency.uses_longest
        self.host: HostOverhead | None = getattr(latency, "host", None)
        self._host_s = host_of(latency)

    def host_s(self, num_seqs: int) -> float:
        """Host time of an iteration of so many sequences, hidden or not."""
        return self._host_s(num_seqs)

    def iteration_s(self, batch: Batch) -> float:
        total_s = self.inner.iteration_s(batch)
        if not batch.decided_ahead:
            return total_s
        host_s = self._host_s(batch.num_seqs)
        return max(total_s - host_s, host_s)

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """One iteration after the other: which of the two is slower may change on the way."""
        return ends_one_by_one(batch, start_s, iterations, until_s, self.iteration_s, self._steps_s)

    def _steps_s(self, step: Batch) -> Steps:
        host_s = self._host_s(step.num_seqs)
        known: Callable[[Batch], Steps] | None = getattr(self.inner, "steps_s", None)
        inner_s = steps_one_by_one(step, self.inner.iteration_s) if known is None else known(step)
        for step_s, extrapolated in inner_s:
            yield max(step_s - host_s, host_s), extrapolated

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the model's, with the host's part being what of it is not hidden."""
        hidden_s, unhidden = self._hidden_s(iterations)
        parts = self.inner.parts_s(unhidden)
        return {**parts, "host": parts["host"] - hidden_s} if "host" in parts else parts

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by class of operation."""
        hidden_s, unhidden = self._hidden_s(iterations)
        classes = self.inner.operators_s(unhidden)
        return {**classes, "host": classes["host"] - hidden_s} if "host" in classes else classes

    def _hidden_s(
        self, iterations: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Host time behind the device's, and the iterations as they would be if it were not.

        An iteration was decided ahead where it begins as the one before it ends.
        """
        start_s, duration_s = iterations["start_s"], iterations["duration_s"]
        seqs = iterations["num_seqs"]
        host_s = np.array([self._host_s(n) for n in range(int(seqs.max(initial=0)) + 1)])[seqs]
        ends_s: dict[int, float] = {}  # of each replica's last iteration
        ahead = np.zeros(len(start_s), dtype=bool)
        replicas = iterations.get("replica", np.zeros(len(start_s), dtype=int)).tolist()
        for row, (replica, start, duration) in enumerate(
            zip(replicas, start_s.tolist(), duration_s.tolist(), strict=True)
        ):
            ahead[row] = abs(ends_s.get(replica, -1.0) - start) <= 1e-9 * (1.0 + start)
            ends_s[replica] = start + duration
        hidden_s = np.where(ahead, np.minimum(host_s, duration_s), 0.0)
        return hidden_s, {**iterations, "duration_s": duration_s + hidden_s}


def host_of(latency: LatencyModel) -> Callable[[int], float]:
    """Host time of an iteration by its sequences, as the model tells it."""
    told: Callable[[int], float] | None = getattr(latency, "host_s", None)
    if told is not None:
        return told
    host: HostOverhead | None = getattr(latency, "host", None)
    if host is None:
        return lambda num_seqs: 0.0
    return lambda num_seqs: host.per_iteration_s + num_seqs * host.per_sequence_s
