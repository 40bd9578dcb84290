"""Weights in MXFP4, widened as they are loaded:  w = e2m1 · 2^(s − 127), s a byte a 32 elements.

OCP Microscaling Formats, 2023; gpt-oss stores its experts so, two elements a byte, the first in the
low half. No kernel multiplies in this format: the wide weight is what is kept.
"""

from __future__ import annotations

import torch

PARTS = ("blocks", "scales")  # of a tensor's name in a checkpoint
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def widened(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight of packed blocks.

    Args:
        blocks: [..., num_blocks, 16] uint8, 32 elements in each.
        scales: [..., num_blocks] uint8, exponents with a bias of 127.

    Returns: [..., num_blocks · 32] bf16, exact.
    """
    values = torch.tensor(
        [*_MAGNITUDES, *(-m for m in _MAGNITUDES)], dtype=torch.bfloat16, device=blocks.device
    )
    pairs = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).int()
    exponents = scales.to(torch.int32)[..., None] - 127
    return torch.ldexp(values[pairs], exponents).to(torch.bfloat16).flatten(-2)
