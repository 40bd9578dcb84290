"""Rotary embedding and the KV-cache write in one pass over the packed projection.

    q ← rotate(norm(q)),  K[slot] ← rotate(norm(k)),  V[slot] ← v

where rotate pairs element i with i + head_dim/2 (the halves convention of Llama and Qwen) and norm
is the optional per-head RMSNorm of Qwen3. Each of q, k and v is read once and written once;
separate kernels for norm, rotation and write would move about twice the bytes. Products are in
float32. A float8 cache holds k and v divided by a scale each, clamped to its largest number.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import (
    HALF_TYPES,
    INDEX_TYPES,
    Backend,
    check_head_dim,
    float_types,
    require,
    require_backend,
    require_heads,
    require_tensor,
)
from kernels.paged_cache import FLOAT8, cache_types
from kernels.rms_norm import rms_norm_reference
from kernels.rotary import rotate


@triton.jit
def _rotated_halves(
    x_ptr,
    offsets,  # [BLOCK_HEADS, BLOCK_HALF], of the first half
    inside,
    columns,  # [BLOCK_HALF]
    cosine,
    sine,
    weight_ptr,
    eps,
    HEAD_DIM: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    first = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + offsets + HALF, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        mean_square = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / HEAD_DIM
        inverse = tl.rsqrt(mean_square + eps)[:, None]  # [BLOCK_HEADS, 1]
        weight_1 = tl.load(weight_ptr + columns, mask=columns < HALF, other=0.0)
        weight_2 = tl.load(weight_ptr + columns + HALF, mask=columns < HALF, other=0.0)
        first = first * inverse * weight_1.to(tl.float32)[None, :]
        second = second * inverse * weight_2.to(tl.float32)[None, :]
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit
def _stored(x, inverse_scale, TYPE: tl.constexpr):
    """``x`` as a cache of this type holds it."""
    if tl.float8e4nv == TYPE:
        x = x.to(tl.float32) * inverse_scale
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(TYPE)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "positions_ptr"])
def _kv_cache_write_kernel(
    q_ptr,  # [num_tokens, NUM_HEADS, HEAD_DIM], token rows q_stride apart; rotated in place
    k_ptr,  # [num_tokens, NUM_KV_HEADS, HEAD_DIM]
    v_ptr,
    k_cache_ptr,  # [num_blocks, block_size, NUM_KV_HEADS, HEAD_DIM]
    v_cache_ptr,
    slots_ptr,  # [num_tokens]
    positions_ptr,  # [num_tokens]
    table_ptr,  # [max_positions, HEAD_DIM] float32
    q_weight_ptr,  # [HEAD_DIM]
    k_weight_ptr,
    q_stride,
    k_stride,
    v_stride,
    eps,
    inverse_k_scale,
    inverse_v_scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    UPDATE_K: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    Q_BLOCKS: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    head_block = tl.program_id(1)
    columns = tl.arange(0, BLOCK_HALF)
    heads_in_block = tl.arange(0, BLOCK_HEADS)
    row_ptr = table_ptr + tl.load(positions_ptr + token).to(tl.int64) * HEAD_DIM
    cosine = tl.load(row_ptr + columns, mask=columns < HALF, other=0.0)[None, :]
    sine = tl.load(row_ptr + columns + HALF, mask=columns < HALF, other=0.0)[None, :]
    if head_block < Q_BLOCKS:
        heads = head_block * BLOCK_HEADS + heads_in_block
        inside = (heads < NUM_HEADS)[:, None] & (columns < HALF)[None, :]
        offsets = token * q_stride + heads[:, None] * HEAD_DIM + columns[None, :]
        first, second = _rotated_halves(
            q_ptr, offsets, inside, columns, cosine, sine, q_weight_ptr, eps, HEAD_DIM, HAS_NORM
        )
        q_type = q_ptr.dtype.element_ty
        tl.store(q_ptr + offsets, first.to(q_type), mask=inside)
        tl.store(q_ptr + offsets + HALF, second.to(q_type), mask=inside)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        heads = (head_block - Q_BLOCKS) * BLOCK_HEADS + heads_in_block
        inside = (heads < NUM_KV_HEADS)[:, None] & (columns < HALF)[None, :]
        in_token = heads[:, None] * HEAD_DIM + columns[None, :]  # [BLOCK_HEADS, BLOCK_HALF]
        v_1 = tl.load(v_ptr + token * v_stride + in_token, mask=inside, other=0.0)
        v_2 = tl.load(v_ptr + token * v_stride + in_token + HALF, mask=inside, other=0.0)
        offsets = token * k_stride + in_token
        first, second = _rotated_halves(
            k_ptr, offsets, inside, columns, cosine, sine, k_weight_ptr, eps, HEAD_DIM, HAS_NORM
        )
        k_1, k_2 = first.to(k_ptr.dtype.element_ty), second.to(k_ptr.dtype.element_ty)
        if UPDATE_K:
            tl.store(k_ptr + offsets, k_1, mask=inside)
            tl.store(k_ptr + offsets + HALF, k_2, mask=inside)
        written = inside & (slot >= 0)
        in_cache = slot * (NUM_KV_HEADS * HEAD_DIM) + in_token
        TYPE: tl.constexpr = k_cache_ptr.dtype.element_ty
        k_1, k_2 = _stored(k_1, inverse_k_scale, TYPE), _stored(k_2, inverse_k_scale, TYPE)
        v_1, v_2 = _stored(v_1, inverse_v_scale, TYPE), _stored(v_2, inverse_v_scale, TYPE)
        tl.store(k_cache_ptr + in_cache, k_1, mask=written)
        tl.store(k_cache_ptr + in_cache + HALF, k_2, mask=written)
        tl.store(v_cache_ptr + in_cache, v_1, mask=written)
        tl.store(v_cache_ptr + in_cache + HALF, v_2, mask=written)


def kv_cache_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    update_k: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    backend: Backend = "triton",
) -> None:
    """Rotate ``q`` in place and write rotated ``k`` and ``v`` to their cache slots.

    Args:
        q: [num_tokens, num_heads, head_dim], bf16 or fp16; may be a slice of the packed projection.
        k, v: [num_tokens, num_kv_heads, head_dim], likewise.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], same dtype or
            float8_e4m3fn, contiguous.
        slot_mapping: [num_tokens] int32/int64, block · block_size + offset; negative rows (the
            padding of a CUDA graph) write nothing to the cache.
        positions: [num_tokens] int32/int64, each below ``max_positions``.
        table: [max_positions, head_dim] float32, from ``rotary_table``.
        q_norm_weight, k_norm_weight: [head_dim], both or neither: the per-head RMSNorm of Qwen3;
            dtype of ``q`` or float32.
        update_k: also rotate ``k`` in place, for packed prefill attention, which reads it.
        k_scale, v_scale: what a float8 cache's keys and values are later multiplied by.
        backend: ``best`` is the reference: torch has no such kernel.

    Raises: ValueError on a wrong argument, before any launch.
    """
    require_backend(backend, q)
    allowed = float_types() if backend == "triton" else (*HALF_TYPES, torch.float32, torch.float64)
    require_heads("q", q, (None, None, None), dtypes=allowed)
    num_tokens, num_heads, head_dim = q.shape
    check_head_dim(head_dim)
    like = {"dtypes": (q.dtype,), "device": q.device}
    require_heads("k", k, (num_tokens, None, head_dim), **like)
    num_kv_heads = k.shape[1]
    require_heads("v", v, (num_tokens, num_kv_heads, head_dim), **like)
    cache_like = {"dtypes": cache_types(q), "device": q.device}
    require_tensor("k_cache", k_cache, (None, None, num_kv_heads, head_dim), **cache_like)
    cache_like["dtypes"] = (k_cache.dtype,)
    require_tensor("v_cache", v_cache, tuple(k_cache.shape), **cache_like)
    require(k_scale > 0 and v_scale > 0, f"scales: must be positive, got {k_scale}, {v_scale}")
    scaled = k_cache.dtype == FLOAT8 or (k_scale, v_scale) == (1.0, 1.0)
    require(scaled, f"k_scale, v_scale: only of a float8 cache, this one is {k_cache.dtype}")
    index = {"dtypes": INDEX_TYPES, "device": q.device}
    require_tensor("slot_mapping", slot_mapping, (num_tokens,), **index)
    require_tensor("positions", positions, (num_tokens,), **index)
    require_tensor("table", table, (None, head_dim), dtypes=(torch.float32,), device=q.device)
    both = (q_norm_weight is None) == (k_norm_weight is None)
    require(both, "q_norm_weight and k_norm_weight: give both or neither")
    if q_norm_weight is not None and k_norm_weight is not None:
        like["dtypes"] = (q.dtype, torch.float32)
        require_tensor("q_norm_weight", q_norm_weight, (head_dim,), **like)
        require_tensor("k_norm_weight", k_norm_weight, (head_dim,), **like)
    if backend != "triton":
        kv_cache_write_reference(
            q, k, v, k_cache=k_cache, v_cache=v_cache, slot_mapping=slot_mapping,
            positions=positions, table=table, q_norm_weight=q_norm_weight,
            k_norm_weight=k_norm_weight, eps=eps, update_k=update_k, k_scale=k_scale,
            v_scale=v_scale,
        )  # fmt: skip
        return
    if num_tokens == 0:
        return
    # 32 heads of 128 are 8 KiB: four 16-byte loads a thread in flight with four warps.
    block_heads = min(32, triton.next_power_of_2(num_heads))
    blocks = triton.cdiv(num_heads, block_heads) + triton.cdiv(num_kv_heads, block_heads)
    _kv_cache_write_kernel[(num_tokens, blocks)](
        q,
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        positions,
        table,
        table if q_norm_weight is None else q_norm_weight,
        table if k_norm_weight is None else k_norm_weight,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        eps,
        1.0 / k_scale,
        1.0 / v_scale,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HAS_NORM=q_norm_weight is not None,
        UPDATE_K=update_k,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        num_warps=4,
    )


def kv_cache_write_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    update_k: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """The same in plain PyTorch, float32 (float64 for float64 inputs) inside."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = table[positions.long()]
    q_wide, k_wide = q.to(wide), k.to(wide)
    if q_norm_weight is not None and k_norm_weight is not None:
        q_wide = rms_norm_reference(q_wide, q_norm_weight, eps=eps)
        k_wide = rms_norm_reference(k_wide, k_norm_weight, eps=eps)
    q.copy_(rotate(q_wide, rows))
    k_rotated = rotate(k_wide, rows).to(k.dtype)
    if update_k:
        k.copy_(k_rotated)
    written = slot_mapping >= 0
    slots = slot_mapping[written].long()
    for cache, new, scale in ((k_cache, k_rotated, k_scale), (v_cache, v, v_scale)):
        stored = new[written]
        if cache.dtype == FLOAT8:
            stored = (stored.to(wide) / scale).clamp(-448.0, 448.0).to(FLOAT8)
        # Indexed by bytes: torch writes no float8 through an index everywhere.
        byte = torch.uint8 if cache.dtype == FLOAT8 else cache.dtype
        cache.view(byte).flatten(0, 1)[slots] = stored.view(byte)
