"""Rotary position embedding tables:  angle(p, i) = p · θ^(−2i/d), one row a position.

Su et al., RoFormer, 2021. ``llama3`` scaling stretches long wavelengths as Llama 3.1 does,
``yarn`` as gpt-oss and DeepSeek do.
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
        scaling: its ``rope_scaling``; types ``llama3``, ``yarn``, ``linear`` and ``default``
            are known.

    Raises: ValueError for an odd ``head_dim`` or another scaling type.
    """
    if head_dim <= 0 or head_dim % 2:
        raise ValueError(f"head_dim: must be even and positive, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies, attention_factor = theta**-exponents, 1.0
    if scaling is not None:
        frequencies, attention_factor = _scaled(frequencies, scaling, theta)
    angles = torch.arange(max_positions, dtype=torch.float64)[:, None] * frequencies[None, :]
    rows = torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor
    return rows.to(device=device, dtype=torch.float32)


def _scaled(
    frequencies: torch.Tensor, scaling: Mapping[str, object], theta: float
) -> tuple[torch.Tensor, float]:
    """Scaled frequencies, and the factor of cosines and sines."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies, 1.0
    factor = float(str(scaling["factor"]))
    if kind == "linear":
        return frequencies / factor, 1.0
    if kind == "yarn":
        return _yarn(frequencies, scaling, theta, factor)
    if kind != "llama3":
        raise ValueError(
            f"rope_scaling: type must be default, linear, llama3 or yarn, got {kind!r}"
        )
    original = int(str(scaling["original_max_position_embeddings"]))
    low, high = (float(str(scaling[f"{end}_freq_factor"])) for end in ("low", "high"))
    # Wavelengths fit `turns` times into the original context: many turns keep their frequency,
    # few are stretched by `factor`, between the two ends the mix is linear in the turns.
    turns = original * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor), 1.0


def _yarn(
    frequencies: torch.Tensor, scaling: Mapping[str, object], theta: float, factor: float
) -> tuple[torch.Tensor, float]:
    """Peng et al., YaRN, 2023: the mix is linear in the element's index, not in its turns."""

    def number(name: str, default: float) -> float:
        value = scaling.get(name)
        return default if value is None else float(str(value))

    def magnitude(of: float) -> float:
        return 0.1 * of * math.log(factor) + 1.0 if factor > 1 else 1.0

    half = len(frequencies)
    original = number("original_max_position_embeddings", 0.0)
    if original <= 0:
        raise ValueError("rope_scaling: yarn needs original_max_position_embeddings")

    def element(turns: float) -> float:
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = element(number("beta_fast", 32.0)), element(number("beta_slow", 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    places = torch.arange(half, dtype=torch.float64)
    stretched = ((places - low) / max(high - low, 1e-3)).clamp(0, 1)
    mixed = frequencies * (1 - stretched) + frequencies / factor * stretched
    of_all, own = number("mscale_all_dim", 0.0), number("mscale", 0.0)
    ratio = magnitude(own) / magnitude(of_all) if of_all and own else magnitude(1.0)
    return mixed, number("attention_factor", ratio)


def rotate(x: torch.Tensor, cosine_sine: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` [tokens, heads, head_dim] by its tokens' rows [tokens, head_dim], plainly."""
    half = x.shape[-1] // 2
    cosine, sine = cosine_sine[:, None, :half].to(x.dtype), cosine_sine[:, None, half:].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
