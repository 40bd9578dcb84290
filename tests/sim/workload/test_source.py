"""A workload dealt out as requests: who comes when, also in a closed loop."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.request import Request
from sim.workload import PromptContent, Workload
from sim.workload.source import RequestSource


def taken(source: RequestSource, now_s: float) -> list[Request]:
    """Everything that has arrived by now."""
    requests = []
    while source.next_arrival_s <= now_s:
        requests.append(source.take())
    return requests


def workload(*arrivals: float, **columns: object) -> Workload:
    count = len(arrivals)
    lengths = np.arange(count) + 1
    return Workload(np.array(arrivals), 10 * lengths, lengths, **columns)  # type: ignore[arg-type]


def source_of(load: Workload, *, caching: bool = False, **which: int) -> RequestSource:
    return RequestSource(load, block_size=4, prefix_caching=caching, **which)


def test_requests_come_in_order_of_arrival_with_their_lengths() -> None:
    source = source_of(workload(0.5, 0.5, 2.0, max_tokens=[9, 8, 7]))
    assert source.next_arrival_s == 0.5
    first, second = taken(source, 1.0)
    assert (first.index, first.arrival_s, first.prompt_tokens) == (0, 0.5, 10)
    assert (second.index, second.output_tokens, second.max_tokens) == (1, 2, 8)
    assert source.next_arrival_s == 2.0
    assert taken(source, 1.9) == []
    (third,) = taken(source, 2.0)
    assert third.index == 2
    assert source.next_arrival_s == inf
    assert taken(source, 1e9) == []


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=30),
    st.integers(1, 5),
    st.lists(st.floats(0, 120), max_size=8),
)
def test_replicas_share_every_request_out_once(
    arrivals: list[float], replicas: int, asked_s: list[float]
) -> None:
    load = workload(*sorted(arrivals))
    seen = []
    for number in range(replicas):
        source = source_of(load, first=number, stride=replicas)
        mine = [one for now_s in [*sorted(asked_s), 1e9] for one in taken(source, now_s)]
        assert [one.index for one in mine] == list(range(number, len(load), replicas))
        assert all(one.arrival_s == load.arrival_s[one.index] for one in mine)
        seen += [one.index for one in mine]
    assert sorted(seen) == list(range(len(load)))


def test_a_closed_loop_holds_requests_back_until_a_client_is_free() -> None:
    source = source_of(workload(0.0, 0.0, 0.0, 0.0, 50.0, max_concurrency=2))
    first, second = taken(source, 0.0)
    assert (first.index, second.index) == (0, 1)
    assert source.next_arrival_s == inf
    assert taken(source, 99.0) == []
    source.release([first], 7.0)
    assert source.next_arrival_s == 7.0, "not before the client was free"
    (third,) = taken(source, 7.0)
    assert (third.index, third.arrival_s) == (2, 7.0)
    source.release([second, third], 9.0)
    assert source.next_arrival_s == 9.0
    assert [one.index for one in taken(source, 9.0)] == [3]
    assert source.next_arrival_s == 50.0, "and not before the request was due"
    assert [one.arrival_s for one in taken(source, 60.0)] == [50.0]


def test_a_release_does_not_hurry_a_request_that_has_a_client_already() -> None:
    source = source_of(workload(0.0, 5.0, max_concurrency=2))
    source.release(taken(source, 0.0), 1.0)
    assert source.next_arrival_s == 5.0


@given(
    limit=st.integers(1, 4),
    service=st.lists(st.floats(0.1, 5.0), min_size=1, max_size=12),
    gaps=st.lists(st.floats(0.0, 3.0), min_size=12, max_size=12),
)
def test_no_more_than_max_concurrency_are_ever_unfinished(
    limit: int, service: list[float], gaps: list[float]
) -> None:
    load = workload(*np.cumsum(gaps[: len(service)]), max_concurrency=limit)
    source = source_of(load)
    ends_s: dict[Request, float] = {}
    started = 0
    while source.next_arrival_s < inf or ends_s:
        now_s = min([source.next_arrival_s, *ends_s.values()])
        ended = [one for one, end_s in ends_s.items() if end_s <= now_s]
        for one in ended:
            del ends_s[one]
        if ended:
            source.release(ended, now_s)
        for one in taken(source, now_s):
            assert one.arrival_s >= load.arrival_s[one.index]
            ends_s[one] = now_s + service[one.index]
            started += 1
        assert len(ends_s) <= limit
    assert started == len(service)


@pytest.mark.parametrize("caching", [True, False])
def test_prompts_have_block_hashes_where_there_is_a_prefix_cache(caching: bool) -> None:
    content = PromptContent.from_lists(
        [list(range(9)), list(range(9)), [7] * 9], unit_tokens=1, known_tokens=[9, 9, 9]
    )
    load = Workload(np.zeros(3), np.full(3, 9), np.full(3, 2), content=content)
    one, same, other = taken(source_of(load, caching=caching), 0.0)
    if not caching:
        assert one.block_hashes == same.block_hashes == ()
        return
    assert len(one.block_hashes) == 2, "of the prompt's two full blocks of four"
    assert one.block_hashes == same.block_hashes
    assert not set(one.block_hashes) & set(other.block_hashes)


def test_hashes_follow_the_request_not_its_place_in_the_share() -> None:
    content = PromptContent.from_lists(
        [[number] * 8 for number in range(4)], unit_tokens=1, known_tokens=[8] * 4
    )
    load = Workload(np.zeros(4), np.full(4, 8), np.ones(4, int), content=content)
    whole = taken(source_of(load, caching=True), 0.0)
    half = taken(source_of(load, caching=True, first=1, stride=2), 0.0)
    assert [one.block_hashes for one in half] == [whole[1].block_hashes, whole[3].block_hashes]


def test_a_turn_comes_a_while_after_the_answer_that_it_follows() -> None:
    load = workload(0.0, 1.0, 2.0, follows=[-1, 0, -1], think_s=[0.0, 0.5, 0.0])
    source = source_of(load)
    (first,) = taken(source, 0.0)
    assert source.next_arrival_s == 2.0, "its answer is not there yet"
    assert [one.index for one in taken(source, 5.0)] == [2]
    assert source.next_arrival_s == inf
    source.release([first], 7.0)
    (second,) = taken(source, 9.0)
    assert (second.index, second.arrival_s) == (1, 7.5)


def test_a_turn_comes_no_earlier_than_it_was_to_come() -> None:
    source = source_of(workload(0.0, 8.0, follows=[-1, 0]))
    source.release(taken(source, 0.0), 3.0)
    assert source.next_arrival_s == 8.0


def test_who_will_not_come_any_more_is_told_once() -> None:
    load = workload(0.0, 0.0, 1.0, 2.0, follows=[-1, 0, -1, 2])
    source = source_of(load)
    (first,) = taken(source, 0.0)
    source.release([first], 0.5)
    assert [one.index for one in taken(source, 0.5)] == [1]
    assert [one.index for one in source.rest()] == [2, 3]
    assert (source.next_arrival_s, source.rest()) == (inf, [])
