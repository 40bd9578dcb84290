"""What every launcher checks before it launches: shapes, dtypes, devices, layout, backend."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from kernels import gpu

Backend = Literal["triton", "torch", "best"]
"""``triton``: our kernel. ``torch``: the plain reference, on any device. ``best``: torch's own
fastest (SDPA, cuBLAS), or the reference where torch has nothing better."""
LinearBackend = Backend | Literal["fastest"]
"""``fastest``: ``triton`` or ``best``, whichever is quicker (`kernels.linear.fastest_backend`)."""

HALF_TYPES = (torch.bfloat16, torch.float16)
INDEX_TYPES = (torch.int32, torch.int64)
HEAD_DIMS = (64, 80, 96, 128, 256)  # of attention; tiles are the next power of two wide


def float_types() -> tuple[torch.dtype, ...]:
    """Activation dtypes that kernels accept: bf16 and fp16, and fp32 in the interpreter only."""
    return (*HALF_TYPES, torch.float32) if gpu.INTERPRETED else HALF_TYPES


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def require_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int | None, ...],
    *,
    dtypes: tuple[torch.dtype, ...] | None = None,
    device: torch.device | None = None,
    contiguous: bool = True,
) -> None:
    """Raise ``ValueError`` unless ``tensor`` has this shape (None: any), dtype, device, layout."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name}: a tensor is needed, got {type(tensor).__name__}")
    given = tuple(tensor.shape)
    fits = len(given) == len(shape) and all(
        wanted is None or wanted == size for wanted, size in zip(shape, given, strict=True)
    )
    if not fits:
        wanted_text = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape [{wanted_text}] is needed, got {list(given)}")
    if dtypes is not None and tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name}: dtype must be one of {allowed}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: must be on {device}, got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: must be contiguous, got strides {tuple(tensor.stride())}")


def require_heads(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int | None, int | None, int | None],
    *,
    dtypes: tuple[torch.dtype, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """As ``require_tensor`` for ``[tokens, heads, head_dim]`` whose token rows may lie apart.

    Such a tensor is a slice of the packed query-key-value projection: heads and head_dim are
    contiguous, the token stride is free.
    """
    require_tensor(name, tensor, shape, dtypes=dtypes, device=device, contiguous=False)
    packed = tensor.stride(2) == 1 and (tensor.shape[1] == 1 or tensor.stride(1) == tensor.shape[2])
    if not packed or tensor.stride(0) < tensor.shape[1] * tensor.shape[2]:
        raise ValueError(
            f"{name}: heads and head_dim must be contiguous, got strides {tuple(tensor.stride())}"
        )


def require_backend(backend: str, tensor: torch.Tensor) -> None:
    """Raise ``ValueError`` for an unknown backend, or for ``triton`` where it cannot run."""
    if backend not in get_args(Backend):
        allowed = ", ".join(get_args(Backend))
        raise ValueError(f"backend: must be one of {allowed}, got {backend!r}")
    if backend == "triton" and not gpu.runs_triton(tensor):
        raise ValueError(
            f"backend 'triton' needs CUDA tensors (or TRITON_INTERPRET=1), got {tensor.device}"
        )


def check_head_dim(head_dim: int) -> None:
    """Raise ``ValueError`` unless ``head_dim`` is one that attention kernels are compiled for."""
    allowed = ", ".join(map(str, HEAD_DIMS))
    require(head_dim in HEAD_DIMS, f"head_dim: must be one of {allowed}, got {head_dim}")


def check_softcap_and_sinks(
    softcap: float, sinks: torch.Tensor | None, *, q: torch.Tensor, num_heads: int
) -> None:
    """Raise ``ValueError`` unless they are what attention of ``num_heads`` query heads takes."""
    require(softcap >= 0, f"softcap: must not be negative, got {softcap}")
    if sinks is not None:
        dtypes = (q.dtype, torch.float32)
        require_tensor("sinks", sinks, (num_heads,), dtypes=dtypes, device=q.device)
