"""Token embedding:  y[t] = s · E[id[t]], zero for a negative id (a padded row of a CUDA graph).

Gemma's s is √hidden; others have none.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import (
    INDEX_TYPES,
    Backend,
    float_types,
    require,
    require_backend,
    require_tensor,
)


@triton.jit(do_not_specialize_on_alignment=["ids_ptr"])
def _embedding_kernel(
    ids_ptr,  # [num_tokens]
    weight_ptr,  # [vocab_size, hidden]
    y_ptr,  # [num_tokens, hidden]
    vocab_size,
    scale,
    hidden: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids_ptr + token).to(tl.int64)
    known = (row >= 0) & (row < vocab_size)
    inside = columns < hidden
    value = tl.load(weight_ptr + row * hidden + columns, mask=inside & known, other=0.0)
    if SCALED:
        value = (value.to(tl.float32) * scale).to(value.dtype)
    tl.store(y_ptr + token * hidden + columns, value, mask=inside)


def embedding(
    ids: torch.Tensor,
    weight: torch.Tensor,
    *,
    scale: float = 1.0,
    backend: Backend = "triton",
) -> torch.Tensor:
    """Rows of ``weight`` by token id.

    Args:
        ids: [num_tokens] int32/int64. An id outside the vocabulary gives a row of zeros.
        weight: [vocab_size, hidden], bf16 or fp16, contiguous.
        scale: of every row; the product is rounded once.
        backend: ``best`` is torch's ``embedding``, which refuses ids outside the vocabulary.

    Returns: [num_tokens, hidden], dtype of ``weight``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, weight)
    dtypes = float_types() if backend == "triton" else None
    require_tensor("weight", weight, (None, None), dtypes=dtypes)
    require_tensor("ids", ids, (None,), dtypes=INDEX_TYPES, device=weight.device)
    vocab_size, hidden = weight.shape
    require(vocab_size > 0 and hidden > 0, f"weight: must not be empty, got {[*weight.shape]}")
    if backend == "torch":
        return embedding_reference(ids, weight, scale)
    if backend == "best":
        y = torch.nn.functional.embedding(ids, weight)
        return y if scale == 1.0 else y * scale
    y = torch.empty((ids.shape[0], hidden), dtype=weight.dtype, device=weight.device)
    if y.numel() == 0:
        return y
    block = min(4096, triton.next_power_of_2(hidden))
    _embedding_kernel[(ids.shape[0], triton.cdiv(hidden, block))](
        ids, weight, y, vocab_size, scale, hidden,
        SCALED=scale != 1.0, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return y


def embedding_reference(
    ids: torch.Tensor, weight: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """The same in plain PyTorch."""
    known = (ids >= 0) & (ids < weight.shape[0])
    rows = weight[torch.where(known, ids, 0).long()]
    rows = rows if scale == 1.0 else rows * scale
    return torch.where(known[:, None], rows, torch.zeros_like(rows))
