"""Scheduling policies, one a file, all on the same request pool and block allocator."""

from sim.engine_config import EngineConfig
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.dynamic import DynamicScheduler
from sim.schedulers.installed import installed_policy
from sim.schedulers.orca import OrcaScheduler
from sim.schedulers.paged import PagedScheduler
from sim.schedulers.scheduler import Scheduler
from sim.schedulers.static import StaticScheduler

SCHEDULERS: dict[str, type] = {
    "static": StaticScheduler,
    "dynamic": DynamicScheduler,
    "orca": OrcaScheduler,
    "paged": PagedScheduler,
    "chunked": ChunkedScheduler,
}


def scheduler_class(name: str, config: EngineConfig, *, samples: bool = False) -> type:
    """The policy of that name, with what the engine adds to it. Raises ValueError where it cannot.

    It speculates and offloads where `config` says so; `samples`: for requests of several sequences.
    """
    policy = SCHEDULERS.get(name) or installed_policy(name)
    if policy is None:
        raise ValueError(f"scheduler {name!r} is not known; allowed: {', '.join(SCHEDULERS)}")
    # Only those who need these load them.
    if config.speculation is not None:
        from sim.speculation.schedulers import speculating

        policy = speculating(policy)
    if samples:
        from sim.sharing.schedulers import sampling

        policy = sampling(policy)
    if config.offload_blocks:
        from sim.kv_offload import offloading

        policy = offloading(policy)
    return policy


__all__ = ["SCHEDULERS", "Scheduler", "scheduler_class"]
