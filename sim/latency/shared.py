"""What of an iteration is the host's and what the GPU's, and what it lost to others on its GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.batch import Batch
from sim.latency.overlapped import OverlappedLatency, host_of
from sim.latency.protocol import HostOverhead, LatencyModel

OTHERS = "others"  # the part, and the class of operation, of time that others computed in


class SharedGpuLatency:
    """A latency model of an engine whose GPU others compute on, too.

    An iteration takes `iteration_s` with the GPU to itself. Recorded ones have that as ``alone_s``;
    the rest of their durations is the part and class `others`.
    """

    def __init__(self, latency: LatencyModel) -> None:
        self.inner = latency
        self.label = latency.label
        self.measured = latency.measured
        self.uses_longest = latency.uses_longest
        self.host: HostOverhead | None = getattr(latency, "host", None)
        self.host_s = host_of(latency)
        if hasattr(latency, "further_queries_s"):
            self.further_queries_s = latency.further_queries_s

    def iteration_s(self, batch: Batch) -> float:
        return self.inner.iteration_s(batch)

    def split_s(self, batch: Batch) -> tuple[float, float, float, float]:
        """Seconds of the host before the GPU begins; of the whole GPU; at least, from the begin; of
        all with the GPU to itself."""
        alone_s = self.inner.iteration_s(batch)
        host_s = min(self.host_s(batch.num_seqs), alone_s)
        if not batch.decided_ahead or not isinstance(self.inner, OverlappedLatency):
            return host_s, alone_s - host_s, 0.0, alone_s
        if alone_s > host_s:  # the GPU is the slower of the two
            return 0.0, alone_s, 0.0, alone_s
        return 0.0, max(self.inner.inner.iteration_s(batch) - host_s, 0.0), alone_s, alone_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        return self.inner.run_ends_s(batch, start_s, iterations, until_s)

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        lost_s, own = _alone(iterations)
        return {**self.inner.parts_s(own), OTHERS: lost_s}

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by class of operation."""
        lost_s, own = _alone(iterations)
        return {**self.inner.operators_s(own), OTHERS: lost_s}


def shared(latency: LatencyModel) -> SharedGpuLatency:
    """The same as one of an engine that shares its GPU."""
    return latency if isinstance(latency, SharedGpuLatency) else SharedGpuLatency(latency)


def _alone(
    iterations: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Seconds lost to others, and the iterations without them: as far apart, and as soon after the
    one before where they followed at once."""
    duration_s, alone_s = iterations["duration_s"], iterations["alone_s"]
    lost_s = np.maximum(duration_s - alone_s, 0.0)
    replicas = iterations.get("replica", np.zeros(len(lost_s), dtype=int))
    earlier_s = np.zeros(len(lost_s))
    for replica in np.unique(replicas):
        mine = replicas == replica
        earlier_s[mine] = np.cumsum(lost_s[mine]) - lost_s[mine]
    own = {
        **iterations,
        "start_s": iterations["start_s"] - earlier_s,
        "duration_s": duration_s - lost_s,
    }
    return lost_s, own
