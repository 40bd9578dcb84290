"""Causal FlashAttention over packed sequences of any length:  o = softmax(scale · q kᵀ + mask) v.

Online softmax in log₂ space: with s the scores times scale · log₂ e, m their running row maximum,

    m' = max(m, max s),   l' = l · 2^(m − m') + Σ 2^(s − m'),   o' = o · 2^(m − m') + 2^(s − m') v

so scores never reach device memory (Dao, FlashAttention-2, 2023). Keys and values come either from
the paged cache, where earlier chunks and cached prefixes are (the new tokens' are written there
first), or, for sequences without a past, straight from the packed projection: one kernel, two ways
of finding a key's row.

The query heads that share a KV head form one tile with BLOCK_M / group query positions. Tiles are
counted on the device by a binary search of the cumulative lengths, so the grid is bounded by tensor
shapes alone and nothing synchronises. The longest tiles start first. Accumulation is in float32.
Soft-cap, sinks and a cache in float8 are as in decode attention.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import gpu
from kernels.checks import (
    INDEX_TYPES,
    Backend,
    check_head_dim,
    check_softcap_and_sinks,
    float_types,
    require,
    require_backend,
    require_heads,
    require_tensor,
)
from kernels.decode_attention import log2_scores
from kernels.paged_cache import gather_tokens, require_paged_cache
from kernels.standard_attention import standard_attention_reference

LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    accumulator,  # [BLOCK_M, BLOCK_D] float32
    row_max,  # [BLOCK_M]
    row_sum,  # [BLOCK_M]
    q,  # [BLOCK_M, BLOCK_D]
    position,  # [BLOCK_M], of each row's query in its sequence
    k_ptr,
    v_ptr,
    k_tiles,
    v_tiles,
    table_ptr,
    first_token,
    k_stride,
    v_stride,
    kv_head,
    scale_log2,
    first,
    end,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend to the keys [first, end), BLOCK_N at a time; unmasked ranges are whole tiles."""
    PAGED: tl.constexpr = KV_BLOCK > 0
    in_tile = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    blocks = in_tile
    if PAGED:
        # Carried one tile ahead, so that the next gather can be issued early.
        keys = first + in_tile
        blocks = tl.load(table_ptr + keys // KV_BLOCK, mask=keys < end, other=0)
    for start in tl.range(first, end, BLOCK_N):
        start = tl.multiple_of(start, BLOCK_N)
        keys = start + in_tile
        if TMA and not MASKED:
            row = (first_token + start).to(tl.int32)
            k = k_tiles.load([row, kv_head * HEAD_DIM])  # [BLOCK_N, BLOCK_D]
            v = v_tiles.load([row, kv_head * HEAD_DIM])
        else:
            if PAGED:
                slots = blocks.to(tl.int64) * KV_BLOCK + keys % KV_BLOCK
                k_rows = (slots * NUM_KV_HEADS + kv_head) * HEAD_DIM
                v_rows = k_rows
            else:
                tokens = first_token + keys
                k_rows = tokens * k_stride + kv_head * HEAD_DIM
                v_rows = tokens * v_stride + kv_head * HEAD_DIM
            k_ptrs = k_ptr + k_rows[:, None] + dims[None, :]
            v_ptrs = v_ptr + v_rows[:, None] + dims[None, :]
            if MASKED:
                loaded = (keys < end)[:, None] & (dims < HEAD_DIM)[None, :]
                k = tl.load(k_ptrs, mask=loaded, other=0.0)
                v = tl.load(v_ptrs, mask=loaded, other=0.0)
            elif BLOCK_D > HEAD_DIM:
                loaded = (dims < HEAD_DIM)[None, :]
                k = tl.load(k_ptrs, mask=loaded, other=0.0)
                v = tl.load(v_ptrs, mask=loaded, other=0.0)
            else:
                k = tl.load(k_ptrs)
                v = tl.load(v_ptrs)
            if PAGED:
                next_keys = keys + BLOCK_N
                blocks = tl.load(table_ptr + next_keys // KV_BLOCK, mask=next_keys < end, other=0)

        k, v = k.to(q.dtype), v.to(q.dtype)  # of a float8 cache
        scores = tl.dot(q, tl.trans(k))  # [BLOCK_M, BLOCK_N]
        if SOFTCAP > 0.0:
            scores = log2_scores(scores, scale_log2, SOFTCAP)
            to_log2 = 1.0
        else:
            to_log2 = scale_log2
        if MASKED:
            seen = (keys[None, :] <= position[:, None]) & (keys < end)[None, :]
            if WINDOW > 0:
                seen = seen & (keys[None, :] > position[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * to_log2)
        base = new_max
        if WINDOW > 0:  # a row may see nothing of the first tiles of its window
            base = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.math.exp2(scores * to_log2 - base[:, None])
        shrink = tl.math.exp2(row_max - base)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator)
        row_max = new_max
    return accumulator, row_max, row_sum


@triton.jit(
    do_not_specialize=["table_stride", "total_tokens", "num_seqs"],
    do_not_specialize_on_alignment=["cu_seqlens_ptr", "context_lens_ptr", "block_tables_ptr"],
)
def _prefill_attention_kernel(
    q_ptr,  # [total_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM], token rows q_stride apart
    k_ptr,  # paged: [num_blocks, KV_BLOCK, NUM_KV_HEADS, HEAD_DIM]; else [total_tokens, …]
    v_ptr,
    k_tiles,  # tensor descriptors of packed k and v where TMA, else unused
    v_tiles,
    sinks_ptr,  # [NUM_KV_HEADS * GROUP] where SINKS
    out_ptr,  # [total_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM]
    cu_seqlens_ptr,  # [num_seqs + 1]
    context_lens_ptr,  # [num_seqs]
    block_tables_ptr,  # [num_seqs, table_stride]
    q_stride,
    k_stride,
    v_stride,
    table_stride,
    total_tokens,
    num_seqs,
    scale_log2,
    v_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    num_tiles = tl.num_programs(0) // NUM_KV_HEADS
    tile = num_tiles - 1 - tl.program_id(0) // NUM_KV_HEADS  # late tiles see the most keys

    # The sequence whose tiles, numbered from cu_seqlens[s] // BLOCK_Q + s, hold this one; number
    # num_seqs stands for the padding rows after the last sequence.
    sequence = 0
    beyond = num_seqs + 1
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        if tl.load(cu_seqlens_ptr + middle).to(tl.int32) // BLOCK_Q + middle <= tile:
            sequence = middle
        else:
            beyond = middle
    first_token = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    first_query = (tile - first_token // BLOCK_Q - sequence).to(tl.int32) * BLOCK_Q
    is_padding = sequence == num_seqs
    if is_padding:
        num_queries = (total_tokens - first_token).to(tl.int32)
        context = num_queries
    else:
        next_token = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
        num_queries = (next_token - first_token).to(tl.int32)
        context = tl.load(context_lens_ptr + sequence).to(tl.int32)
    if first_query >= num_queries:
        return

    rows = tl.arange(0, BLOCK_M)  # query position major, head in group minor
    dims = tl.arange(0, BLOCK_D)
    query = first_query + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    row_used = (rows < BLOCK_Q * GROUP) & (query < num_queries)
    inside = row_used[:, None] & (dims < HEAD_DIM)[None, :]  # [BLOCK_M, BLOCK_D]
    token = first_token + query
    out_rows = (token * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
    out_ptrs = out_ptr + out_rows[:, None] + dims[None, :]
    if is_padding:
        zeros = tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty)
        tl.store(out_ptrs, zeros, mask=inside)
        return

    q_rows = token * q_stride + head * HEAD_DIM
    q = tl.load(q_ptr + q_rows[:, None] + dims[None, :], mask=inside, other=0.0)
    past = context - num_queries
    position = past + query
    table_ptr = block_tables_ptr + tl.cast(sequence, tl.int64) * table_stride
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=row_used, other=0.0).to(tl.float32)
        row_max = sink * 1.4426950408889634
        row_sum += 1.0

    end = tl.minimum(past + first_query + BLOCK_Q, context)
    if WINDOW > 0:
        masked_from = tl.maximum(past + first_query - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    else:
        masked_from = (past + first_query + 1) // BLOCK_N * BLOCK_N  # every row sees all before
        accumulator, row_max, row_sum = _attend(
            accumulator, row_max, row_sum, q, position, k_ptr, v_ptr, k_tiles, v_tiles, table_ptr,
            first_token, k_stride, v_stride, kv_head, scale_log2, 0, masked_from,
            NUM_KV_HEADS, HEAD_DIM, KV_BLOCK, WINDOW, SOFTCAP, False, TMA, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    accumulator, row_max, row_sum = _attend(
        accumulator, row_max, row_sum, q, position, k_ptr, v_ptr, k_tiles, v_tiles, table_ptr,
        first_token, k_stride, v_stride, kv_head, scale_log2, masked_from, end,
        NUM_KV_HEADS, HEAD_DIM, KV_BLOCK, WINDOW, SOFTCAP, True, TMA, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    result = accumulator * (v_scale / tl.where(row_sum > 0.0, row_sum, 1.0))[:, None]
    tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """Tile sizes of one launch: rows (positions × group), keys, warps, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tma: bool = False


# What a tuning run on a GPU tries, for each way of reading keys.
CANDIDATES = {
    "packed": (
        # Three stages: with two, every step of the loop waits for all that is in flight.
        PrefillTiles(128, 128, 8, 3),
        PrefillTiles(128, 128, 8, 3, tma=True),
        PrefillTiles(128, 64, 8, 3),
        PrefillTiles(128, 64, 8, 3, tma=True),
    ),
    "paged": (
        PrefillTiles(128, 64, 8, 4),
        PrefillTiles(128, 128, 8, 3),
        PrefillTiles(128, 64, 8, 3),
    ),
}


def choose_tiles(
    *, paged: bool, windowed: bool, head_dim: int, group: int, on: gpu.Gpu
) -> PrefillTiles:
    """Tiles for a launch; the reasons and predictions are in NOTES.md."""
    if head_dim > 128:  # accumulators and queries are twice as wide
        return PrefillTiles(128, 32, 8, 4) if on.is_hopper else PrefillTiles(64, 32, 8, 3)
    if on.is_hopper:
        if paged:
            return CANDIDATES["paged"][0]
        # Dividing rows by a group that is no power of two costs the registers that are left.
        crowded = group & (group - 1) != 0
        return PrefillTiles(128, 64, 8, 3) if crowded else CANDIDATES["packed"][0]
    # Where accumulators are not in registers, ptxas gives small tiles half as many, and spills.
    if on.has_tensor_memory and head_dim <= 64:
        return PrefillTiles(128, 128, 8, 3)
    if on.has_tensor_memory and not paged:
        return PrefillTiles(128, 64, 8, 3)
    # The gather's addresses and the window's masks cost registers: 64 keys of 128 would spill.
    if (paged or windowed) and head_dim > 64:
        return PrefillTiles(128, 32, 8, 4)
    return PrefillTiles(128, 64, 8, 3)


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    context_lens: torch.Tensor | None = None,
    block_tables: torch.Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    tiles: PrefillTiles | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """Causal attention of each sequence's new tokens to its past and to themselves.

    Args:
        q: [total_tokens, num_heads, head_dim], bf16 or fp16, sequences one after another; may be a
            slice of the packed projection.
        k, v: without ``block_tables`` the new tokens' [total_tokens, num_kv_heads, head_dim],
            likewise, and no sequence has a past; with it the paged cache
            [num_blocks, block_size, num_kv_heads, head_dim], contiguous, which already holds them.
        cu_seqlens: [num_seqs + 1] int32/int64, from 0, not decreasing: sequence s has the rows
            cu_seqlens[s] … cu_seqlens[s + 1]. Rows after the last are padding and get zeros.
        context_lens: [num_seqs], past and new tokens of each; needed with ``block_tables``.
        block_tables: [num_seqs, max_blocks] int32/int64.
        scale: of the scores, positive; 1/√head_dim by default.
        window: keys a query sees, itself included; 0 for all.
        softcap, sinks, k_scale, v_scale: as in ``decode_attention``.
        tiles: for tuning; by default ``choose_tiles``.
        backend: ``best`` calls SDPA a sequence at a time (for comparison; it synchronises).

    Returns: [total_tokens, num_heads, head_dim], dtype of ``q``, contiguous.
    Raises: ValueError on a wrong argument, before any launch.
    """
    require_backend(backend, q)
    dtypes = float_types() if backend == "triton" else None
    require_heads("q", q, (None, None, None), dtypes=dtypes)
    total_tokens, num_heads, head_dim = q.shape
    check_head_dim(head_dim)
    check_softcap_and_sinks(softcap, sinks, q=q, num_heads=num_heads)
    require(window >= 0, f"window: must not be negative, got {window}")
    scale = head_dim**-0.5 if scale is None else scale
    require(scale > 0, f"scale: must be positive, got {scale}")
    require_tensor("cu_seqlens", cu_seqlens, (None,), dtypes=INDEX_TYPES, device=q.device)
    num_seqs = cu_seqlens.shape[0] - 1
    require(num_seqs >= 0, "cu_seqlens: needs at least one element")
    paged = block_tables is not None
    if block_tables is not None:
        require(context_lens is not None, "context_lens: needed with block_tables")
        assert context_lens is not None
        require_paged_cache(k, v, block_tables, context_lens, q=q, num_seqs=num_seqs)
        num_kv_heads = k.shape[2]
    else:
        require(context_lens is None, "context_lens: only with block_tables, a past is paged")
        like = {"dtypes": (q.dtype,), "device": q.device}
        require_heads("k", k, (total_tokens, None, head_dim), **like)
        num_kv_heads = k.shape[1]
        require_heads("v", v, (total_tokens, num_kv_heads, head_dim), **like)
        grouped = num_kv_heads > 0 and num_heads % num_kv_heads == 0
        require(grouped, f"q: {num_heads} heads do not divide into {num_kv_heads} KV heads")
    group = num_heads // num_kv_heads
    require(group <= 64, f"q: at most 64 heads a KV head, got {group}")
    if backend != "triton":
        return prefill_attention_reference(
            q, k, v, cu_seqlens=cu_seqlens, context_lens=context_lens, block_tables=block_tables,
            scale=scale, window=window, softcap=softcap, sinks=sinks, k_scale=k_scale,
            v_scale=v_scale, fused=backend == "best",
        )  # fmt: skip
    out = torch.empty((total_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if total_tokens == 0:
        return out
    on = gpu.gpu_of(q)
    if tiles is None:
        tiles = choose_tiles(
            paged=paged, windowed=window > 0, head_dim=head_dim, group=group, on=on
        )
    block_d = triton.next_power_of_2(head_dim)
    tma = tiles.tma and not paged and on.is_hopper and block_d == head_dim
    k_tiles, v_tiles = k, v
    if tma:
        shape, block = [total_tokens, num_kv_heads * head_dim], [tiles.block_n, head_dim]
        k_tiles = TensorDescriptor(k, shape, [k.stride(0), 1], block)
        v_tiles = TensorDescriptor(v, shape, [v.stride(0), 1], block)
    if context_lens is None:
        context_lens = cu_seqlens.diff()
    num_tiles = total_tokens // (tiles.block_m // group) + num_seqs + 1
    _prefill_attention_kernel[(num_tiles * num_kv_heads,)](
        q,
        k,
        v,
        k_tiles,
        v_tiles,
        out if sinks is None else sinks,
        out,
        cu_seqlens,
        context_lens,
        cu_seqlens if block_tables is None else block_tables,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        0 if block_tables is None else block_tables.stride(0),
        total_tokens,
        num_seqs,
        scale * k_scale * LOG2_E,
        v_scale,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        KV_BLOCK=k.shape[1] if paged else 0,
        WINDOW=window,
        SOFTCAP=softcap,
        SINKS=sinks is not None,
        TMA=tma,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=block_d,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out


def prefill_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    context_lens: torch.Tensor | None = None,
    block_tables: torch.Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    fused: bool = False,
) -> torch.Tensor:
    """The same in plain PyTorch, a sequence at a time; ``fused`` calls SDPA for each."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    bounds = cu_seqlens.tolist()
    contexts = cu_seqlens.diff().tolist() if context_lens is None else context_lens.tolist()
    for sequence, context in enumerate(contexts):
        rows = slice(bounds[sequence], bounds[sequence + 1])
        if rows.start == rows.stop:
            continue
        if block_tables is None:
            keys, values = k[rows], v[rows]
            if (k_scale, v_scale) != (1.0, 1.0):
                keys, values = keys * k_scale, values * v_scale
        else:
            table = block_tables[sequence]
            keys = gather_tokens(k, table, context, dtype=q.dtype, scale=k_scale)
            values = gather_tokens(v, table, context, dtype=q.dtype, scale=v_scale)
        out[rows] = standard_attention_reference(
            q[rows], keys, values, scale=scale, window=window, softcap=softcap, sinks=sinks,
            fused=fused,
        )  # fmt: skip
    return out
