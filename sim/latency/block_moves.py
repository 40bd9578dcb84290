"""What moving KV blocks adds to an iteration: copy-on-write, a cost per swapped block, tiers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.batch import Batch
from sim.latency.protocol import HostOverhead, LatencyModel


class BlockMoves:
    """A latency model, plus `copied_block_s` for every block copied on the device.

    `swapped_block_s` comes on top of the bytes of every block that crosses the host link: an engine
    that copies it layer by layer pays for as many launches (why swapping small blocks is slow in
    Kwon et al., section 7.3). So does what reading from tiers of memory takes (`Batch.tier_s`). A
    run of alike iterations moves no blocks.
    """

    def __init__(
        self, latency: LatencyModel, *, copied_block_s: float = 0.0, swapped_block_s: float = 0.0
    ) -> None:
        self.inner = latency
        self._copied_block_s = copied_block_s
        self._swapped_block_s = swapped_block_s
        self.label = latency.label
        self.measured = latency.measured
        self.uses_longest = latency.uses_longest
        self.host: HostOverhead | None = getattr(latency, "host", None)
        if hasattr(latency, "host_s"):
            self.host_s = latency.host_s

    def iteration_s(self, batch: Batch) -> float:
        duration_s = self.inner.iteration_s(batch)
        if batch.copies:
            duration_s += len(batch.copies) * self._copied_block_s
        swapped = batch.swap_in_blocks + batch.swap_out_blocks
        if swapped:
            duration_s += swapped * self._swapped_block_s + batch.tier_s
        return duration_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        return self.inner.run_ends_s(batch, start_s, iterations, until_s)

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        copied_s, swapped_s, rest = self._moves_s(iterations)
        parts = self.inner.parts_s(rest)
        if copied_s.any():
            parts["copy"] = copied_s
        if swapped_s.any():
            parts["swap"] = parts.get("swap", 0.0) + swapped_s
        return parts

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`parts_s` by class of operation; copies and swaps are one."""
        copied_s, swapped_s, rest = self._moves_s(iterations)
        classes = self.inner.operators_s(rest)
        if copied_s.any() or swapped_s.any():
            classes["swap"] = classes.get("swap", 0.0) + copied_s + swapped_s
        return classes

    def _moves_s(
        self, iterations: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Copying, swapping beyond the bytes, and the iterations without either."""
        copied_s = self._copied_block_s * iterations["copied_blocks"]
        swapped_s = self._swapped_block_s * iterations["swap_blocks"]
        if "tier_s" in iterations:
            swapped_s = swapped_s + iterations["tier_s"]
        rest_s = iterations["duration_s"] - copied_s - swapped_s
        return copied_s, swapped_s, {**iterations, "duration_s": rest_s}
