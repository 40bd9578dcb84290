"""Which replica a request goes to. A policy is one function and one line in `ROUTERS`.

Ties go to the replica with the lower number, so that nothing depends on chance or on the order in
which replicas were started. References: least outstanding requests and session affinity as in any
load balancer; prefix-aware routing as in SGLang's router (Zheng et al., 2024), which weighs the
cached prefix against the load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

import numpy as np

from sim.cluster.replica import ClusterReplica
from sim.request import Request

# Called for every replica and request: a lambda would cost as much as all else.
_num_outstanding = attrgetter("num_outstanding")
_kv_floor = attrgetter("kv_floor")
# Prefix-aware: a replica this much busier than the idlest is not worth its cached prefix.
_BUSIER = 2.0
_SPARE = 8


@dataclass(slots=True)
class Routing:
    """What a router remembers from request to request."""

    rng: np.random.Generator
    turn: int = 0
    # Hash of a prompt's last full block -> where it went.
    last_turns: dict[int, ClusterReplica] = field(default_factory=dict)


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
    """The smallest share of KV blocks in use or asked for; among equals the least outstanding.

    Blocks are counted only where what is known of a replica does not rule it out.
    """
    bounds = list(map(_kv_floor, replicas))
    best = replicas[0]
    best_key = (inf, inf, inf)
    while (lowest := min(bounds)) <= best_key[0] and lowest < inf:
        position = bounds.index(lowest)
        bounds[position] = inf
        replica = replicas[position]
        key = (replica.kv_share(now_s), replica.num_outstanding, position)
        if key < best_key:
            best, best_key = replica, key
    return best


def data_parallel(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """As vLLM deals requests out to data-parallel ranks: the fewest unfinished ones.

    Among equals the next in turn. Who waits where more than half of the KV blocks are in use counts
    for up to three more. Read in vLLM 0.32.0 (``DPLBAsyncMPClient.get_core_engine_for_request``),
    whose count of those that wait and share of blocks are up to 100 ms old; here they are exact.
    """
    first = memory.turn % len(replicas)
    memory.turn += 1
    best, lowest = replicas[first], inf
    for replica in (*replicas[first:], *replicas[:first]):
        score = float(replica.num_outstanding)
        if waiting := replica.num_waiting:
            score += waiting * 6.0 * max(0.0, replica.used_share(now_s) - 0.5)
        if score < lowest:
            best, lowest = replica, score
    return best


def prefix_aware(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """The longest cached prefix, unless that replica is much busier than the idlest one."""
    best = least_outstanding(request, replicas, now_s, memory)
    hashes = request.block_hashes
    if not hashes:
        return best
    most = _BUSIER * best.num_outstanding + _SPARE
    longest = 0
    for replica in replicas:
        if replica.num_outstanding > most:
            continue
        found = replica.num_cached(hashes, now_s, more_than=longest)
        if found > longest:
            best, longest = replica, found
    return best


def session_sticky(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """Where the conversation's last turn went; a new one goes to the least outstanding.

    A prompt that begins with a whole earlier prompt (its full blocks) continues that conversation.
    """
    hashes = request.block_hashes
    if not hashes:
        return least_outstanding(request, replicas, now_s, memory)
    last_turns = memory.last_turns
    chosen = next((last_turns[each] for each in reversed(hashes) if each in last_turns), None)
    if chosen is None or chosen not in replicas:
        chosen = least_outstanding(request, replicas, now_s, memory)
    last_turns[hashes[-1]] = chosen
    return chosen


ROUTERS: dict[str, Router] = {
    "round_robin": round_robin,
    "random": random,
    "least_outstanding": least_outstanding,
    "least_kv": least_kv,
    "data_parallel": data_parallel,
    "prefix_aware": prefix_aware,
    "session_sticky": session_sticky,
}
