"""The memory that a scenario leaves for a KV cache, and how that is divided."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scenarios.forecast.latency_source import parallelism_of
from scenarios.schema.engine import Engine
from scenarios.schema.scenario import Scenario
from sim.kv.memory import MemoryBudget, memory_budget
from sim.kv.profiling_run import ProfilingRun
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec
from sim.speculation import HEADS


def engine_memory(
    scenario: Scenario, model: ModelSpec, gpu: Gpu, *, remedy: bool = True
) -> MemoryBudget:
    """What a replica's GPUs leave for its KV cache. Raises ValueError where that is nothing, with
    what would do unless `remedy` is false."""
    engine = scenario.engine
    return memory_budget(
        model,
        gpu,
        parallelism=parallelism_of(scenario.hardware),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        block_size=engine.block_size,
        kv_cache_dtype=engine.kv_cache_dtype,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        num_gpu_blocks_override=engine.num_gpu_blocks_override,
        kv_cache_bytes=engine.kv_cache_bytes,
        null_block=engine.null_block,
        profiling=profiling_run(engine),
        by_groups=keeps_by_groups(scenario, model),
        remedy=remedy,
    )


def keeps_by_groups(scenario: Scenario, model: ModelSpec) -> bool:
    """Whether the engine has a table for each group of layers.

    As vLLM V1: not where blocks go to a second tier, nor for chunks beside a draft head that drops
    the last block it finds.
    """
    engine, speculation = scenario.engine, scenario.speculation
    chunks = any(mixer.kind == "chunked" for mixer in model.mixers)
    head = speculation is not None and speculation.method in HEADS
    return (
        engine.scheduler == "chunked"
        and not engine.disable_hybrid_kv_cache_manager
        and not engine.tiers
        and not (chunks and head)
    )


def sequence_bytes(model: ModelSpec, kv_cache_dtype: str) -> Callable[[int], float] | None:
    """What a cache of so many tokens takes, all GPUs of a replica together; None: as many a token.

    Windows and states are as large for a long sequence as for a longer one.
    """
    if all(group.window is None for group in model.kv_groups()) and not model.state_bytes():
        return None
    return partial(model.kv_bytes, kv_cache_dtype=kv_cache_dtype)


def profiling_run(engine: Engine) -> ProfilingRun:
    """What the engine's profiling run counts."""
    return ProfilingRun(
        graphs=engine.memory_profile == "vllm-0.21",
        context=engine.memory_profile == "vllm-v0",
        sampler=engine.sampler,
    )
