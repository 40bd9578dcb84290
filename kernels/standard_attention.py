"""Attention that materialises its scores:  S = scale · q kᵀ,  P = softmax(S + mask),  o = P v.

The baseline that FlashAttention is compared with: three kernels, and S and P go through device
memory, O(tokens²) bytes a head. One sequence, causal from its end: the last query sees every key.
Products accumulate in float32; S and P are stored in the working dtype, as unfused code does.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import (
    Backend,
    check_head_dim,
    float_types,
    require,
    require_backend,
    require_tensor,
)


@triton.jit(do_not_specialize=["num_queries"])
def _scores_kernel(
    q_ptr,  # [num_queries, NUM_HEADS, HEAD_DIM]
    k_ptr,  # [num_keys, NUM_HEADS / GROUP, HEAD_DIM]
    scores_ptr,  # [NUM_HEADS, num_queries, num_keys]
    num_queries,
    num_keys,
    scale,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    q_rows = queries.to(tl.int64) * NUM_HEADS + head
    k_rows = keys.to(tl.int64) * (NUM_HEADS // GROUP) + head // GROUP
    in_head = (dims < HEAD_DIM)[None, :]
    q_mask = (queries < num_queries)[:, None] & in_head
    k_mask = (keys < num_keys)[:, None] & in_head
    q = tl.load(q_ptr + q_rows[:, None] * HEAD_DIM + dims[None, :], mask=q_mask, other=0.0)
    k = tl.load(k_ptr + k_rows[:, None] * HEAD_DIM + dims[None, :], mask=k_mask, other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale  # [BLOCK_M, BLOCK_N]
    inside = (queries < num_queries)[:, None] & (keys < num_keys)[None, :]
    offsets = (head * num_queries + queries)[:, None] * num_keys + keys[None, :]
    tl.store(scores_ptr + offsets, scores.to(scores_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_queries"])
def _softmax_kernel(
    scores_ptr,  # [NUM_HEADS, num_queries, num_keys]; overwritten by the weights
    num_queries,
    num_keys,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    query = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * num_queries + query
    keys = tl.arange(0, BLOCK)
    position = num_keys - num_queries + query
    seen = keys <= position
    if WINDOW > 0:
        seen = seen & (keys > position - WINDOW)
    pointers = scores_ptr + row * num_keys + keys
    scores = tl.load(pointers, mask=seen, other=float("-inf")).to(tl.float32)
    weights = tl.math.exp2((scores - tl.max(scores, 0)) * 1.4426950408889634)
    weights = weights / tl.sum(weights, 0)
    tl.store(pointers, weights.to(scores_ptr.dtype.element_ty), mask=keys < num_keys)


@triton.jit(do_not_specialize=["num_queries"])
def _values_kernel(
    weights_ptr,  # [NUM_HEADS, num_queries, num_keys]
    v_ptr,  # [num_keys, NUM_HEADS / GROUP, HEAD_DIM]
    out_ptr,  # [num_queries, NUM_HEADS, HEAD_DIM]
    num_queries,
    num_keys,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    in_head = (dims < HEAD_DIM)[None, :]
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(0, num_keys, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = (queries < num_queries)[:, None] & (keys < num_keys)[None, :]
        offsets = (head * num_queries + queries)[:, None] * num_keys + keys[None, :]
        weights = tl.load(weights_ptr + offsets, mask=inside, other=0.0)
        v_rows = keys.to(tl.int64) * (NUM_HEADS // GROUP) + head // GROUP
        v_mask = (keys < num_keys)[:, None] & in_head
        v = tl.load(v_ptr + v_rows[:, None] * HEAD_DIM + dims[None, :], mask=v_mask, other=0.0)
        accumulator = tl.dot(weights, v, accumulator)
    out_rows = queries.to(tl.int64) * NUM_HEADS + head
    out_ptrs = out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :]
    out_mask = (queries < num_queries)[:, None] & in_head
    tl.store(out_ptrs, accumulator.to(out_ptr.dtype.element_ty), mask=out_mask)


def standard_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    backend: Backend = "triton",
) -> torch.Tensor:
    """Causal attention of one sequence through materialised scores.

    Args:
        q: [num_queries, num_heads, head_dim], the sequence's last tokens; bf16 or fp16, contiguous.
        k, v: [num_keys, num_kv_heads, head_dim], same dtype, contiguous; 1 to 32768 keys, at least
            as many as queries.
        scale: of the scores; 1/√head_dim by default.
        window: keys a query sees, itself included; 0 for all.
        backend: ``best`` is SDPA, which does not materialise scores.

    Returns: [num_queries, num_heads, head_dim], dtype of ``q``.
    Raises: ValueError on a wrong argument, before any launch.
    """
    require_backend(backend, q)
    dtypes = float_types() if backend == "triton" else None
    require_tensor("q", q, (None, None, None), dtypes=dtypes)
    num_queries, num_heads, head_dim = q.shape
    check_head_dim(head_dim)
    like = {"dtypes": (q.dtype,), "device": q.device}
    require_tensor("k", k, (None, None, head_dim), **like)
    num_keys, num_kv_heads, _ = k.shape
    require_tensor("v", v, (num_keys, num_kv_heads, head_dim), **like)
    grouped = num_kv_heads > 0 and num_heads % num_kv_heads == 0
    require(grouped, f"q: {num_heads} heads do not divide into {num_kv_heads} KV heads")
    fits = max(num_queries, 1) <= num_keys <= 32_768
    require(fits, f"k: at least {max(num_queries, 1)} keys and at most 32768, got {num_keys}")
    require(window >= 0, f"window: must not be negative, got {window}")
    scale = head_dim**-0.5 if scale is None else scale
    if backend != "triton":
        fused = backend == "best"
        return standard_attention_reference(q, k, v, scale=scale, window=window, fused=fused)
    out = torch.empty_like(q)
    if num_queries == 0:
        return out
    scores = torch.empty((num_heads, num_queries, num_keys), dtype=q.dtype, device=q.device)
    heads = {"NUM_HEADS": num_heads, "GROUP": num_heads // num_kv_heads, "HEAD_DIM": head_dim}
    block_m, block_n, block_d = 128, 64, triton.next_power_of_2(head_dim)
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d}
    tiles_m, tiles_n = triton.cdiv(num_queries, block_m), triton.cdiv(num_keys, block_n)
    _scores_kernel[(tiles_n, tiles_m, num_heads)](
        q, k, scores, num_queries, num_keys, scale, **heads, **blocks, num_warps=8, num_stages=2
    )
    block = triton.next_power_of_2(num_keys)
    _softmax_kernel[(num_queries, num_heads)](
        scores,
        num_queries,
        num_keys,
        WINDOW=window,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )
    _values_kernel[(tiles_m, num_heads)](
        scores, v, out, num_queries, num_keys, **heads, **blocks, num_warps=8, num_stages=3
    )
    return out


def standard_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
    fused: bool = False,
) -> torch.Tensor:
    """Plain PyTorch attention of one sequence, float32 (float64 for float64 inputs) inside.

    Args:
        q: [num_queries, num_heads, head_dim], the sequence's last tokens.
        k, v: [num_keys, num_kv_heads, head_dim].
        window: keys a query sees, itself included; 0 for all.
        softcap: c where scores s become c · tanh(s / c); 0 for none (Gemma 2).
        sinks: [num_heads], a score more in each softmax whose value is zero (gpt-oss).
        seen: [num_queries, num_keys] bool, which keys a query sees, in place of all up to it.
        fused: call SDPA in the working dtype instead, where there is neither softcap nor sinks.

    ``v`` may be narrower or wider than ``k``, as in latent attention.

    Returns: [num_queries, num_heads, v's head_dim]; zeros for a query that sees no key.
    """
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    group = num_heads // num_kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    causal = seen is None
    if seen is None:
        position = torch.arange(num_keys - num_queries, num_keys, device=q.device)[:, None]
        key = torch.arange(num_keys, device=q.device)[None, :]
        seen = key <= position
        if window > 0:
            seen &= key > position - window
    heads_first = (t.transpose(0, 1) for t in (q, k, v))
    if fused and softcap == 0.0 and sinks is None:
        q, k, v = (t[None] for t in heads_first)
        attend = torch.nn.functional.scaled_dot_product_attention
        if causal and num_queries == num_keys and window == 0:
            out = attend(q, k, v, is_causal=True, scale=scale, enable_gqa=group > 1)
        else:
            out = attend(q, k, v, attn_mask=seen, scale=scale, enable_gqa=group > 1)
        return out[0].transpose(0, 1)
    dtype = q.dtype
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k, v = (t.to(wide) for t in heads_first)
    k, v = (t.repeat_interleave(group, dim=0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * scale
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.to(wide)[:, None, None].expand(-1, num_queries, 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)[..., :num_keys]
    return (weights @ v).transpose(0, 1).to(dtype)
