"""Rotary position embedding tables:  angle(p, i) = p · θ^(−2i/d), one row a position.

Su et al., RoFormer, 2021. ``llama3`` scaling stretches long wavelengths as Llama 3.1 does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def rotary_table(
    head_dim: int,
    max_positions: int,
    *,
    theta: float = 10_000.0,
    scaling: Mapping[str, object] | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Cosines and sines: [max_positions, head_dim] float32, cosines in the first half of a row.

    Args:
        theta: the base, ``rope_theta`` in a Hugging Face configuration.
        scaling: its ``rope_scaling``; types ``llama3``, ``linear`` and ``default`` are known.

    Raises: ValueError for an odd ``head_dim`` or another scaling type.
    """
    if head_dim <= 0 or head_dim % 2:
        raise ValueError(f"head_dim: must be even and positive, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = _scaled(frequencies, scaling)
    angles = torch.arange(max_positions, dtype=torch.float64)[:, None] * frequencies[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(device=device, dtype=torch.float32)


def _scaled(frequencies: torch.Tensor, scaling: Mapping[str, object]) -> torch.Tensor:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    factor = float(str(scaling["factor"]))
    if kind == "linear":
        return frequencies / factor
    if kind != "llama3":
        raise ValueError(f"rope_scaling: type must be llama3, linear or default, got {kind!r}")
    original = float(str(scaling["original_max_position_embeddings"]))
    low, high = (float(str(scaling[f"{end}_freq_factor"])) for end in ("low", "high"))
    # Wavelengths fit `turns` times into the original context: many turns keep their frequency,
    # few are stretched by `factor`, between the two ends the mix is linear in the turns.
    turns = original * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def rotate(x: torch.Tensor, cosine_sine: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` [tokens, heads, head_dim] by its tokens' rows [tokens, head_dim], plainly."""
    half = x.shape[-1] // 2
    cosine, sine = cosine_sine[:, None, :half].to(x.dtype), cosine_sine[:, None, half:].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
