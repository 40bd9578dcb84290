"""Paged decode attention, split over the keys:  o = Σₛ 2^(Lₛ − L) · oₛ,  L = log₂ Σₛ 2^(Lₛ).

Each program takes one KV head of one sequence and one split of its keys, and computes the split's
softmax-weighted values oₛ and log₂-sum Lₛ with the online softmax; a second kernel merges the
splits (flash-decoding, Dao et al. 2023). The query heads that share a KV head, times the query
tokens of the sequence, form the rows of one tile, so keys and values are read once for all of them.

Several query tokens a sequence (speculative verification) take the same path: token i of Q sees the
keys before ``context_len − Q + i + 1``. Where they are a tree (SpecInfer, Miao et al. 2024, section
4), a word of bits a token says which of the tree's tokens it sees beside the context before them.
The grid depends on tensor shapes only and lengths are read on the device: nothing synchronises, and
a captured CUDA graph serves any lengths. A padded row has context length 0 and gets zeros.
Accumulation is in float32.

A soft-cap c makes a score s into c · tanh(s / c) (Gemma 2). A sink is one more score of each query
head whose value is zero: the first split's row maximum and sum begin with it (gpt-oss). A cache in
float8 is widened as it is read; its scales are factors of the scores and of the result.

With ``latent_attention`` (DeepSeek-V2, section 2.1) all query heads share one KV head: a key is the
latent and its rotary part, and the latent is the value too, so a token is read once.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels import gpu
from kernels.checks import (
    Backend,
    check_head_dim,
    check_softcap_and_sinks,
    float_types,
    require,
    require_backend,
    require_heads,
    require_tensor,
)
from kernels.paged_cache import gather_tokens, require_paged_cache
from kernels.standard_attention import standard_attention_reference

LOG2_E = 1.4426950408889634


@triton.jit
def log2_scores(products, scale_log2, SOFTCAP: tl.constexpr):
    """Scores times log₂ e from q · k, capped where SOFTCAP > 0; tanh z = 1 − 2 / (1 + e^(2z))."""
    if SOFTCAP > 0.0:
        CAP_LOG2: tl.constexpr = SOFTCAP * 1.4426950408889634
        grown = tl.math.exp2(products * (scale_log2 * (2.0 / SOFTCAP)))
        scores = CAP_LOG2 - 2.0 * CAP_LOG2 / (1.0 + grown)
    else:
        scores = products * scale_log2
    return scores


@triton.jit
def _split_bounds(
    context, split, num_splits, QUERY_LEN: tl.constexpr, WINDOW: tl.constexpr,
    MIN_SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """First key and end of a split; empty (first ≥ end) where the context needs fewer splits."""
    seen_from = 0
    if WINDOW > 0:
        seen_from = tl.maximum(context - QUERY_LEN - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    length = tl.cdiv(tl.cdiv(context - seen_from, num_splits), BLOCK_N) * BLOCK_N
    length = tl.maximum(length, MIN_SPLIT)
    first = seen_from + split * length
    return first, tl.minimum(first + length, context)


@triton.jit(
    do_not_specialize=["table_stride", "num_splits"],
    do_not_specialize_on_alignment=["block_tables_ptr", "context_lens_ptr", "tree_mask_ptr"],
)
def _decode_attention_kernel(
    q_ptr,  # [num_seqs * QUERY_LEN, NUM_KV_HEADS * GROUP, HEAD_DIM], token rows q_stride apart
    k_cache_ptr,  # [num_blocks, KV_BLOCK, NUM_KV_HEADS, HEAD_DIM]
    v_cache_ptr,
    block_tables_ptr,  # [num_seqs, table_stride]
    context_lens_ptr,  # [num_seqs]
    sinks_ptr,  # [NUM_KV_HEADS * GROUP] where SINKS
    out_ptr,  # [num_seqs * QUERY_LEN, NUM_KV_HEADS * GROUP, HEAD_DIM]
    partial_ptr,  # [num_seqs * QUERY_LEN, NUM_KV_HEADS * GROUP, num_splits, HEAD_DIM] float32
    partial_log2_ptr,  # [num_seqs * QUERY_LEN, NUM_KV_HEADS * GROUP, num_splits] float32
    tree_mask_ptr,  # [num_seqs * QUERY_LEN] int64, where TREE_LEN > 0
    q_stride,
    table_stride,
    num_splits,
    scale_log2,
    v_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,  # of values; with ROPE_DIM > 0 keys are values, then a rotary part
    ROPE_DIM: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    TREE_LEN: tl.constexpr,  # 0: no tree
    MIN_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    row_tile = tl.program_id(0) // NUM_KV_HEADS
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    context = tl.load(context_lens_ptr + sequence).to(tl.int32)
    first, end = _split_bounds(context, split, num_splits, QUERY_LEN, WINDOW, MIN_SPLIT, BLOCK_N)
    if SPLIT and first >= end:
        return

    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)  # query token major, head in group minor
    dims = tl.arange(0, BLOCK_D)
    row_used = rows < QUERY_LEN * GROUP
    token = sequence * QUERY_LEN + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    position = context - QUERY_LEN + rows // GROUP  # [BLOCK_M]
    q_mask = row_used[:, None] & (dims < HEAD_DIM)[None, :]
    KEY_DIM: tl.constexpr = HEAD_DIM + ROPE_DIM
    q_offsets = token * q_stride + head * KEY_DIM
    q = tl.load(q_ptr + q_offsets[:, None] + dims[None, :], mask=q_mask, other=0.0)
    if ROPE_DIM > 0:
        rope_dims = HEAD_DIM + tl.arange(0, ROPE_DIM)
        q_rope_ptrs = q_ptr + q_offsets[:, None] + rope_dims[None, :]
        q_rope = tl.load(q_rope_ptrs, mask=row_used[:, None], other=0.0)
    if TREE_LEN > 0:
        tree_mask = tl.load(tree_mask_ptr + token, mask=row_used, other=0)  # [BLOCK_M] int64

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=row_used, other=0.0).to(tl.float32)
        row_max = tl.where(split == 0, sink * 1.4426950408889634, row_max)
        row_sum = tl.where(split == 0, 1.0, row_sum)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    in_tile = tl.arange(0, BLOCK_N)
    table_ptr = block_tables_ptr + sequence * table_stride
    # The block indices of the next tile are carried, so that its gather can be issued early.
    keys = first + in_tile
    blocks = tl.load(table_ptr + keys // KV_BLOCK, mask=keys < end, other=0)
    for start in tl.range(first, end, BLOCK_N):
        keys = start + in_tile
        slots = blocks.to(tl.int64) * KV_BLOCK + keys % KV_BLOCK
        key_offsets = (slots * NUM_KV_HEADS + kv_head)[:, None] * KEY_DIM
        offsets = key_offsets + dims[None, :]
        loaded = (keys < end)[:, None] & (dims < HEAD_DIM)[None, :]  # [BLOCK_N, BLOCK_D]
        k = tl.load(k_cache_ptr + offsets, mask=loaded, other=0.0).to(q.dtype)
        # Of a float8 tile that feeds both products, widened, the compiler pipelines no load: it is
        # read through both pointers then, the second time from L2.
        if ROPE_DIM > 0 and k_cache_ptr.dtype.element_ty == q.dtype:
            v = k
        else:
            v = tl.load(v_cache_ptr + offsets, mask=loaded, other=0.0).to(q.dtype)
        if ROPE_DIM > 0:
            k_rope_ptrs = k_cache_ptr + key_offsets + rope_dims[None, :]
            k_rope = tl.load(k_rope_ptrs, mask=(keys < end)[:, None], other=0.0).to(q.dtype)
        next_keys = keys + BLOCK_N
        blocks = tl.load(table_ptr + next_keys // KV_BLOCK, mask=next_keys < end, other=0)

        products = tl.dot(q, tl.trans(k))  # [BLOCK_M, BLOCK_N]
        if ROPE_DIM > 0:
            products = tl.dot(q_rope, tl.trans(k_rope), products)
        scores = log2_scores(products, scale_log2, SOFTCAP)
        if TREE_LEN > 0:
            among = keys - (context - TREE_LEN)  # which of the tree's tokens; before them: < 0
            bits = tree_mask[:, None] >> tl.maximum(among, 0).to(tl.int64)[None, :]
            seen = ((among < 0)[None, :] | ((bits & 1) != 0)) & (keys < end)[None, :]
        else:
            seen = (keys[None, :] <= position[:, None]) & (keys < end)[None, :]
        if WINDOW > 0:
            seen = seen & (keys[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.math.exp2(scores - finite_max[:, None])
        shrink = tl.math.exp2(row_max - finite_max)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator)
        row_max = new_max

    divisor = tl.where(row_sum > 0.0, row_sum, 1.0)
    result = accumulator * (v_scale / divisor)[:, None]
    out_row = token * (NUM_KV_HEADS * GROUP) + head
    if SPLIT:
        partial_row = out_row * num_splits + split
        log2_sum = row_max + tl.math.log2(divisor)  # -inf where the row saw no key
        tl.store(partial_log2_ptr + partial_row, log2_sum, mask=row_used)
        partial_offsets = partial_row[:, None] * HEAD_DIM + dims[None, :]
        tl.store(partial_ptr + partial_offsets, result, mask=q_mask)
    else:
        out_offsets = out_row[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_ptr + out_offsets, result.to(out_ptr.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["context_lens_ptr"])
def _merge_splits_kernel(
    partial_ptr,  # [tokens, NUM_HEADS, num_splits, HEAD_DIM] float32
    partial_log2_ptr,  # [tokens, NUM_HEADS, num_splits] float32
    context_lens_ptr,
    out_ptr,  # [tokens, NUM_HEADS, HEAD_DIM]
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    WINDOW: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    context = tl.load(context_lens_ptr + token // QUERY_LEN).to(tl.int32)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_D)
    first, end = _split_bounds(context, splits, num_splits, QUERY_LEN, WINDOW, MIN_SPLIT, BLOCK_N)
    written = (splits < num_splits) & (first < end)  # the others hold whatever was there before
    row = token * NUM_HEADS + head
    log2_sums = tl.load(
        partial_log2_ptr + row * num_splits + splits, mask=written, other=float("-inf")
    )
    largest = tl.max(log2_sums, 0)
    weights = tl.math.exp2(log2_sums - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(weights, 0)
    offsets = (row * num_splits + splits)[:, None] * HEAD_DIM + dims[None, :]
    inside = written[:, None] & (dims < HEAD_DIM)[None, :]
    parts = tl.load(partial_ptr + offsets, mask=inside, other=0.0)  # [BLOCK_SPLITS, BLOCK_D]
    merged = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    out_ptrs = out_ptr + row * HEAD_DIM + dims
    tl.store(out_ptrs, merged.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """Tile sizes of one launch; ``min_split`` is the fewest keys worth a program of its own."""

    block_m: int
    block_n: int
    min_split: int
    num_warps: int
    num_stages: int


def choose_tiles(
    rows: int, on: gpu.Gpu, *, head_dim: int = 128, latent: bool = False, widened: bool = False
) -> DecodeTiles:
    """Tiles for ``rows`` = query tokens × query heads of one KV head.

    64 keys of 128 are 32 KiB of K and V. The gather leaves num_stages − 1 buffers, so 4 stages give
    96 KiB and two programs an SM on Hopper; 3 stages do the same in an A100's 163 KiB. Heads of 256
    take half the keys for the same bytes. A latent key of 576 is 1.1 KiB, and its accumulator is
    512 wide: 32 keys, one program an SM; ``widened`` from float8 it takes more registers.
    """
    block_m = min(64, max(16, triton.next_power_of_2(rows)))
    stages = 4 if on.is_hopper else 3
    if latent:
        most = (32 if widened else 64) if on.is_hopper else 16
        return DecodeTiles(min(block_m, most), 32, 128, 8, 3)
    wide = head_dim > 128
    return DecodeTiles(
        block_m=block_m,
        block_n=32 if wide else 64,
        min_split=128,
        num_warps=8 if wide and block_m > 16 else 4,
        num_stages=stages,
    )


def choose_num_splits(programs: int, slots: int, max_splits: int) -> int:
    """Fewest splits whose last wave is nearly as full as the best choice's.

    ``programs`` run without splitting, ``slots`` run at a time. A wave is full when programs ×
    splits is a multiple of the slots (the rule of FlashAttention's split heuristic).
    """
    if programs <= 0 or max_splits <= 1:
        return 1
    efficiency = []
    for splits in range(1, max_splits + 1):
        waves = programs * splits / slots
        efficiency.append(waves / -(-programs * splits // slots))
    wanted = 0.9 * max(efficiency)
    return next(i for i, value in enumerate(efficiency, start=1) if value >= wanted)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    query_len: int = 1,
    tree_mask: torch.Tensor | None = None,
    tree_len: int | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    num_splits: int | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """Attention of each sequence's last ``query_len`` tokens to its whole paged context.

    Args:
        q: [num_seqs · query_len, num_heads, head_dim], bf16 or fp16, sequence major; may be a slice
            of the packed projection.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], same dtype or
            float8_e4m3fn, contiguous; the query tokens' own keys and values are already there.
        block_tables: [num_seqs, max_blocks] int32/int64.
        context_lens: [num_seqs] int32/int64, keys of the sequence, query tokens included; 0 for a
            padded row, whose output is zero.
        query_len: query tokens a sequence, the same for all.
        tree_mask: [num_seqs · query_len] int64; bit j of a token's word: it sees token j (itself is
            one) of the ``tree_len`` last ones of its sequence's context. No window beside it. None:
            a token sees those up to it.
        tree_len: at least ``query_len``, by default that, and at most 64.
        scale: of the scores; 1/√head_dim by default.
        window: keys a query sees, itself included; 0 for all.
        softcap: c where scores s become c · tanh(s / c); 0 for none.
        sinks: [num_heads], dtype of ``q`` or float32: one more score a head, whose value is zero.
        k_scale, v_scale: what keys and values in the cache are multiplied by.
        num_splits: programs a sequence and KV head; by default enough to fill the GPU.
        backend: ``best`` gathers the pages and calls SDPA (for comparison; it synchronises).

    Returns: [num_seqs · query_len, num_heads, head_dim], dtype of ``q``, contiguous.
    Raises: ValueError on a wrong argument, before any launch.
    """
    num_seqs = _check(q, query_len=query_len, window=window, num_splits=num_splits, backend=backend)
    num_heads, head_dim = q.shape[1:]
    check_head_dim(head_dim)
    check_softcap_and_sinks(softcap, sinks, q=q, num_heads=num_heads)
    if tree_mask is not None:
        words = (len(q),)
        require_tensor("tree_mask", tree_mask, words, dtypes=(torch.int64,), device=q.device)
        tree_len = tree_len or query_len
        fits = query_len <= tree_len <= 64 and window == 0
        require(
            fits,
            f"tree_mask: {query_len} to 64 tokens and no window, got {tree_len} and {window}",
        )
    require_paged_cache(k_cache, v_cache, block_tables, context_lens, q=q, num_seqs=num_seqs)
    scale = head_dim**-0.5 if scale is None else scale
    if backend != "triton":
        return decode_attention_reference(
            q, k_cache, v_cache, block_tables=block_tables, context_lens=context_lens,
            query_len=query_len, tree_mask=tree_mask, tree_len=tree_len, scale=scale,
            window=window, softcap=softcap, sinks=sinks, k_scale=k_scale, v_scale=v_scale,
            fused=backend == "best",
        )  # fmt: skip
    group = num_heads // k_cache.shape[2]
    tiles = choose_tiles(query_len * group, gpu.gpu_of(q), head_dim=head_dim)
    return _launch(
        q, k_cache, v_cache, tiles, block_tables=block_tables, context_lens=context_lens,
        query_len=query_len, scale=scale * k_scale, v_scale=v_scale, window=window,
        softcap=softcap, sinks=sinks, num_splits=num_splits, value_dim=head_dim,
        tree_mask=tree_mask, tree_len=tree_len or query_len,
    )  # fmt: skip


def latent_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    latent_dim: int,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    query_len: int = 1,
    kv_scale: float = 1.0,
    num_splits: int | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """Attention of absorbed queries to latent keys, as multi-head latent attention decodes.

    Args:
        q: [num_seqs · query_len, num_heads, latent_dim + rope_dim], bf16 or fp16: each head's
            query times its key up-projection, then its rotated part.
        cache: [num_blocks, block_size, 1, latent_dim + rope_dim], same dtype or float8_e4m3fn:
            the normalised latent, then the rotated part, which all heads share.
        latent_dim: of the latent, a power of two (512 in DeepSeek-V3; rope_dim is 64 there).
        block_tables, context_lens, query_len, num_splits: as in ``decode_attention``.
        scale: of the scores; 1/√(the head's own key dimension, 192), not of the latent's.
        kv_scale: what the cache is multiplied by.
        backend: ``torch`` and ``best`` are the reference.

    Returns: [num_seqs · query_len, num_heads, latent_dim]: times the value up-projection it is the
    heads' output. Raises: ValueError on a wrong argument, before any launch.
    """
    num_seqs = _check(q, query_len=query_len, window=0, num_splits=num_splits, backend=backend)
    rope_dim = q.shape[2] - latent_dim
    for name, size in (("latent_dim", latent_dim), ("rope_dim", rope_dim)):
        power = size >= 16 and size & (size - 1) == 0
        require(power, f"{name}: must be a power of two of 16 or more, got {size}")
    require_paged_cache(cache, cache, block_tables, context_lens, q=q, num_seqs=num_seqs)
    require(cache.shape[2] == 1, f"cache: latent keys have one head, got {cache.shape[2]}")
    if backend != "triton":
        return latent_attention_reference(
            q, cache, latent_dim=latent_dim, block_tables=block_tables, context_lens=context_lens,
            scale=scale, query_len=query_len, kv_scale=kv_scale,
        )  # fmt: skip
    tiles = choose_tiles(
        query_len * q.shape[1], gpu.gpu_of(q), latent=True, widened=cache.dtype != q.dtype
    )
    return _launch(
        q, cache, cache, tiles, block_tables=block_tables, context_lens=context_lens,
        query_len=query_len, scale=scale * kv_scale, v_scale=kv_scale, window=0, softcap=0.0,
        sinks=None, num_splits=num_splits, value_dim=latent_dim,
    )  # fmt: skip


def _check(
    q: torch.Tensor, *, query_len: int, window: int, num_splits: int | None, backend: Backend
) -> int:
    """Sequences of a call; raises ValueError for what both kinds of attention refuse."""
    require_backend(backend, q)
    dtypes = float_types() if backend == "triton" else None
    require_heads("q", q, (None, None, None), dtypes=dtypes)
    num_tokens = int(q.shape[0])
    require(query_len >= 1, f"query_len: must be at least 1, got {query_len}")
    whole = num_tokens % query_len == 0
    require(whole, f"q: {num_tokens} rows are no multiple of query_len {query_len}")
    require(window >= 0, f"window: must not be negative, got {window}")
    require(num_tokens <= 65_535, f"q: at most 65535 tokens, got {num_tokens}")
    fits = num_splits is None or 1 <= num_splits <= 128
    require(fits, f"num_splits: must be 1 to 128, got {num_splits}")
    return num_tokens // query_len


def _launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tiles: DecodeTiles,
    *,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    query_len: int,
    scale: float,
    v_scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
    num_splits: int | None,
    value_dim: int,
    tree_mask: torch.Tensor | None = None,
    tree_len: int = 0,
) -> torch.Tensor:
    num_tokens, num_heads, key_dim = q.shape
    out = torch.empty((num_tokens, num_heads, value_dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0:
        return out
    num_seqs = num_tokens // query_len
    _, block_size, num_kv_heads, _ = k_cache.shape
    group = num_heads // num_kv_heads
    row_tiles = triton.cdiv(query_len * group, tiles.block_m)
    if num_splits is None:
        longest = block_tables.shape[1] * block_size
        num_splits = choose_num_splits(
            num_seqs * num_kv_heads * row_tiles,
            2 * gpu.gpu_of(q).multiprocessors,
            min(64, triton.cdiv(longest, tiles.min_split)),
        )
    block_d = triton.next_power_of_2(value_dim)
    partial, partial_log2 = out, out
    if num_splits > 1:
        shape = (num_tokens, num_heads, num_splits)
        partial = torch.empty((*shape, value_dim), dtype=torch.float32, device=q.device)
        partial_log2 = torch.empty(shape, dtype=torch.float32, device=q.device)
    _decode_attention_kernel[(num_kv_heads * row_tiles, num_splits, num_seqs)](
        q,
        k_cache,
        v_cache,
        block_tables,
        context_lens,
        out if sinks is None else sinks,
        out,
        partial,
        partial_log2,
        out if tree_mask is None else tree_mask,
        q.stride(0),
        block_tables.stride(0),
        num_splits,
        scale * LOG2_E,
        v_scale,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=value_dim,
        ROPE_DIM=key_dim - value_dim,
        QUERY_LEN=query_len,
        WINDOW=window,
        SOFTCAP=softcap,
        SINKS=sinks is not None,
        KV_BLOCK=block_size,
        SPLIT=num_splits > 1,
        TREE_LEN=0 if tree_mask is None else tree_len,
        MIN_SPLIT=tiles.min_split,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=block_d,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if num_splits > 1:
        _merge_splits_kernel[(num_heads, num_tokens)](
            partial,
            partial_log2,
            context_lens,
            out,
            num_splits,
            NUM_HEADS=num_heads,
            HEAD_DIM=value_dim,
            QUERY_LEN=query_len,
            WINDOW=window,
            MIN_SPLIT=tiles.min_split,
            BLOCK_N=tiles.block_n,
            BLOCK_SPLITS=triton.next_power_of_2(num_splits),
            BLOCK_D=block_d,
            num_warps=4,
        )
    return out


def decode_attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    query_len: int = 1,
    tree_mask: torch.Tensor | None = None,
    tree_len: int | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    fused: bool = False,
) -> torch.Tensor:
    """The same in plain PyTorch, a sequence at a time; ``fused`` calls SDPA for each."""
    out = q.new_zeros((*q.shape[:2], v_cache.shape[3]))
    for sequence, context in enumerate(context_lens.tolist()):
        if context == 0:
            continue
        rows = slice(sequence * query_len, (sequence + 1) * query_len)
        table = block_tables[sequence]
        seen = None
        if tree_mask is not None:
            among = torch.arange(context, device=q.device) - (context - (tree_len or query_len))
            bits = tree_mask[rows, None] >> among.clamp(min=0)[None, :]
            seen = (among < 0)[None, :] | ((bits & 1) != 0)
        out[rows] = standard_attention_reference(
            q[rows],
            gather_tokens(k_cache, table, context, dtype=q.dtype, scale=k_scale),
            gather_tokens(v_cache, table, context, dtype=q.dtype, scale=v_scale),
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
            seen=seen,
            fused=fused,
        )
    return out


def latent_attention_reference(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    latent_dim: int,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    query_len: int = 1,
    kv_scale: float = 1.0,
) -> torch.Tensor:
    """The same in plain PyTorch: latent keys are keys, and values up to ``latent_dim``."""
    return decode_attention_reference(
        q, cache, cache[..., :latent_dim], block_tables=block_tables, context_lens=context_lens,
        query_len=query_len, scale=scale, k_scale=kv_scale, v_scale=kv_scale,
    )  # fmt: skip
