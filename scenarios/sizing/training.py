"""What training a transformer takes: FLOPs, memory of each GPU, time and money.

Memory in mixed precision with Adam, per parameter (Rajbhandari et al. 2020, "ZeRO", section 3.1):
2 bytes of 16-bit parameters, 2 of gradients, and 12 of optimizer states (float32 copy, momentum,
variance). ZeRO shares them among the GPUs: stage 1 the optimizer states, stage 2 also gradients,
stage 3 also parameters.

Activations that the backward pass needs, per token, 16 bits each, counted from the shape as
Korthikanti et al. 2022 ("Reducing Activation Recomputation", section 4.1) count GPT's 34 h + 5 a s:

- inputs of both norms, of the attention and of the MLP: 4 x hidden;
- queries, keys, values, and the input of the output projection; with a fused attention kernel
  one float32 log-sum per head, else the softmax's output for every (query, key) pair;
- MLP: the outputs of its up (and gate) matrices and the input of its down matrix; with a gate also
  the activated gate. Experts: that of every chosen one, with its input and its output;
- dropout, where there is any: a mask of one byte for the outputs of attention and MLP, and of the
  scores a mask and the result;
- once: inputs of the last norm and of the head, and float32 logits.

Checkpointing at layer boundaries keeps only each layer's input (2 bytes x hidden) and recomputes
one layer at a time. Nothing is added for fragmentation, communication buffers or the CUDA context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scenarios.sizing.model_anatomy import forward_flops_per_token
from sim.model.hardware import Gpu
from sim.model.power import attainable_flops_per_s, board_watts
from sim.model.spec import ModelSpec

HALF, SINGLE = 2, 4  # bytes
Checkpointing = Literal["none", "layer"]


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on one GPU by what they hold."""

    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    activation_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.state_bytes + self.activation_bytes

    @property
    def state_bytes(self) -> float:
        """All but the activations."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True, slots=True)
class ActivationSettings:
    """What decides the activations: tokens at once, and what is kept of them.

    ``fused_attention``: no scores are stored (FlashAttention). ``dropout``: masks are.
    """

    micro_batch: int = 1
    sequence_length: int = 4096
    checkpointing: Checkpointing = "layer"
    fused_attention: bool = True
    dropout: bool = False

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.sequence_length


def training_memory(
    model: ModelSpec,
    settings: ActivationSettings,
    *,
    gpus: int = 1,
    zero_stage: int = 3,
    gradient_bytes_each: int = HALF,
) -> TrainingMemory:
    """Memory of each of `gpus` data-parallel GPUs; with one GPU that of the whole model."""
    count = model.num_parameters
    share = [1 / gpus if zero_stage >= stage else 1.0 for stage in (1, 2, 3)]
    return TrainingMemory(
        parameter_bytes=HALF * count * share[2],
        gradient_bytes=gradient_bytes_each * count * share[1],
        optimizer_bytes=3 * SINGLE * count * share[0],
        activation_bytes=training_activation_bytes(model, settings),
    )


def training_activation_bytes(model: ModelSpec, settings: ActivationSettings) -> int:
    """Peak activation memory of one GPU; the formula is in the module's docstring."""
    dense, sparse = layer_bytes_per_token(model, settings)
    num_sparse = 0 if model.moe is None else model.moe.num_layers
    num_dense = model.num_layers - num_sparse
    head = 2 * HALF * model.hidden_size + SINGLE * model.vocab_size
    embedding = model.hidden_size if settings.dropout else 0
    if settings.checkpointing == "none":
        per_token = num_dense * dense + num_sparse * sparse + head + embedding
    else:
        # The head's gradients are done before the last layer is recomputed.
        widest = max(dense if num_dense else 0, sparse if num_sparse else 0)
        per_token = HALF * model.hidden_size * model.num_layers + max(widest, head) + embedding
    return per_token * settings.tokens


def layer_bytes_per_token(model: ModelSpec, settings: ActivationSettings) -> tuple[int, int]:
    """Of a layer with a dense MLP, and of one with experts."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    if model.mla is None:
        width = (heads + 2 * model.num_kv_heads) * model.head_dim
        projected = heads * model.head_dim
    else:
        mla = model.mla
        width = heads * (2 * mla.qk_head_dim + mla.v_head_dim) + mla.latent_dim
        width += mla.q_lora_rank or 0
        projected = heads * mla.v_head_dim
    attention = HALF * (2 * hidden + width + projected)  # the norm's input and output
    if settings.fused_attention:
        attention += SINGLE * heads
    else:
        score = HALF + (1 + HALF if settings.dropout else 0)
        attention += score * heads * settings.sequence_length
    masks = 2 * hidden if settings.dropout else 0
    around = attention + masks + 2 * HALF * hidden
    dense = around + _mlp_bytes(model.intermediate_size, gated=model.gated_mlp)
    if model.moe is None:
        return dense, 0
    moe = model.moe
    expert = _mlp_bytes(moe.intermediate_size, gated=True) + 2 * HALF * hidden
    shared = _mlp_bytes(moe.shared_intermediate_size, gated=True)
    return dense, around + moe.experts_per_token * expert + shared + SINGLE * moe.num_experts


def _mlp_bytes(width: int, *, gated: bool) -> int:
    return HALF * width * (4 if gated else 2)


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """A training run on a cluster. ``flops`` are 6 N D, what budgets and laws count.

    ``joules`` are the boards', estimated; None where the GPU's power is not known.
    """

    flops: float
    gpu_hours: float
    wall_s: float
    usd: float
    joules: float | None = None


def cost_of_flops(flops: float, gpu: Gpu, *, gpus: int, mfu: float) -> TrainingCost:
    """Time and money of so many FLOPs (6 N D).

    `mfu` is the model FLOPs utilisation: the share of the GPUs' dense 16-bit peak at which 6 N D
    FLOPs are done, N the parameters a token activates. Recomputation and attention lower it.
    """
    gpu_s = flops / (gpu.bfloat16_flops_per_s * mfu)
    hours = gpu_s / 3600
    computing = flops / attainable_flops_per_s(gpu, "bfloat16") / gpu_s
    watts = board_watts(gpu, busy=1.0, computing=computing)
    joules = None if watts is None else gpu_s * watts
    return TrainingCost(flops, hours, gpu_s / gpus, hours * gpu.price_usd_per_hour, joules)


def flops_of_usd(usd: float, gpu: Gpu, *, mfu: float) -> float:
    """The training FLOPs that money buys."""
    return usd / gpu.price_usd_per_hour * 3600 * gpu.bfloat16_flops_per_s * mfu


def training_flops_per_token(
    model: ModelSpec, sequence_length: int, *, checkpointing: Checkpointing = "none"
) -> int:
    """FLOPs the GPUs really do for a token: three forward passes' worth, four if recomputed."""
    passes = 4 if checkpointing == "layer" else 3
    return passes * forward_flops_per_token(model, sequence_length)


def least_gpus_to_train(
    model: ModelSpec,
    settings: ActivationSettings,
    gpu: Gpu,
    *,
    zero_stage: int = 3,
    gradient_bytes_each: int = HALF,
) -> int | None:
    """The fewest data-parallel GPUs that hold the training state; None where no number does."""

    def fits(gpus: int) -> bool:
        memory = training_memory(
            model,
            settings,
            gpus=gpus,
            zero_stage=zero_stage,
            gradient_bytes_each=gradient_bytes_each,
        )
        return memory.total_bytes <= gpu.memory_bytes

    if not fits(2**30):
        return None
    low, high = 0, 2**30  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def gpus_to_hold_weights(model: ModelSpec, gpu: Gpu, *, utilization: float) -> int:
    """GPUs whose memory, used to this share, holds the weights; nothing left for a KV cache."""
    return math.ceil(model.weight_bytes() / (gpu.memory_bytes * utilization))
