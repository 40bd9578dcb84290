"""One engine on the simulated clock: when it acts, how far it jumps, and when it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.engine.device import OneAtATime
from sim.engine.engine import Engine
from sim.engine.replica import Replica
from sim.engine.simulation import simulate
from sim.kv.cache import BlockAllocator
from sim.latency.protocol import FixedLatency, LatencyModel
from sim.request_pool import RequestPool
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from sim.workload.source import RequestSource
from tests.sim.serving import POLICIES


class CountingClock(Clock):
    """Counts how often it is asked to call."""

    calls = 0

    def at(self, time_s: float, rank: int, call: Callable[[float], None]) -> None:
        self.calls += 1
        super().at(time_s, rank, call)


def load(arrivals: list[float], outputs: list[int], *, prompt: int = 4, **columns: Any) -> Workload:
    return Workload(
        np.array(arrivals), np.full(len(arrivals), prompt), np.array(outputs), **columns
    )


def replica(
    workload: Workload,
    *,
    scheduler: str = "chunked",
    latency: LatencyModel | None = None,
    num_blocks: int = 100,
    clock: Clock | None = None,
    leap: bool = True,
    check: bool = True,
    **knobs: Any,
) -> Replica:
    config = EngineConfig(block_size=4, **knobs)
    source = RequestSource(workload, block_size=4, prefix_caching=False)
    allocator = BlockAllocator(num_blocks, 4)
    policy = SCHEDULERS[scheduler](RequestPool(4), allocator, config)
    device = OneAtATime(latency or FixedLatency(1.0))
    engine = Engine(policy, device, arrivals=source, leap=leap, check=check)
    return Replica(clock or CountingClock(), [engine], source)


def run(served: Replica) -> dict[str, np.ndarray]:
    served.clock.run()
    return requests_of(served)


def requests_of(served: Replica) -> dict[str, np.ndarray]:
    return served.engines[0].scheduler.pool.log.requests()


@pytest.mark.parametrize("scheduler", POLICIES)
def test_a_leap_is_one_event_where_a_step_is_one_event_an_iteration(scheduler: str) -> None:
    workload = load([0.0], [50])
    events = {}
    for leap in (True, False):
        engine = replica(workload, scheduler=scheduler, leap=leap)
        requests = run(engine)
        assert requests["finished_s"].tolist() == [50.0]
        events[leap] = engine.clock.calls  # type: ignore[attr-defined]
    assert events[False] == 1 + 50
    assert events[True] == 1 + 2, "the prefill, and all decodes"


def test_an_arrival_that_can_be_admitted_ends_a_leap() -> None:
    requests = run(replica(load([0.0, 10.5], [50, 3])))
    assert requests["scheduled_s"].tolist() == [0.0, 11.0], "at the next iteration boundary"
    assert requests["first_token_s"].tolist() == [1.0, 12.0]


def test_an_arrival_that_must_wait_anyway_does_not() -> None:
    engine = replica(load([0.0, 10.5, 20.5], [50, 3, 3]), max_num_seqs=1)
    requests = run(engine)
    assert requests["scheduled_s"].tolist() == [0.0, 50.0, 53.0]
    calls = engine.clock.calls  # type: ignore[attr-defined]
    assert calls == 1 + 6, "a prefill and a leap for each"


def test_an_arrival_at_the_very_end_of_an_iteration_joins_the_next() -> None:
    assert run(replica(load([0.0, 3.0], [9, 2])))["scheduled_s"].tolist() == [0.0, 3.0]


def test_the_clock_jumps_over_idle_time_and_ends_with_the_last_request() -> None:
    engine = replica(load([5.25, 1000.5], [2, 2]))
    requests = run(engine)
    assert requests["scheduled_s"].tolist() == [5.25, 1000.5]
    assert engine.clock.now == 1002.5


def test_two_replicas_share_one_clock_and_nothing_else() -> None:
    clock = CountingClock()
    slow = replica(load([0.0], [4]), latency=FixedLatency(3.0), clock=clock)
    fast = replica(load([0.0], [4]), latency=FixedLatency(1.0), clock=clock)
    clock.run()
    assert requests_of(slow)["finished_s"].tolist() == [12.0]
    assert requests_of(fast)["finished_s"].tolist() == [4.0]


def test_the_dynamic_batcher_is_woken_when_its_delay_is_over() -> None:
    requests = run(
        replica(
            load([1.0, 1.5], [2, 2]), scheduler="dynamic", max_num_seqs=8, max_queue_delay_s=4.0
        )
    )
    assert requests["scheduled_s"].tolist() == [5.0, 5.0]


# -- a closed loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", POLICIES)
@pytest.mark.parametrize("leap", [True, False])
def test_a_closed_loop_sends_the_next_request_when_one_returns(scheduler: str, leap: bool) -> None:
    workload = load([0.0] * 6, [3] * 6, max_concurrency=2)
    requests = run(replica(workload, scheduler=scheduler, leap=leap))
    assert requests["arrival_s"].tolist() == [0.0, 0.0, 3.0, 3.0, 6.0, 6.0]
    assert requests["finished_s"].tolist() == [3.0, 3.0, 6.0, 6.0, 9.0, 9.0]


@pytest.mark.parametrize("leap", [True, False])
def test_a_rejected_request_frees_its_client_at_once(leap: bool) -> None:
    workload = load([0.0] * 5, [3, 999, 999, 999, 3], max_concurrency=1)
    requests = run(replica(workload, num_blocks=4, leap=leap))
    assert requests["rejected"].tolist() == [False, True, True, True, False]
    assert requests["arrival_s"][4] == 3.0
    assert requests["finished_s"][4] == 6.0


@pytest.mark.parametrize("leap", [True, False])
def test_a_rejection_is_heard_at_arrival_not_when_the_engine_next_looks(leap: bool) -> None:
    # Request 1 is refused at 2.5 s, amid an iteration: request 2 comes then, not at 3 s or 9 s.
    workload = load([0.0, 2.5, 2.5], [9, 999, 2], max_concurrency=2)
    requests = run(replica(workload, scheduler="static", num_blocks=8, leap=leap))
    assert requests["rejected"].tolist() == [False, True, False]
    assert requests["arrival_s"].tolist() == [0.0, 2.5, 2.5]


def test_when_nothing_fits_the_run_ends_at_once() -> None:
    engine = replica(load([1.0, 2.0], [99, 99]), num_blocks=3)
    requests = run(engine)
    assert requests["rejected"].all()
    assert engine.clock.now == 2.0


# -- what it tells ---------------------------------------------------------------------------------


def test_progress_only_grows_and_never_exceeds_the_requests() -> None:
    told: list[int] = []
    count = 9000
    records = simulate(
        load(list(np.arange(count) * 3.0), [2] * count),
        EngineConfig(),
        FixedLatency(1.0),
        scheduler="orca",
        num_blocks=100,
        replicas=2,
        progress=told.append,
    )
    assert len(records.requests["request"]) == count
    assert told, "a long run says how far it has come"
    assert told == sorted(told)
    assert told[-1] <= count


def test_a_policy_that_decides_nothing_for_ever_is_found_out() -> None:
    engine = replica(load([0.0], [3]))
    engine.engines[0].scheduler.schedule = lambda now_s: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="the scheduler is stuck"):
        engine.clock.run()


def test_check_looks_at_the_allocator_after_every_decision() -> None:
    checked = []
    for check in (True, False):
        engine = replica(load([0.0], [5]), leap=False, check=check)
        calls: list[int] = []
        engine.engines[0].scheduler.allocator.check = (  # type: ignore[method-assign]
            lambda tables, calls=calls: calls.append(len(list(tables)))
        )
        run(engine)
        checked.append(calls)
    assert checked == [[1, 1, 1, 1, 0], []]
