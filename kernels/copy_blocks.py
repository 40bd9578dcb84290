"""Copy whole blocks within a paged KV cache (copy-on-write):  C[layer, :, to] ← C[layer, :, from].

The cache of all layers is one tensor, so that a single launch copies a block in every layer. Pairs
must not overlap: no block is both source and target, and no block is a target twice.
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
    require,
    require_backend,
    require_tensor,
)

CACHE_TYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit(do_not_specialize_on_alignment=["pairs_ptr"])
def _copy_blocks_kernel(
    source_ptr,  # [planes, blocks, block_elements], plane_stride elements from plane to plane
    target_ptr,
    pairs_ptr,  # [num_pairs, 2]: source block, target block
    source_plane_stride,
    source_block_stride,
    target_plane_stride,
    target_block_stride,
    block_elements,
    BLOCK: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(2)
    source_block = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    target_block = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    if source_block < 0:
        return
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < block_elements
    source = source_ptr + plane * source_plane_stride + source_block * source_block_stride
    target = target_ptr + plane * target_plane_stride + target_block * target_block_stride
    tl.store(target + offsets, tl.load(source + offsets, mask=inside), mask=inside)


def launch_copy(source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor) -> None:
    """Copy blocks between two views [planes, blocks, elements] whose elements are contiguous."""
    planes, _, block_elements = source.shape
    block = min(8192, triton.next_power_of_2(block_elements))
    chunks = triton.cdiv(block_elements, block)
    if pairs.shape[0] == 0 or block_elements == 0:
        return
    _copy_blocks_kernel[(planes, chunks, pairs.shape[0])](
        source,
        target,
        pairs,
        source.stride(0),
        source.stride(1),
        target.stride(0),
        target.stride(1),
        block_elements,
        BLOCK=block,
        num_warps=8,
    )


def copy_blocks(
    kv_cache: torch.Tensor, pairs: torch.Tensor, *, backend: Backend = "triton"
) -> None:
    """Copy blocks of every layer's keys and values in place.

    Args:
        kv_cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        pairs: [num_pairs, 2] int32/int64 on the same device: source and target block. A negative
            source copies nothing (padding). At most 65535 pairs.
        backend: ``best`` is torch's indexed copy.

    Raises: ValueError on a wrong argument, before any launch.
    """
    require_backend(backend, kv_cache)
    require_tensor("kv_cache", kv_cache, (None, 2, None, None, None, None), dtypes=CACHE_TYPES)
    require_tensor("pairs", pairs, (None, 2), dtypes=INDEX_TYPES, device=kv_cache.device)
    require(pairs.shape[0] <= 65_535, f"pairs: at most 65535, got {pairs.shape[0]}")
    planes = kv_cache.flatten(3).flatten(0, 1)
    if backend == "triton":
        launch_copy(planes, planes, pairs)
    else:
        copy_blocks_reference(kv_cache, pairs)


def copy_blocks_reference(kv_cache: torch.Tensor, pairs: torch.Tensor) -> None:
    """The same in plain PyTorch."""
    used = pairs[pairs[:, 0] >= 0].long()
    kv_cache[:, :, used[:, 1]] = kv_cache[:, :, used[:, 0]]
