"""Which replica a request goes to. A policy is one function and one line in `ROUTERS`.

Ties go to the replica with the lower number, so that nothing depends on chance or on the order in
which replicas were started. References: least outstanding requests and session affinity as in any
load balancer; prefix-aware routing as in SGLang's router (Zheng et al., 2024), which weighs the
cached prefix against the load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from sim.cluster_replica import ClusterReplica
from sim.request import Request

_num_outstanding = attrgetter("num_outstanding")  # a lambda would be called 64 times a request
# Prefix-aware: a replica this much busier than the idlest is not worth its cached prefix.
_BUSIER = 2.0
_SPARE = 8


@dataclass(slots=True)
class Routing:
    """What a router remembers from request to request."""

    rng: np.random.Generator
    turn: int = 0
    sessions: dict[int, ClusterReplica] = field(default_factory=dict)


Router = Callable[[Request, Sequence[ClusterReplica], float, Routing], ClusterReplica]
"""(request, replicas that can take it, now in s, memory) -> the one that gets it."""


def round_robin(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """One after the other."""
    chosen = replicas[memory.turn % len(replicas)]
    memory.turn += 1
    return chosen


def random(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """Any, with equal chances."""
    return replicas[int(memory.rng.integers(len(replicas)))]


def least_outstanding(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """The fewest unfinished requests."""
    return min(replicas, key=_num_outstanding)


def least_kv(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """The smallest share of KV blocks in use; among equals the fewest unfinished requests."""
    return min(
        replicas,
        key=lambda replica: (
            replica.kv_blocks(now_s) / replica.scheduler.allocator.num_blocks,
            replica.num_outstanding,
        ),
    )


def prefix_aware(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """The longest cached prefix, unless that replica is much busier than the idlest one."""
    idlest = least_outstanding(request, replicas, now_s, memory)
    if not request.block_hashes:
        return idlest
    most = _BUSIER * idlest.num_outstanding + _SPARE
    best, longest = idlest, 0
    for replica in replicas:
        if replica.num_outstanding > most:
            continue
        replica.catch_up(now_s)
        cached = len(replica.scheduler.allocator.cached(request.block_hashes))
        if cached > longest:
            best, longest = replica, cached
    return best


def session_sticky(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """Where the conversation's earlier requests went; a new one goes to the least busy.

    Requests whose prompts begin with the same block are one conversation.
    """
    if not request.block_hashes:
        return least_outstanding(request, replicas, now_s, memory)
    session = request.block_hashes[0]
    chosen = memory.sessions.get(session)
    if chosen is None or chosen not in replicas:
        chosen = memory.sessions[session] = least_outstanding(request, replicas, now_s, memory)
    return chosen


ROUTERS: dict[str, Router] = {
    "round_robin": round_robin,
    "random": random,
    "least_outstanding": least_outstanding,
    "least_kv": least_kv,
    "prefix_aware": prefix_aware,
    "session_sticky": session_sticky,
}
