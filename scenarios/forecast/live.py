"""A deployment as a cluster that serves whoever comes, until it is told that nobody will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scenarios.forecast.deployment import Deployment
from scenarios.forecast.served import cluster_options
from sim.cluster.cluster import Cluster
from sim.cluster.plan import Failure
from sim.engine.engine import Listener
from sim.schedulers import SCHEDULERS
from sim.sharing.schedulers import sampling
from sim.workload.live import LiveSource


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """`deployment` has groups; `keep`: whether there will be records of it."""

    deployment: Deployment
    failures: Sequence[Failure] = ()
    keep: bool = False
    check: bool = False


def live_cluster(options: LiveOptions, *, listener: Listener) -> tuple[Cluster, LiveSource]:
    """The cluster, and the source to push requests into."""
    deployment = options.deployment
    groups = deployment.groups
    source = LiveSource(
        groups[0].config.block_size,
        several=all(_serves_several(group.scheduler) for group in groups),
        keep=options.keep,
    )
    cluster = Cluster(
        source,
        groups,
        leap=False,
        check=options.check,
        listener=listener,
        **cluster_options(deployment.scenario),
    )
    for failure in options.failures:
        cluster.plan_failure(failure)
    return cluster, source


def _serves_several(scheduler: str) -> bool:
    """Whether a policy can serve several answers to one prompt."""
    try:
        sampling(SCHEDULERS[scheduler])
    except (KeyError, ValueError):
        return False
    return True
