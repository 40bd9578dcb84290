"""The engine itself: what it decides when, with one batch in flight and with two.

A driver of a few lines calls it here: no clock, no clients, and requests that are there from the
beginning unless a test sends one later.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.batch import Batch
from sim.engine.device import OneAtATime
from sim.engine.engine import Device, Engine
from sim.kv.cache import BlockAllocator
from sim.latency.protocol import FixedLatency
from sim.records import Columns
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from sim.workload.source import RequestSource
from tests.sim.serving import POLICIES, LinearLatency, engines, workloads

DEPTHS = pytest.mark.parametrize("depth", [1, 2])


def an_engine(
    *outputs: int,
    depth: int = 1,
    prompt: int = 4,
    max_tokens: int = 0,
    leap: bool = True,
    device: Device | None = None,
    num_blocks: int = 100,
    **knobs: Any,
) -> Engine:
    """A second an iteration; requests that ask for so many tokens wait."""
    config = EngineConfig(block_size=4, async_scheduling=depth == 2, **knobs)
    scheduler = SCHEDULERS["chunked"](RequestPool(4), BlockAllocator(num_blocks, 4), config)
    for number, output in enumerate(outputs):
        scheduler.add(Request(number, 0.0, prompt, output, max(max_tokens, output)))
    device = device or OneAtATime(FixedLatency(1.0))
    return Engine(scheduler, device, leap=leap, check=True)


def drive(engine: Engine, until_s: float = inf) -> dict[int, float]:
    """Call an engine whenever it is due before then; returns when requests finished."""
    finished_s: dict[int, float] = {}
    for _ in range(10_000):
        if engine.is_idle or engine.due_s >= until_s:
            return finished_s
        now_s = engine.due_s
        finished_s |= {request.index: now_s for request in engine.collect(now_s)}
        if engine.decision_s <= now_s or engine.is_idle:
            engine.decide(now_s)
    raise AssertionError(f"stuck at {engine.due_s} s")


def iterations(engine: Engine) -> Columns:
    allocator, gaps = engine.scheduler.allocator, engine.scheduler.gaps
    sizes = {"num_blocks": allocator.num_blocks, "block_size": allocator.block_size}
    return engine.log.columns(**sizes, gaps=gaps)[0]


# -- when it decides ------------------------------------------------------------------------------


def test_one_batch_in_flight_is_decided_as_the_one_before_ends() -> None:
    engine = an_engine(5, leap=False)
    engine.decide(0.0)
    assert (engine.oldest.start_s, engine.oldest.ends_s) == (0.0, [1.0])
    assert engine.decision_s == engine.due_s == 1.0
    assert not engine.oldest.batch.decided_ahead


def test_two_batches_in_flight_are_decided_as_the_one_before_begins() -> None:
    engine = an_engine(5, leap=False)
    ahead = an_engine(5, depth=2, leap=False)
    ahead.decide(0.0)
    assert ahead.decision_s == 1.0, "both are launched: the second one begins then"
    assert ahead.device.free_s == 2.0
    assert ahead.oldest.ends_s == [1.0] and not ahead.oldest.batch.decided_ahead
    ahead.collect(1.0)
    assert ahead.oldest.ends_s == [2.0] and ahead.oldest.batch.decided_ahead
    engine.decide(0.0)
    assert drive(engine) == drive(ahead) == {0: 5.0}, "nobody's last token comes later for it"


@pytest.mark.parametrize(("depth", "scheduled_s"), [(1, 1.0), (2, 1.0)])
def test_who_comes_during_an_iteration_is_seen_by_the_next_decision(
    depth: int, scheduled_s: float
) -> None:
    engine = an_engine(9, depth=depth)
    engine.decide(0.0)
    late = Request(1, 0.5, 4, 3, 3)
    engine.interrupt(0.5)
    engine.scheduler.add(late)
    drive(engine)
    assert late.scheduled_s == scheduled_s
    # Decided ahead, that iteration begins as the one that was decided before has ended.
    assert late.first_token_s == scheduled_s + depth


@DEPTHS
def test_with_nothing_to_decide_it_waits_for_the_oldest_batch(depth: int) -> None:
    engine = an_engine(1, depth=depth)
    engine.decide(0.0)
    assert engine.decision_s == 1.0
    assert [request.index for request in engine.collect(1.0)] == [0]
    engine.decide(1.0)
    assert engine.is_idle and engine.decision_s == inf


def test_a_device_that_has_nothing_left_of_a_batch_lets_it_decide_again_at_once() -> None:
    class Shedding(OneAtATime):
        """The first batch has one request, and no memory for it."""

        def run(self, batch: Batch, now_s: float) -> Any:
            if batch.prefills[0].request.index == 1:
                return super().run(batch, now_s)
            engine.scheduler.abort(batch.prefills[0].request, now_s)
            return None

    engine = an_engine(2, 2, device=Shedding(FixedLatency(1.0)), max_num_seqs=1)
    engine.decide(0.0)
    assert (engine.oldest.start_s, engine.decision_s) == (0.0, 1.0)
    assert [chunk.request.index for chunk in engine.oldest.batch.prefills] == [1]


# -- what is held until it is collected -----------------------------------------------------------


@DEPTHS
def test_a_seat_is_taken_until_the_last_token_is_there(depth: int) -> None:
    engine = an_engine(2, 2, depth=depth, max_num_seqs=1)
    engine.decide(0.0)
    assert drive(engine) == {0: 2.0, 1: 4.0}
    assert iterations(engine)["running"].tolist() == [1] * 4
    assert iterations(engine)["start_s"].tolist() == [0.0, 1.0, 2.0, 3.0]


@DEPTHS
def test_who_has_its_last_token_is_collected_though_no_decision_is_due(depth: int) -> None:
    engine = an_engine(3, 30, depth=depth)
    engine.decide(0.0)
    assert drive(engine, until_s=20.0) == {0: 3.0}
    assert engine.due_s == (30.0 if depth == 1 else 29.0)


@pytest.mark.parametrize(("depth", "wasted"), [(1, 0), (2, 1)])
def test_an_answer_that_ends_early_is_known_to_have_ended_when_its_token_is_there(
    depth: int, wasted: int
) -> None:
    """Its client would have taken 9 tokens, so ahead it decodes once more, for nobody."""
    engine = an_engine(3, depth=depth, max_tokens=9)
    engine.decide(0.0)
    assert drive(engine) == {0: 3.0}
    rows = iterations(engine)
    assert rows["emitted"].tolist() == [1, 1, 1] + [0] * wasted
    assert rows["decode_seqs"].tolist() == [0, 1, 1] + [1] * wasted


def test_batches_are_collected_in_order_and_all_at_once_if_need_be() -> None:
    engine = an_engine(1, 2, depth=2, max_num_batched_tokens=4, max_num_seqs=4, leap=False)
    engine.decide(0.0)
    finished = engine.collect(2.0)
    assert [request.index for request in finished] == [0]
    assert finished[0].last_token_s == 1.0, "as its own batch ended"


# -- leaps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "decision_s"), [(1, 20.0), (2, 19.0)])
def test_a_leap_goes_to_the_next_decision_that_could_be_another(
    depth: int, decision_s: float
) -> None:
    engine = an_engine(20, depth=depth)
    engine.decide(0.0)
    drive(engine, until_s=1.5)
    assert engine.decision_s == decision_s


@pytest.mark.parametrize(("at_s", "ends_s"), [(3.5, 4.0), (3.0, 3.0), (1.25, 2.0), (25.0, 20.0)])
@DEPTHS
def test_an_arrival_cuts_a_leap_short_at_the_next_decision(
    depth: int, at_s: float, ends_s: float
) -> None:
    engine = an_engine(20, depth=depth)
    engine.decide(0.0)
    drive(engine, until_s=1.125)
    engine.interrupt(at_s)
    decision_s = min(ends_s, 20.0 - (depth - 1))
    assert engine.decision_s == decision_s, "whoever comes at its very end is in time for it"
    assert engine.device.free_s == decision_s + depth - 1


@DEPTHS
def test_an_arrival_that_has_to_wait_anyway_cuts_nothing_short(depth: int) -> None:
    engine = an_engine(20, depth=depth, max_num_seqs=1)
    engine.decide(0.0)
    drive(engine, until_s=1.5)
    before_s = engine.decision_s
    engine.interrupt(3.5)
    assert engine.decision_s == before_s


# -- as if every iteration were stepped through ---------------------------------------------------


def twins(
    scheduler: str, depth: int, workload: Workload, engine: tuple[EngineConfig, int]
) -> tuple[Engine, Engine]:
    """Two engines with the same requests: one leaps, the other steps."""
    config, num_blocks = replace(engine[0], async_scheduling=depth == 2), engine[1]
    made = []
    for leap in (True, False):
        allocator = BlockAllocator(
            num_blocks, config.block_size, prefix_caching=config.enable_prefix_caching
        )
        policy = SCHEDULERS[scheduler](RequestPool(config.block_size), allocator, config)
        source = RequestSource(
            replace(workload, max_concurrency=None, arrival_s=np.zeros(len(workload))),
            block_size=config.block_size,
            prefix_caching=config.enable_prefix_caching,
        )
        for _ in range(len(workload)):
            policy.add(source.take())
        one = Engine(policy, OneAtATime(LinearLatency()), leap=leap, check=True)
        one.decide(0.0)
        made.append(one)
    return made[0], made[1]


def held(engine: Engine) -> dict[int, int]:
    """Blocks of each running request; which ones they are is of no account."""
    return {request.index: len(request.block_table) for request in engine.scheduler.pool.running}


def assert_same_log(one: Engine, other: Engine) -> None:
    for name, column in iterations(one).items():
        np.testing.assert_array_equal(column, iterations(other)[name], err_msg=name)


ANY = [(scheduler, 1) for scheduler in POLICIES]
ANY += [(scheduler, 2) for scheduler in ("orca", "paged", "chunked")]
SOON = st.floats(0.0, 1.2).map(lambda seconds: seconds + 0.001)  # no iteration ends just then


@pytest.mark.parametrize(("scheduler", "depth"), ANY)
@settings(max_examples=40, deadline=None)
@given(workload=workloads(), engine=engines(), times_s=st.lists(SOON, min_size=1, max_size=3))
def test_it_catches_up_with_an_engine_that_steps(
    scheduler: str,
    depth: int,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    times_s: list[float],
) -> None:
    leaping, stepping = twins(scheduler, depth, workload, engine)
    for at_s in sorted(times_s):
        drive(leaping, at_s), drive(stepping, at_s)
        used = leaping.scheduler.allocator.num_used + leaping.growth(at_s)
        assert used == stepping.scheduler.allocator.num_used
        leaping.catch_up(at_s, at_s)
        assert held(leaping) == held(stepping)
        assert leaping.growth(at_s) == 0
    drive(leaping), drive(stepping)
    assert_same_log(leaping, stepping)


@pytest.mark.parametrize(("scheduler", "depth"), ANY)
@settings(max_examples=40, deadline=None)
@given(workload=workloads(), engine=engines(), at_s=SOON)
def test_what_is_in_flight_when_it_fails_is_void(
    scheduler: str, depth: int, workload: Workload, engine: tuple[EngineConfig, int], at_s: float
) -> None:
    leaping, stepping = twins(scheduler, depth, workload, engine)
    left = []
    for one in (leaping, stepping):
        drive(one, at_s)
        lost = one.void(at_s)
        assert one.is_idle and one.device.free_s == at_s
        assert one.scheduler.allocator.num_used == 0 == one.scheduler.pool.num_unfinished
        left.append(
            [(each.index, each.first_token_s, each.last_token_s, each.joined_step) for each in lost]
        )
    assert_same_log(leaping, stepping)
    np.testing.assert_equal(*left)
    assert all(last_s < at_s or last_s != last_s for _, _, last_s, _ in left[0])
    ends_s = iterations(leaping)["start_s"] + iterations(leaping)["duration_s"]
    assert (ends_s < at_s + 1e-9).all()


@DEPTHS
def test_who_failed_with_its_first_token_in_flight_has_none(depth: int) -> None:
    engine = an_engine(9, depth=depth)
    engine.decide(0.0)
    (lost,) = engine.void(0.5)
    assert lost.first_token is None and lost.last_token is None
    assert lost.num_generated_tokens == lost.num_computed_tokens == 0


@DEPTHS
def test_who_failed_later_has_the_tokens_that_went_out(depth: int) -> None:
    engine = an_engine(9, depth=depth)
    engine.decide(0.0)
    drive(engine, until_s=4.5)
    (lost,) = engine.void(4.5)
    assert (lost.first_token_s, lost.last_token_s) == (1.0, 4.0)
