"""Scheduling policies, one a file, all on the same request pool and block allocator."""

from sim.engine_config import EngineConfig
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


def scheduler_class(name: str, config: EngineConfig) -> type:
    """The policy of that name, made to speculate where the engine does. Raises ValueError."""
    policy = SCHEDULERS[name]
    if config.speculation is None:
        return policy
    from sim.speculation.schedulers import speculating  # only those who speculate load it

    return speculating(policy)


__all__ = ["SCHEDULERS", "Scheduler", "scheduler_class"]
