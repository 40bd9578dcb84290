"""Products of float8 operands:  y = (s_x ∘ x₈) (s_w ∘ W₈)ᵀ  with x₈ = x / s_x rounded to e4m3.

Scales as checkpoints have them: one a tensor, one a channel (a row of W) and token, or one a block
of 128 × 128 of W and 128 columns of a token (DeepSeek-V3, technical report, section 3.3.2). The
first two are factors of the finished sum; the third multiplies every 128 columns' partial sum,
which then adds to the float32 accumulator. Activations are quantised just before the product, by
their largest magnitude.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels import gpu
from kernels.checks import Backend, float_types, require, require_backend, require_tensor
from kernels.linear import LinearTiles, launch_linear
from kernels.paged_cache import FLOAT8

LARGEST = 448.0  # finite number of e4m3
BLOCK = 128  # rows and columns that share a scale


@triton.jit
def _quantize_kernel(
    x_ptr,  # [num_tokens, columns]
    y_ptr,  # [num_tokens, columns] float8
    scales_ptr,  # [num_tokens, columns / GROUP] float32
    columns,
    groups,
    GROUP: tl.constexpr,  # columns that share a scale; a power of two, or at least a whole row
):
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    places = group * GROUP + tl.arange(0, GROUP)
    inside = places < columns
    x = tl.load(x_ptr + token * columns + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 448.0
    y = tl.minimum(tl.maximum(x / scale, -448.0), 448.0).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + token * columns + places, y, mask=inside)
    tl.store(scales_ptr + token * groups + group, scale)


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """A weight in float8 and what its numbers are multiplied by.

    values: [out_features, in_features] float8_e4m3fn.
    scales: float32: [1] (a tensor), [out_features] (a channel), or
        [⌈out_features / 128⌉, ⌈in_features / 128⌉] (a block).
    """

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def by_block(self) -> bool:
        return len(self.scales.shape) == 2

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def numel(self) -> int:
        """Of the values."""
        return int(self.values.numel())

    def widened(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight it stands for: [out_features, in_features]."""
        rows, columns = self.shape
        if self.by_block:
            scales = self.scales.repeat_interleave(BLOCK, 0)[:rows]
            scales = scales.repeat_interleave(BLOCK, 1)[:, :columns]
        else:
            scales = self.scales[:, None]
        return (self.values.to(scales.dtype) * scales).to(dtype)


def stacked(parts: list[Float8Weight]) -> Float8Weight:
    """Weights of the same depth as one, their rows one after another.

    Raises: ValueError where blocks of 128 rows would straddle two of them.
    """
    values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(FLOAT8)
    if parts[0].by_block:
        whole = all(part.shape[0] % BLOCK == 0 for part in parts[:-1])
        require(whole, f"float8: rows to stack must be multiples of {BLOCK}")
        return Float8Weight(values, torch.cat([part.scales for part in parts]))
    scales = [part.scales.expand(part.shape[0]) for part in parts]
    return Float8Weight(values, torch.cat(scales))


def quantize(
    x: torch.Tensor, *, group: int = 0, backend: Backend = "triton"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float8 numbers and their scales, by the largest magnitude of each row or group of columns.

    Args:
        x: [num_tokens, columns], bf16 or fp16, contiguous; at most 65536 columns.
        group: columns that share a scale, a power of two; 0 for a whole row.

    Returns: [num_tokens, columns] float8_e4m3fn and float32 scales, [num_tokens] or
    [num_tokens, ⌈columns / group⌉]. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    num_tokens, columns = x.shape
    require(0 < columns <= 65_536, f"x: 1 to 65536 columns, got {columns}")
    require(group & (group - 1) == 0, f"group: must be a power of two, got {group}")
    groups = triton.cdiv(columns, group) if group else 1
    if backend != "triton":
        width = group or columns
        padded = torch.nn.functional.pad(x.float(), (0, groups * width - columns))
        grouped = padded.view(num_tokens, groups, width)
        scales = grouped.abs().amax(-1).clamp(min=1e-12) / LARGEST
        values = (grouped / scales[..., None]).clamp(-LARGEST, LARGEST).to(FLOAT8)
        values = values.view(torch.uint8).view(num_tokens, -1)[:, :columns].contiguous()
        return values.view(FLOAT8), scales if group else scales[:, 0]
    values = torch.empty((num_tokens, columns), dtype=FLOAT8, device=x.device)
    scales = torch.empty((num_tokens, groups), dtype=torch.float32, device=x.device)
    if num_tokens:
        width = group or triton.next_power_of_2(columns)
        _quantize_kernel[(num_tokens, groups)](
            x, values, scales, columns, groups, GROUP=width, num_warps=min(8, max(1, width // 512))
        )
    return values, scales if group else scales.view(num_tokens)


def quantize_weight(weight: torch.Tensor, *, kind: str = "channel") -> Float8Weight:
    """A weight rounded to float8, with scales a ``tensor``, a ``channel`` or a ``block``."""
    require(kind in ("tensor", "channel", "block"), f"kind: tensor, channel or block, got {kind!r}")
    wide = weight.float()
    rows, columns = wide.shape
    if kind != "block":
        largest = wide.abs().amax(-1) if kind == "channel" else wide.abs().max().view(1)
        scales = largest.clamp(min=1e-12) / LARGEST
        return Float8Weight((wide / scales[:, None]).to(FLOAT8), scales)
    tall, broad = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = torch.nn.functional.pad(wide, (0, broad * BLOCK - columns, 0, tall * BLOCK - rows))
    blocks = padded.view(tall, BLOCK, broad, BLOCK)
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / LARGEST
    values = (blocks / scales[:, None, :, None]).view(tall * BLOCK, -1)[:rows, :columns]
    return Float8Weight(values.contiguous().to(FLOAT8), scales)


def float8_linear(
    x: torch.Tensor,
    weight: Float8Weight,
    *,
    bias: torch.Tensor | None = None,
    tiles: LinearTiles | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """``x @ weight.T + bias`` in float8, the activations quantised a token (and block) at a time.

    Args:
        x: [num_tokens, in_features], bf16 or fp16, contiguous; in_features a multiple of 16.
        weight: in float8; sm_89 or later.
        bias: [out_features], dtype of ``x``.
        tiles: for tuning; blocks of K must be 128 where scales are by block.
        backend: ``torch`` and ``best`` multiply the same rounded operands in float32.

    Returns: [num_tokens, out_features], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    out_features, in_features = weight.shape
    like = {"device": x.device}
    require_tensor("weight", weight.values, (None, x.shape[1]), dtypes=(FLOAT8,), **like)
    sizes = {"block": (-(-out_features // BLOCK), -(-in_features // BLOCK))}
    shape = sizes["block"] if weight.by_block else (weight.scales.numel(),)
    one = weight.by_block or shape[0] in (1, out_features)
    require(one, f"scales: 1 or {out_features} are needed, got {shape[0]}")
    require_tensor("scales", weight.scales, shape, dtypes=(torch.float32,), **like)
    if bias is not None:
        require_tensor("bias", bias, (out_features,), dtypes=(x.dtype,), **like)
    group = BLOCK if weight.by_block else 0
    values, scales = quantize(x, group=group, backend=backend)
    if backend != "triton":
        return float8_linear_reference(values, scales, weight, bias=bias, dtype=x.dtype)
    require(gpu.gpu_of(x).has_float8, "float8: needs sm_89 or later")
    fits = tiles is None or not weight.by_block or (tiles.block_k == BLOCK >= tiles.block_n)
    require(fits, f"tiles: block_k must be {BLOCK} and block_n at most that, got {tiles}")
    of_weight = weight.scales
    if not weight.by_block and of_weight.numel() == 1:
        of_weight = of_weight.expand(out_features).contiguous()
    return launch_linear(
        values, weight.values, bias=bias, tiles=tiles, dtype=x.dtype,
        scales=(scales, of_weight), by_block=weight.by_block,
    )  # fmt: skip


def float8_linear_reference(
    values: torch.Tensor,
    scales: torch.Tensor,
    weight: Float8Weight,
    *,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The product of quantised operands in plain PyTorch, in float32."""
    columns = values.shape[1]
    of_x = scales.repeat_interleave(BLOCK, 1)[:, :columns] if weight.by_block else scales[:, None]
    y = (values.float() * of_x) @ weight.widened().T
    return (y if bias is None else y + bias.float()).to(dtype)
