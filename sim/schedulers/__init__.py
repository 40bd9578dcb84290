"""Scheduling policies, one a file, all on the same request pool and block allocator.

May import: sim.speculation.
"""

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

__all__ = ["SCHEDULERS", "Scheduler"]
