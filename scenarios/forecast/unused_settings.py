"""What a scenario asks for that does nothing, or not what it says: told, never silently ignored."""

from __future__ import annotations

import re

from scenarios.forecast.latency_source import parallelism_of
from scenarios.schema.engine import Engine
from scenarios.schema.generations import filled
from scenarios.schema.scenario import Scenario
from sim.cluster.plan import ReplicaGroup
from sim.latency.protocol import LatencyModel
from sim.latency.table import TableLatency
from sim.model.hardware import Gpu
from sim.workload import Workload

_KNOBS = {  # knob -> the schedulers it means something to
    "long_prefill_token_threshold": {"chunked"},
    "scheduler_reserve_full_isl": {"chunked"},
    "disable_hybrid_kv_cache_manager": {"chunked"},
    "enable_prefix_caching": {"paged", "chunked"},
    "preemption": {"paged"},
    "swap_space_gib": {"paged"},
    "watermark": {"paged"},
    "reservation": {"static", "dynamic", "orca"},
    "placement": {"orca"},
    "preferred_batch_sizes": {"dynamic"},
    "max_queue_delay_ms": {"dynamic"},
}


def unused_knobs(scenario: Scenario) -> list[str]:
    """A note for every knob that was turned from its default and that this policy does not have."""
    engine = scenario.engine
    defaults = Engine.model_validate(
        filled({"scheduler": engine.scheduler}, scenario.hardware.model_dump())
    )
    notes = [
        f"engine.{knob} has no effect under scheduler {engine.scheduler} "
        f"(it belongs to {', '.join(sorted(schedulers))})"
        for knob, schedulers in _KNOBS.items()
        if engine.scheduler not in schedulers and getattr(engine, knob) != getattr(defaults, knob)
    ]
    if engine.scheduler in {"static", "dynamic", "orca"} and (
        engine.max_num_batched_tokens != defaults.max_num_batched_tokens
    ):
        notes.append(
            f"engine.max_num_batched_tokens limits no batch under scheduler {engine.scheduler}; "
            "it only sizes the memory kept for activations"
        )
    if not engine.kv_tiers:
        notes += [
            f"engine.{knob} has no effect without engine.kv_tiers"
            for knob in ("kv_tier_writes", "kv_tier_reads")
            if getattr(engine, knob) != getattr(defaults, knob)
        ]
    return notes


def without_effect_on_time(scenario: Scenario) -> list[str]:
    """A fixed duration knows neither GPUs nor weights: they only divide the memory."""
    if scenario.latency.source != "fixed":
        return []
    parallelism = parallelism_of(scenario.hardware)
    notes = []
    if parallelism.gpus_per_step > 1:
        notes.append(
            f"hardware: {parallelism.words} has no effect on a fixed latency but for its stages; "
            "it divides the memory"
        )
    if scenario.engine.weight_dtype != "auto":
        notes.append("engine.weight_dtype has no effect on a fixed latency, only on memory")
    if scenario.engine.kv_tiers:
        notes.append("engine.kv_tiers: how fast they are has no effect on a fixed latency")
    if scenario.experts is not None:
        notes.append("experts has no effect on a fixed latency")
    if scenario.workload.sampling is not None:
        notes.append("workload.sampling has no effect on a fixed latency")
    return notes


def other_than_measured(latency: LatencyModel, gpu: Gpu, scenario: Scenario) -> list[str]:
    """Notes where the table's times are of another GPU or cache type than the scenario's, and what
    the table says against itself."""
    if not isinstance(latency, TableLatency):
        if scenario.latency.source != "fixed":
            return []
        return [
            f"engine.{knob} has no effect on a fixed latency"
            for knob in ("cudagraph_capture_sizes", "max_cudagraph_capture_size")
            if getattr(scenario.engine, knob) and knob in scenario.engine.model_fields_set
        ]
    meta = latency.table.meta
    notes = [f"the latency table doubts itself: {doubt}" for doubt in latency.table.doubts]
    measured_on = str(meta["gpu"])
    ours, theirs = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (gpu.name, measured_on))
    if ours not in theirs and theirs not in ours:
        notes.append(f"the latency table was measured on {measured_on}, hardware.gpu is {gpu.name}")
    if scenario.workload.sampling is not None and scenario.latency.source == "table":
        notes.append(
            "workload.sampling has no effect: the latency table was measured with a sampler"
        )
    hardware = scenario.hardware
    if "communication" in latency.table.parts and (
        hardware.tensor_parallel > hardware.gpus_per_node
    ):
        notes.append(
            "the latency table's all-reduce is taken as it was measured, whether or not its ranks "
            "shared a node"
        )
    cached = str(meta.get("kv_cache_dtype", "auto"))
    if cached.startswith("fp8") != (scenario.engine.kv_cache_dtype == "fp8"):
        notes.append(
            f"the latency table was measured with kv_cache_dtype {cached}, "
            f"engine.kv_cache_dtype is {scenario.engine.kv_cache_dtype}"
        )
    return notes


def blind_router(
    scenario: Scenario, workload: Workload, groups: tuple[ReplicaGroup, ...]
) -> list[str]:
    """A note where the router looks for prefixes and there are none to be seen."""
    router = scenario.cluster.router
    if router not in ("prefix_aware", "session_sticky"):
        return []
    if workload.content is None:
        why = "the content of no prompt is known"
    elif not any(group.config.enable_prefix_caching for group in groups):
        why = "engine.enable_prefix_caching is off"
    else:
        return []
    return [f"cluster.router {router} works as least_outstanding: {why}"]
