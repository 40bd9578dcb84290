"""What the groups of a cluster cannot be to each other, each in a line that names the setting."""

from __future__ import annotations

from collections.abc import Iterable

from scenarios.errors import InputError
from scenarios.schema.cluster import ReplicaGroup as ReplicaGroupSection
from scenarios.schema.scenario import Scenario
from sim.cluster.plan import ReplicaGroup
from sim.model.spec import ModelSpec
from sim.workload import Workload


def refuse_ranks(model: ModelSpec, scenario: Scenario, mine: Scenario, where: str) -> None:
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


def refuse_unlike_groups(groups: tuple[ReplicaGroup, ...], workload: Workload, source: str) -> None:
    """Groups whose caches have to be alike: those that send them, share or compare prefixes."""
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


def refuse_unserved(
    groups: tuple[ReplicaGroup, ...], labels: list[str] | None, source: str
) -> None:
    """Requests that no group is for."""
    if not all(group.classes for group in groups):
        return
    served = frozenset[str]().union(*(group.classes for group in groups))
    where = f"{source}: cluster.groups: groups are for {', '.join(sorted(served))}"
    if labels is None:
        raise InputError(
            f"{where}, and requests have no class: give workload.classes, or "
            "workload.class_column of a trace"
        )
    if strangers := sorted({*labels} - served):
        raise InputError(f"{where}: nobody serves requests of class {strangers[0]}")


def refuse_overfull(
    groups: Iterable[tuple[ReplicaGroupSection, Scenario, str]],
) -> None:
    """Engines on one GPU that would take more than all of its memory, or are on unlike ones."""
    share: dict[str, float] = {}
    kind: dict[str, tuple[object, int]] = {}
    for group, mine, where in groups:
        if not group.shared_gpu:
            continue
        hardware = mine.hardware
        here = hardware.gpu, hardware.tensor_parallel
        if kind.setdefault(group.shared_gpu, here) != here:
            raise InputError(
                f"{where}.shared_gpu: {group.shared_gpu} is of another kind, or of another "
                "tensor_parallel, in another group"
            )
        share[group.shared_gpu] = share.get(group.shared_gpu, 0.0) + (
            group.replicas * mine.engine.gpu_memory_utilization
        )
        if share[group.shared_gpu] > 1.0 + 1e-9:
            raise InputError(
                f"{where}.shared_gpu: engine.gpu_memory_utilization of all that are on "
                f"{group.shared_gpu} comes to {share[group.shared_gpu]:.3g}, above 1: give each "
                "its part"
            )
