"""What a calibration is asked for, and how far the memory lets it measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch

from calibrate.device.environment import CalibrationError, device_name
from calibrate.measure.measuring import MOST_COOLING_S, TARGET
from calibrate.measure.rig import Limits
from kernels.checks import LinearBackend
from kernels.model_config import ModelConfig
from kernels.transformer import Transformer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_CACHE_TOKENS = 2**19  # four contexts of 128k, or 512 of 1k
CPU_LIMITS = Limits(max_tokens=256, max_seqs=32, max_context=512, cache_tokens=16_384)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, on what, for how long, and where the table goes."""

    config: Mapping[str, Any]  # the model's Hugging Face ``config.json``; weights are random
    name: str  # the model's, for the record
    out: Path
    device: str = "cuda"  # Triton kernels, CUDA graphs; or "cpu": plain PyTorch, eager
    budget_s: float = 480.0  # coarse grids come first, so a short one costs accuracy
    dtype: str = "bfloat16"
    block_size: int = 16
    gpu: str | None = None  # the device's name in the library; by default the driver's
    limits: Limits | None = None  # how far to measure; by default what the memory holds
    linear_backend: LinearBackend | None = None  # of the dense products
    share: Path | None = None  # tables whose parts are taken over where device and shapes coincide
    target: float = TARGET  # leave-one-out error that is good enough, relative
    cooling_s: float = MOST_COOLING_S  # to wait, in all, for a GPU whose clock is held down
    most_s: float = inf  # then the table is written without what it can do without
    seed: int = 0

    @property
    def products(self) -> LinearBackend:
        """By default ``fastest`` on a GPU, which chooses between cuBLAS and our kernel.

        The engine takes what its table was measured with.
        """
        return self.linear_backend or ("fastest" if self.device == "cuda" else "torch")


def reachable(setting: Setting, config: ModelConfig, device: torch.device) -> Limits:
    """How far to measure: what the memory holds beside the weights.

    Raises CalibrationError where that is next to nothing.
    """
    if device.type != "cuda":
        longest = min(CPU_LIMITS.max_context, config.max_positions)
        return dataclasses.replace(CPU_LIMITS, max_context=longest)
    dtype = DTYPES[setting.dtype]
    model = Transformer.random(config, dtype=dtype, device="meta", backend="torch")
    free, total = torch.cuda.mem_get_info(device)
    max_tokens, max_seqs = 8192, 512
    widest = max(config.intermediate_size, config.qkv_features, 8 * config.moe_intermediate_size)
    besides = dtype.itemsize * (12 * max_tokens * widest + 4 * max_seqs * config.vocab_size)
    room = int(0.9 * free) - model.weight_bytes - besides - 2 * 2**30
    tokens = min(MOST_CACHE_TOKENS, room // model.kv_bytes_per_token)
    if tokens < 2 * max_tokens:
        gib = 2**30
        raise CalibrationError(
            f"out of memory: {setting.name} has {model.weight_bytes / gib:.1f} GiB of "
            f"weights in {setting.dtype}, {device_name(device)} has "
            f"{free / gib:.1f} of {total / gib:.1f} GiB free; no room is left for a KV cache"
        )
    longest = min(131_072, config.max_positions, tokens)
    return Limits(max_tokens, max_seqs, longest, tokens)
