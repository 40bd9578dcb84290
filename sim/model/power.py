"""What GPUs draw from the socket, estimated from how busy they were; joules of a run.

    watts = idle + (peak - idle) x (MEMORY_BOUND x busy + (1 - MEMORY_BOUND) x computing)

`busy` is the share of the time in which iterations ran, `computing` the share that their arithmetic
takes at the rate its kernels reach: the rest of a busy second waits for memory, links or the host.
So a GPU that reads weights for a few sequences draws a third of its range, one that computes
prompts all day draws its limit.

MEMORY_BOUND is an ASSUMPTION out of one published measurement: decodes of an H200 (78 W to 700 W)
draw 137 to 300 W (Ma et al., "The Illusion of Power Capping in LLM Decode", 2026), at most 0.36 of
the range. That prompts reach the limit and decodes do not is also in Patel et al., "Splitwise",
ISCA 2024, section III. Nothing here was fitted to a serving run; boards alone are counted, no host,
fan or switch, and no change of clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.work import Features, ModelWork

MEMORY_BOUND = 0.3
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class PoweredEngine:
    """One engine's GPUs, and what its iterations ask of each."""

    gpu: Gpu
    parallelism: Parallelism
    work: ModelWork
    weight_dtype: str


@dataclass(frozen=True, slots=True)
class Draw:
    """Seconds of GPUs, all of them together: switched on, running iterations, and computing."""

    up_s: float
    busy_s: float
    computing_s: float
    joules: float


def board_watts(gpu: Gpu, *, busy: float, computing: float) -> float | None:
    """Mean draw of one board over a time it is busy and computing for these shares of.

    None where the GPU's power is not known.
    """
    if gpu.idle_watts is None or gpu.peak_watts is None:
        return None
    busy = min(busy, 1.0)
    used = MEMORY_BOUND * busy + (1.0 - MEMORY_BOUND) * min(computing, busy)
    return gpu.idle_watts + (gpu.peak_watts - gpu.idle_watts) * used


def attainable_flops_per_s(gpu: Gpu, weight_dtype: str) -> float:
    """What products with such weights reach of the peak."""
    few_bits = gpu.computes_in_few_bits(weight_dtype)
    efficiency = gpu.kernel_rates.products_of(few_bits=few_bits).efficiency
    return gpu.peak_flops_per_s(weight_dtype) * efficiency


def draw_of(
    engine: PoweredEngine,
    iterations: Mapping[str, np.ndarray],
    *,
    prefill_pairs: float,
    up_s: float,
) -> Draw | None:
    """What equal replicas drew in these iterations of theirs.

    prefill_pairs: (query, key) pairs of the prompts computed; up_s: seconds, summed over replicas,
    that they were switched on. None where the GPU's power is not known.
    """
    gpu, parallelism = engine.gpu, engine.parallelism
    # A pipeline's stages each have a share of every iteration's time and work.
    stages, gpus = parallelism.pipeline_parallel, parallelism.num_gpus

    def total(name: str) -> np.ndarray:
        return np.array([float(iterations[name].sum(dtype=np.float64))])

    asked = engine.work.of(
        Features(
            tokens=total("num_tokens"),
            rows=total("num_emitting"),
            prefill_tokens=total("prefill_tokens"),
            prefill_pairs=np.array([prefill_pairs]),
            prefill_cached=np.zeros(1),
            decodes=total("decode_seqs"),
            context_tokens=total("context_tokens"),
        )
    )
    busy_s = min(float(total("duration_s")[0]) / stages, up_s)
    compute_s = float(asked.flops[0]) / attainable_flops_per_s(gpu, engine.weight_dtype) / stages
    compute_s = min(compute_s, busy_s)
    shares = (busy_s / up_s, compute_s / up_s) if up_s > 0 else (0.0, 0.0)
    watts = board_watts(gpu, busy=shares[0], computing=shares[1])
    if watts is None:
        return None
    return Draw(gpus * up_s, gpus * busy_s, gpus * compute_s, gpus * up_s * watts)


def prompt_pairs(requests: Mapping[str, np.ndarray]) -> float:
    """(query, key) pairs of all prompts, each computed once beyond what was cached of it."""
    served = ~requests["rejected"]
    prompts = requests["prompt_tokens"][served].astype(np.float64)
    cached = requests["cached_tokens"][served].astype(np.float64)
    return float(np.sum(prompts * (prompts + 1) - cached * (cached + 1)) / 2)
