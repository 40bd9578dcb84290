"""A whole simulation: replicas on SimPy clocks, and their records put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sim.engine.block_history import BlockRecorder, watched
from sim.engine.clock import Clock
from sim.engine.device import Devices, Stages, device_of, stage_columns
from sim.engine.engine import Engine
from sim.engine.front_end import ApiServers, Arrivals, FrontEnd, Reception
from sim.engine.policy import block_allocator, scheduler_class, shares_of
from sim.engine.replica import Replica
from sim.engine.run_log import collect, keep_on
from sim.latency.pipeline import PipelineLatency
from sim.latency.protocol import LatencyModel
from sim.records import Records
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.scheduler import Scheduler
from sim.scratch import Scratch
from sim.workload.source import RequestSource
from sim.workload.workload import Workload


def simulate(
    workload: Workload,
    config: EngineConfig,
    latency: LatencyModel,
    *,
    scheduler: str,
    num_blocks: int,
    front_end: FrontEnd | None = None,
    replicas: int = 1,
    leap: bool = True,
    check: bool = False,
    progress: Callable[[int], None] | None = None,
    recorder: BlockRecorder | None = None,
    scratch: Scratch | None = None,
) -> Records:
    """Serve `workload` on `replicas` equal engines, requests dealt out in turn.

    `num_blocks` is each engine's KV cache in blocks, `front_end` what each replica has. `leap`
    jumps from decision to decision; without it every iteration is one event. Both give the same
    records. `check` verifies the conservation laws after every decision. `progress` is called now
    and then with the number of requests that have ended. A `recorder` notes all block tables of a
    run that does not leap. On a `scratch` records are kept as they come, not in memory. With a
    `PipelineLatency` as many batches are in flight as there are
    stages, and every iteration is stepped through.
    """
    if workload.leaves_s is not None:
        raise ValueError("clients that leave need a cluster: simulate_cluster")
    if replicas > 1 and any(spec.kind == "shared" for spec in config.kv_tiers):
        raise ValueError("replicas that share a store need one clock: simulate_cluster")
    policy = scheduler_class(scheduler, config, samples=workload.samples)
    if recorder is not None:
        policy = watched(policy, recorder)
    if isinstance(latency, PipelineLatency):
        config = replace(config, pipeline_stages=len(latency.stages))
    shares = shares_of(policy, config)
    if shares > 1:
        config = replace(config, pipeline_stages=1)
    served: list[Replica] = []
    devices: list[Devices] = []

    def ended() -> None:
        assert progress is not None
        pools = [engine.scheduler.pool for replica in served for engine in replica.engines]
        progress(sum(pool.num_finished + pool.num_rejected for pool in pools))

    def servers() -> ApiServers | None:
        return None if front_end is None else ApiServers(front_end)

    def new_scheduler(blocks: int) -> Scheduler:
        pool = RequestPool(config.block_size, track_longest=latency.uses_longest)
        one: Scheduler = policy(pool, block_allocator(config, blocks), config)
        return one

    for number in range(replicas):
        requests = RequestSource(
            workload,
            block_size=config.block_size,
            prefix_caching=config.enable_prefix_caching,
            first=number,
            stride=replicas,
        )
        source: Arrivals = requests
        if front_end is not None:
            source = Reception(requests, ApiServers(front_end))

        device = device_of(latency)
        devices.append(device)
        engines = [
            Engine(
                new_scheduler(num_blocks // shares), device, arrivals=source,
                servers=servers(), leap=leap, check=check,
            )
            for _ in range(shares)
        ]  # fmt: skip
        report = None if progress is None else ended
        served.append(Replica(Clock(), engines, source, progress=report))
    every = [engine for replica in served for engine in replica.engines]
    if scratch is not None:
        keep_on(scratch, every)
    # Dealt out in turn, requests leave replicas nothing to tell each other: one after the other
    # they find what they need in the CPU's cache, which sixty-four at once do not.
    for replica in served:
        replica.clock.run()
    numbers = [number for number, replica in enumerate(served) for _ in replica.engines]
    records = collect(every, numbers, scratch=scratch)
    stages = [device for device in devices if isinstance(device, Stages)]
    if stages:
        records = replace(records, stages=stage_columns(stages))
    if workload.samples is not None:
        records.requests.update(workload.samples.columns(records.requests["request"]))
    return records
