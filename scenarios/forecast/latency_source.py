"""Where a scenario's iteration times come from: a fixed value, the roofline or a measured table.

``auto`` takes a table composed of measured kernels, and the roofline where there is none: for a GPU
that nobody measured, and for what tables do not hold (pipelines, tokens spread over ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scenarios import library
from scenarios.errors import reading
from scenarios.forecast.expert_counts import expert_routing
from scenarios.forecast.links import interconnect
from scenarios.schema.engine import Engine
from scenarios.schema.hardware import Hardware
from scenarios.schema.latency import HostOverhead as HostOverheadSection
from scenarios.schema.latency import Latency
from scenarios.schema.scenario import Scenario
from scenarios.schema.speculation import Speculation
from scenarios.schema.vllm_defaults import capture_sizes
from sim.kv.memory import MemoryBudget
from sim.latency.lockstep_table import LockstepTable, check_shares
from sim.latency.pipeline import PipelineLatency, roofline_latency
from sim.latency.protocol import FixedLatency, HostOverhead, LatencyModel
from sim.latency.roofline import (
    HOST_LINK_EFFICIENCY,
    HOST_PER_ITERATION_S,
    HOST_PER_SEQUENCE_S,
)
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.latency.table_folder import read_table
from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec

VLLM_HOST_S = 1.8e-3  # of an iteration, see `assumed_host`
VLLM_SYNC_HOST_S, VLLM_SYNC_SEQUENCE_S = 0.45e-3, 36e-6

# None: nothing is measured, which is an answer for source auto alone.
Composer = Callable[[Scenario, ModelSpec, Gpu], LatencyTable | None]


def parallelism_of(hardware: Hardware) -> Parallelism:
    """All the degrees of one engine."""
    sequence = hardware.sequence_parallel
    return Parallelism(
        tensor_parallel=hardware.tensor_parallel,
        pipeline_parallel=hardware.pipeline_parallel,
        expert_parallel=hardware.expert_parallel,
        sequence_parallel=1 if sequence is None else sequence.degree,
        sequence_kind="ulysses" if sequence is None else sequence.kind,
        # Dense ranks share nothing: each is an engine by itself.
        data_parallel=hardware.data_parallel if hardware.expert_parallel > 1 else 1,
        decode_context_parallel=hardware.decode_context_parallel,
        gpus_per_node=hardware.gpus_per_node,
    )


def latency_model(
    scenario: Scenario,
    model: ModelSpec,
    gpu: Gpu,
    memory: MemoryBudget,
    *,
    beside: Path | None,
    compose: Composer | None,
) -> LatencyModel:
    """The times of one engine. Raises ValueError where its source cannot tell them."""
    latency, engine, hardware = scenario.latency, scenario.engine, scenario.hardware
    parallelism = parallelism_of(hardware)
    if latency.source == "fixed":
        assert latency.iteration_ms is not None
        if hardware.pipeline_parallel > 1:
            return PipelineLatency.fixed(latency.iteration_ms / 1e3, hardware.pipeline_parallel)
        return FixedLatency(latency.iteration_ms / 1e3)
    # A dense draft model beside a mixture of experts has no routing.
    given_experts = None if model.moe is None else scenario.experts
    routing = expert_routing(given_experts, model, beside=beside)
    host = latency.host_overhead
    table = None
    if latency.source == "auto" and compose is not None and _is_composed(parallelism):
        table = compose(scenario, model, gpu)
    if latency.source == "roofline" or (latency.source == "auto" and table is None):
        given: dict[str, Any] = dict(latency.efficiencies)
        assumed = assumed_host(engine) if host is None else _given(host)
        given["host_per_iteration_s"] = assumed.per_iteration_s
        given["host_per_sequence_s"] = assumed.per_sequence_s
        given["host_source"] = assumed.source
        given["capture_sizes"] = _capture_sizes(engine, None, scenario.speculation)
        return roofline_latency(
            model,
            gpu,
            parallelism=parallelism,
            routing=routing,
            interconnect=interconnect(hardware, gpu),
            kv_cache_dtype=engine.kv_cache_dtype,
            block_size=engine.block_size,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            **given,
        )
    if table is None:
        _refuse_what_no_table_measured(parallelism, latency.source)
        table = _table(scenario, model, gpu, beside=beside, compose=compose)
    _refuse_other_weights(table, model, engine)
    check_shares(table, parallelism)
    skew = latency.skew
    of_ranks = parallelism.data_parallel > 1
    kind = partial(LockstepTable, parallelism=parallelism) if of_ranks else TableLatency
    block_s = memory.bytes_per_block / (gpu.host_link_bytes_per_s * HOST_LINK_EFFICIENCY)
    with reading(latency.table or table.label):
        return kind(
            table,
            model,
            tensor_parallel=hardware.tensor_parallel,
            ranks_per_node=parallelism.tensor_per_node,
            routing=None if routing is None or routing.is_uniform else routing,
            interconnect=interconnect(hardware, gpu),
            link_measured=hardware.link is not None,
            host=_host_overhead(host, table, engine),
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            swapped_block_s=block_s,
            block_size=engine.block_size,
            capture_sizes=_capture_sizes(engine, table, scenario.speculation),
            launch_s=_launch_s(latency, table),
            skew=table.corrects_skew if skew is None else skew,
        )


def _table(
    scenario: Scenario,
    model: ModelSpec,
    gpu: Gpu,
    *,
    beside: Path | None,
    compose: Composer | None,
) -> LatencyTable:
    """The table that the scenario names, or one composed for it."""
    latency = scenario.latency
    if latency.source == "table":
        assert latency.table is not None
        folder = library.find_file(latency.table, beside=beside)
        return read_table(latency.table if folder is None else folder)
    if compose is None:
        raise ValueError(
            "source aiconfigurator is available from the command line and orcast.simulate"
        )
    table = compose(scenario, model, gpu)
    assert table is not None, "what is not measured was refused"
    return table


def _is_composed(parallelism: Parallelism) -> bool:
    """One tensor-parallel group, or one of several in lockstep that share a mixture's experts."""
    return _one_group(parallelism) or (
        parallelism.data_parallel > 1
        and parallelism.num_gpus == parallelism.tensor_parallel
        and parallelism.decode_context_parallel == 1
    )


def _one_group(parallelism: Parallelism) -> bool:
    """Tables hold whole models on the ranks of one tensor-parallel group, and no more."""
    return (
        parallelism.num_gpus == parallelism.tensor_parallel
        and parallelism.expert_parallel == 1
        and parallelism.decode_context_parallel == 1
    )


def _refuse_what_no_table_measured(parallelism: Parallelism, source: str) -> None:
    if not _is_composed(parallelism):
        raise ValueError(
            f"source {source} measured tensor parallelism at most, hardware asks for "
            f"{parallelism.words}; source roofline can (unmeasured)"
        )


def _refuse_other_weights(table: LatencyTable, model: ModelSpec, engine: Engine) -> None:
    """Times of 16-bit products say nothing of quantised ones, nor the other way round."""
    measured = str(table.meta["dtype"])
    kind = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}.get(measured, measured)
    same = kind == model.weight_dtype or {kind, model.weight_dtype} == {"bfloat16", "float16"}
    if engine.weight_dtype != "auto" and not same:
        raise ValueError(
            f"the table was measured with weights in {measured}, engine.weight_dtype is "
            f"{engine.weight_dtype}: measure that, or take source roofline (unmeasured)"
        )


def _capture_sizes(
    engine: Engine, table: LatencyTable | None, speculation: Speculation | None
) -> tuple[int, ...]:
    """The scenario's, else those of the engine the table was measured for, else vLLM's."""
    sizes = engine.cudagraph_capture_sizes
    if sizes is None and table is not None:
        sizes = table.meta.get("cudagraph_capture_sizes")
    if sizes is None and engine.max_cudagraph_capture_size is not None:
        drafts = 0 if speculation is None else speculation.num_draft_tokens or 0
        return capture_sizes(
            engine.max_cudagraph_capture_size,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            query_tokens=1 + drafts,
        )
    return tuple(sorted(sizes or ()))


def _launch_s(latency: Latency, table: LatencyTable) -> float:
    """What launching a batch kernel by kernel takes; zero where that is not asked for.

    Asked for by the scenario, else by a table whose engine launches prompts so.
    """
    launch = latency.launch or table.meta.get("prompts")
    if launch != "eager" or table.meta.get("launch") == "eager":
        return 0.0  # eager times have their launches in them
    launch_us = table.meta.get("eager_launch_us")
    if not isinstance(launch_us, int | float) or not launch_us > 0:
        raise ValueError("launch: eager needs a table that measured it (eager_launch_us)")
    return float(launch_us) / 1e6


def _host_overhead(
    given: HostOverheadSection | None, table: LatencyTable, engine: Engine
) -> HostOverhead | None:
    """The scenario's value, else the measured one (None: a part), else what is assumed."""
    if given is not None:
        return _given(given)
    if "host" in table.parts:
        return None
    measured = table.meta.get("host_overhead_us")
    if measured is None:
        return assumed_host(engine)
    return HostOverhead(
        measured["per_iteration"] / 1e6, measured["per_sequence"] / 1e6, "measured, in the table"
    )


def _given(host: HostOverheadSection) -> HostOverhead:
    return HostOverhead(
        host.per_iteration_us / 1e6, host.per_sequence_us / 1e6, "given in the scenario"
    )


def assumed_host(engine: Engine) -> HostOverhead:
    """Host time where nobody measured any; asynchronous scheduling hides it behind the device.

    vLLM's synchronous V1 engine: 0.45 ms and 36 us a sequence, from what steps without prompts take
    beyond their kernels, and beyond what ranks wait for one another, in serving points of Qwen3-32B
    on H100 (vLLM 0.12, tensor parallel 2 to 8). Today's does its work beside the device; what was
    measured of it is hidden, so its 1.8 ms (as four groups of recordings of the synchronous one had
    it without a part per sequence) decide only what pauses and very small models show of it.
    """
    if engine.generation == "vllm-sync":
        return HostOverhead(VLLM_SYNC_HOST_S, VLLM_SYNC_SEQUENCE_S, "assumed for vllm-sync")
    if engine.generation == "vllm":
        return HostOverhead(VLLM_HOST_S, 0.0, f"assumed for generation {engine.generation}")
    return HostOverhead(HOST_PER_ITERATION_S, HOST_PER_SEQUENCE_S, "assumed")
