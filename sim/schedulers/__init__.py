"""Scheduling policies, one a file, all on the same request pool and block allocator."""

from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.dynamic import DynamicScheduler
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


def scheduler_class(name: str, *, samples: bool = False, offload: bool = False) -> type:
    """The policy of that name, with what it needs besides. Raises ValueError where it has not.

    `samples`: for requests of several sequences; `offload`: over a `TieredAllocator`.
    """
    policy = SCHEDULERS[name]
    # Only those who need them load them.
    if samples:
        from sim.sharing.schedulers import sampling

        policy = sampling(policy)
    if offload:
        from sim.kv_offload import offloading

        policy = offloading(policy)
    return policy


__all__ = ["SCHEDULERS", "Scheduler", "scheduler_class"]
