"""A whole simulation: replicas on SimPy clocks, and their records put together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import simpy

from sim.engine.ahead_replica import AheadReplica
from sim.engine.block_history import BlockRecorder, watched
from sim.engine.pipeline import Pipeline, stage_columns
from sim.engine.policy import block_allocator, scheduler_class
from sim.engine.replica import Replica
from sim.engine.run_log import collect
from sim.latency.pipeline import PipelineLatency
from sim.latency.protocol import LatencyModel
from sim.records import Records
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.scheduler import Scheduler
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
    recorder: BlockRecorder | None = None,
) -> Records:
    """Serve `workload` on `replicas` equal engines, requests dealt out in turn.

    `num_blocks` is each engine's KV cache in blocks. `leap` jumps from decision to decision;
    without it every iteration is one event. Both give the same records. `check` verifies the
    conservation laws after every decision. `progress` is called now and then with the number of
    requests that have ended. A `recorder` notes all block tables of a run that does not leap. With
    a `PipelineLatency` each engine keeps as many batches in flight
    as it has stages, and always steps.
    """
    policy = scheduler_class(scheduler, config, samples=workload.samples is not None)
    if recorder is not None:
        policy = watched(policy, recorder)
    clocks: list[simpy.Environment] = []
    engines: list[Replica] = []
    pipelines: list[Pipeline] = []
    schedulers: list[Scheduler] = []

    def ended(_: int) -> None:
        assert progress is not None
        pools = [each.pool for each in schedulers]
        progress(sum(pool.num_finished + pool.num_rejected for pool in pools))

    def new_scheduler(blocks: int) -> Scheduler:
        pool = RequestPool(config.block_size, track_longest=latency.uses_longest)
        allocator = block_allocator(config, blocks)
        schedulers.append(policy(pool, allocator, config))
        if recorder is not None:
            recorder.attach(schedulers[-1])
        return schedulers[-1]

    report = None if progress is None else ended
    for number in range(replicas):
        env = simpy.Environment()
        clocks.append(env)
        source = RequestSource(
            workload,
            block_size=config.block_size,
            prefix_caching=config.enable_prefix_caching,
            first=number,
            stride=replicas,
        )
        if isinstance(latency, PipelineLatency):
            stages = len(latency.stages)
            shares = [new_scheduler(num_blocks // stages) for _ in range(stages)]
            pipelines.append(Pipeline(env, shares, latency, source, check=check, progress=report))
        else:
            kind = AheadReplica if config.async_scheduling else Replica
            engines.append(
                kind(
                    env, new_scheduler(num_blocks), latency, source,
                    leap=leap, check=check, progress=report,
                )
            )  # fmt: skip
    # The run makes millions of small objects and no cycles: let reference counts do the work.
    collecting = gc.isenabled()
    gc.disable()
    try:
        # Dealt out in turn, requests leave replicas nothing to tell each other: one after the
        # other they find what they need in the CPU's cache, which sixty-four at once do not.
        for env in clocks:
            env.run()
    finally:
        if collecting:
            gc.enable()
    if not pipelines:
        records = collect(engines)
    else:
        virtual = [(n, each) for n, pipeline in enumerate(pipelines) for each in pipeline.engines]
        records = collect([engine for _, engine in virtual], replicas=[n for n, _ in virtual])
        records = replace(records, stages=stage_columns(pipelines))
    if workload.samples is not None:
        records.requests.update(workload.samples.columns(records.requests["request"]))
    return records
