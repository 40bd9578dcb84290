"""What a cluster is made of: groups of replicas, the link between pools, what comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from sim.engine.front_end import FrontEnd
from sim.kv.tiers import Tier
from sim.latency.protocol import LatencyModel
from sim.schedulers.engine_config import EngineConfig

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class ReplicaGroup:
    """Equal replicas: `num_blocks` KV blocks each, at `kv_bytes_per_token` when it is sent.

    Where layers have windows or states `kv_bytes` says what a sequence of so many tokens takes.
    A replica has `gpus` GPUs, which cost `usd_per_hour` together.
    """

    replicas: int
    config: EngineConfig
    latency: LatencyModel
    scheduler: str
    num_blocks: int
    role: Role = "both"
    name: str = ""
    kv_cache_dtype: str = "auto"
    kv_bytes_per_token: float = 0.0
    kv_bytes: Callable[[int], float] | None = None
    gpus: int = 1
    usd_per_hour: float = 0.0
    front_end: FrontEnd | None = None  # of each replica
    in_lockstep: int = 1  # so many in a row are ranks that share out a mixture's experts
    shared_gpu: str = ""  # the GPU that all its replicas, and those of others so named, compute on
    classes: frozenset[str] = frozenset()  # of the requests it serves; none: of all

    def sent_bytes(self, tokens: int) -> float:
        """Of a prompt's cache."""
        if self.kv_bytes is not None:
            return self.kv_bytes(tokens)
        return tokens * self.kv_bytes_per_token


def gpu_shares(groups: Sequence[ReplicaGroup]) -> list[float]:
    """The part of its GPUs that each replica pays for: one of n that share them an n-th."""
    instances: dict[str, int] = {}
    for group in groups:
        if group.shared_gpu:
            instances[group.shared_gpu] = instances.get(group.shared_gpu, 0) + group.replicas
    return [
        1.0 / instances.get(group.shared_gpu, 1) for group in groups for _ in range(group.replicas)
    ]


def shared_store(groups: Sequence[ReplicaGroup]) -> Tier | None:
    """The store that all replicas share, empty; None where there is none.

    ValueError where groups say different things of it, or have unlike blocks.
    """
    found = {
        (spec.num_blocks, spec.ttl_s, group.config.block_size, group.kv_cache_dtype, group.gpus)
        for group in groups
        for spec in group.config.kv_tiers
        if spec.kind == "shared"
    }
    if len(found) > 1:
        raise ValueError(
            "groups that share a store need blocks alike (block_size, kv_cache_dtype, GPUs of a "
            "replica) and one size and ttl_s of it"
        )
    for num_blocks, ttl_s, *_ in found:
        return Tier(num_blocks, ttl_s)
    return None


@dataclass(frozen=True, slots=True)
class KvLink:
    """What KV caches travel over, out of one prefill replica: α + bytes / β."""

    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A replica loses everything at `at_s` and is back, empty, `recover_after_s` later."""

    replica: int
    at_s: float
    recover_after_s: float = inf


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Enough replicas for `target_outstanding` unfinished requests each.

    Looked at every `check_every_s`; a new replica serves after `startup_s`; replicas are taken away
    no sooner than `cooldown_s` after the last change, and serve what they have to the end. A group
    starts with `min_replicas` of its replicas and may have all of them.
    """

    min_replicas: int
    target_outstanding: float
    check_every_s: float = 10.0
    startup_s: float = 60.0
    cooldown_s: float = 120.0


@dataclass(slots=True)
class ClusterFacts:
    """What the records do not show: seconds that each replica was paid for, retries, transfers."""

    up_s: list[float]
    retries: dict[int, int] = field(default_factory=dict)
    # When a prefill pool had computed its prompt, of each request that it handed over.
    prefilled_s: dict[int, float] = field(default_factory=dict)
    transferred_bytes: float = 0.0
    transfer_s: float = 0.0
    transfers: int = 0
    replicas_over_time: list[tuple[float, int]] = field(default_factory=list)
