"""What an engine schedules with: a policy by name and what the engine adds, and an allocator."""

from __future__ import annotations

from dataclasses import replace

from sim.kv.cache import BlockAllocator
from sim.kv.contiguous import PLACEMENTS
from sim.kv.groups import GroupedAllocator
from sim.kv.offload import TieredAllocator
from sim.kv.tiers import Tier
from sim.schedulers import SCHEDULERS
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.installed import installed_policy
from sim.workload.samples import Samples


def scheduler_class(name: str, config: EngineConfig, *, samples: Samples | None = None) -> type:
    """The policy of that name, with what the engine adds to it. Raises ValueError where it cannot.

    It speculates and offloads where `config` says so; `samples`: those that requests ask for.
    """
    policy = SCHEDULERS.get(name) or installed_policy(name)
    if policy is None:
        raise ValueError(f"scheduler {name!r} is not known; allowed: {', '.join(SCHEDULERS)}")
    if config.placement != "anywhere" and not getattr(policy, "reserves", False):
        raise ValueError(
            f"placement {config.placement} needs a scheduler that sets a request's blocks aside at "
            f"admission: {name} takes them one by one"
        )
    # Only those who need these load them.
    if config.speculation is not None:
        from sim.schedulers.speculating import speculating

        policy = speculating(policy)
    if samples is not None:
        from sim.sharing.schedulers import sampling

        policy = sampling(policy, beams=samples.beam is not None)
    if config.kv_tiers:
        from sim.schedulers.offloading import offloading

        policy = offloading(policy)
    if config.table_rules:
        from sim.schedulers.grouped import grouped

        policy = grouped(policy)
    return policy


def shares_of(policy: type, config: EngineConfig) -> int:
    """Schedulers that share out a replica's blocks and requests over a pipeline.

    vLLM V1 has one, whatever the stages; others have as many, as vLLM V0 has virtual engines.
    """
    return 1 if issubclass(policy, ChunkedScheduler) else config.pipeline_stages


def block_allocator(
    config: EngineConfig, num_blocks: int, *, shared: Tier | None = None
) -> BlockAllocator:
    """The allocator of an engine: groups of layers, tiers behind it, or pieces, where it has such.

    `shared`: the store that its replicas have in common.
    """
    if config.table_rules:
        return GroupedAllocator(
            num_blocks,
            config.block_size,
            [
                replace(rule, state_blocks=1 + config.batches_in_flight)
                if rule.kind == "checkpoint"
                else rule
                for rule in config.table_rules
            ],
            prefix_caching=config.enable_prefix_caching,
            in_flight_tokens=config.max_num_batched_tokens * config.batches_in_flight,
            max_model_len=config.max_model_len,
        )
    if config.kv_tiers:
        return TieredAllocator(
            num_blocks,
            config.block_size,
            tiers=config.kv_tiers,
            writes=config.kv_tier_writes,
            shared=shared,
        )
    if config.placement != "anywhere":
        return PLACEMENTS[config.placement](num_blocks, config.block_size)
    return BlockAllocator(
        num_blocks, config.block_size, prefix_caching=config.enable_prefix_caching
    )
