"""One engine over pipeline stages, as a SimPy process: as many batches in flight as stages.

A request's next token needs its last, so one batch keeps one stage busy and leaves the others
idle. Orca (Yu et al., 2022, section 4.2) therefore keeps as many batches in flight as there are
stages, and vLLM V0 gives each of them a *virtual engine*: a scheduler with an equal share of the
KV blocks, to which requests are dealt (to the one with the fewest unfinished ones). A virtual
engine schedules when the first stage is free and none of its batches is in flight; its batch then
takes the stages one after the other, each when the stage is free. Batches never overtake, so
where each will be when follows at once from where those before it are.

Uneven batches leave bubbles: a stage waits for a long prompt in the stage before. That is counted,
not assumed. For m equal micro-batches at once over p equal stages it is GPipe's (p - 1) / m.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Sequence
from math import inf
from typing import Any

import numpy as np
import simpy

from sim.batch import Batch
from sim.engine.run_log import check_iteration, note_iteration
from sim.latency.pipeline import PipelineLatency
from sim.records import Columns, IterationLog
from sim.schedulers.scheduler import Scheduler
from sim.workload.source import RequestSource


class VirtualEngine:
    """A scheduler that owns one of the batches in flight."""

    def __init__(self, number: int, scheduler: Scheduler) -> None:
        self.number = number
        self.scheduler = scheduler
        self.log = IterationLog()
        self.batch: Batch | None = None  # in flight


class StageClock:
    """When each stage is free again, and how long each has worked."""

    def __init__(self, stages: int) -> None:
        self.free_s = [0.0] * stages
        self.busy_s = [0.0] * stages
        self.active_s = 0.0  # with any batch in flight

    def pass_through(
        self, now_s: float, stages_s: Sequence[float], sends_s: Sequence[float]
    ) -> float:
        """A batch enters the first stage, free by now; returns when it leaves the last."""
        free_s, ready_s, end_s = self.free_s, now_s, now_s
        self.active_s -= max(now_s, free_s[-1])
        for stage, duration_s in enumerate(stages_s):
            end_s = max(ready_s, free_s[stage]) + duration_s
            free_s[stage] = end_s
            self.busy_s[stage] += duration_s
            if stage < len(sends_s):
                ready_s = end_s + sends_s[stage]
        self.active_s += end_s
        return end_s


class Pipeline:
    """Virtual engines that share stages and the requests sent to one engine."""

    def __init__(
        self,
        env: simpy.Environment,
        schedulers: Sequence[Scheduler],
        latency: PipelineLatency,
        source: RequestSource,
        *,
        check: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        assert len(schedulers) == len(latency.stages), "one virtual engine a stage"
        self.env = env
        self.engines = [VirtualEngine(n, scheduler) for n, scheduler in enumerate(schedulers)]
        self.latency = latency
        self.source = source
        self.check = check
        self.progress = progress
        self.clock = StageClock(len(latency.stages))
        self._idle = deque(self.engines)  # in order of becoming so
        self._in_flight: list[tuple[float, int]] = []  # (end, virtual engine): a heap
        self.process = env.process(self._run())

    def _run(self) -> Generator[simpy.Event, Any, None]:
        now_s = 0.0
        while True:
            self._complete(now_s)
            if self.source.next_arrival_s <= now_s:
                self._take_arrivals(now_s)
            for engine in self.engines:
                if engine.scheduler.pool.gives_up_s <= now_s:
                    self.source.release(len(engine.scheduler.pool.expire(now_s)), now_s)
            if self.source.next_arrival_s <= now_s:  # whom they kept from coming
                self._take_arrivals(now_s)
            wake_s = min(self._schedule(now_s), self.source.next_arrival_s)
            if self._in_flight:
                wake_s = min(wake_s, self._in_flight[0][0])
            if wake_s == inf:
                assert not any(e.scheduler.pool.num_unfinished for e in self.engines), "stuck"
                return
            yield self.env.timeout(max(wake_s - self.env.now, 0.0))
            now_s = wake_s

    def _schedule(self, now_s: float) -> float:
        """Let what is ready enter the first stage; returns when to ask again at the latest."""
        wake_s = inf
        for engine in list(self._idle):
            if self.clock.free_s[0] > now_s:
                return min(wake_s, self.clock.free_s[0])
            batch = self._next_batch(engine.scheduler, now_s)
            if batch is None:
                if engine.scheduler.wake_s > now_s:
                    wake_s = min(wake_s, engine.scheduler.wake_s)
                continue
            self._idle.remove(engine)
            latency = self.latency
            end_s = self.clock.pass_through(now_s, latency.stages_s(batch), latency.sends_s(batch))
            note_iteration(engine.log, engine.scheduler, batch, start_s=now_s, end_s=end_s)
            engine.batch = batch
            heapq.heappush(self._in_flight, (end_s, engine.number))
        return wake_s

    @staticmethod
    def _next_batch(scheduler: Scheduler, now_s: float) -> Batch | None:
        batch = scheduler.schedule(now_s)
        if batch is None and scheduler.wake_s == inf and scheduler.pool.num_unfinished:
            # Everybody was preempted: the next decision, at the same time, admits again.
            batch = scheduler.schedule(now_s)
            assert batch is not None, "the scheduler is stuck"
        return batch

    def _complete(self, now_s: float) -> None:
        """Batches that have left the last stage by now."""
        while self._in_flight and self._in_flight[0][0] <= now_s:
            end_s, number = heapq.heappop(self._in_flight)
            engine = self.engines[number]
            assert engine.batch is not None
            finished = engine.scheduler.complete(engine.batch, end_s, 1)
            engine.log.finished(len(finished))
            if self.check:
                check_iteration(engine.scheduler, engine.batch)
            engine.batch = None
            self._idle.append(engine)
            if finished:
                # In a closed loop those who came meanwhile hold their clients already.
                self._take_arrivals(end_s)
                self.source.release(len(finished), end_s)
                if self.progress is not None:
                    self.progress(engine.scheduler.pool.num_finished)

    def _take_arrivals(self, now_s: float) -> None:
        source = self.source
        while source.next_arrival_s <= now_s:
            request = source.take()
            scheduler = min(
                (engine.scheduler for engine in self.engines),
                key=lambda each: each.pool.num_unfinished,
            )
            rejected = scheduler.pool.num_rejected
            scheduler.add(request)
            if scheduler.pool.num_rejected > rejected:  # its client hears so at once, and goes on
                source.release(1, request.arrival_s)


def stage_columns(pipelines: Sequence[Pipeline]) -> Columns:
    """`Records.stages` of these replicas."""
    stages = [len(pipeline.clock.busy_s) for pipeline in pipelines]
    return {
        "replica": np.repeat(np.arange(len(pipelines), dtype="i4"), stages),
        "stage": np.concatenate([np.arange(count, dtype="i4") for count in stages]),
        "busy_s": np.concatenate([np.array(pipeline.clock.busy_s) for pipeline in pipelines]),
        "active_s": np.repeat([pipeline.clock.active_s for pipeline in pipelines], stages),
    }
