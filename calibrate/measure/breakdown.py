"""Where a layer's time goes by class of operation, before fusion and after, and what fusion buys.

Classes after Ivanov et al., "Data movement is all you need" (MLSys 2021): tensor contractions,
statistical normalisations, element-wise operations. They found contractions to be 99.8 % of a
transformer's operations and 61 % of its time. ``unfused`` runs torch's own operations one by one,
with attention through materialised scores; ``fused`` runs our kernels, each counted in the class of
what it mainly computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear as product
from torch.nn.functional import silu

from calibrate.device.timer import Call
from calibrate.measure.batches import Lengths, forward_batch
from calibrate.measure.rig import Rig
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import linear
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.standard_attention import standard_attention
from kernels.swiglu_mlp import swiglu_mlp

CONTRACTION, NORMALISATION, ELEMENTWISE = "contractions", "normalisation", "element-wise"
CLASSES = (CONTRACTION, NORMALISATION, ELEMENTWISE)
BLOCK_SIZES = (8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a layer: its class, its floating-point operations and how to run it."""

    name: str
    kind: str
    flops: float
    call: Call


def unfused_operations(rig: Rig, tokens: int) -> list[Operation]:
    """A dense layer over one prompt in torch's own operations, each reading and writing memory."""
    config = rig.config
    hidden, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads
    dim, width = config.head_dim, config.intermediate_size
    layer = rig.model.layers[0]
    assert layer.gate_up is not None
    assert layer.down is not None
    x, residual = rig.normal(tokens, hidden), rig.normal(tokens, hidden)
    q, k, v = (rig.normal(count, tokens, dim) for count in (heads, heads, heads))
    scores, attended = rig.normal(heads, tokens, tokens), rig.normal(tokens, heads * dim)
    gate, up = rig.normal(tokens, width), rig.normal(tokens, width)
    angles = rig.normal(tokens, dim)
    mask = torch.ones((tokens, tokens), dtype=torch.bool, device=rig.device).triu(1)
    some_heads = k[:kv_heads]
    # A rig's weights are drawn, and wide.
    assert isinstance(layer.qkv, torch.Tensor) and isinstance(layer.gate_up, torch.Tensor)
    query, key, value = layer.qkv.split([heads * dim, kv_heads * dim, kv_heads * dim])
    gate_weight, up_weight = layer.gate_up.chunk(2)

    def normalised() -> torch.Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + config.rms_norm_eps)
        return (x.float() * scale).to(x.dtype) * layer.input_norm

    def rotated(states: torch.Tensor) -> torch.Tensor:
        low, high = states.chunk(2, dim=-1)
        return states * angles + torch.cat([-high, low], dim=-1) * angles

    square, all_heads = float(tokens * tokens), heads * tokens * dim
    elements = float(tokens * hidden)

    def multiply(name: str, x: torch.Tensor, weight: torch.Tensor) -> Operation:
        flops = 2.0 * tokens * weight.numel()
        return Operation(name, CONTRACTION, flops, partial(product, x, weight))

    return [
        Operation("norm", NORMALISATION, 4 * elements, normalised),
        multiply("query", x, query),
        multiply("key", x, key),
        multiply("value", x, value),
        Operation("rotate query", ELEMENTWISE, 3.0 * all_heads, partial(rotated, q)),
        Operation(
            "rotate key", ELEMENTWISE, 3.0 * some_heads.numel(), partial(rotated, some_heads)
        ),
        Operation("scores", CONTRACTION, 2 * square * heads * dim, lambda: q @ k.transpose(1, 2)),
        Operation("scale", ELEMENTWISE, square * heads, lambda: scores * dim**-0.5),
        Operation("mask", ELEMENTWISE, square * heads, lambda: scores.masked_fill(mask, -1e4)),
        Operation(
            "softmax", NORMALISATION, 4 * square * heads, lambda: torch.softmax(scores, dim=-1)
        ),
        Operation("weights by values", CONTRACTION, 2 * square * heads * dim, lambda: scores @ v),
        multiply("output", attended, layer.output),
        Operation("residual", ELEMENTWISE, elements, lambda: x + residual),
        Operation("norm before MLP", NORMALISATION, 4 * elements, normalised),
        multiply("gate", x, gate_weight),
        multiply("up", x, up_weight),
        Operation("silu", ELEMENTWISE, 4.0 * tokens * width, partial(silu, gate)),
        Operation("gate by up", ELEMENTWISE, 1.0 * tokens * width, lambda: gate * up),
        multiply("down", gate, layer.down),
        Operation("residual after MLP", ELEMENTWISE, elements, lambda: x + residual),
    ]


def fused_operations(rig: Rig, tokens: int) -> list[Operation]:
    """The same layer in our kernels."""
    config, model = rig.config, rig.model
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    layer, eps, backend = model.layers[0], config.rms_norm_eps, model.backend
    assert layer.gate_up is not None
    assert layer.down is not None
    x, residual = rig.normal(tokens, config.hidden_size), rig.normal(tokens, config.hidden_size)
    packed = rig.normal(tokens, heads + 2 * kv_heads, dim)
    q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)
    places = torch.arange(tokens, device=rig.device)
    bounds = torch.tensor([0, tokens], dtype=torch.int32, device=rig.device)
    k_cache, v_cache = rig.kv_cache[0]
    norm = partial(rms_norm, x, layer.input_norm, residual=residual, eps=eps, backend=backend)
    write = partial(
        kv_cache_write, q, k, v, k_cache=k_cache, v_cache=v_cache, slot_mapping=places,
        positions=places, table=model.table, q_norm_weight=layer.q_norm,
        k_norm_weight=layer.k_norm, eps=eps, update_k=True, backend=backend,
    )  # fmt: skip
    attend = partial(prefill_attention, q, k, v, cu_seqlens=bounds, backend=backend)
    elements = float(tokens * config.hidden_size)
    scored = 2.0 * heads * dim * tokens * (tokens + 1)
    attended = rig.normal(tokens, heads * dim)
    mlp = partial(swiglu_mlp, x, layer.gate_up, layer.down, backend=backend)
    mlp_weights = layer.gate_up.numel() + layer.down.numel()
    return [
        Operation("residual and norm", NORMALISATION, 5 * elements, norm),
        Operation(
            "query, key, value", CONTRACTION, 2.0 * tokens * layer.qkv.numel(),
            partial(linear, x, layer.qkv, backend=backend),
        ),
        Operation(
            "rotate and write cache", ELEMENTWISE, 3.0 * tokens * (heads + kv_heads) * dim, write
        ),
        Operation("attention", CONTRACTION, scored, attend),
        Operation(
            "output", CONTRACTION, 2.0 * tokens * layer.output.numel(),
            partial(linear, attended, layer.output, backend=backend),
        ),
        Operation("residual and norm before MLP", NORMALISATION, 5 * elements, norm),
        Operation("MLP", CONTRACTION, 2.0 * tokens * mlp_weights, mlp),
    ]  # fmt: skip


def operator_classes(rig: Rig, tokens: int) -> dict[str, Any]:
    """Shares of operations and of time by class, before and after fusion, of one dense layer."""
    result: dict[str, Any] = {"tokens": tokens}
    kinds: dict[str, Callable[[Rig, int], list[Operation]]] = {
        "unfused": unfused_operations,
        "fused": fused_operations,
    }
    for kind, operations_of in kinds.items():
        operations = operations_of(rig, tokens)
        times = {op.name: rig.timer.measure([op.call]).time_us for op in operations}
        all_us, all_flops = sum(times.values()), sum(op.flops for op in operations)
        result[kind] = {
            "layer_us": round(all_us, 2),
            "share_of_flops": {
                name: round(sum(op.flops for op in operations if op.kind == name) / all_flops, 5)
                for name in CLASSES
            },
            "share_of_time": {
                name: round(sum(times[op.name] for op in operations if op.kind == name) / all_us, 4)
                for name in CLASSES
            },
        }
    result["speed_up"] = round(result["unfused"]["layer_us"] / result["fused"]["layer_us"], 3)
    return result


def flash_against_standard(rig: Rig, lengths: list[int]) -> list[dict[str, Any]]:
    """One prompt's attention through tiles and through materialised scores, by length.

    On a CPU ``flash`` is torch's own fused attention; our reference there is not fused. Memory is
    what each needs beside its inputs: measured on a GPU, on a CPU the scores' size.
    """
    config = rig.config
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    rows = []
    for tokens in lengths:
        q = rig.normal(tokens, heads, dim)
        k, v = rig.normal(tokens, kv_heads, dim), rig.normal(tokens, kv_heads, dim)
        bounds = torch.tensor([0, tokens], dtype=torch.int32, device=rig.device)
        standard: Call = partial(standard_attention, q, k, v, backend=rig.model.backend)
        if rig.timer.on_gpu:
            flash: Call = partial(prefill_attention, q, k, v, cu_seqlens=bounds)
        else:
            flash = partial(standard_attention, q, k, v, backend="best")
        flash_us = rig.timer.measure([flash]).time_us
        standard_us = rig.timer.measure([standard]).time_us
        row: dict[str, Any] = {
            "tokens": tokens,
            "flash_us": round(flash_us, 2),
            "standard_us": round(standard_us, 2),
            "speed_up": round(standard_us / flash_us, 3),
        }
        if rig.timer.on_gpu:
            row |= {"flash_bytes": _needed(flash), "standard_bytes": _needed(standard)}
        else:
            row["scores_bytes"] = heads * tokens * tokens * 4  # float32 on a CPU
        rows.append(row)
    return rows


def by_block_size(rig: Rig) -> list[dict[str, Any]]:
    """One layer's decode and prefill attention with the same cache in blocks of 8 to 128 tokens."""
    limits, rows = rig.limits, []
    context = min(1024, limits.max_context)
    seqs = min(64, limits.max_seqs, limits.cache_tokens // context // 2)
    new = min(512, limits.max_tokens, context // 2)
    lengths = {
        "decode_us": Lengths(decodes=(context,) * seqs),
        "prefill_us": Lengths(prefills=((new, context - new),)),
    }
    layers, slots = rig.config.num_layers, rig.num_blocks * rig.block_size
    for block_size in BLOCK_SIZES:
        blocks = slots // block_size
        cache = rig.kv_cache.flatten(2, 3)[:, :, : blocks * block_size]
        cache = cache.unflatten(2, (blocks, block_size))
        order = np.random.default_rng(block_size).permutation(blocks)
        row: dict[str, Any] = {"block_size": block_size, "decodes": f"{seqs} x {context}"}
        row["prefill"] = f"{new} behind {context - new}"
        for name, given in lengths.items():
            batch = forward_batch(
                given,
                block_order=order,
                block_size=block_size,
                vocab_size=rig.config.vocab_size,
                device=rig.device,
                width=-(-limits.max_context // block_size),
            )
            heads, kv_heads = rig.config.num_heads, rig.config.num_kv_heads
            packed = rig.normal(given.num_tokens, heads + 2 * kv_heads, rig.config.head_dim)
            q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)
            calls: list[Call] = [
                partial(rig.model.attend, q, k, v, batch, cache[layer], index=layer)
                for layer in range(layers)
            ]
            row[name] = round(rig.timer.measure(calls).time_us, 2)
        rows.append(row)
    return rows


def _needed(call: Call) -> int:
    """Bytes that a call allocates at its peak, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
