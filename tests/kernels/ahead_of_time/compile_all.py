"""Compile every kernel configuration that ships for one architecture; print a JSON line for each.

Run as ``python compile_all.py 90`` in a process of its own, without TRITON_INTERPRET. Shapes are
those of real models on the ``meta`` device; tiles, warps and stages are what the launchers choose
for them, and the candidates that a tuning run may choose instead. ``--few``: of each row of sizes
the first and the last, in half the time.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TypeVar

import torch
from recorder import recording

from kernels import linear as linear_module
from kernels import prefill_attention as prefill_module
from kernels import swiglu_mlp as swiglu_module
from kernels.copy_blocks import copy_blocks
from kernels.decode_attention import decode_attention, latent_attention
from kernels.embedding import embedding
from kernels.float8 import Float8Weight, float8_linear
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import linear
from kernels.logits_and_sample import sample
from kernels.moe import Rule, moe
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.standard_attention import standard_attention
from kernels.swiglu_mlp import gate_up, gated

Sizes = TypeVar("Sizes")
BF16, FLOAT8 = torch.bfloat16, torch.float8_e4m3fn


def some(*sizes: Sizes) -> tuple[Sizes, ...]:
    """All of them, or with ``--few`` the first and the last."""
    return (sizes[0], sizes[-1]) if FEW else sizes


def tensor(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def projection(tokens: int, heads: int, kv_heads: int, head_dim: int, dtype=BF16):
    """q, k and v as slices of one packed projection."""
    packed = tensor(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    return [part.unflatten(1, (-1, head_dim)) for part in packed.split(sizes, dim=1)]


def norms_and_caches() -> None:
    for hidden in some(128, 4096, 16384):
        x = tensor(512, hidden)
        rms_norm(x, x[0])
        rms_norm(x, x[0], residual=x)
    for head_dim, norm, cached in ((64, False, BF16), (80, False, BF16), (128, True, FLOAT8)):
        if cached == FLOAT8 and ARCH == 80:
            cached = BF16
        q, k, v = projection(512, 32, 8, head_dim)
        cache, index = tensor(99, 16, 8, head_dim, dtype=cached), tensor(512, dtype=torch.int64)
        weights = dict.fromkeys(("q_norm_weight", "k_norm_weight"), q[0, 0])
        kv_cache_write(
            q, k, v, k_cache=cache, v_cache=cache, slot_mapping=index, positions=index,
            table=tensor(4096, head_dim, dtype=torch.float32), update_k=norm,
            **(weights if norm else {}),
        )  # fmt: skip
    copy_blocks(tensor(32, 2, 99, 16, 8, 128), tensor(7, 2, dtype=torch.int64))
    embedding(tensor(512, dtype=torch.int64), tensor(128_256, 4096))
    embedding(tensor(512, dtype=torch.int64), tensor(256_000, 3584), scale=59.75)


def _attend(heads: int, kv_heads: int, head_dim: int, cached=BF16, **options) -> None:
    """Decode, packed and paged prefill."""
    bounds, lengths = tensor(9, dtype=torch.int32), tensor(8, dtype=torch.int32)
    paged = {"block_tables": tensor(8, 512, dtype=torch.int32), "context_lens": lengths}
    cache = tensor(4096, 16, kv_heads, head_dim, dtype=cached)
    q, k, v = projection(8192, heads, kv_heads, head_dim)
    decode_attention(q[:8], cache, cache, **paged, **options)
    if cached == BF16:
        prefill_attention(q, k, v, cu_seqlens=bounds, **options)
    prefill_attention(q, cache, cache, cu_seqlens=bounds, **paged, **options)


def attention() -> None:
    """Llama's; windows; heads of other sizes and groups; Gemma 2's, gpt-oss's, DeepSeek-V3's."""
    for heads, options in some(
        ((32, 8, 128), {}),
        ((32, 8, 128), {"window": 4096}),
        ((28, 4, 128), {}),  # a group that is no power of two: its index arithmetic costs registers
        ((32, 32, 80), {}),
        ((64, 8, 64), {"sinks": tensor(64), "window": 128}),
        ((16, 8, 256), {"softcap": 50.0}),
        ((16, 8, 256), {"softcap": 50.0, "window": 4096}),
    ):
        _attend(*heads, **options)
    bounds = tensor(9, dtype=torch.int32)
    tables = tensor(8, 512, dtype=torch.int32)
    paged = {"block_tables": tables, "context_lens": tensor(8, dtype=torch.int32)}
    cache = tensor(4096, 16, 8, 128)
    for query_len in some(5, 12):
        q = projection(8 * query_len, 32, 8, 128)[0]
        decode_attention(q, cache, cache, **paged, query_len=query_len)
    mask = tensor(8 * 22, dtype=torch.int64)
    q = projection(8 * 22, 32, 8, 128)[0]
    decode_attention(q, cache, cache, **paged, query_len=22, tree_mask=mask)
    many = {name: tensor_.new_empty(256, *tensor_.shape[1:]) for name, tensor_ in paged.items()}
    decode_attention(projection(256, 32, 8, 128)[0], cache, cache, **many)  # not split
    for cached in (BF16, FLOAT8) if ARCH > 80 else (BF16,):
        if cached == FLOAT8:
            _attend(32, 8, 128, FLOAT8)
        latents = tensor(4096, 64, 1, 576, dtype=cached)
        latent_attention(tensor(8, 128, 576), latents, latent_dim=512, scale=0.135, **paged)
    if ARCH == 90:
        q, k, v = projection(8192, 32, 8, 128)
        for tiles in prefill_module.CANDIDATES["packed"]:
            prefill_attention(q, k, v, cu_seqlens=bounds, tiles=tiles)
        for tiles in prefill_module.CANDIDATES["paged"]:
            prefill_attention(q, cache, cache, cu_seqlens=bounds, **paged, tiles=tiles)
    for head_dim in some(64, 128, 256):
        standard_attention(
            tensor(1024, 32, head_dim), *(tensor(1024, 8, head_dim) for _ in range(2))
        )


def products() -> None:
    for module, product, rows in (
        (linear_module, linear, 4096),
        (swiglu_module, gate_up, 28_672),
    ):
        weight = tensor(rows, 4096)
        for tokens in some(16, 32, 64, 128, 512, 8192):
            product(tensor(tokens, 4096), weight)
        if ARCH == 90:
            for kind in ("many", "few"):
                for tiles in module.CANDIDATES[kind]:
                    product(tensor(8192 if kind == "many" else 16, 4096), weight, tiles=tiles)
    linear(tensor(256, 2880), tensor(5120, 2880), bias=tensor(5120))  # gpt-oss
    gate_up(tensor(64, 3584), tensor(28_672, 3584), activation="gelu")  # Gemma 2
    gated(tensor(64, 36_864))  # of a float8 product
    real = tensor(256, dtype=torch.float32)
    if ARCH > 80:
        # DeepSeek-V3: by block; the others by token and channel.
        by_block = tensor(56, 128, dtype=torch.float32)
        for scales in (by_block, tensor(7168, dtype=torch.float32)):
            packed = Float8Weight(tensor(7168, 16_384, dtype=FLOAT8), scales)
            for tokens in some(16, 64, 512, 8192):
                float8_linear(tensor(tokens, 16_384), packed)
    for tokens in some(1, 300, 1000, 4096):
        moe(
            tensor(tokens, 2048), tensor(128, 2048), tensor(128, 1536, 2048),
            tensor(128, 2048, 768), top_k=8,
        )  # fmt: skip
    for tokens in (4, 4096):  # gpt-oss, DeepSeek-V3
        moe(
            tensor(tokens, 2880), tensor(32, 2880), tensor(32, 5760, 2880), tensor(32, 2880, 2880),
            top_k=4, activation="clamped", router_bias=tensor(32), gate_up_bias=tensor(32, 5760),
            down_bias=tensor(32, 2880),
        )  # fmt: skip
    deep = (tensor(256, 7168), tensor(256, 4096, 7168), tensor(256, 7168, 2048))
    preference = tensor(256, dtype=torch.float32)
    rule = Rule(sigmoid=True, preference=preference, groups=8, kept_groups=4, scale=2.5)
    moe(tensor(4096, 7168), *deep, top_k=8, rule=rule)
    for dtype in (BF16, torch.float32):
        logits = tensor(256, 128_256, dtype=dtype)
        if dtype == BF16:
            sample(logits)
            sample(logits, temperature=real, uniform=real)
        sample(
            logits, temperature=real, top_p=real, uniform=real,
            top_k=tensor(256, dtype=torch.int32),
        )  # fmt: skip


if __name__ == "__main__":
    ARCH, FEW = int(sys.argv[1]), "--few" in sys.argv
    with recording(ARCH) as recorder:
        norms_and_caches()
        attention()
        products()
    for compiled in recorder.compiled:
        print(json.dumps(dataclasses.asdict(compiled), default=str))
