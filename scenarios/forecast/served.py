"""A deployment serves its workload: alone, or as a cluster with what a scenario says of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scenarios.forecast.deployment import Deployment
from scenarios.schema.scenario import Scenario
from sim.cluster.plan import Autoscaling, ClusterFacts, Failure, KvLink
from sim.engine.block_history import BlockRecorder
from sim.engine.simulation import simulate
from sim.records import Records
from sim.scratch import Scratch


def serve(
    deployment: Deployment,
    *,
    leap: bool = True,
    check: bool = False,
    progress: Callable[[int], None] | None = None,
    recorder: BlockRecorder | None = None,
) -> tuple[Records, ClusterFacts | None]:
    """Simulate a deployment; facts are of clusters whose replicas have to do with each other.

    A `recorder` notes all block tables of a run that does not leap.
    """
    scenario = deployment.scenario
    scratch = Scratch() if scenario.metrics.records == "disk" else None
    if deployment.groups:
        return _simulate_cluster(
            deployment, leap=leap, check=check, progress=progress, recorder=recorder,
            scratch=scratch,
        )  # fmt: skip
    records = simulate(
        deployment.workload,
        deployment.config,
        deployment.latency,
        scheduler=scenario.engine.scheduler,
        num_blocks=deployment.memory.usable_blocks,
        front_end=deployment.front_end,
        replicas=scenario.cluster.replicas,
        leap=leap,
        check=check,
        progress=progress,
        recorder=recorder,
        scratch=scratch,
    )
    return records, None


def _simulate_cluster(
    deployment: Deployment,
    *,
    leap: bool,
    check: bool,
    progress: Callable[[int], None] | None,
    recorder: BlockRecorder | None,
    scratch: Scratch | None,
) -> tuple[Records, ClusterFacts]:
    from sim.cluster.cluster import simulate_cluster

    return simulate_cluster(
        deployment.workload,
        deployment.groups,
        failures=planned_failures(deployment.scenario),
        leap=leap,
        check=check,
        progress=progress,
        recorder=recorder,
        scratch=scratch,
        **cluster_options(deployment.scenario),
    )


def cluster_options(scenario: Scenario) -> dict[str, Any]:
    """What a scenario says of its cluster beside groups and failures."""
    cluster = scenario.cluster
    link, scaling = cluster.kv_link, cluster.autoscaling
    return {
        "router": cluster.router,
        "kv_link": (
            None if link is None else KvLink(link.bandwidth_gb_per_s * 1e9, link.latency_us / 1e6)
        ),
        "autoscaling": None if scaling is None else Autoscaling(**scaling.model_dump()),
        "gpu_sharing": cluster.gpu_sharing,
        "seed": scenario.workload.seed,
    }


def planned_failures(scenario: Scenario) -> list[Failure]:
    """The failures that a scenario asks for."""
    return [
        Failure(failure.replica, failure.at_s, failure.recover_after_s or math.inf)
        for failure in scenario.cluster.failures
    ]
