"""What training a transformer takes on each device, and every tensor of a layer by its shape.

Shapes are in b (sequences at once), s (tokens of each), h (hidden size), i (width of the MLP), n
(heads), k (key/value heads), d (head dimension) and v (vocabulary). The memory is that of
`scenarios.sizing.training`, divided:

- tensor parallelism (Shoeybi et al. 2019, *Megatron-LM*) divides weights and all of a layer's
  activations but inputs and outputs of its two norms; two all-reduces of b s h forward, two back;
- a pipeline divides layers; its first stage holds as many micro-batches as there are stages (one
  forward, one backward: Narayanan et al. 2021), and idles (p - 1) / (m + p - 1) of the time;
- sequence parallelism divides the tokens: Ulysses (Jacobs et al. 2023) sends heads for tokens,
  ring attention (Liu et al. 2023) keys and values around;
- data parallelism divides what its ZeRO stage says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from scenarios.sizing.model_anatomy import forward_flops_per_token, parameter_split
from scenarios.sizing.training import (
    HALF,
    SINGLE,
    ActivationSettings,
    layer_bytes_per_token,
    training_flops_per_token,
)
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Degrees:
    """How many devices share out a training step, by what is divided."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence: int = 1
    zero_stage: int = 3
    micro_batches: int = 1  # of a step, on each pipeline


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a layer: its shape in letters, elements and bytes of each."""

    name: str
    shape: str
    elements: int
    bytes_each: int = HALF

    @property
    def num_bytes(self) -> int:
        return self.elements * self.bytes_each


def layer_weights(model: ModelSpec) -> list[Tensor]:
    """The matrices of a dense layer. Raises ValueError for layers of another kind."""
    _check_dense(model)
    h, i = model.hidden_size, model.intermediate_size
    q, kv = model.num_attention_heads * model.head_dim, model.num_kv_heads * model.head_dim
    gate = [Tensor("gate", "(h, i)", h * i)] if model.gated_mlp else []
    return [
        Tensor("query", "(h, n d)", h * q),
        Tensor("key", "(h, k d)", h * kv),
        Tensor("value", "(h, k d)", h * kv),
        Tensor("output", "(n d, h)", q * h),
        *gate,
        Tensor("up", "(h, i)", h * i),
        Tensor("down", "(i, h)", i * h),
    ]


def layer_activations(model: ModelSpec, settings: ActivationSettings) -> list[Tensor]:
    """What a dense layer keeps for its backward pass. Raises ValueError for other layers."""
    _check_dense(model)
    heads, tokens = model.num_attention_heads, settings.tokens
    wide = tokens * model.hidden_size
    q, kv = tokens * heads * model.head_dim, tokens * model.num_kv_heads * model.head_dim
    inner = tokens * model.intermediate_size
    scores = Tensor("log-sums of the scores", "(b, n, s)", tokens * heads, SINGLE)
    if not settings.fused_attention:
        scores = Tensor("scores", "(b, n, s, s)", tokens * heads * settings.sequence_length)
    gated = ("gate", "up", "activated gate", "input of down")
    return [
        Tensor("input of the attention's norm", "(b, s, h)", wide),
        Tensor("input of attention", "(b, s, h)", wide),
        Tensor("queries", "(b, n, s, d)", q),
        Tensor("keys", "(b, k, s, d)", kv),
        Tensor("values", "(b, k, s, d)", kv),
        scores,
        Tensor("input of the output projection", "(b, s, n d)", q),
        Tensor("input of the MLP's norm", "(b, s, h)", wide),
        Tensor("input of the MLP", "(b, s, h)", wide),
        *(
            Tensor(name, "(b, s, i)", inner)
            for name in (gated if model.gated_mlp else ("up", "input of down"))
        ),
    ]


def is_plain(model: ModelSpec) -> bool:
    """Whether every layer is full attention over heads and a dense MLP."""
    dense = model.moe is None and model.mla is None
    return dense and all(mixer.kind == "full" for mixer in model.mixers)


def _check_dense(model: ModelSpec) -> None:
    if not is_plain(model):
        raise ValueError(f"{model.name}: tensors are listed of dense layers with plain attention")


def training_figures(
    model: ModelSpec, settings: ActivationSettings, degrees: Degrees
) -> dict[str, Any]:
    """Bytes on the fullest device by kind, bytes sent, FLOPs, the bubble; all JSON can say."""
    for name, degree, whole in (
        ("tensor", degrees.tensor, model.num_attention_heads),
        ("sequence", degrees.sequence, settings.sequence_length),
    ):
        if whole % degree:
            raise ValueError(f"{name} degree {degree} does not divide {whole}")
    if degrees.pipeline > model.num_layers:
        raise ValueError(f"pipeline degree {degrees.pipeline} for {model.num_layers} layers")
    own = replace(settings, sequence_length=settings.sequence_length // degrees.sequence)
    layers = math.ceil(model.num_layers / degrees.pipeline)
    parameters = _parameters(model, degrees, layers)
    share = [1 / degrees.data if degrees.zero_stage >= stage else 1.0 for stage in (1, 2, 3)]
    boundary = HALF * model.hidden_size * own.tokens
    memory = {
        "parameters": HALF * parameters * share[2],
        "gradients": HALF * parameters * share[1],
        "optimizer": 3 * SINGLE * parameters * share[0],
        "activations": _activations(model, settings, degrees, layers),
    }
    causal = forward_flops_per_token(model, settings.sequence_length)
    scores = model.prefill_attention_flops() * settings.sequence_length
    masked = (
        causal - scores + scores * (settings.sequence_length + 1) // (2 * settings.sequence_length)
    )
    passes = training_flops_per_token(
        model, settings.sequence_length, checkpointing=settings.checkpointing
    )
    return {
        "model": model.name,
        "num_parameters": model.num_parameters,
        "devices": degrees.tensor * degrees.pipeline * degrees.data * degrees.sequence,
        "memory_bytes": memory | {"total": sum(memory.values())},
        "checkpoints_bytes": model.num_layers * HALF * model.hidden_size * settings.tokens,
        "sent_bytes": _sent(model, own, degrees, boundary, parameters),
        "bubble": (degrees.pipeline - 1) / (degrees.micro_batches + degrees.pipeline - 1),
        "flops_per_token": {
            "forward": causal,
            "forward_causal": masked,
            "training": passes,
            "training_causal": passes // causal * masked,
            "six_n": 6 * model.num_parameters,
        },
    }


def _parameters(model: ModelSpec, degrees: Degrees, layers: int) -> float:
    """Parameters on the fullest device: a stage's layers, and a table at each end."""
    embedding = parameter_split(model).embedding
    inside = (model.num_parameters - embedding) / model.num_layers * layers
    tables = embedding
    if degrees.pipeline > 1 and not model.tie_word_embeddings:
        tables = embedding - model.vocab_size * model.hidden_size
    return (inside + tables) / degrees.tensor


def _activations(
    model: ModelSpec, settings: ActivationSettings, degrees: Degrees, layers: int
) -> float:
    """On the first stage, with its micro-batches in flight, or on the last, with the head."""
    whole = 4 * HALF * model.hidden_size  # the norms' inputs and outputs
    tokens = settings.tokens / degrees.sequence
    sizes = [
        whole + (size - whole) / degrees.tensor
        for size in layer_bytes_per_token(model, settings)
        if size
    ]
    sparse = 0 if model.moe is None else model.moe.num_layers
    mean = (
        sizes[0]
        if len(sizes) == 1
        else sizes[0] + (sizes[1] - sizes[0]) * (sparse / model.num_layers)
    )
    head = 2 * HALF * model.hidden_size + SINGLE * model.vocab_size / degrees.tensor
    if settings.checkpointing == "layer":
        kept, again = HALF * model.hidden_size * layers, max(sizes)
        first = kept * min(degrees.pipeline, degrees.micro_batches) + again
        last = kept + max(again, head)
    else:
        first = mean * layers * min(degrees.pipeline, degrees.micro_batches)
        last = mean * layers + head
    return tokens * (last if degrees.pipeline == 1 else max(first, last))


def _sent(
    model: ModelSpec,
    own: ActivationSettings,
    degrees: Degrees,
    boundary: int,
    parameters: float,
) -> dict[str, float]:
    """Bytes that a device sends, by what for; a micro-batch's, but the gradients, a step's."""
    layers = math.ceil(model.num_layers / degrees.pipeline)
    heads, kv = model.num_attention_heads, model.num_kv_heads
    t, p, r = degrees.tensor, degrees.sequence, degrees.data
    each = HALF * model.head_dim * own.tokens
    return {
        "between stages, forward": float(boundary) if degrees.pipeline > 1 else 0.0,
        "all-reduces of tensor ranks": 4 * layers * boundary * 2 * (t - 1) / t,
        "Ulysses, a layer forward": 2 * (heads + kv) * each * (p - 1) / p,
        "ring attention, a layer forward": 2.0 * kv * each * (p - 1),
        "gradients, all-reduced": HALF * parameters * 2 * (r - 1) / r,
    }
