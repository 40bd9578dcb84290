"""Random iterations, run for real against what a table says of them, on a device with the model.

Unlike the batches that a calibration holds out, these are drawn with another seed and measured in
another process: what a table is worth to whoever loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.device.timer import Timer
from calibrate.measure.batches import Lengths
from calibrate.measure.rig import Limits, Rig
from calibrate.measure.whole_iterations import Errors, latency_of, parts_us, random_lengths
from kernels.model_config import ModelConfig
from sim.latency.table_data import LatencyTable
from sim.model.config import read_config


@dataclass(frozen=True, slots=True)
class Checked:
    """One iteration: predicted, measured as the table's parts were, and launched eagerly (µs)."""

    lengths: Lengths
    predicted_us: float
    measured_us: float
    eager_us: float

    @property
    def error(self) -> float:
        """Predicted against measured, signed and relative."""
        return self.predicted_us / self.measured_us - 1.0


def end_to_end(
    table: LatencyTable,
    config: Mapping[str, Any],
    *,
    name: str,
    device: torch.device,
    iterations: int = 40,
    seed: int = 11,
) -> tuple[list[Checked], Errors]:
    """Run random batches within the table's limits. Raises ValueError for a table of another model,
    torch.OutOfMemoryError where they do not fit beside the weights.
    """
    spec = read_config(config, name=name)
    limits = Limits(**table.meta["limits"])
    latency = latency_of(table, spec, limits)
    before = torch.get_num_threads()
    if device.type == "cpu":  # as the table was measured
        torch.set_num_threads(int(table.meta["environment"]["threads"]))
    rig = Rig(
        ModelConfig.from_hugging_face(config),
        timer=Timer(device),
        limits=limits,
        block_size=table.block_size or 16,
        dtype=getattr(torch, str(table.meta["dtype"])),
        seed=seed,
        linear_backend=table.meta.get("linear_backend"),
    )
    drawn = random_lengths(np.random.default_rng([seed, 3]), limits, rig.block_size)
    checked = []
    for _ in range(iterations):
        lengths = next(drawn)
        call = rig.iteration(lengths)
        checked.append(
            Checked(
                lengths,
                sum(parts_us(latency, lengths.features()).values()),
                rig.timer.measure([call]).time_us,
                rig.timer.measure([call], mode="eager").time_us,
            )
        )
    torch.set_num_threads(before)
    errors = Errors.of([one.error for one in checked])
    assert errors is not None
    return checked, errors
