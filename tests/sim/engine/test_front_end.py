"""What lies between clients and engine: who waits for it where, and what both of them saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.cluster import simulate_cluster
from sim.cluster.plan import Failure, ReplicaGroup
from sim.engine.front_end import ApiServers, FrontEnd
from sim.engine.simulation import simulate
from sim.latency.protocol import FixedLatency
from sim.metrics import request_times_s
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import LinearLatency, assert_gaps_add_up, assert_same_records, workloads

CONFIG = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64, block_size=4)


def served(
    front_end: FrontEnd | None,
    arrivals: list[float],
    outputs: list[int],
    *,
    leap: bool = True,
    **columns: Any,
) -> Records:
    """On an engine whose iterations take a second."""
    workload = Workload(
        np.array(arrivals), np.full(len(arrivals), 10), np.array(outputs), **columns
    )
    return simulate(
        workload, CONFIG, FixedLatency(1.0), scheduler="chunked", num_blocks=400,
        front_end=front_end, leap=leap, check=True,
    )  # fmt: skip


def column(records: Records, name: str) -> Any:
    return pytest.approx(records.requests[name].tolist())


def test_a_request_passes_it_twice() -> None:
    front_end = FrontEnd(
        per_request_s=0.1, per_prompt_token_s=0.01, per_output_token_s=0.02, latency_s=0.001
    )
    records = served(front_end, [0.5], [3])
    arrives = 0.5 + 0.1 + 10 * 0.01 + 0.001
    assert column(records, "arrival_s") == [0.5]
    assert column(records, "engine_arrival_s") == [arrives]
    assert column(records, "scheduled_s") == [arrives]
    assert column(records, "engine_first_token_s") == [arrives + 1]
    assert column(records, "first_token_s") == [arrives + 1 + 0.021]
    assert column(records, "engine_finished_s") == [arrives + 3]
    assert column(records, "finished_s") == [arrives + 3 + 0.021]
    assert records.gaps_s.tolist() == pytest.approx([1.0, 1.0])
    times = request_times_s(records.requests)
    assert times["queue"].tolist() == pytest.approx([0.0])  # the engine's own
    assert times["ttft"].tolist() == pytest.approx([arrives + 1 + 0.021 - 0.5])


def test_requests_queue_for_the_process_that_is_free_first() -> None:
    for servers, arrive in ((1, [0.4, 0.8, 1.2]), (2, [0.4, 0.4, 0.8]), (3, [0.4] * 3)):
        records = served(FrontEnd(servers, per_request_s=0.4), [0.0] * 3, [1] * 3)
        assert column(records, "engine_arrival_s") == arrive


def test_a_short_prompt_overtakes_a_long_one_at_another_process() -> None:
    workload = Workload(np.array([0.0, 0.1]), np.array([60, 1]), np.array([2, 2]))
    records = simulate(
        workload, CONFIG, FixedLatency(1.0), scheduler="chunked", num_blocks=100,
        front_end=FrontEnd(2, per_prompt_token_s=0.01), check=True,
    )  # fmt: skip
    assert column(records, "engine_arrival_s") == [0.6, 0.11]
    assert column(records, "scheduled_s") == [1.11, 0.11]


def test_tokens_of_an_iteration_are_seen_together_and_shared_by_the_processes() -> None:
    for servers in (1, 2):
        records = served(FrontEnd(servers, per_output_token_s=0.1), [0.0] * 4, [2] * 4)
        later = 4 * 0.1 / servers
        assert column(records, "first_token_s") == [1 + later] * 4
        assert column(records, "finished_s") == [2 + later] * 4


def test_more_tokens_than_it_can_stream_pile_up() -> None:
    """Four tokens a second and 0.3 s for each: a portion is 0.2 s later than the one before."""
    records = served(FrontEnd(per_output_token_s=0.3), [0.0] * 4, [10] * 4)
    assert column(records, "first_token_s") == [2.2] * 4
    assert column(records, "finished_s") == [1 + 10 * 1.2] * 4
    assert column(records, "engine_finished_s") == [10.0] * 4
    assert records.gaps_s.tolist() == pytest.approx([1.2] * 9)


def test_a_client_of_a_closed_loop_goes_on_once_it_has_its_answer() -> None:
    front_end = FrontEnd(per_request_s=0.25, per_output_token_s=0.25, latency_s=0.5)
    records = served(front_end, [0.0, 0.0], [2, 2], max_concurrency=1)
    answered = 0.75 + 2 + 0.75
    assert column(records, "finished_s") == [answered, 2 * answered]
    assert column(records, "arrival_s") == [0.0, answered]
    assert column(records, "engine_arrival_s") == [0.75, answered + 0.75]


def test_a_turn_follows_the_answer_that_was_heard() -> None:
    front_end = FrontEnd(latency_s=0.5)
    records = served(
        front_end, [0.0, 0.0], [2, 2],
        follows=np.array([-1, 0]), think_s=np.array([0.0, 3.0]),
    )  # fmt: skip
    assert column(records, "arrival_s") == [0.0, 3.0 + 3.0]


def test_who_fails_loses_requests_on_their_way_and_no_token_that_is() -> None:
    """Replica 0 fails at 1.9 s: one request is in its front end, one has had a token of two."""
    group = ReplicaGroup(
        2, CONFIG, FixedLatency(1.0), "chunked", 100,
        front_end=FrontEnd(per_request_s=0.5, per_output_token_s=0.6),
    )  # fmt: skip
    workload = Workload(np.array([0.0, 0.0, 1.8]), np.full(3, 10), np.array([2, 1, 1]))
    records, facts = simulate_cluster(workload, [group], failures=[Failure(0, 1.9)], check=True)
    assert facts.retries == {0: 1, 2: 1}
    # The first token left the engine at 1.5 s and was seen at 2.1 s; then it began anew.
    assert column(records, "first_token_s") == [2.1, 2.1, 4.0]
    assert column(records, "engine_arrival_s") == [0.5, 0.5, 2.4]
    # At 2.9 s it is through the other front end, and has two iterations after that of the third.
    assert column(records, "finished_s") == [3.4 + 2 + 0.6, 2.1, 4.0]


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.floats(0, 50), min_size=1, max_size=30).map(sorted),
    tokens=st.integers(0, 40),
    cut=st.integers(0, 30),
)
def test_portions_are_handled_one_after_the_other(ends: list[float], tokens: int, cut: int) -> None:
    one, two = (ApiServers(FrontEnd(per_output_token_s=0.07, latency_s=0.2)) for _ in range(2))
    expected, free_s = [], 0.0
    for end_s in ends:
        free_s = max(free_s, end_s) + tokens * 0.07
        expected.append(free_s + 0.2)
    assert one.stream(ends, tokens) == (expected[0], expected[-1])
    parts = [part for part in (ends[:cut], ends[cut:]) if part]
    assert [two.stream(part, tokens)[1] for part in parts][-1] == expected[-1]
    seen_s = one.seen_s(np.array(ends), np.full(len(ends), tokens))
    assert seen_s.tolist() == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(
    workload=workloads(),
    front_end=st.sampled_from(
        [
            FrontEnd(1, 0.003, 1e-4, 4e-4, 0.002),
            FrontEnd(2, 0.02, 0.0, 0.0137, 0.0),
            FrontEnd(1, 0.0, 0.0, 0.009, 0.1),
        ]
    ),
    ahead=st.booleans(),
)
def test_leap_equals_step(workload: Workload, front_end: FrontEnd, ahead: bool) -> None:
    config = EngineConfig(
        max_num_seqs=4, max_num_batched_tokens=40, block_size=4, async_scheduling=ahead
    )
    both = [
        simulate(
            workload, config, LinearLatency(), scheduler="chunked", num_blocks=60,
            front_end=front_end, leap=leap, check=True,
        )
        for leap in (True, False)
    ]  # fmt: skip
    assert_same_records(*both)
    assert_gaps_add_up(both[0])


@settings(max_examples=40, deadline=None)
@given(workload=workloads())
def test_a_cluster_of_one_is_served_as_one(workload: Workload) -> None:
    front_end = FrontEnd(2, 0.003, 1e-4, 4e-4, 0.002)
    group = ReplicaGroup(1, CONFIG, LinearLatency(), "chunked", 60, front_end=front_end)
    one = simulate(
        workload, CONFIG, LinearLatency(), scheduler="chunked", num_blocks=60,
        front_end=front_end,
    )  # fmt: skip
    records, _ = simulate_cluster(workload, [group], check=True)
    for name in ("arrival_s", "engine_arrival_s", "first_token_s", "finished_s"):
        np.testing.assert_array_equal(one.requests[name], records.requests[name])
