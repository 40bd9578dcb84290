"""Groups that share GPUs or serve some classes of requests: what cannot be, told before it runs."""

from __future__ import annotations

from collections.abc import Iterable

from scenarios.errors import InputError
from scenarios.schema.cluster import ReplicaGroup as GroupSection
from scenarios.schema.scenario import Scenario
from sim.cluster.plan import ReplicaGroup


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


def refuse_overfull(groups: Iterable[tuple[GroupSection, Scenario, str]]) -> None:
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
