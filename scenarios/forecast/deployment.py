"""A scenario -> the objects that are simulated: model, GPU, memory, engine, latency, workload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.beside import beside_notes, with_adapters_memory, with_beside
from scenarios.forecast.bounds import check_drawn, check_groups, check_run
from scenarios.forecast.expert_counts import expert_routing
from scenarios.forecast.front_end import fitted_front_end, front_end
from scenarios.forecast.latency_source import Composer, latency_model, parallelism_of
from scenarios.forecast.links import assumed_links
from scenarios.forecast.memory import engine_memory, sequence_bytes
from scenarios.forecast.model_notes import caches_states, model_notes
from scenarios.forecast.queueing import queue_rules, unknown_classes
from scenarios.forecast.requests import draw_workload
from scenarios.forecast.shared_gpus import refuse_overfull, refuse_unserved
from scenarios.forecast.sharing import kv_tiers, swap_blocks, with_block_moves
from scenarios.forecast.speculation import speculator
from scenarios.forecast.unused_settings import (
    blind_router,
    other_than_measured,
    unused_knobs,
    without_effect_on_time,
)
from scenarios.schema.cluster import ReplicaGroup as ReplicaGroupSection
from scenarios.schema.engine import Engine
from scenarios.schema.generations import given_knobs
from scenarios.schema.scenario import Scenario
from scenarios.schema.workload import Workload as WorkloadSection
from sim.cluster.plan import ReplicaGroup, shared_store
from sim.engine.front_end import FrontEnd
from sim.kv.memory import MemoryBudget
from sim.latency.overlapped import OverlappedLatency
from sim.latency.pipeline import PipelineLatency
from sim.latency.protocol import LatencyModel
from sim.latency.refetch import TimedRefetch
from sim.latency.shared import shared
from sim.metrics import Slo
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec, Sampling
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.installed import installed_policy
from sim.workload import Workload


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
    front_end: FrontEnd | None
    workload: Workload
    slo: Slo
    notes: tuple[str, ...]
    groups: tuple[ReplicaGroup, ...] = ()  # of the cluster; none: equal replicas, in turn

    @property
    def num_replicas(self) -> int:
        """Engines at most, data-parallel ranks counted one by one."""
        if self.groups:
            return sum(group.replicas for group in self.groups)
        return self.scenario.cluster.replicas

    def group_of(self, replicas: np.ndarray) -> np.ndarray:
        """The group that each of these replicas (by number) belongs to; 0 where there are none."""
        last = np.cumsum([group.replicas for group in self.groups or ()])
        group: np.ndarray = np.searchsorted(last, replicas, side="right")
        return group


Drawer = Callable[[WorkloadSection, Engine, Path | None], Workload]


def deploy(
    scenario: Scenario,
    *,
    origin: Path | None = None,
    compose: Composer | None = None,
    draw: Drawer | None = None,
    as_cluster: bool = False,
    remedy: bool = True,
) -> Deployment:
    """Resolve names and files, draw the workload, divide the memory.

    `remedy`: whether a refusal for lack of memory says what would do, which is a search.

    Relative paths are looked up in the current folder, then beside `origin`. `compose` makes a
    latency table from other people's measurements (source ``aiconfigurator``); `draw` stands in
    for `draw_workload` where many runs share their requests. `as_cluster` gives equal replicas that
    have nothing to do with each other groups, too. Raises InputError.
    """
    source = str(origin or "scenario")
    beside = None if origin is None else origin.parent
    engine = _engine(scenario, source, beside=beside, compose=compose, remedy=remedy)
    with _at(source, "workload"):
        check_drawn(scenario.workload, engine.memory.block_size)
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
    if (
        as_cluster
        or not cluster.is_plain
        or workload.leaves_s is not None
        or scenario.hardware.data_parallel > 1
        or (cluster.replicas > 1 and workload.awaits_answers)
        or (cluster.replicas > 1 and any(tier.kind == "shared" for tier in engine.config.kv_tiers))
    ):
        groups = tuple(_groups(scenario, source, workload.labels, beside=beside, compose=compose))
        _refuse_unlike_groups(groups, workload, source)
        refuse_unserved(groups, workload.labels, source)
        refuse_overfull(group_scenarios(scenario, source))
        with _at(source, "cluster"):
            check_groups(workload, groups)
    with _at(source, "workload"):
        check_run(workload, engine.config, engine.memory.num_gpu_blocks, cluster.replicas)
    return Deployment(
        scenario=scenario,
        model=engine.model,
        gpu=engine.gpu,
        parallelism=parallelism_of(scenario.hardware),
        routing=engine.routing,
        memory=engine.memory,
        config=engine.config if rules is None else replace(engine.config, queue=rules),
        latency=engine.latency,
        front_end=front_end(scenario, fitted_front_end(engine.latency)),
        workload=workload,
        slo=slo,
        notes=(
            *workload.notes,
            *unknown_classes(scenario.workload, workload.labels),
            *blind_router(scenario, workload, groups),
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
    scenario: Scenario,
    source: str,
    *,
    beside: Path | None,
    compose: Composer | None,
    remedy: bool = True,
) -> _Engine:
    """The engine of a scenario, or of one of its groups; `source` says whose, in errors."""
    with _at(source, "model"):
        model = served_model(scenario, beside=beside)
    with _at(source, "hardware.experts_over"):
        model = model.with_experts_over(scenario.hardware.experts_over)
    if scenario.engine.float8_scales is not None and model.weight_dtype != "float8":
        raise InputError(
            f"{source}: engine.float8_scales: the weights are {model.weight_dtype}: set "
            "engine.weight_dtype=fp8, or leave it out"
        )
    with _at(source, "hardware.gpu"):
        gpu = library.gpu(scenario.hardware.gpu_given, beside=beside)
    with _at(source, "hardware"):
        memory = engine_memory(scenario, model, gpu, remedy=remedy)
        memory = with_adapters_memory(memory, scenario, model)
    with _at(source, "speculation"):
        speculating = speculator(scenario, model, beside=beside)
        if speculating is not None:
            memory = speculating.memory(memory, scenario, model)
    with _at(source, "engine.scheduler"):
        if scenario.engine.scheduler not in SCHEDULERS:
            installed_policy(scenario.engine.scheduler)  # says what is wrong with it
    with _at(source, "engine"):
        config = _engine_config(scenario, model, memory)
    if speculating is not None:
        held = speculating.technique.shape.query_tokens  # states of a sequence, one for each
        rules = [
            rule if rule.grows else replace(rule, state_blocks=held) for rule in config.table_rules
        ]
        config = replace(config, speculation=speculating.technique, table_rules=tuple(rules))

    with _at(source, "experts"):
        routing = expert_routing(scenario.experts, model, beside=beside)

    def latency_of(model: ModelSpec, scenario: Scenario) -> LatencyModel:
        return latency_model(scenario, model, gpu, memory, beside=beside, compose=compose)

    with _at(source, "latency"):
        wide = scenario if speculating is None else speculating.widened(scenario)
        bare = latency_of(model, wide)
        latency = with_beside(bare, scenario, model, gpu)
        measured_elsewhere = other_than_measured(bare, gpu, scenario)
        on_links = assumed_links(
            scenario, gpu, bare, ranks=parallelism_of(scenario.hardware).gpus_per_step
        )
    if speculating is not None:
        with _at(source, "speculation"):
            latency = speculating.latency(latency, wide, model, gpu, latency_of)
    latency = with_block_moves(latency, scenario, memory, gpu)
    if scenario.engine.kv_tiers and scenario.engine.kv_tier_reads == "faster":
        config = replace(config, refetch=TimedRefetch(latency))
    if scenario.engine.async_scheduling and scenario.hardware.pipeline_parallel == 1:
        latency = OverlappedLatency(latency)  # stages overlap already
    notes = (
        *(speculating.notes(scenario) if speculating is not None else ()),
        *unused_knobs(scenario),
        *without_effect_on_time(scenario),
        *measured_elsewhere,
        *on_links,
        *model_notes(model, scenario, memory),
        *beside_notes(scenario, model),
    )
    return _Engine(model, gpu, routing, memory, config, latency, notes)


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
        if group.role != "both" and scheduler in ("static", "dynamic"):
            raise InputError(
                f"{where}.role: request-level batching (scheduler {scheduler}) cannot be "
                "split into prefill and decode"
            )
        with _at(where, "engine"):
            rules = queue_rules(mine.engine, scenario.workload, labels)
        engine = _engine(mine, where, beside=beside, compose=compose)
        if isinstance(engine.latency, PipelineLatency) and scheduler != "chunked":
            raise InputError(
                f"{where}: pipeline_parallel under scheduler {scheduler} needs a plain cluster "
                "(replicas behind round_robin, without workload.max_concurrency): requests are "
                "dealt to as many schedulers as there are stages"
            )
        parallelism = parallelism_of(mine.hardware)
        ranks = mine.hardware.data_parallel
        if group.shared_gpu and (ranks > 1 or parallelism.pipeline_parallel > 1):
            raise InputError(
                f"{where}.shared_gpu: data_parallel and pipeline_parallel on GPUs that are "
                "shared are not modelled"
            )
        if ranks > 1:
            _refuse_ranks(engine.model, scenario, mine, where)
        yield ReplicaGroup(
            group.replicas * ranks,
            replace(engine.config, queue=rules, pipeline_stages=mine.hardware.pipeline_parallel),
            shared(engine.latency) if group.shared_gpu else engine.latency,
            scheduler,
            engine.memory.usable_blocks,
            role=group.role,
            name=group.name or f"group {number}",
            kv_cache_dtype=mine.engine.kv_cache_dtype,
            kv_bytes_per_token=engine.model.kv_bytes_per_token(mine.engine.kv_cache_dtype),
            kv_bytes=sequence_bytes(engine.model, mine.engine.kv_cache_dtype),
            gpus=parallelism.num_gpus,
            usd_per_hour=engine.gpu.price_usd_per_hour * parallelism.num_gpus,
            front_end=front_end(mine, fitted_front_end(engine.latency)),
            in_lockstep=parallelism.data_parallel,
            shared_gpu=group.shared_gpu or "",
            classes=frozenset(group.classes or ()),
        )


def _refuse_ranks(model: ModelSpec, scenario: Scenario, mine: Scenario, where: str) -> None:
    """Data-parallel ranks that are more to each other than what is modelled of them."""
    path = f"{where}: hardware.data_parallel"
    if model.moe is not None and mine.hardware.expert_parallel == 1:
        gpus = mine.hardware.tensor_parallel * mine.hardware.data_parallel
        raise InputError(
            f"{path}: the ranks of a mixture of experts share them out, whole ones: set "
            f"hardware.expert_parallel={gpus} (all their GPUs); every expert split over all ranks, "
            "as without vLLM's --enable-expert-parallel, is not modelled"
        )
    if scenario.cluster.failures or scenario.cluster.autoscaling is not None:
        raise InputError(
            f"{path}: ranks come and go with their engine, which failures and autoscaling do not "
            "model: give replicas instead"
        )


def _refuse_unlike_groups(
    groups: tuple[ReplicaGroup, ...], workload: Workload, source: str
) -> None:
    """Groups whose caches have to be alike: those that send them, share or compare prefixes."""
    with _at(source, "cluster.groups"):
        shared_store(groups)
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
) -> Iterator[tuple[ReplicaGroupSection, Scenario, str]]:
    """Each group of the cluster, the scenario as it is for this group, and where it was given."""
    from scenarios.schema.load import parse_scenario

    cluster = scenario.cluster
    given = cluster.groups or [ReplicaGroupSection(replicas=cluster.replicas)]
    for number, group in enumerate(given):
        content = scenario.model_dump(exclude_unset=True)
        content["cluster"] = {}
        content["model"] = group.model or scenario.model
        content["engine"] = given_knobs(scenario.engine, group.engine)
        for section in ("hardware", "latency"):
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
    engine = scenario.engine
    if engine.weight_dtype != "auto":
        model = model.quantised(engine.weight_dtype)
    if engine.float8_scales is not None:
        model = model.with_float8_scales(engine.float8_scales)
    sampling: Sampling = scenario.workload.sampling or model.sampling
    if sampling == "truncated" and engine.sampler == "pytorch":
        sampling = "sorted"
    return replace(model, sampling=sampling)


def _engine_config(scenario: Scenario, model: ModelSpec, memory: MemoryBudget) -> EngineConfig:
    engine = scenario.engine
    rules = () if memory.layout is None else memory.layout.rules
    if caches_states(scenario, memory):
        rules = tuple(rule if rule.grows else replace(rule, kind="checkpoint") for rule in rules)
    return EngineConfig(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=memory.block_size,
        table_rules=rules,
        max_model_len=engine.max_model_len or model.max_position_embeddings,
        enable_prefix_caching=engine.enable_prefix_caching
        and all(rule.lengthens for rule in rules),
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        preemption=engine.preemption,
        swap_blocks=swap_blocks(engine, memory.bytes_per_block),
        kv_tiers=kv_tiers(
            engine, memory.bytes_per_block, gpus=parallelism_of(scenario.hardware).num_gpus
        ),
        kv_tier_writes=engine.kv_tier_writes,
        watermark=engine.watermark,
        reservation=engine.reservation,
        placement=engine.placement if engine.scheduler == "orca" else "anywhere",
        preferred_batch_sizes=tuple(engine.preferred_batch_sizes),
        max_queue_delay_s=engine.max_queue_delay_ms / 1e3,
        async_scheduling=engine.async_scheduling,
    )
