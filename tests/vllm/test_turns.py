"""What a simulator is told of a real run: decisions, ends and arrivals of hand-made turns."""

from __future__ import annotations

from random import Random

import pytest

from tests.vllm.served import TICKS_PER_S, ticks
from tests.vllm.traffic import draw
from tests.vllm.turns import Sent, Turn, chain


def turn(
    decided: int,
    *computing: str,
    result: int | None = None,
    slept: int | None = None,
    preempted: tuple[str, ...] = (),
) -> Turn:
    """A turn in which each of `computing` computes a token."""
    return Turn(decided, slept, dict.fromkeys(computing, 1), preempted, {}, 9, result)


def sent(arrived: int, first_turn: int, last_turn: int) -> Sent:
    """A request."""
    return Sent(arrived, ((100, 5),), 2, 2, first_turn, last_turn)


def test_a_step_lasts_until_the_next_decision() -> None:
    turns = [turn(105, "0", result=150), turn(157, "0", result=190), turn(200)]
    told = chain(turns, [sent(100, 0, 1)])
    assert (told.starts, told.ends, told.collected) == ((105, 157), (157, 200), (0, 1))
    assert told.launches == ()


def test_a_request_that_wakes_the_engine_arrives_when_that_decides() -> None:
    turns = [
        turn(105, "0", result=150),
        turn(157, "0", "1", result=190),
        turn(200),
        turn(306, "2", "3", result=340, slept=205),
        turn(345, "2", "3", result=360),
        turn(365),
    ]
    requests = [sent(100, 0, 1), sent(120, 1, 1), sent(300, 3, 4), sent(304, 3, 4)]
    told = chain(turns, requests)
    assert told.arrives == (105, 120, 306, 306)
    assert told.woken == (0, 2, 3)
    assert told.ends == (157, 200, 345, 365)


def test_a_loop_with_nothing_to_do_ends_the_step_before_it_sleeps() -> None:
    turns = [turn(105, "0", result=150), turn(306, "1", result=340, slept=152), turn(350)]
    told = chain(turns, [sent(100, 0, 0), sent(300, 1, 1)])
    assert told.ends == (152, 350)
    assert told.starts == (105, 306)


def test_two_in_flight_are_a_launch_apart_and_then_follow_results() -> None:
    turns = [
        turn(105, "0"),
        turn(108, "0", result=150),  # of the first
        turn(155, "0", result=190),  # of the second
        turn(195, result=230),
        turn(240),
    ]
    told = chain(turns, [sent(100, 1, 3)])
    assert told.launches == ((105, 108),)
    assert told.collected == (1, 2, 3)
    assert told.ends == (155, 195, 240)
    assert told.starts == (105, 155, 195)


def test_a_decision_after_one_that_only_preempted_ends_the_step_before() -> None:
    turns = [
        turn(105, "0", result=150),
        turn(155, preempted=("0",)),
        turn(1160, "0", result=1200),
        turn(1210),
    ]
    told = chain(turns, [sent(100, 2, 2)])
    assert told.ends == (1160, 1210)
    assert told.starts == (105, 1160)


def test_ticks_keep_nanoseconds_apart_and_add_up_exactly() -> None:
    rng = Random(0)
    for _ in range(1000):
        nanoseconds = rng.randrange(10**11)
        assert ticks(nanoseconds + 1) > ticks(nanoseconds)
        start, end = ticks(nanoseconds), ticks(nanoseconds + rng.randrange(10**9))
        assert start / TICKS_PER_S + (end - start) / TICKS_PER_S == end / TICKS_PER_S


@pytest.mark.parametrize("seed", range(5))
def test_every_request_of_the_traffic_can_be_served(seed: int) -> None:
    traffic = draw(Random(seed), async_scheduling=False, count=600)
    assert len(traffic.requests) == 600
    tokens = (traffic.num_gpu_blocks - 1) * traffic.block_size
    for one in traffic.requests:
        assert sum(count for _, count in one.prompt) + one.max_tokens <= tokens
