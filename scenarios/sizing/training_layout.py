"""How a training step is best laid out on so many GPUs: degrees that can be, fit, and are fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from scenarios.sizing.layer_tensors import HALF, ActivationSettings
from scenarios.sizing.training import Degrees, TrainingMemory, training_memory
from scenarios.sizing.training_step import GPUS_PER_NODE, StepTime, training_step
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

MOST_SEQUENCE_RANKS = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to share out a step, what it holds on each GPU and how long it takes."""

    degrees: Degrees
    memory: TrainingMemory
    step: StepTime

    def figures(self) -> dict[str, Any]:
        return asdict(self.degrees) | {
            "devices": self.degrees.devices,
            "memory_bytes": self.memory.total_bytes,
            "step_s": self.step.step_s,
            "tokens_per_s": self.step.tokens_per_s,
            "mfu": self.step.share_of_peak(self.step.six_n_flops),
        }


def layouts(
    model: ModelSpec,
    settings: ActivationSettings,
    gpu: Gpu,
    *,
    gpus: int,
    batch_tokens: float,
    zero_stage: int = 3,
    gradient_bytes_each: int = HALF,
) -> list[Layout]:
    """All layouts on exactly so many GPUs that fit their memory, fastest first; none may be.

    Every one can be deployed: its degrees divide heads and experts, stages are no more than layers,
    tensor ranks share a node. `batch_tokens` is a step's, rounded to whole micro-batches of every
    data-parallel rank.
    """
    found = []
    for degrees in _candidates(model, settings, gpus, batch_tokens, zero_stage):
        try:
            memory = training_memory(
                model, settings, degrees, gradient_bytes_each=gradient_bytes_each
            )
        except ValueError:  # the model cannot be divided so
            continue
        if memory.total_bytes <= gpu.memory_bytes:
            step = training_step(
                model, settings, degrees, gpu, gradient_bytes_each=gradient_bytes_each
            )
            found.append(Layout(degrees, memory, step))
    return sorted(found, key=lambda one: (-one.step.tokens_per_s, one.memory.total_bytes))


def _candidates(
    model: ModelSpec, settings: ActivationSettings, gpus: int, batch_tokens: float, zero_stage: int
) -> Iterator[Degrees]:
    for tensor in _divisors(gpus, GPUS_PER_NODE):
        for pipeline in _divisors(gpus // tensor, model.num_layers):
            for sequence in _divisors(gpus // tensor // pipeline, MOST_SEQUENCE_RANKS):
                data = gpus // tensor // pipeline // sequence
                micro_batches = round(batch_tokens / settings.tokens / data)
                if micro_batches < 1:
                    continue  # fewer sequences than ranks: nothing for some of them to do
                experts = 1 if model.moe is None else model.moe.num_experts
                for expert in _divisors(data * sequence, experts):
                    yield Degrees(
                        tensor, pipeline, data, sequence, zero_stage, micro_batches, expert
                    )


def _divisors(whole: int, most: int) -> list[int]:
    return [number for number in range(1, min(whole, most) + 1) if whole % number == 0]
