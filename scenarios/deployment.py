"""A scenario -> the objects that are simulated: model, GPU, memory, engine, latency, workload."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scenarios import library, schema
from scenarios.errors import InputError
from scenarios.expert_counts import expert_routing
from scenarios.queueing import queue_rules, unknown_classes
from scenarios.schema import Scenario
from scenarios.sharing import draw_conversations, draw_samples, host_blocks, with_block_moves
from scenarios.speculation import speculator
from sim.cluster_plan import ReplicaGroup
from sim.engine_config import EngineConfig
from sim.expert_routing import ExpertRouting
from sim.hardware import Gpu, Interconnect
from sim.latency.overlapped import OverlappedLatency
from sim.latency.pipeline_latency import PipelineLatency, roofline_latency
from sim.latency.protocol import FixedLatency, HostOverhead, LatencyModel
from sim.latency.roofline import HOST_LINK_EFFICIENCY
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.latency.table_folder import read_table
from sim.memory import MemoryBudget, memory_budget
from sim.metrics import Slo
from sim.model_spec import ModelSpec
from sim.parallelism import Parallelism
from sim.schedulers import SCHEDULERS
from sim.schedulers.installed import installed_policy
from sim.workload import Workload, arrivals, lengths, read_trace
from sim.workload.labels import drawn_labels
from sim.workload.sessions import shared_prefixes

GIB = 2**30
LATEST_ARRIVAL_S = 1e9  # thirty years; float64 resolves 0.1 us there


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything a simulation needs, and what its reader has to be told."""

    scenario: Scenario
    model: ModelSpec
    gpu: Gpu
    parallelism: Parallelism
    routing: ExpertRouting | None  # of a mixture of experts
    memory: MemoryBudget
    config: EngineConfig
    latency: LatencyModel
    workload: Workload
    slo: Slo
    notes: tuple[str, ...]
    groups: tuple[ReplicaGroup, ...] = ()  # of the cluster; none: equal replicas, in turn

    def group_of(self, replicas: np.ndarray) -> np.ndarray:
        """The group that each of these replicas (by number) belongs to; 0 where there are none."""
        last = np.cumsum([group.replicas for group in self.groups or ()])
        group: np.ndarray = np.searchsorted(last, replicas, side="right")
        return group


Composer = Callable[[Scenario, ModelSpec, Gpu], LatencyTable]
Drawer = Callable[[schema.Workload, schema.Engine, Path | None], Workload]


def deploy(
    scenario: Scenario,
    *,
    origin: Path | None = None,
    compose: Composer | None = None,
    draw: Drawer | None = None,
) -> Deployment:
    """Resolve names and files, draw the workload, divide the memory.

    Relative paths are looked up in the current folder, then beside `origin`. `compose` makes a
    latency table from other people's measurements (source ``aiconfigurator``); `draw` stands in
    for `draw_workload` where many runs share their requests. Raises InputError.
    """
    source = str(origin or "scenario")
    beside = None if origin is None else origin.parent
    engine = _engine(scenario, source, beside=beside, compose=compose)
    with _at(source, "workload"):
        workload = (draw or draw_workload)(scenario.workload, scenario.engine, beside)
    with _at(source, "engine"):
        rules = queue_rules(scenario.engine, scenario.workload, workload.labels)
    slo = Slo(
        ttft_s=_ms(scenario.slo.ttft_ms),
        tpot_s=_ms(scenario.slo.tpot_ms),
        e2el_s=_ms(scenario.slo.e2el_ms),
        percentile=scenario.slo.percentile,
    )
    cluster = scenario.cluster
    groups: tuple[ReplicaGroup, ...] = ()
    if not cluster.is_plain or (cluster.replicas > 1 and workload.max_concurrency is not None):
        groups = tuple(_groups(scenario, source, workload.labels, beside=beside, compose=compose))
        _refuse_unlike_groups(groups, workload, source)
    return Deployment(
        scenario=scenario,
        model=engine.model,
        gpu=engine.gpu,
        parallelism=parallelism_of(scenario.hardware),
        routing=engine.routing,
        memory=engine.memory,
        config=engine.config if rules is None else replace(engine.config, queue=rules),
        latency=engine.latency,
        workload=workload,
        slo=slo,
        notes=(
            *workload.notes,
            *unknown_classes(scenario.workload, workload.labels),
            *_blind_router(scenario, workload, groups),
            *engine.notes,
        ),
        groups=groups,
    )


@dataclass(frozen=True, slots=True)
class _Engine:
    """One engine: what it runs on, its limits, its latencies."""

    model: ModelSpec
    gpu: Gpu
    routing: ExpertRouting | None  # of a mixture of experts
    memory: MemoryBudget
    config: EngineConfig
    latency: LatencyModel
    notes: tuple[str, ...]


def _engine(
    scenario: Scenario, source: str, *, beside: Path | None, compose: Composer | None
) -> _Engine:
    """The engine of a scenario, or of one of its groups; `source` says whose, in errors."""
    with _at(source, "model"):
        model = served_model(scenario, beside=beside)
    with _at(source, "hardware.gpu"):
        gpu = library.gpu(scenario.hardware.gpu)
    with _at(source, "hardware"):
        memory = _memory(scenario, model, gpu)
    with _at(source, "speculation"):
        speculating = speculator(scenario, model, beside=beside)
        spread = parallelism_of(scenario.hardware)
        if speculating is not None and spread.num_gpus > spread.tensor_parallel:
            raise ValueError(
                f"over ranks of {spread.words} it is not modelled, only over tensor_parallel"
            )
        if speculating is not None:
            memory = speculating.memory(memory, scenario, model)
    with _at(source, "engine.scheduler"):
        if scenario.engine.scheduler not in SCHEDULERS:
            installed_policy(scenario.engine.scheduler)  # says what is wrong with it
    with _at(source, "engine"):
        config = _engine_config(scenario.engine, model, memory)
    if speculating is not None:
        config = replace(config, speculation=speculating.technique)

    with _at(source, "experts"):
        routing = expert_routing(scenario.experts, model, beside=beside)

    def latency_of(model: ModelSpec, scenario: Scenario) -> LatencyModel:
        return _latency(scenario, model, gpu, memory, beside=beside, compose=compose)

    with _at(source, "latency"):
        wide = scenario if speculating is None else speculating.widened(scenario)
        latency = latency_of(model, wide)
        measured_elsewhere = _other_than_measured(latency, gpu, scenario)
    if speculating is not None:
        with _at(source, "speculation"):
            latency = speculating.latency(latency, wide, model, gpu, latency_of)
    latency = with_block_moves(latency, scenario, memory, gpu)
    if scenario.engine.async_scheduling:
        latency = _overlapped(latency, scenario, source)
    notes = (
        *(speculating.notes(scenario) if speculating is not None else ()),
        *_unused_knobs(scenario),
        *_without_effect_on_time(scenario),
        *measured_elsewhere,
    )
    return _Engine(model, gpu, routing, memory, config, latency, notes)


def _overlapped(latency: LatencyModel, scenario: Scenario, source: str) -> LatencyModel:
    """With the host's time hidden behind the device's. Raises InputError where that cannot be."""
    where = f"{source}: engine.async_scheduling"
    if scenario.speculation is not None:
        raise InputError(f"{where}: beside speculation it is not modelled: drafts decide the batch")
    if scenario.hardware.pipeline_parallel > 1:
        raise InputError(f"{where}: a pipeline overlaps already: pipeline_parallel must be 1")
    cluster = scenario.cluster
    if not cluster.is_plain:
        raise InputError(f"{where}: needs a plain cluster (replicas behind round_robin)")
    if cluster.replicas > 1 and scenario.workload.max_concurrency is not None:
        raise InputError(f"{where}: replicas that share clients (max_concurrency) are not modelled")
    with _at(source, "engine"):
        return OverlappedLatency(latency)


def _groups(
    scenario: Scenario,
    source: str,
    labels: list[str] | None,
    *,
    beside: Path | None,
    compose: Composer | None,
) -> Iterator[ReplicaGroup]:
    """The cluster's groups; values that a group does not give are the scenario's."""
    for number, (group, mine, where) in enumerate(group_scenarios(scenario, source)):
        scheduler = mine.engine.scheduler
        if mine.engine.async_scheduling:
            raise InputError(f"{where}: engine.async_scheduling: needs a plain cluster")
        if group.role != "both":
            if scheduler in ("static", "dynamic"):
                raise InputError(
                    f"{where}.role: request-level batching (scheduler {scheduler}) cannot be "
                    "split into prefill and decode"
                )
            if mine.speculation is not None:
                raise InputError(
                    f"{where}.role: speculation across prefill and decode pools is not modelled"
                )
        with _at(where, "engine"):
            rules = queue_rules(mine.engine, scenario.workload, labels)
        if group.role != "both" and rules is not None and rules.limits:
            raise InputError(
                f"{where}: engine: max_num_waiting and max_queue_time_s are not modelled across "
                "prefill and decode pools"
            )
        engine = _engine(mine, where, beside=beside, compose=compose)
        if isinstance(engine.latency, PipelineLatency):
            raise InputError(
                f"{where}: pipeline_parallel needs a plain cluster (replicas behind round_robin, "
                "without workload.max_concurrency)"
            )
        parallelism = parallelism_of(mine.hardware)
        yield ReplicaGroup(
            group.replicas,
            replace(engine.config, queue=rules),
            engine.latency,
            scheduler,
            engine.memory.num_gpu_blocks,
            role=group.role,
            name=group.name or f"group {number}",
            kv_cache_dtype=mine.engine.kv_cache_dtype,
            kv_bytes_per_token=float(engine.model.kv_bytes_per_token(mine.engine.kv_cache_dtype)),
            gpus=parallelism.num_gpus,
            usd_per_hour=engine.gpu.price_usd_per_hour * parallelism.num_gpus,
        )


def _refuse_unlike_groups(
    groups: tuple[ReplicaGroup, ...], workload: Workload, source: str
) -> None:
    """Groups whose caches have to be alike: those that send them, those that compare prefixes."""
    types = {group.kv_cache_dtype for group in groups if group.role != "both"}
    if len(types) > 1:
        raise InputError(
            f"{source}: cluster.groups: a KV cache is sent as it is, and kv_cache_dtype is "
            f"{' here, '.join(sorted(types))} there: give all pools the same"
        )
    sizes = {group.config.block_size for group in groups if group.config.enable_prefix_caching}
    if len(sizes) > 1 and workload.content is not None:
        raise InputError(
            f"{source}: cluster.groups: cached prefixes are compared block by block, and "
            f"block_size is {' here, '.join(map(str, sorted(sizes)))} there: give all groups the "
            "same, or set engine.enable_prefix_caching=false"
        )


def group_scenarios(
    scenario: Scenario, source: str = "scenario"
) -> Iterator[tuple[schema.ReplicaGroup, Scenario, str]]:
    """Each group of the cluster, the scenario as it is for this group, and where it was given."""
    from scenarios.load import parse_scenario

    cluster = scenario.cluster
    given = cluster.groups or [schema.ReplicaGroup(replicas=cluster.replicas)]
    for number, group in enumerate(given):
        content = scenario.model_dump(exclude_defaults=True)
        content["cluster"] = {}
        for section in ("hardware", "engine", "latency"):
            own = getattr(group, section)
            if own:
                content[section] = content.get(section, {}) | own
        where = f"{source}: cluster.groups[{number}]" if cluster.groups else source
        yield group, parse_scenario(content, origin=where), where


@contextmanager
def _at(source: str, path: str) -> Iterator[None]:
    """Let a ValueError say where in the scenario its cause is."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{source}: {path}: {error}") from None


def _ms(value: float | None) -> float | None:
    return None if value is None else value / 1e3


def served_model(scenario: Scenario, *, beside: Path | None) -> ModelSpec:
    """The scenario's model, its matrices in the type they are served in."""
    model = library.model(scenario.model, beside=beside)
    weight_dtype = scenario.engine.weight_dtype
    return model if weight_dtype == "auto" else model.quantised(weight_dtype)


def _memory(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> MemoryBudget:
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
    )


def parallelism_of(hardware: schema.Hardware) -> Parallelism:
    """All the degrees of one engine."""
    sequence = hardware.sequence_parallel
    return Parallelism(
        tensor_parallel=hardware.tensor_parallel,
        pipeline_parallel=hardware.pipeline_parallel,
        expert_parallel=hardware.expert_parallel,
        sequence_parallel=1 if sequence is None else sequence.degree,
        sequence_kind="ulysses" if sequence is None else sequence.kind,
        gpus_per_node=hardware.gpus_per_node,
    )


def _engine_config(engine: schema.Engine, model: ModelSpec, memory: MemoryBudget) -> EngineConfig:
    swap_blocks, offload_blocks = host_blocks(engine, memory.bytes_per_block)
    return EngineConfig(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=engine.block_size,
        max_model_len=engine.max_model_len or model.max_position_embeddings,
        enable_prefix_caching=engine.enable_prefix_caching,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        preemption=engine.preemption,
        swap_blocks=swap_blocks,
        offload_blocks=offload_blocks,
        watermark=engine.watermark,
        reservation=engine.reservation,
        preferred_batch_sizes=tuple(engine.preferred_batch_sizes),
        max_queue_delay_s=engine.max_queue_delay_ms / 1e3,
        async_scheduling=engine.async_scheduling,
    )


def _latency(
    scenario: Scenario,
    model: ModelSpec,
    gpu: Gpu,
    memory: MemoryBudget,
    *,
    beside: Path | None,
    compose: Composer | None,
) -> LatencyModel:
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
    if latency.source == "roofline":
        given: dict[str, Any] = dict(latency.efficiencies)
        if host is not None:
            given["host_per_iteration_s"] = host.per_iteration_us / 1e6
            given["host_per_sequence_s"] = host.per_sequence_us / 1e6
        return roofline_latency(
            model,
            gpu,
            parallelism=parallelism,
            routing=routing,
            interconnect=_interconnect(hardware, gpu),
            kv_cache_dtype=engine.kv_cache_dtype,
            block_size=engine.block_size,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            **given,
        )
    _refuse_what_no_table_measured(parallelism, latency.source)
    if latency.source == "table":
        assert latency.table is not None
        folder = library.find_file(latency.table, beside=beside)
        table = read_table(latency.table if folder is None else folder)
    elif compose is None:
        raise ValueError(
            "source aiconfigurator is available from the command line and orcast.simulate"
        )
    else:
        table = compose(scenario, model, gpu)
    _refuse_other_weights(table, model, engine)
    skew = latency.skew
    return TableLatency(
        table,
        model,
        tensor_parallel=hardware.tensor_parallel,
        ranks_per_node=parallelism.tensor_per_node,
        routing=None if routing is None or routing.is_uniform else routing,
        interconnect=_interconnect(hardware, gpu),
        link_measured=hardware.link is not None,
        host=_host_overhead(host, table),
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        swapped_block_s=memory.bytes_per_block / (gpu.host_link_bytes_per_s * HOST_LINK_EFFICIENCY),
        block_size=engine.block_size,
        capture_sizes=_capture_sizes(engine, table),
        launch_s=_launch_s(latency, table),
        skew=table.corrects_skew if skew is None else skew,
    )


def _refuse_what_no_table_measured(parallelism: Parallelism, source: str) -> None:
    """Tables hold whole models on the ranks of one tensor-parallel group, and no more."""
    whole = Parallelism(parallelism.tensor_parallel, gpus_per_node=parallelism.gpus_per_node)
    if parallelism.num_gpus > whole.num_gpus:
        raise ValueError(
            f"source {source} measured tensor parallelism at most, hardware asks for "
            f"{parallelism.words}; source roofline can (unmeasured)"
        )


def _refuse_other_weights(table: LatencyTable, model: ModelSpec, engine: schema.Engine) -> None:
    """Times of 16-bit products say nothing of quantised ones, nor the other way round."""
    measured = str(table.meta["dtype"])
    kind = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}.get(measured, measured)
    same = kind == model.weight_dtype or {kind, model.weight_dtype} == {"bfloat16", "float16"}
    if engine.weight_dtype != "auto" and not same:
        raise ValueError(
            f"the table was measured with weights in {measured}, engine.weight_dtype is "
            f"{engine.weight_dtype}: measure that, or take source roofline (unmeasured)"
        )


def _without_effect_on_time(scenario: Scenario) -> list[str]:
    """A fixed duration knows neither GPUs nor weights: they only divide the memory."""
    if scenario.latency.source != "fixed":
        return []
    parallelism = parallelism_of(scenario.hardware)
    notes = []
    if parallelism.gpus_per_stage > 1:
        notes.append(
            f"hardware: {parallelism.words} has no effect on a fixed latency but for its stages; "
            "it divides the memory"
        )
    if scenario.engine.weight_dtype != "auto":
        notes.append("engine.weight_dtype has no effect on a fixed latency, only on memory")
    if scenario.experts is not None:
        notes.append("experts has no effect on a fixed latency")
    return notes


def _other_than_measured(latency: LatencyModel, gpu: Gpu, scenario: Scenario) -> list[str]:
    """Notes where the table's times are of another GPU or cache type than the scenario's."""
    if not isinstance(latency, TableLatency):
        return []
    notes, meta = [], latency.table.meta
    measured_on = str(meta["gpu"])
    ours, theirs = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (gpu.name, measured_on))
    if ours not in theirs and theirs not in ours:
        notes.append(f"the latency table was measured on {measured_on}, hardware.gpu is {gpu.name}")
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


def _capture_sizes(engine: schema.Engine, table: LatencyTable) -> tuple[int, ...]:
    """The scenario's, else those of the engine the table was measured for."""
    sizes = engine.cudagraph_capture_sizes
    if sizes is None:
        sizes = table.meta.get("cudagraph_capture_sizes") or []
    return tuple(sorted(sizes))


def _launch_s(latency: schema.Latency, table: LatencyTable) -> float:
    """What launching a batch kernel by kernel takes; zero where that is not asked for."""
    if latency.launch != "eager" or table.meta.get("launch") == "eager":
        return 0.0  # eager times have their launches in them
    launch_us = table.meta.get("eager_launch_us")
    if not isinstance(launch_us, int | float) or not launch_us > 0:
        raise ValueError("launch: eager needs a table that measured it (eager_launch_us)")
    return float(launch_us) / 1e6


def _host_overhead(given: schema.HostOverhead | None, table: LatencyTable) -> HostOverhead | None:
    """The scenario's value, else the measured one (None: a part); never silently zero."""
    if given is not None:
        return HostOverhead(
            given.per_iteration_us / 1e6, given.per_sequence_us / 1e6, "given in the scenario"
        )
    if "host" in table.parts:
        return None
    measured = table.meta.get("host_overhead_us")
    if measured is None:
        raise ValueError(
            "the table has no host overhead measured: say what the engine's host adds, e.g. "
            "--set latency.host_overhead.per_iteration_us=300 (0 where the engine hides it)"
        )
    return HostOverhead(
        measured["per_iteration"] / 1e6, measured["per_sequence"] / 1e6, "measured, in the table"
    )


def _interconnect(hardware: schema.Hardware, gpu: Gpu) -> Interconnect:
    links = gpu.interconnect
    near, far = hardware.link, hardware.inter_node_link
    if near is not None:
        links = replace(
            links, bytes_per_s=near.bandwidth_gb_per_s * 1e9, latency_s=near.latency_us / 1e6
        )
    if far is not None:
        links = replace(
            links,
            inter_node_bytes_per_s=far.bandwidth_gb_per_s * 1e9,
            inter_node_latency_s=far.latency_us / 1e6,
        )
    return links


# -- workload ---------------------------------------------------------------------------------


def draw_workload(
    workload: schema.Workload, engine: schema.Engine, beside: Path | None = None
) -> Workload:
    """The requests of a scenario: read from its trace, or drawn with its seed.

    Arrivals, prompts and outputs have random streams of their own, so that changing one of them
    leaves the others as they were (common random numbers).
    """
    streams = np.random.SeedSequence(workload.seed).spawn(6)
    arrival_rng, prompt_rng, output_rng, prefix_rng, sample_rng, class_rng = map(
        np.random.default_rng, streams
    )
    labels = None
    if workload.trace is not None:
        found = library.find_file(workload.trace, beside=beside)
        drawn = read_trace(
            workload.trace if found is None else found,
            format=workload.format,
            content=engine.enable_prefix_caching,
            label=workload.class_column,
        )
        if workload.start or workload.stop is not None:
            drawn = drawn.slice(workload.start, workload.stop)
        columns = {"arrival_s": drawn.arrival_s}
        if workload.arrivals is not None:
            columns["arrival_s"] = _arrivals(workload.arrivals, len(drawn), arrival_rng)
        prompts, outputs, content = drawn.prompt_tokens, drawn.output_tokens, drawn.content
        labels = drawn.labels
    else:
        assert workload.arrivals and workload.num_requests
        count, pair = workload.num_requests, workload.lengths
        if pair is not None:
            prompts = _lengths("prompt", pair, count, prompt_rng)
            outputs = _lengths("output", pair, count, output_rng)
        else:
            assert workload.classes
            shares = {name: each.share for name, each in workload.classes.items()}
            labels = drawn_labels(class_rng, count, shares)
            prompts, outputs = _mixed_lengths(workload.classes, labels, prompt_rng, output_rng)
        content, drawn = None, None
        given = workload.arrivals
        if workload.sessions is not None:
            turns = draw_conversations(
                workload, lambda n: _arrivals(given, n, arrival_rng), prompts, outputs, prefix_rng
            )
            columns = {"arrival_s": turns.arrival_s}
            prompts, outputs, content = turns.prompt_tokens, turns.output_tokens, turns.content
        else:
            columns = {"arrival_s": _arrivals(given, count, arrival_rng)}
        if workload.shared_prefixes is not None and workload.sessions is None:
            content = shared_prefixes(
                prefix_rng,
                prompts,
                num_prefixes=workload.shared_prefixes.num_prefixes,
                shared_prefix_tokens=workload.shared_prefixes.tokens,
            )
    samples = draw_samples(
        workload, outputs, lambda n: _further_lengths(workload, outputs, n, sample_rng), sample_rng
    )
    if samples is not None:
        outputs = samples.longest
    limits = outputs if workload.max_tokens is None else np.maximum(outputs, workload.max_tokens)
    with np.errstate(over="ignore"):
        arrival_s = columns["arrival_s"] * workload.time_scale
    if not arrival_s[-1] <= LATEST_ARRIVAL_S:
        raise ValueError(
            f"the last request arrives after {arrival_s[-1]:g} s, beyond {LATEST_ARRIVAL_S:g} s a "
            "clock cannot tell iterations apart; raise request_rate or lower time_scale"
        )
    return Workload(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        max_tokens=limits,
        content=content,
        max_concurrency=workload.max_concurrency,
        request_ids=None if drawn is None else drawn.request_ids,
        labels=labels,
        name="synthetic" if drawn is None else drawn.name,
        notes=() if drawn is None else drawn.notes,
        samples=samples,
    )


def _arrivals(given: schema.Arrivals, count: int, rng: np.random.Generator) -> np.ndarray:
    if given.process == "all_at_once":
        return arrivals.all_at_once(count)
    assert given.request_rate is not None
    if given.process == "constant":
        return arrivals.constant_rate(count, rate_per_s=given.request_rate)
    if given.process == "poisson":
        return arrivals.poisson(rng, count, rate_per_s=given.request_rate)
    assert given.burstiness is not None
    return arrivals.gamma(rng, count, rate_per_s=given.request_rate, burstiness=given.burstiness)


def _further_lengths(
    workload: schema.Workload, outputs: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Lengths of further samples: of the outputs' distribution, or of the trace's outputs."""
    if workload.lengths is None or workload.lengths.in_order:
        return rng.choice(outputs, size=count)
    return _lengths("output", workload.lengths, count, rng)


def _lengths(
    which: str, pair: schema.LengthPair, count: int, rng: np.random.Generator
) -> np.ndarray:
    given: schema.Lengths = getattr(pair, which)
    if given.distribution == "fixed":
        assert given.tokens
        return lengths.fixed(count, given.tokens)
    if given.distribution == "uniform":
        assert given.min and given.max
        return lengths.uniform(rng, count, min_tokens=given.min, max_tokens=given.max)
    if given.distribution == "lognormal":
        assert given.sigma is not None
        return lengths.lognormal(
            rng,
            count,
            sigma=given.sigma,
            mean_tokens=given.mean,
            median_tokens=given.median,
            min_tokens=given.min or 1,
            max_tokens=given.max,
        )
    assert given.values
    if pair.in_order:
        return np.resize(np.array(given.values, dtype=np.int64), count)
    return lengths.empirical(rng, count, given.values)


def _mixed_lengths(
    classes: Mapping[str, schema.RequestClass],
    labels: list[str],
    prompt_rng: np.random.Generator,
    output_rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens of requests of several classes.

    Every class draws for all requests, from streams of its own: another share or another length
    leaves the requests of the other classes as they were.
    """
    count, of = len(labels), np.array(labels)
    prompts, outputs = np.zeros(count, np.int64), np.zeros(count, np.int64)
    prompt_rngs, output_rngs = (rng.spawn(len(classes)) for rng in (prompt_rng, output_rng))
    for (name, each), of_prompts, of_outputs in zip(
        classes.items(), prompt_rngs, output_rngs, strict=True
    ):
        mine = of == name
        prompts[mine] = _lengths("prompt", each.lengths, count, of_prompts)[mine]
        outputs[mine] = _lengths("output", each.lengths, count, of_outputs)[mine]
    return prompts, outputs


# -- what has no effect -----------------------------------------------------------------------

_KNOBS = {  # knob -> the schedulers it means something to
    "long_prefill_token_threshold": {"chunked"},
    "enable_prefix_caching": {"paged", "chunked"},
    "preemption": {"paged"},
    "swap_space_gib": {"paged"},
    "watermark": {"paged"},
    "reservation": {"static", "dynamic", "orca"},
    "preferred_batch_sizes": {"dynamic"},
    "max_queue_delay_ms": {"dynamic"},
}


def _blind_router(
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


def _unused_knobs(scenario: Scenario) -> list[str]:
    """A note for every knob that was turned from its default and that this policy does not have."""
    engine = scenario.engine
    defaults = schema.Engine(scheduler=engine.scheduler)
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
    if engine.cudagraph_capture_sizes and scenario.latency.source in {"roofline", "fixed"}:
        notes.append(
            "engine.cudagraph_capture_sizes has no effect without a measured latency table"
        )
    return notes
