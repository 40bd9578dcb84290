"""Compile every kernel configuration that ships for one architecture; print a JSON line for each.

Run as ``python compile_all.py 90`` in a process of its own, without TRITON_INTERPRET. Shapes are
those of real models on the ``meta`` device; tiles, warps and stages are what the launchers choose
for them, and the candidates that a tuning run may choose instead.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import torch
from recorder import recording

from kernels import linear as linear_module
from kernels import prefill_attention as prefill_module
from kernels import swiglu_mlp as swiglu_module
from kernels.copy_blocks import copy_blocks
from kernels.decode_attention import decode_attention
from kernels.embedding import embedding
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import linear
from kernels.logits_and_sample import sample
from kernels.moe import moe
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.standard_attention import standard_attention
from kernels.swiglu_mlp import gate_up

BF16, FP16 = torch.bfloat16, torch.float16


def tensor(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def projection(tokens: int, heads: int, kv_heads: int, head_dim: int, dtype=BF16):
    """q, k and v as slices of one packed projection."""
    packed = tensor(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    return [part.unflatten(1, (-1, head_dim)) for part in packed.split(sizes, dim=1)]


def norms_and_caches() -> None:
    for hidden in (128, 2048, 4096, 16384):
        x = tensor(512, hidden)
        rms_norm(x, x[0])
        rms_norm(x, x[0], residual=x)
    for head_dim in (64, 96, 128):
        for norm in (False, True):
            q, k, v = projection(512, 32, 8, head_dim)
            cache, index = tensor(99, 16, 8, head_dim), tensor(512, dtype=torch.int64)
            weights = dict.fromkeys(("q_norm_weight", "k_norm_weight"), q[0, 0])
            kv_cache_write(
                q, k, v, k_cache=cache, v_cache=cache, slot_mapping=index, positions=index,
                table=tensor(4096, head_dim, dtype=torch.float32), update_k=norm,
                **(weights if norm else {}),
            )  # fmt: skip
    copy_blocks(tensor(32, 2, 99, 16, 8, 128), tensor(7, 2, dtype=torch.int64))
    embedding(tensor(512, dtype=torch.int64), tensor(128_256, 4096))


def attention() -> None:
    for head_dim, dtype in ((128, BF16), (128, FP16), (64, BF16), (96, BF16)):
        main = head_dim == 128 and dtype == BF16
        cache = tensor(4096, 16, 8, head_dim, dtype=dtype)
        for seqs, query_len in ((1, 1), (256, 1), (8, 5), (8, 12)) if main else ((1, 1),):
            tables, lengths = tensor(seqs, 512, dtype=torch.int32), tensor(seqs, dtype=torch.int32)
            q = projection(seqs * query_len, 32, 8, head_dim, dtype)[0]
            for window in (0, 4096) if main and query_len == 1 else (0,):
                decode_attention(
                    q, cache, cache, block_tables=tables, context_lens=lengths,
                    query_len=query_len, window=window,
                )  # fmt: skip
        if main:
            tables, lengths = tensor(8, 512, dtype=torch.int32), tensor(8, dtype=torch.int32)
            decode_attention(
                projection(8 * 22, 32, 8, 128)[0], cache, cache, block_tables=tables,
                context_lens=lengths, query_len=22, tree_mask=tensor(8 * 22, dtype=torch.int64),
            )  # fmt: skip
        q, k, v = projection(8192, 32, 8, head_dim, dtype)
        bounds, lengths = tensor(9, dtype=torch.int32), tensor(8, dtype=torch.int32)
        tables = tensor(8, 512, dtype=torch.int32)
        candidates = prefill_module.CANDIDATES if ARCH == 90 and main else {}
        for tiles in (None, *candidates.get("packed", ())):
            prefill_attention(q, k, v, cu_seqlens=bounds, tiles=tiles)
        paged = {"cu_seqlens": bounds, "context_lens": lengths, "block_tables": tables}
        for tiles in (None, *candidates.get("paged", ())):
            prefill_attention(q, cache, cache, **paged, tiles=tiles)
        if main:
            prefill_attention(q, k, v, cu_seqlens=bounds, window=1024)
            prefill_attention(q, cache, cache, **paged, window=1024)
        if dtype == BF16:
            q, k, v = tensor(1024, 32, head_dim), *(tensor(1024, 8, head_dim) for _ in range(2))
            standard_attention(q, k, v)


def head_groups() -> None:
    """Query heads a KV head, the odd ones too: their index arithmetic costs registers."""
    bounds, lengths = tensor(9, dtype=torch.int32), tensor(8, dtype=torch.int32)
    tables = tensor(8, 512, dtype=torch.int32)
    for heads, kv_heads in ((8, 8), (28, 4)):
        q, k, v = projection(8192, heads, kv_heads, 128)
        prefill_attention(q, k, v, cu_seqlens=bounds)
        cache = tensor(4096, 20, kv_heads, 128)
        paged = {"context_lens": lengths, "block_tables": tables}
        if heads == 28:
            prefill_attention(q, cache, cache, cu_seqlens=bounds, **paged)
            decode_attention(projection(8, heads, kv_heads, 128)[0], cache, cache, **paged)


def products() -> None:
    for module, product, rows in (
        (linear_module, linear, 4096),
        (swiglu_module, gate_up, 28_672),
    ):
        weight = tensor(rows, 4096)
        for tokens in (1, 16, 32, 64, 128, 256, 1024, 8192):
            product(tensor(tokens, 4096), weight)
        product(tensor(8192, 4096, dtype=FP16), tensor(rows, 4096, dtype=FP16))
        product(tensor(128, 4096), tensor(28_672, 4096))
        if ARCH == 90:
            for kind in ("many", "few"):
                for tiles in module.CANDIDATES[kind]:
                    product(tensor(8192 if kind == "many" else 16, 4096), weight, tiles=tiles)
    for tokens in (1, 300, 1000, 4096):
        moe(
            tensor(tokens, 2048), tensor(128, 2048), tensor(128, 1536, 2048),
            tensor(128, 2048, 768), top_k=8,
        )  # fmt: skip
    big = (tensor(8, 4096), tensor(8, 28_672, 4096), tensor(8, 4096, 14_336))
    moe(tensor(2048, 4096), *big, top_k=2)
    real = tensor(256, dtype=torch.float32)
    for dtype in (BF16, torch.float32):
        logits = tensor(256, 128_256, dtype=dtype)
        sample(logits)
        sample(
            logits, temperature=real, top_p=real, uniform=real,
            top_k=tensor(256, dtype=torch.int32),
        )  # fmt: skip


if __name__ == "__main__":
    ARCH = int(sys.argv[1])
    with recording(ARCH) as recorder:
        norms_and_caches()
        attention()
        head_groups()
        products()
    for compiled in recorder.compiled:
        print(json.dumps(dataclasses.asdict(compiled), default=str))
