"""A whole simulation: replicas on one SimPy clock, and their records put together."""

from __future__ import annotations

import gc
from collections.abc import Callable

import simpy

from sim.engine_config import EngineConfig
from sim.kv_cache import BlockAllocator
from sim.latency.protocol import LatencyModel
from sim.records import Records
from sim.replica import Replica
from sim.request_pool import RequestPool
from sim.run_log import collect
from sim.schedulers import scheduler_class
from sim.workload.source import RequestSource
from sim.workload.workload import Workload


def simulate(
    workload: Workload,
    config: EngineConfig,
    latency: LatencyModel,
    *,
    scheduler: str,
    num_blocks: int,
    replicas: int = 1,
    leap: bool = True,
    check: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Records:
    """Serve `workload` on `replicas` equal engines, requests dealt out in turn.

    `num_blocks` is each engine's KV cache in blocks. `leap` jumps from decision to decision;
    without it every iteration is one event. Both give the same records. `check` verifies the
    conservation laws after every decision. `progress` is called now and then with the number of
    requests that have ended.
    """
    env = simpy.Environment()
    engines: list[Replica] = []

    def ended(_: int) -> None:
        assert progress is not None
        pools = [engine.scheduler.pool for engine in engines]
        progress(sum(pool.num_finished + pool.num_rejected for pool in pools))

    for number in range(replicas):
        pool = RequestPool(config.block_size, track_longest=latency.uses_longest)
        allocator = BlockAllocator(
            num_blocks, config.block_size, prefix_caching=config.enable_prefix_caching
        )
        source = RequestSource(
            workload,
            block_size=config.block_size,
            prefix_caching=config.enable_prefix_caching,
            first=number,
            stride=replicas,
        )
        engines.append(
            Replica(
                env,
                scheduler_class(scheduler, config)(pool, allocator, config),
                latency,
                source,
                leap=leap,
                check=check,
                progress=None if progress is None else ended,
            )
        )
    # The run makes millions of small objects and no cycles: let reference counts do the work.
    collecting = gc.isenabled()
    gc.disable()
    try:
        env.run()
    finally:
        if collecting:
            gc.enable()
    return collect(engines)
