"""The paged KV cache as kernels read it: its checks, and a plain gather for the references.

A cache is ``[num_blocks, block_size, num_kv_heads, head_dim]``, one tensor for keys and one for
values; ``block_tables[s, i]`` is the block that holds tokens i · block_size … of sequence s. Its
dtype is that of the activations, or float8_e4m3fn, whose values count times a scale a tensor.
"""

from __future__ import annotations

import torch

from kernels import gpu
from kernels.checks import INDEX_TYPES, require, require_tensor

FLOAT8 = torch.float8_e4m3fn


def cache_types(q: torch.Tensor) -> tuple[torch.dtype, ...]:
    """Dtypes of a cache that queries like ``q`` can read: their own, and float8 from sm_89 on."""
    return (q.dtype, FLOAT8) if gpu.gpu_of(q).has_float8 else (q.dtype,)


def require_paged_cache(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    q: torch.Tensor,
    num_seqs: int,
) -> None:
    """Raise ``ValueError`` unless cache, tables and lengths fit each other and the queries.

    Args:
        q: [tokens, num_heads, head_dim]; gives dtype, device and head_dim.
        num_seqs: rows that ``block_tables`` and ``context_lens`` must have.
    """
    num_heads, head_dim = q.shape[1], q.shape[2]
    like = {"dtypes": cache_types(q), "device": q.device}
    require_tensor("k_cache", k_cache, (None, None, None, head_dim), **like)
    like["dtypes"] = (k_cache.dtype,)
    require_tensor("v_cache", v_cache, tuple(k_cache.shape), **like)
    num_blocks, block_size, num_kv_heads, _ = k_cache.shape
    require(num_blocks > 0, "k_cache: needs at least one block")
    require(1 <= block_size <= 256, f"block_size: must be 1 to 256, got {block_size}")
    grouped = num_kv_heads > 0 and num_heads % num_kv_heads == 0
    require(grouped, f"q: {num_heads} heads do not divide into {num_kv_heads} KV heads")
    index = {"dtypes": INDEX_TYPES, "device": q.device}
    require_tensor("block_tables", block_tables, (num_seqs, None), **index)
    require_tensor("context_lens", context_lens, (num_seqs,), **index)


def gather_tokens(
    cache: torch.Tensor,
    block_table: torch.Tensor,
    num_tokens: int,
    *,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """The first ``num_tokens`` of one sequence: [num_tokens, num_kv_heads, head_dim].

    In ``dtype`` (the cache's by default), times ``scale``.
    """
    block_size = cache.shape[1]
    num_blocks = -(-num_tokens // block_size)
    byte = torch.uint8 if cache.dtype == FLOAT8 else cache.dtype
    tokens = cache.view(byte)[block_table[:num_blocks].long()].view(cache.dtype)
    tokens = tokens.flatten(0, 1)[:num_tokens]
    tokens = tokens if dtype is None else tokens.to(dtype)
    return tokens if scale == 1.0 else tokens * scale
