"""The study of numeric deviation: flash against standard attention, emulated on a processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from kernels.numerics import deviations
from kernels.training_deviation import Training, drifts

LENGTHS, BLOCKS = (128, 512, 2048), (32, 128, 512)  # of sequences, of flash attention: tokens


def study(
    dtype: str, steps: int, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What the page shows: deviations of a forward pass, drifts of weights, and the setting."""
    low = getattr(torch, dtype)
    training = Training(steps=steps, dtype=low)
    generator = torch.Generator().manual_seed(0)
    found = deviations(LENGTHS, BLOCKS, generator=generator, dtype=low)
    apart = drifts(training, every=max(1, steps // 12), progress=progress)
    return {
        "dtype": dtype,
        "torch": torch.__version__,
        "training": dataclasses.asdict(training) | {"dtype": dtype},
        "deviations": [dataclasses.asdict(one) for one in found],
        "drifts": [dataclasses.asdict(one) for one in apart],
    }
