"""A model as figures: layers by kind, parameters, weights, cache, FLOPs of a token."""

from __future__ import annotations

from typing import Any

from sim.model.hardware import Gpu
from sim.model.layers import Layer
from sim.model.spec import ModelSpec

CONTEXT_TOKENS = 8192  # at which attention's FLOPs and a sequence's cache are told


def model_figures(model: ModelSpec, kv_cache_dtype: str = "auto") -> dict[str, Any]:
    """Plain data. FLOPs are two a multiply-add; attention's are those of one more token."""
    context = min(CONTEXT_TOKENS, model.max_position_embeddings)
    products = sum(op.flops(1) for op in model.linear_operations())
    if model.moe is not None:
        routed = sum(op.flops(1) for op in model.expert_operations())
        products += routed * model.moe.experts_per_token // model.moe.num_experts
    groups = model.kv_groups(kv_cache_dtype)
    attention = sum(
        group.context_flops * min(context, group.limit or context) + group.index_flops * context
        for group in groups
    )
    bytes_each = model.kv_bytes_each(kv_cache_dtype)
    return {
        "name": model.name,
        "model_type": model.model_type,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "layers": model.num_layers,
        "max_model_len": model.max_position_embeddings,
        "parameters": {
            "total": model.num_parameters,
            "activated": model.num_activated_parameters,
            "vision": model.vision_parameters,
        },
        "layer_kinds": [_kind(model, layer, count) for layer, count in _alike(model).items()],
        "weights": {
            "bytes": model.weight_bytes(),
            "dtype": model.weight_dtype,
            "format": model.quantisation or {"bfloat16": "bf16"}.get(model.dtype, "fp16"),
        },
        "kv_cache": {
            "bytes_of_a_number": bytes_each,
            "bytes_per_token": model.kv_bytes_per_token(kv_cache_dtype),
            "groups": [
                {
                    "kind": group.label,
                    "layers": group.num_layers,
                    "bytes_per_token": group.bytes_per_token,
                    "window": group.window,
                    "most_bytes_of_a_sequence": None
                    if group.window is None
                    else group.bytes_at(group.window),
                }
                for group in groups
            ],
            "state_bytes_of_a_sequence": model.state_bytes(),
            "context_tokens": context,
            "bytes_of_a_sequence": model.kv_bytes(context, kv_cache_dtype),
        },
        "flops_of_a_token": {
            "products": products,
            "states": model.state_flops(),
            "logits": model.logits_operation().flops(1),
            "attention": attention,
            "context_tokens": context,
        },
        "notes": list(model.notes),
    }


def _alike(model: ModelSpec) -> dict[Layer, int]:
    """Layers by what they are said to be; those that differ in their weights' format are one."""
    found: dict[str, tuple[Layer, int]] = {}
    for layer, count in model.kinds.items():
        first, before = found.get(layer.label, (layer, 0))
        found[layer.label] = (first, before + count)
    return dict(found.values())


def _kind(model: ModelSpec, layer: Layer, count: int) -> dict[str, Any]:
    one = model.with_layers([(layer, 1)])
    products = [*one.linear_operations(), *one.expert_operations()]
    beside = layer.parameters + sum(mixer.parameters for mixer in layer.mixers)
    heads = [
        {
            "kind": mixer.label,
            "attention_heads": mixer.num_heads,
            "kv_heads": mixer.num_kv_heads,
            "head_dim": mixer.head_dim,
        }
        for mixer in layer.mixers
        if mixer.attends
    ]
    return {
        "kind": layer.label,
        "layers": count,
        "parameters_each": sum(op.num_parameters for op in products) + beside,
        "weight_bytes_each": sum(op.weight_bytes for op in products) + 2 * beside,
        "heads": heads,
    }


def degree_that_fits(model: ModelSpec, gpu: Gpu) -> int:
    """The least power of two of GPUs whose memory the weights fill to two thirds at most."""
    degree, weights = 1, model.weight_bytes()
    while weights > degree * gpu.memory_bytes * 2 / 3 and degree < 1024:
        degree *= 2
    return degree
