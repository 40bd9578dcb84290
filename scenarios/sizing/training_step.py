"""How long a step of training takes on given GPUs, and what share of their peak it is. Analytic.

Each operation takes the longer of its FLOPs at the rate that kernels of its kind reach and its
bytes at the bandwidth that they reach, and a launch (`sim.model.kernel_rates`: fitted to kernels of
serving, whose products are those of a forward pass; nobody timed a backward pass for this). By
class, as Ivanov et al. 2021 ("Data Movement Is All You Need", table 1) divide them:

    contraction     matrix products; attention's two, fused (FlashAttention) or not
    normalisation   both norms and the loss's softmax; without fusing attention's softmax too
    element-wise    residual additions, rotary, the MLP's activation, dropout, scaling and masking

What is not a contraction moves its operands between memory and chip: 16 bits an element, inputs and
outputs once. A backward pass does two products for each one, and moves twice the bytes; that of
fused attention computes the scores again, five products for two (Dao 2023, section 2.3.2). Layers
that are checkpointed pass forward twice.

Communication follows `sim.latency.communication`. All-reduces of tensor ranks, exchanges of
sequence and expert ranks and sends between stages wait for nothing and are waited for. A step's
gradients, and what ZeRO gathers, travel while layers compute; what is longer than that is waited
for. Ranks are placed tensor, sequence, data, pipeline, innermost first, in nodes of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scenarios.sizing.layer_tensors import HALF, SINGLE, ActivationSettings
from scenarios.sizing.model_anatomy import forward_flops_per_token
from scenarios.sizing.training import Degrees, training_memory
from scenarios.sizing.training_figures import Traffic, traffic
from sim.latency.communication import all_gather_s, all_reduce_s, all_to_all_s, send_s
from sim.model.hardware import Gpu, Interconnect
from sim.model.kernel_rates import ProductRates
from sim.model.matrix import LinearOperation
from sim.model.spec import ModelSpec

GPUS_PER_NODE = 8
CONTRACTION, NORMALISATION, ELEMENTWISE = "contraction", "normalisation", "element-wise"
CLASSES = (CONTRACTION, NORMALISATION, ELEMENTWISE)
# Operations of an element, as Ivanov et al. count them: mean, variance, scale and shift of a norm;
# maximum, exponential, sum and division of a softmax; one of any element-wise operation.
NORM_FLOPS, SOFTMAX_FLOPS = 7, 5
ADAM_BYTES = 2 * 3 * SINGLE + HALF + HALF  # states read and written, gradients read, copy written


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs, bytes and seconds of one class, of one micro-batch's passes on one device."""

    kind: str
    flops: float
    num_bytes: float
    forward_s: float
    backward_s: float
    of_attention: bool = False  # scores, softmax and values; not the projections around them


@dataclass(frozen=True, slots=True)
class StepTime:
    """A training step on one device of the fullest stage, in seconds by what they go to."""

    by_part: dict[str, float]
    by_class: dict[str, dict[str, float]]  # of one micro-batch: flops, bytes, seconds
    tokens: int  # of a step, all data-parallel ranks together
    devices: int
    peak_flops_per_s: float
    attention_s: float  # of all micro-batches, in computing
    model_flops: float  # three forward passes of every token, attention with its masked half
    six_n_flops: float

    @property
    def step_s(self) -> float:
        return sum(self.by_part.values())

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_s

    def share_of_peak(self, flops: float) -> float:
        return flops / (self.step_s * self.devices * self.peak_flops_per_s)

    def figures(self) -> dict[str, Any]:
        """All JSON can say. ``mfu`` counts 6 N a token, ``mfu_with_attention`` scores too."""
        seconds = sum(one["seconds"] for one in self.by_class.values())
        flops = sum(one["flops"] for one in self.by_class.values())
        return {
            "step_s": self.step_s,
            "seconds_by_part": self.by_part,
            "attention_s": self.attention_s,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.share_of_peak(self.six_n_flops),
            "mfu_with_attention": self.share_of_peak(self.model_flops),
            "classes": {
                kind: one
                | {"flop_share": one["flops"] / flops, "time_share": one["seconds"] / seconds}
                for kind, one in self.by_class.items()
            },
        }


def training_step(
    model: ModelSpec,
    settings: ActivationSettings,
    degrees: Degrees,
    gpu: Gpu,
    *,
    gradient_bytes_each: int = HALF,
) -> StepTime:
    """Time of one step. Raises ValueError where the model cannot be divided so."""
    degrees.check(model, settings)
    passes = 2 if settings.checkpointing == "layer" else 1
    work = list(_micro_batch(model, settings, degrees, gpu))
    forward = sum(one.forward_s for one in work)
    backward = sum(one.backward_s for one in work)
    computing = passes * forward + backward
    messages = traffic(model, settings, degrees)
    waits = _waits(model, messages, degrees, gpu.interconnect, passes)
    each = computing + sum(waits.values())
    m, p = degrees.micro_batches, degrees.pipeline
    parts = {"computing": m * computing}
    parts |= {what: m * seconds for what, seconds in waits.items() if seconds}
    if p > 1:
        parts["bubble"] = (p - 1) * each
    gathered, summed = _replicas(messages, degrees, gpu.interconnect)
    if degrees.zero_stage == 3:
        hidden = max(0.0, passes * (gathered - forward)) + max(0.0, gathered - backward)
        parts["gathering parameters"] = m * hidden
    else:
        parts["gathering parameters"] = gathered if degrees.zero_stage else 0.0
    if degrees.zero_stage == 0:
        summed *= 2  # an all-reduce
    parts["summing gradients"] = max(0.0, summed - backward)
    states = training_memory(
        model, settings, degrees, gradient_bytes_each=gradient_bytes_each
    ).optimizer_bytes / (3 * SINGLE)
    rate = gpu.memory_bytes_per_s * gpu.kernel_rates.products.memory_efficiency
    parts["optimizer"] = states * ADAM_BYTES / rate
    tokens = settings.tokens * m * degrees.data
    return StepTime(
        by_part={what: seconds for what, seconds in parts.items() if seconds},
        by_class=_by_class(work, passes),
        tokens=tokens,
        devices=degrees.devices,
        peak_flops_per_s=gpu.bfloat16_flops_per_s,
        attention_s=m
        * sum(passes * one.forward_s + one.backward_s for one in work if one.of_attention),
        model_flops=3.0 * tokens * forward_flops_per_token(model, settings.sequence_length),
        six_n_flops=6.0 * tokens * model.num_activated_parameters,
    )


def _by_class(work: list[Work], passes: int) -> dict[str, dict[str, float]]:
    found = {kind: {"flops": 0.0, "bytes": 0.0, "seconds": 0.0} for kind in CLASSES}
    for one in work:
        each = found[one.kind]
        each["flops"] += (passes + 2) * one.flops
        each["bytes"] += (passes + 2) * one.num_bytes
        each["seconds"] += passes * one.forward_s + one.backward_s
    return found


def _micro_batch(
    model: ModelSpec, settings: ActivationSettings, degrees: Degrees, gpu: Gpu
) -> Iterator[Work]:
    """The fullest stage's work on one device; the loss is shared out by the stages."""
    stage = model.stages(degrees.pipeline)[0]
    tokens = settings.tokens // degrees.sequence
    t, rates = degrees.tensor, gpu.kernel_rates
    peak = gpu.bfloat16_flops_per_s

    def product(one: LinearOperation, rows: float, of: ProductRates, launches: int) -> Work:
        flops = 2.0 * rows * one.in_features * one.out_features * one.count
        weights = HALF * one.in_features * one.out_features * one.count
        moved = weights + HALF * rows * (one.in_features + one.out_features) * one.count
        compute, memory = peak * of.efficiency, gpu.memory_bytes_per_s * of.memory_efficiency
        forward = launches * of.overhead_s + max(flops / compute, moved / memory)
        return Work(CONTRACTION, flops, moved, forward, 2 * forward)

    def moving(
        kind: str, elements: float, bytes_each: float, flops_each: float, times: int
    ) -> Work:
        rate = gpu.memory_bytes_per_s * rates.products.memory_efficiency
        seconds = times * rates.products.overhead_s + elements * bytes_each / rate
        return Work(kind, elements * flops_each, elements * bytes_each, seconds, 2 * seconds)

    for one in stage.linear_operations(t):
        yield product(one, tokens, rates.products, one.count)
    if stage.moe is not None:
        moe = stage.moe
        for one in stage.expert_operations(t, degrees.expert):
            # Tokens of all ranks meet, so each expert here has an equal share of what is sent.
            rows = tokens * moe.experts_per_token * degrees.expert / moe.num_experts
            yield product(one, rows, rates.experts, moe.num_layers)  # grouped
    logits = model.logits_operation(t)
    share = 1 / degrees.pipeline
    whole = product(logits, tokens, rates.products, 1)
    yield Work(
        CONTRACTION,
        whole.flops * share,
        whole.num_bytes * share,
        whole.forward_s * share,
        whole.backward_s * share,
    )
    for part in _attention(stage, settings, degrees, gpu, moving):
        yield replace(part, of_attention=True)

    h, layers = model.hidden_size, stage.num_layers
    yield moving(NORMALISATION, 2.0 * layers * tokens * h, 2 * HALF, NORM_FLOPS, 2 * layers)
    vocabulary = tokens * model.vocab_size / t * share
    yield moving(NORMALISATION, vocabulary, 2 * SINGLE, SOFTMAX_FLOPS, 1)
    yield moving(ELEMENTWISE, 2.0 * layers * tokens * h, 3 * HALF, 1, 2 * layers)
    if not model.position_rows:
        rotated = (model.num_attention_heads + model.num_kv_heads) * model.head_dim / t
        yield moving(ELEMENTWISE, layers * tokens * rotated, 2 * HALF, 3, layers)
    inner = _inner_width(stage) * tokens / t
    yield moving(ELEMENTWISE, inner, (3 if model.gated_mlp else 2) * HALF, 1, layers)
    if settings.dropout:
        yield moving(ELEMENTWISE, 2.0 * layers * tokens * h, 2 * HALF + 1, 1, 2 * layers)


def _inner_width(stage: ModelSpec) -> int:
    """Activated numbers of a token in all MLPs of a stage."""
    dense = stage.num_dense_layers * stage.intermediate_size
    if stage.moe is None:
        return dense
    moe = stage.moe
    each = moe.experts_per_token * moe.intermediate_size + moe.shared_intermediate_size
    return dense + moe.num_layers * each


def _attention(
    stage: ModelSpec,
    settings: ActivationSettings,
    degrees: Degrees,
    gpu: Gpu,
    moving: Callable[[str, float, float, float, int], Work],
) -> Iterator[Work]:
    """Scores of every pair that is not masked where fused, of every pair where not."""
    tokens, length = settings.tokens // degrees.sequence, settings.sequence_length
    layers, rates = stage.num_layers, gpu.kernel_rates
    of_pair = stage.prefill_attention_flops(degrees.tensor)
    peak = gpu.bfloat16_flops_per_s
    if settings.fused_attention:
        flops = float(of_pair * tokens * (length + 1) / 2)
        forward = layers * rates.attention.overhead_s
        forward += flops / (peak * rates.attention.efficiency)
        heads = stage.num_attention_heads + stage.num_kv_heads
        moved = HALF * tokens * 2 * heads * stage.head_dim * layers / degrees.tensor
        yield Work(CONTRACTION, flops, float(moved), forward, 2.5 * forward)
        return
    flops = float(of_pair * tokens * length)
    pairs = float(layers * tokens * length * stage.num_attention_heads / degrees.tensor)
    moved = 2 * HALF * pairs  # the scores are written by one product and read by the other
    memory = gpu.memory_bytes_per_s * rates.products.memory_efficiency
    seconds = 2 * layers * rates.products.overhead_s
    seconds += max(flops / (peak * rates.products.efficiency), moved / memory)
    yield Work(CONTRACTION, flops, moved, seconds, 2 * seconds)
    yield moving(NORMALISATION, pairs, 2 * HALF, SOFTMAX_FLOPS, layers)
    yield moving(ELEMENTWISE, pairs, 2 * HALF, 1, layers)  # scaled and masked
    if settings.dropout:
        yield moving(ELEMENTWISE, pairs, 2 * HALF + 1, 1, layers)


def _waits(
    model: ModelSpec, messages: Traffic, degrees: Degrees, links: Interconnect, passes: int
) -> dict[str, float]:
    """Seconds of a micro-batch that computing waits for others, by whom."""
    layers = -(-model.num_layers // degrees.pipeline)
    mixed = 0 if model.moe is None else -(-model.moe.num_layers // degrees.pipeline)
    t, p = degrees.tensor, degrees.sequence
    boundary = all_reduce_s(
        np.asarray(messages.boundary), t, links, ranks_per_node=min(t, GPUS_PER_NODE)
    )
    heads, routed = (
        all_to_all_s(np.asarray(held / 2), ranks, links, ranks_per_node=_per_node(ranks, t))
        for held, ranks in ((messages.heads, p), (messages.routed, degrees.expert))
    )
    between = links.between_nodes if degrees.devices > GPUS_PER_NODE else links
    sent = send_s(np.asarray(messages.boundary), between) if degrees.pipeline > 1 else 0.0
    both = passes + 1  # a backward pass sends as much as a forward one
    return {
        "tensor ranks": messages.sums * layers * float(boundary),
        "sequence ranks": 2 * both * layers * float(heads),
        "expert ranks": 2 * both * mixed * float(routed),
        "stages": 2 * float(sent),
    }


def _replicas(messages: Traffic, degrees: Degrees, links: Interconnect) -> tuple[float, float]:
    """Seconds to gather the parameters once, and to sum up the gradients (reduce-scatter)."""
    t, ranks = degrees.tensor, degrees.replicas
    few = ranks // degrees.expert
    seconds = sum(
        float(all_gather_s(np.asarray(held), among, links, ranks_per_node=_per_node(among, stride)))
        for held, among, stride in (
            (messages.parameters, ranks, t),
            (messages.expert_parameters, few, t * degrees.expert),
        )
    )
    return seconds, seconds


def _per_node(ranks: int, stride: int) -> int:
    """Of so many ranks, `stride` GPUs apart, those in one node."""
    return max(1, min(ranks, GPUS_PER_NODE // stride if stride <= GPUS_PER_NODE else 1))
