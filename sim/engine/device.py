"""What computes an engine's batches, simulated: when each begins, and when it is through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.batch import Batch
from sim.latency.pipeline import PipelineLatency
from sim.latency.protocol import LatencyModel
from sim.records import Columns


class OneAtATime:
    """A device that computes a batch, then the next, in the times that a latency model tells."""

    def __init__(self, latency: LatencyModel) -> None:
        self.latency = latency
        self.free_s = 0.0

    def run(self, batch: Batch, now_s: float) -> tuple[float, float]:
        """When a batch that is launched now begins and ends."""
        start_s = now_s if now_s > self.free_s else self.free_s
        self.free_s = end_s = start_s + self.latency.iteration_s(batch)
        return start_s, end_s

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        """When each of up to `iterations` of it ends, the first at or after `until_s` the last."""
        start_s = max(now_s, self.free_s)
        if start_s >= until_s:
            return [self.run(batch, now_s)[1]]
        ends_s = self.latency.run_ends_s(batch, start_s, iterations, until_s)
        self.free_s = ends_s[-1]
        return ends_s


class Stages:
    """Devices in a row; a batch passes through one after the other and never overtakes.

    Uneven batches leave bubbles: a stage waits for a long prompt in the stage before. That is
    counted, not assumed. For m equal micro-batches at once over p equal stages it is GPipe's
    (p - 1) / m.
    """

    def __init__(self, latency: PipelineLatency) -> None:
        self.latency = latency
        self._free_s = [0.0] * len(latency.stages)
        self.busy_s = [0.0] * len(latency.stages)  # of each stage: computing
        self.active_s = 0.0  # with any batch in flight

    @property
    def free_s(self) -> float:
        """When the first stage is free."""
        return self._free_s[0]

    @free_s.setter
    def free_s(self, at_s: float) -> None:
        """All that is under way is lost: every stage is free then."""
        self.active_s -= max(self._free_s[-1] - at_s, 0.0)
        self._free_s = [at_s] * len(self._free_s)

    def run(self, batch: Batch, now_s: float) -> tuple[float, float]:
        """When a batch that is launched now enters the first stage, and leaves the last."""
        free_s, sends_s = self._free_s, self.latency.sends_s(batch)
        start_s = ready_s = end_s = max(now_s, free_s[0])
        self.active_s -= max(start_s, free_s[-1])
        for stage, duration_s in enumerate(self.latency.stages_s(batch)):
            end_s = max(ready_s, free_s[stage]) + duration_s
            free_s[stage] = end_s
            self.busy_s[stage] += duration_s
            if stage < len(sends_s):
                ready_s = end_s + sends_s[stage]
        self.active_s += end_s
        return start_s, end_s

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        """One iteration: batches that share stages are stepped through."""
        return [self.run(batch, now_s)[1]]


Devices = OneAtATime | Stages


def device_of(latency: LatencyModel) -> Devices:
    """The device that takes the times of `latency`."""
    return Stages(latency) if isinstance(latency, PipelineLatency) else OneAtATime(latency)


def stage_columns(devices: Sequence[Stages]) -> Columns:
    """`Records.stages` of these replicas."""
    stages = [len(device.busy_s) for device in devices]
    return {
        "replica": np.repeat(np.arange(len(devices), dtype="i4"), stages),
        "stage": np.concatenate([np.arange(count, dtype="i4") for count in stages]),
        "busy_s": np.concatenate([np.array(device.busy_s) for device in devices]),
        "active_s": np.repeat([device.active_s for device in devices], stages),
    }
