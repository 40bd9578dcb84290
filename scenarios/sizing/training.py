"""What training a transformer takes: memory of each GPU, FLOPs, time and money.

Memory in mixed precision with Adam, per parameter (Rajbhandari et al. 2020, "ZeRO", section 3.1):
2 bytes of 16-bit parameters, 2 of gradients, and 12 of optimizer states (float32 copy, momentum,
variance). Activations are the tensors of `scenarios.sizing.layer_tensors`, and once the inputs of
the last norm and of the head, and float32 logits. Checkpointing at layer boundaries keeps only each
layer's input (2 bytes x hidden) and recomputes one layer at a time. Nothing is added for
fragmentation, communication buffers or the CUDA context.

Devices share it out:

- tensor parallelism (Shoeybi et al. 2019, *Megatron-LM*) divides weights and all of a layer's
  activations but inputs and outputs of its two norms;
- a pipeline divides layers; its first stage holds as many micro-batches as there are stages (one
  forward, one backward: Narayanan et al. 2021);
- sequence parallelism divides the tokens: Ulysses (Jacobs et al. 2023) or a ring (Liu et al. 2023);
- data-parallel ranks each have micro-batches of their own. ZeRO deals the states out to them and to
  sequence ranks, which hold the same weights: stage 1 the optimizer states, stage 2 also gradients,
  stage 3 also parameters;
- the experts of a mixture are dealt out to expert ranks, which are data-parallel ranks besides
  (Rajbhandari et al. 2022, *DeepSpeed-MoE*): an expert degree needs no devices of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scenarios.sizing.layer_tensors import (
    HALF,
    SINGLE,
    ActivationSettings,
    Checkpointing,
    embedding_mask,
    layer_activations,
    outer_activations,
)
from scenarios.sizing.model_anatomy import forward_flops_per_token, parameter_split
from sim.model.hardware import Gpu
from sim.model.power import attainable_flops_per_s, board_watts
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
    expert: int = 1  # of the data-parallel and sequence ranks

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data * self.sequence

    @property
    def replicas(self) -> int:
        """Ranks with the same dense weights, among whom ZeRO deals them out."""
        return self.data * self.sequence

    def check(self, model: ModelSpec, settings: ActivationSettings) -> None:
        """Raises ValueError where the model or its sequences cannot be divided so."""
        experts = None if model.moe is None else model.moe.num_experts
        if experts is None and self.expert > 1:
            raise ValueError(f"expert degree {self.expert}: {model.name} has no experts")
        for name, degree, whole, what in (
            ("tensor", self.tensor, model.num_attention_heads, "attention heads"),
            ("sequence", self.sequence, settings.sequence_length, "tokens of a sequence"),
            ("expert", self.expert, self.replicas, "data-parallel and sequence ranks"),
            ("expert", self.expert, experts or self.expert, "experts"),
        ):
            if whole % degree:
                raise ValueError(f"{name} degree {degree} does not divide {whole} {what}")
        model.check_tensor_parallel(self.tensor)
        if self.pipeline > model.num_layers:
            raise ValueError(f"pipeline degree {self.pipeline} for {model.num_layers} layers")


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


ONE = Degrees()  # a single device, with the whole model


def training_memory(
    model: ModelSpec,
    settings: ActivationSettings,
    degrees: Degrees = ONE,
    *,
    gradient_bytes_each: int = HALF,
) -> TrainingMemory:
    """Memory of the fullest device. Raises ValueError where the model cannot be divided so."""
    degrees.check(model, settings)
    dense, experts = parameters_on_device(model, degrees)

    def held(stage: int) -> float:
        """Parameters of which a device holds something, dealt out from this ZeRO stage on."""
        if degrees.zero_stage < stage:
            return dense + experts
        return dense / degrees.replicas + experts * degrees.expert / degrees.replicas

    return TrainingMemory(
        parameter_bytes=HALF * held(3),
        gradient_bytes=gradient_bytes_each * held(2),
        optimizer_bytes=3 * SINGLE * held(1),
        activation_bytes=training_activation_bytes(model, settings, degrees),
    )


def parameters_on_device(model: ModelSpec, degrees: Degrees) -> tuple[float, float]:
    """Parameters of the fullest stage on one device before ZeRO: dense ones, and experts'."""
    split = parameter_split(model)
    layers = math.ceil(model.num_layers / degrees.pipeline)
    tables = split.embedding
    if degrees.pipeline > 1 and not model.tie_word_embeddings:
        tables -= model.vocab_size * model.hidden_size  # the other end has the other one
    dense = model.num_parameters - split.embedding - split.experts
    return (
        (dense * layers / model.num_layers + tables) / degrees.tensor,
        split.experts * layers / model.num_layers / degrees.tensor / degrees.expert,
    )


def training_activation_bytes(
    model: ModelSpec, settings: ActivationSettings, degrees: Degrees = ONE
) -> float:
    """Peak activation memory of one GPU: the first stage's, with its micro-batches in flight, or
    the last one's, with the head."""
    dense, sparse = layer_bytes(model, settings, tensor_parallel=degrees.tensor)
    head = sum(one.on_rank(degrees.tensor) for one in outer_activations(model, settings))
    mask = embedding_mask(model, settings)
    layers = math.ceil(model.num_layers / degrees.pipeline)
    num_sparse = 0 if model.moe is None else model.moe.num_layers
    in_flight = min(degrees.pipeline, degrees.micro_batches)
    if settings.checkpointing == "none":
        every = (model.num_layers - num_sparse) * dense + num_sparse * sparse
        kept, again = every * layers / model.num_layers, 0.0
    else:
        kept = float(HALF * model.hidden_size * settings.tokens * layers)
        again = max(dense if num_sparse < model.num_layers else 0.0, sparse)
    # The head's gradients are done before the last layer is recomputed.
    first, last = (kept + mask) * in_flight + again, kept + max(again, head)
    if settings.checkpointing == "none":
        last = kept + head
    peak = last + mask if degrees.pipeline == 1 else max(first, last)
    return peak / degrees.sequence


def layer_bytes(
    model: ModelSpec, settings: ActivationSettings, *, tensor_parallel: int = 1
) -> tuple[float, float]:
    """What one micro-batch leaves in a layer with a dense MLP, and in one with experts (0: none),
    on each of so many ranks."""

    def of(experts: bool) -> float:
        kept = layer_activations(model, settings, experts=experts)
        return sum(tensor.on_rank(tensor_parallel) for tensor in kept)

    return of(False), 0.0 if model.moe is None else of(True)


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
    degrees: Degrees = ONE,
    *,
    gradient_bytes_each: int = HALF,
) -> int | None:
    """The fewest GPUs that hold the training state at these degrees, with as many data-parallel
    ranks as that takes; None where no number does."""
    each = degrees.devices // degrees.data  # of a data-parallel rank
    step = degrees.expert // math.gcd(degrees.expert, degrees.sequence)

    def fits(ranks: int) -> bool:
        memory = training_memory(
            model,
            settings,
            replace(degrees, data=ranks * step),
            gradient_bytes_each=gradient_bytes_each,
        )
        return memory.total_bytes <= gpu.memory_bytes

    if not fits(2**30):
        return None
    low, high = 0, 2**30  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high * step * each


def gpus_to_hold_weights(model: ModelSpec, gpu: Gpu, *, utilization: float) -> int | None:
    """The fewest GPUs whose memory, used to this share, holds the weights, nothing left for a KV
    cache, as a pipeline of tensor-parallel groups that can be deployed; None where none do."""
    room = gpu.memory_bytes * utilization

    def fits(degree: int, stages: int) -> bool:
        shares = model.stages(stages)
        return all(
            share.weight_bytes(degree, first_stage=at == 0, last_stage=at == stages - 1) <= room
            for at, share in enumerate(shares)
        )

    def splits(degree: int) -> bool:
        try:
            model.check_tensor_parallel(degree)
        except ValueError:
            return False
        return True

    degrees = [degree for degree in range(8, 0, -1) if splits(degree)]
    least = math.ceil(model.weight_bytes() / room)
    for gpus in range(least, 8 * model.num_layers + 1):
        for degree in degrees:
            stages, left = divmod(gpus, degree)
            if not left and stages <= model.num_layers and fits(degree, stages):
                return gpus
    return None
