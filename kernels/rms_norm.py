"""RMSNorm, with the residual addition fused:  y = x / sqrt(mean(x²) + ε) · w.

With a residual r the sum s = x + r is normalised, and s, rounded to the stored dtype, is returned
as the next residual: one read of x and r and one write of y and s, where separate kernels would
read s again. Statistics and products are in float32. Zhang and Sennrich, NeurIPS 2019.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import Backend, float_types, require, require_backend, require_tensor


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,  # [num_rows, hidden]
    residual_ptr,  # [num_rows, hidden]; read and overwritten by the sum
    weight_ptr,  # [hidden]
    y_ptr,  # [num_rows, hidden]
    num_rows,
    hidden: tl.constexpr,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    columns = tl.arange(0, BLOCK_HIDDEN)  # [BLOCK_HIDDEN]
    inside = (rows < num_rows)[:, None] & (columns < hidden)[None, :]
    offsets = rows.to(tl.int64)[:, None] * hidden + columns[None, :]  # [BLOCK_ROWS, BLOCK_HIDDEN]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        stored = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + offsets, stored, mask=inside)
        x = stored.to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=columns < hidden, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / hidden + eps)  # [BLOCK_ROWS]
    y = x * inverse[:, None] * weight[None, :]
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    backend: Backend = "triton",
) -> torch.Tensor:
    """Normalise the rows of ``x``; with ``residual``, add it first and update it in place.

    Args:
        x: [num_rows, hidden], bf16 or fp16, contiguous. Not changed.
        weight: [hidden], same dtype or float32 (Gemma's 1 + w, which bf16 would round).
        residual: [num_rows, hidden], same dtype; becomes ``x + residual``.
        eps: added to the mean square.
        backend: ``best`` is torch's ``rms_norm``.

    Returns: [num_rows, hidden], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    num_rows, hidden = x.shape
    require(0 < hidden <= 65_536, f"x: hidden must be 1 to 65536, got {hidden}")
    like = {"dtypes": (x.dtype,), "device": x.device}
    dtypes = (x.dtype, torch.float32)
    require_tensor("weight", weight, (hidden,), dtypes=dtypes, device=x.device)
    if residual is not None:
        require_tensor("residual", residual, (num_rows, hidden), **like)
    if backend == "torch" or (backend == "best" and weight.dtype != x.dtype):
        return rms_norm_reference(x, weight, residual=residual, eps=eps)
    if backend == "best":
        total = x if residual is None else residual.add_(x)
        return torch.nn.functional.rms_norm(total, (hidden,), weight, eps)
    y = torch.empty_like(x)
    if num_rows == 0:
        return y
    block_hidden = triton.next_power_of_2(hidden)
    # 16 elements a thread: two 16-byte loads in flight each for x and residual.
    block_rows = max(1, 2048 // block_hidden)
    num_warps = min(16, max(4, block_rows * block_hidden // 512))
    _rms_norm_kernel[(triton.cdiv(num_rows, block_rows),)](
        x,
        y if residual is None else residual,
        weight,
        y,
        num_rows,
        hidden,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK_ROWS=block_rows,
        BLOCK_HIDDEN=block_hidden,
        num_warps=num_warps,
    )
    return y


def rms_norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """The same in plain PyTorch, float32 (float64 for float64 inputs) inside."""
    if residual is not None:
        residual.copy_(x.to(_wide(x)) + residual.to(_wide(x)))
        x = residual
    wide = x.to(_wide(x))
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse * weight.to(wide.dtype)).to(x.dtype)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
