"""How far flash and standard attention lie from exact attention in low precision.

    deviation = ‖o − o₆₄‖ / ‖o₆₄‖,  o₆₄ computed in float64 from the same rounded q, k, v

(the largest single difference says less: it comes from the first rows, which average few values).

Golden et al., "Is Flash Attention Stable?", 2024, find flash attention about ten times further off
than the baseline in bf16, forward pass, which they set against the effect of low-precision weights.
Their flash attention rounds every intermediate. Here each method is emulated in plain PyTorch with
its roundings explicit, so that both readings can be told apart:

- ``standard``: scores and softmax weights are rounded to the dtype, statistics are float32.
- ``flash``: what our kernel does: statistics and accumulator float32, only weights are rounded.
- ``flash_rounded``: statistics and accumulator are rounded to the dtype after every block.
- ``weights``: exact attention of a model whose projection weights were rounded to the dtype,
  against the same model unrounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from kernels.prefill_attention import prefill_attention
from kernels.standard_attention import standard_attention, standard_attention_reference


@dataclass(frozen=True, slots=True)
class Deviation:
    """Relative deviations from exact attention, for one length and flash block size."""

    tokens: int
    block_tokens: int
    standard: float
    flash: float
    flash_rounded: float
    weights: float

    @property
    def flash_ratio(self) -> float:
        """Flash with float32 statistics over the standard baseline."""
        return self.flash / self.standard

    @property
    def rounded_ratio(self) -> float:
        """Flash with every intermediate rounded over the standard baseline."""
        return self.flash_rounded / self.standard


def emulated_standard(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Causal attention of [..., tokens, head_dim]; scores and weights are rounded to ``dtype``."""
    scores = _rounded(q.float() @ k.float().mT * q.shape[-1] ** -0.5, dtype)
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return _rounded(_rounded(weights, dtype) @ v.float(), dtype)


def emulated_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dtype: torch.dtype,
    *,
    block_tokens: int,
    round_statistics: bool = False,
) -> torch.Tensor:
    """Causal attention of [..., tokens, head_dim] with the online softmax, block after block.

    Args:
        block_tokens: keys a block.
        round_statistics: round scores, running maximum, sum and accumulator to ``dtype`` too.
    """
    tokens, head_dim = q.shape[-2:]
    kept = dtype if round_statistics else torch.float32
    position = torch.arange(tokens, device=q.device)[:, None]
    row_max = torch.full((*q.shape[:-1], 1), float("-inf"), device=q.device)
    row_sum = torch.zeros((*q.shape[:-1], 1), device=q.device)
    accumulator = torch.zeros((*q.shape[:-1], v.shape[-1]), device=q.device)
    for first in range(0, tokens, block_tokens):
        keys = slice(first, min(first + block_tokens, tokens))
        scores = _rounded(q.float() @ k[..., keys, :].float().mT * head_dim**-0.5, kept)
        hidden = torch.arange(keys.start, keys.stop, device=q.device)[None, :] > position
        scores = scores.masked_fill(hidden, float("-inf"))
        new_max = torch.maximum(row_max, scores.amax(dim=-1, keepdim=True))
        weights = _rounded(torch.exp(scores - new_max), kept)
        shrink = _rounded(torch.exp(row_max - new_max), kept)
        row_sum = _rounded(row_sum * shrink + weights.sum(dim=-1, keepdim=True), kept)
        added = _rounded(weights, dtype) @ v[..., keys, :].float()
        accumulator = _rounded(accumulator * shrink + added, kept)
        row_max = new_max
    return _rounded(accumulator / row_sum, dtype)


def deviations(
    lengths: Iterable[int],
    block_sizes: Iterable[int],
    *,
    generator: torch.Generator,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Deviation]:
    """Emulate every method on one random head per length.

    Args:
        lengths: sequence lengths, tokens.
        block_sizes: flash block sizes, keys.
        generator: on the CPU; hidden states and projections are standard normal, scaled.
        dtype: the low precision, bf16 or fp16.
    """
    blocks = list(block_sizes)
    found = []
    for tokens in lengths:
        hidden = torch.randn((tokens, head_dim), generator=generator, dtype=torch.float64)
        shape = (3, head_dim, head_dim)
        projections = torch.randn(shape, generator=generator, dtype=torch.float64)
        projections *= head_dim**-0.5
        exact = _exact(*(hidden @ weight.T for weight in projections))
        rounded_projections = projections.to(dtype).double()
        with_rounded = _exact(*(hidden @ weight.T for weight in rounded_projections))
        q, k, v = ((hidden @ weight.T).to(dtype) for weight in projections)
        reference = _exact(q.double(), k.double(), v.double())
        standard = _deviation(emulated_standard(q, k, v, dtype), reference)
        for block_tokens in blocks:
            flash, flash_rounded = (
                emulated_flash(
                    q, k, v, dtype, block_tokens=block_tokens, round_statistics=round_statistics
                )
                for round_statistics in (False, True)
            )
            found.append(
                Deviation(
                    tokens=tokens,
                    block_tokens=block_tokens,
                    standard=standard,
                    flash=_deviation(flash, reference),
                    flash_rounded=_deviation(flash_rounded, reference),
                    weights=_deviation(with_rounded, exact),
                )
            )
    return found


def kernel_deviations(
    tokens: int,
    *,
    generator: torch.Generator,
    head_dim: int = 128,
    num_heads: int = 8,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[float, float]:
    """The same for the Triton kernels, on the generator's device: (standard, flash)."""
    shape = (tokens, num_heads, head_dim)
    draw = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    q, k, v = (torch.randn(shape, **draw).to(dtype) for _ in range(3))
    bounds = torch.tensor([0, tokens], device=generator.device)
    standard = standard_attention(q, k, v)
    flash = prefill_attention(q, k, v, cu_seqlens=bounds)
    worst_standard, worst_flash = 0.0, 0.0
    for head in range(num_heads):  # a head at a time: float64 scores are large
        one = slice(head, head + 1)
        reference = standard_attention_reference(*(t[:, one].double() for t in (q, k, v)))
        worst_standard = max(worst_standard, _deviation(standard[:, one], reference))
        worst_flash = max(worst_flash, _deviation(flash[:, one], reference))
    return worst_standard, worst_flash


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor if dtype == tensor.dtype else tensor.to(dtype).to(tensor.dtype)


def _exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return standard_attention_reference(q[:, None], k[:, None], v[:, None])[:, 0]


def _deviation(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.double() - reference).norm() / reference.norm())
