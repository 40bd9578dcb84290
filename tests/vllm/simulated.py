"""The same workload through Orcast: the schedule that its `chunked` policy decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.engine.block_history import BlockRecorder
from sim.engine.clock import Clock
from sim.engine.device import OneAtATime
from sim.engine.engine import Engine
from sim.engine.policy import block_allocator
from sim.engine.replica import Replica
from sim.engine.run_log import collect
from sim.engine.simulation import simulate
from sim.kv.tables import TableRule
from sim.queues import QueueRules
from sim.records import Records
from sim.request import SAMPLE_NUMBERS
from sim.request import Request as Sequence
from sim.request_pool import RequestPool
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.scheduler import Scheduler
from sim.workload import PromptContent
from sim.workload import Workload as Columns
from sim.workload.samples import Samples
from sim.workload.source import RequestSource
from tests.vllm.schedule import Schedule, Step
from tests.vllm.workloads import STREAM_TOKENS, Workload, answer_stream


def simulated(workload: Workload) -> Schedule:
    """Orcast's schedule of one workload."""
    decisions = Decisions(workload)
    records = _records(workload, decisions)
    starts = records.iterations["start_s"].tolist()
    assert len(starts) == len(decisions.steps), "a decision that no iteration followed"
    steps = [
        Step(_ticks(start, workload), *decision)
        for start, decision in zip(starts, decisions.steps, strict=True)
    ]
    numbers = records.requests["request"].tolist()
    first, last = (
        {
            str(number): _ticks(seconds, workload)
            for number, seconds in zip(numbers, records.requests[column].tolist(), strict=True)
            if seconds == seconds  # not NaN: it was served
        }
        for column in ("first_token_s", "last_token_s")
    )
    return Schedule(tuple(steps), first, last)


def _records(workload: Workload, decisions: Decisions) -> Records:
    requests, config = columns(workload), engine_config(workload)
    durations = GivenDurations(workload)
    num_blocks = workload.num_gpu_blocks - 1  # one of vLLM's is the null block
    if not workload.launches:
        return simulate(
            requests,
            config,
            durations,
            scheduler="chunked",
            num_blocks=num_blocks,
            leap=False,
            recorder=decisions,
        )
    scheduler = SCHEDULERS["chunked"](
        RequestPool(config.block_size), block_allocator(config, num_blocks), config
    )
    decisions.attach(scheduler)
    source = RequestSource(
        requests, block_size=config.block_size, prefix_caching=config.enable_prefix_caching
    )
    engine = Launching(scheduler, OneAtATime(durations), source, workload)
    clock = Clock()
    Replica(clock, [engine], source)
    clock.run()
    return collect([engine])


class Launching(Engine):
    """An engine that takes a while to launch a batch, where it waits for none to end meanwhile."""

    def __init__(
        self, scheduler: Scheduler, device: OneAtATime, source: RequestSource, workload: Workload
    ) -> None:
        super().__init__(scheduler, device, arrivals=source, leap=False)
        self._launches_s = iter([ticks / workload.ticks_per_s for ticks in workload.launches])

    def _expect(self, now_s: float) -> None:
        super()._expect(now_s)
        if self.decision_s == now_s:
            self.decision_s += next(self._launches_s, 0.0)


class Decisions(BlockRecorder):
    """Notes every decision of an engine that computes something."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.steps: list[tuple[dict[str, int], tuple[str, ...], dict[str, int], int]] = []
        self._workload = workload

    def attach(self, scheduler: Scheduler) -> None:
        """See what `scheduler` decides from now on."""
        pool = scheduler.pool
        schedule, preempt = scheduler.schedule, pool.preempt
        preempted: list[str] = []

        def noted_preempt(request: Sequence, now_s: float) -> None:
            preempted.append(self._name(request))
            preempt(request, now_s)

        def noted_schedule(now_s: float) -> Batch | None:
            before = set(pool.running)
            batch = schedule(now_s)
            if batch is not None and batch.num_tokens:
                tokens = {self._name(one.request): one.new_tokens for one in batch.prefills}
                if batch.num_decodes:
                    tokens.update((self._name(one), 1) for one in scheduler.decoding())
                hits = {
                    self._name(one.request): one.cached_tokens
                    for one in batch.prefills
                    if one.request in pool.running and one.request not in before
                }
                free_blocks = scheduler.allocator.num_free
                self.steps.append((tokens, tuple(preempted), hits, free_blocks))
                preempted.clear()
            return batch

        scheduler.schedule = noted_schedule  # type: ignore[method-assign]
        pool.preempt = noted_preempt  # type: ignore[method-assign]

    def __call__(self, scheduler: Scheduler, batch: Batch) -> None:
        """Nothing is to be seen at an iteration's end."""

    def _name(self, sequence: Sequence) -> str:
        sample, request = divmod(sequence.index, SAMPLE_NUMBERS)
        alone = self._workload.requests[request].samples == 1
        return f"{request}" if alone else f"{request}.{max(sample - 1, 0)}"


class GivenDurations:
    """A latency model: the n-th step takes the n-th duration."""

    label = "given durations"
    measured = False
    uses_longest = False

    def __init__(self, workload: Workload) -> None:
        self._durations_s = [ticks / workload.ticks_per_s for ticks in workload.durations]
        self._step = 0

    def iteration_s(self, batch: Batch) -> float:
        self._step += 1
        return self._durations_s[(self._step - 1) % len(self._durations_s)]

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        return [start_s + self.iteration_s(batch)]

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"all": iterations["duration_s"]}


def engine_config(workload: Workload) -> EngineConfig:
    """The engine's limits under Orcast's names, which are vLLM's."""
    options: dict[str, Any] = {}
    if workload.policy == "priority":
        levels = sorted({one.priority for one in workload.requests})
        options["queue"] = QueueRules("priority", priority={str(level): level for level in levels})
    return EngineConfig(
        max_num_seqs=workload.max_num_seqs,
        max_num_batched_tokens=workload.max_num_batched_tokens,
        long_prefill_token_threshold=workload.long_prefill_token_threshold,
        max_model_len=workload.max_model_len,
        block_size=workload.block_size,
        enable_prefix_caching=workload.enable_prefix_caching,
        async_scheduling=workload.async_scheduling,
        scheduler_reserve_full_isl=workload.scheduler_reserve_full_isl,
        table_rules=tuple(TableRule(*rule) for rule in workload.tables),
        **options,
    )


def columns(workload: Workload) -> Columns:
    """The requests as Orcast takes them. All content is known, answers too where there is one."""
    requests = workload.requests
    contents = []
    for number, one in enumerate(requests):
        pieces = list(one.prompt)
        if one.samples == 1:
            pieces.append((answer_stream(number, 0), one.output_tokens))
        contents.append(
            [
                stream * STREAM_TOKENS + position
                for stream, tokens in pieces
                for position in range(tokens)
            ]
        )
    samples = None
    if any(one.samples > 1 for one in requests):
        counts = np.array([one.samples for one in requests])
        samples = Samples(counts, np.repeat([one.output_tokens for one in requests], counts))
    labels = [str(one.priority) for one in requests]
    return Columns(
        arrival_s=np.array([one.at / workload.ticks_per_s for one in requests]),
        prompt_tokens=np.array([one.prompt_tokens for one in requests]),
        output_tokens=np.array([one.output_tokens for one in requests]),
        max_tokens=np.array([one.max_tokens for one in requests]),
        content=PromptContent.from_lists(contents),
        labels=labels if workload.policy == "priority" else None,
        samples=samples,
    )


def _ticks(seconds: float, workload: Workload) -> int:
    ticks = seconds * workload.ticks_per_s
    assert ticks == int(ticks), f"{seconds} s is no whole number of ticks"
    return int(ticks)
