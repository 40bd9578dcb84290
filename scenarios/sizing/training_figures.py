"""What a step of training takes on each device: memory, bytes sent, FLOPs, the pipeline's bubble.

A pipeline of p stages with m micro-batches a step idles (p - 1) / (m + p - 1) of the time
(Narayanan et al. 2021, section 2.2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scenarios.sizing.layer_tensors import (
    HALF,
    ActivationSettings,
    layer_activations,
    layer_weights,
    lists_tensors_of,
    outer_activations,
    outer_weights,
)
from scenarios.sizing.model_anatomy import forward_flops_per_token
from scenarios.sizing.training import (
    Degrees,
    parameters_on_device,
    training_flops_per_token,
    training_memory,
)
from sim.latency.communication import (
    all_gather_bytes,
    all_reduce_bytes,
    all_to_all_bytes,
    ring_pass_bytes,
)
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of a training step on one device: bytes each, before a collective multiplies them.

    ``boundary`` is a micro-batch's output of a layer, what stages send on and tensor ranks sum up,
    ``heads`` what Ulysses exchanges around attention forward (queries, keys, values, outputs),
    ``keys`` a ring's block of keys and values, ``routed`` what a mixture's layer sends to experts
    and gets back, ``parameters`` the 16-bit parameters (or gradients) before ZeRO deals them out.
    ``sums`` are all-reduces of a layer and micro-batch among tensor ranks: two forward, two
    backward, and two where the forward pass is done again (Shoeybi et al. 2019, section 3).
    """

    boundary: float
    heads: float
    keys: float
    routed: float
    parameters: float
    expert_parameters: float
    sums: int


def traffic(model: ModelSpec, settings: ActivationSettings, degrees: Degrees) -> Traffic:
    """The messages of a step at these degrees."""
    tokens = settings.tokens // degrees.sequence
    heads, kv = model.num_attention_heads, model.num_kv_heads
    if model.mla is None:
        query, value = model.head_dim, model.head_dim
    else:
        query, value, kv = model.mla.qk_head_dim, model.mla.v_head_dim, heads
    chosen = 0 if model.moe is None else model.moe.experts_per_token
    dense, experts = parameters_on_device(model, degrees)
    return Traffic(
        boundary=HALF * model.hidden_size * tokens,
        heads=HALF * tokens * (heads + kv) * (query + value) / degrees.tensor,
        keys=HALF * tokens * kv * (query + value) / degrees.tensor,
        routed=2 * HALF * tokens * chosen * model.hidden_size,
        parameters=HALF * dense,
        expert_parameters=HALF * experts,
        sums=6 if settings.checkpointing == "layer" else 4,
    )


def training_figures(
    model: ModelSpec, settings: ActivationSettings, degrees: Degrees
) -> dict[str, Any]:
    """Bytes on the fullest device by kind, bytes sent, FLOPs, the bubble; all JSON can say.

    Raises ValueError where the model cannot be divided so.
    """
    memory = training_memory(model, settings, degrees)
    length = settings.sequence_length
    forward = forward_flops_per_token(model, length)
    scores = model.prefill_attention_flops() * length
    masked = forward - scores + scores * (length + 1) // (2 * length)
    passes = training_flops_per_token(model, length, checkpointing=settings.checkpointing)
    return {
        "model": model.name,
        "num_parameters": model.num_parameters,
        "devices": degrees.devices,
        "memory_bytes": {
            "parameters": memory.parameter_bytes,
            "gradients": memory.gradient_bytes,
            "optimizer": memory.optimizer_bytes,
            "activations": memory.activation_bytes,
            "total": memory.total_bytes,
        },
        "checkpoints_bytes": model.num_layers * HALF * model.hidden_size * settings.tokens,
        "sent_bytes": _sent(traffic(model, settings, degrees), model, degrees),
        "bubble": (degrees.pipeline - 1) / (degrees.micro_batches + degrees.pipeline - 1),
        "flops_per_token": {
            "forward": forward,
            "forward_causal": masked,
            "training": passes,
            "training_causal": passes // forward * masked,
            "six_n": 6 * model.num_activated_parameters,
        },
    }


def _sent(messages: Traffic, model: ModelSpec, degrees: Degrees) -> dict[str, float]:
    """Bytes that a device sends, by what for: of a micro-batch, of a layer, of a step."""
    layers = -(-model.num_layers // degrees.pipeline)
    t, p, r = degrees.tensor, degrees.sequence, degrees.replicas
    sent = {
        "between stages, a micro-batch forward": messages.boundary * (degrees.pipeline > 1),
        "tensor ranks' all-reduces, a micro-batch": messages.sums
        * layers
        * all_reduce_bytes(messages.boundary, t),
        "Ulysses' all-to-all, a layer forward": all_to_all_bytes(messages.heads, p),
        "or ring attention, a layer forward": ring_pass_bytes(messages.keys, p),
        "experts' all-to-all, a layer forward": all_to_all_bytes(messages.routed, degrees.expert),
    }
    # ZeRO, section 7: summing gradients and gathering what was updated send as much as an
    # all-reduce; stage 3 gathers parameters for the forward pass and again for the backward one.
    summed = all_gather_bytes(messages.parameters, r)
    summed += all_gather_bytes(messages.expert_parameters, r // degrees.expert)
    gathered = ("parameters gathered, a step", summed)
    if degrees.zero_stage == 3:
        gathered = ("parameters gathered, a micro-batch", 2 * summed)
    return sent | {"gradients, a step": summed, gathered[0]: gathered[1]}


def tensor_figures(model: ModelSpec, settings: ActivationSettings) -> dict[str, Any]:
    """Every tensor of a layer of each kind, by name, shape and bytes, of one device's micro-batch;
    nothing for models whose layers do not attend with heads or latents."""
    if not lists_tensors_of(model):
        return {}
    found = {}
    kinds = [("layer", False)] if model.num_dense_layers else []
    if model.moe is not None:
        kinds.append(("layer with experts", True))
    for what, experts in kinds:
        found[f"Weights of a {what}"] = layer_weights(model, experts=experts)
        found[f"A {what} keeps"] = layer_activations(model, settings, experts=experts)
    found["Weights outside"] = outer_weights(model)
    found["Kept outside"] = outer_activations(model, settings)
    return {
        head: [{"name": one.name, "shape": one.shape, "bytes": one.num_bytes} for one in tensors]
        for head, tensors in found.items()
    }
