"""A whole simulation: replicas on one SimPy clock, and their records put together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import numpy as np
import simpy

from sim.engine_config import EngineConfig
from sim.kv_cache import BlockAllocator
from sim.latency.protocol import LatencyModel
from sim.records import Columns, Records
from sim.replica import Replica
from sim.request_pool import RequestPool
from sim.schedulers import SCHEDULERS
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
                SCHEDULERS[scheduler](pool, allocator, config),
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
    return _collect(engines)


def _collect(engines: Sequence[Replica]) -> Records:
    requests, iterations, preemptions, gaps, weights = [], [], [], [], []
    for number, engine in enumerate(engines):
        pool, allocator = engine.scheduler.pool, engine.scheduler.allocator
        assert not pool.num_unfinished, "a request was left behind"
        assert allocator.num_free == allocator.num_blocks, "a block was left behind"
        served = pool.log.requests()
        ran, gaps_s, gap_weights = engine.log.columns(
            num_blocks=allocator.num_blocks,
            block_size=allocator.block_size,
            gaps=engine.scheduler.gaps,
        )
        ran["waiting"] = _waiting(served, ran)
        served["replica"] = np.full(len(served["request"]), number, dtype="i4")
        ran["replica"] = np.full(len(ran["start_s"]), number, dtype="i4")
        requests.append(served)
        iterations.append(ran)
        preemptions.append(pool.log.preemptions())
        gaps.append(gaps_s)
        weights.append(gap_weights)
    return Records(
        requests=_merge(requests, by="request"),
        iterations=_merge(iterations, by="start_s"),
        preemptions=_merge(preemptions, by="preempted_s"),
        gaps_s=np.concatenate(gaps),
        gap_weights=np.concatenate(weights),
    )


def _waiting(requests: Columns, iterations: Columns) -> np.ndarray:
    """Requests that had arrived by an iteration's start and were not in it, nor gone."""
    arrivals = np.sort(requests["arrival_s"])
    rejected = np.sort(requests["arrival_s"][requests["rejected"]])
    start_s = iterations["start_s"]
    finished_before = np.cumsum(iterations["finished"]) - iterations["finished"]
    waiting: np.ndarray = np.searchsorted(arrivals, start_s, side="right") - finished_before
    waiting -= np.searchsorted(rejected, start_s, side="right") + iterations["running"]
    return waiting.astype("i4")


def _merge(tables: list[Columns], *, by: str) -> Columns:
    if len(tables) == 1:
        return tables[0]
    merged = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    order = np.argsort(merged[by], kind="stable")
    return {name: column[order] for name, column in merged.items()}
