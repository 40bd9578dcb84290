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

import numpy as np

from sim.cluster.replica import ClusterReplica
from sim.cluster.standings import Figures, Standings
from sim.request import Request

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
    _standings: Standings | None = None

    def standings(
        self, replicas: Sequence[ClusterReplica], figures: Callable[[ClusterReplica], Figures]
    ) -> Standings:
        """These replicas in order, kept from request to request while they are the same list."""
        kept = self._standings
        if kept is None or kept.replicas is not replicas:
            kept = self._standings = Standings(replicas, figures)
        return kept


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
    first = memory.standings(replicas, _outstanding).first()
    assert first is not None, "somebody is there to choose"
    return replicas[first[1]]


def _outstanding(replica: ClusterReplica) -> Figures:
    return (replica.num_outstanding,)


def least_kv(
    request: Request, replicas: Sequence[ClusterReplica], now_s: float, memory: Routing
) -> ClusterReplica:
    """The smallest share of KV blocks in use or asked for; among equals the least outstanding.

    Blocks are counted only where what is known of a replica does not rule it out.
    """
    standings = memory.standings(replicas, _least_kv_share)
    looked_at: list[int] = []
    best, best_key = replicas[0], (inf, inf, inf)
    while (first := standings.first()) is not None:
        (floor, outstanding), place = first
        if (floor, outstanding, place) >= best_key:
            break  # nobody has less than it has at least
        standings.take_out(place)
        looked_at.append(place)
        replica = replicas[place]
        key = (replica.kv_share(now_s), replica.num_outstanding, place)
        if key < best_key:
            best, best_key = replica, key
    for place in looked_at:
        standings.put_back(place)
    return best


def _least_kv_share(replica: ClusterReplica) -> Figures:
    return (replica.kv_floor, replica.num_outstanding)


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
