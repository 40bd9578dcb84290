"""A replica that fails: what its clients have seen, and what is void."""

from __future__ import annotations

import numpy as np
import pytest

from sim.cluster.cluster import simulate_cluster
from sim.cluster.plan import Failure, KvLink, ReplicaGroup
from sim.latency.protocol import FixedLatency
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import POLICIES, assert_gaps_add_up, assert_same_records

AHEAD = pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "asynchronous"])


def served(
    workload: Workload, *groups: ReplicaGroup, failures: list[Failure], **given: object
) -> Records:
    leapt, stepped = (
        simulate_cluster(
            workload, groups, failures=failures, check=True, leap=leap, **given  # type: ignore[arg-type]
        )[0]
        for leap in (True, False)
    )  # fmt: skip
    assert_same_records(leapt, stepped)
    assert_gaps_add_up(leapt)
    return leapt


def seconds(replicas: int, scheduler: str = "chunked", **more: object) -> ReplicaGroup:
    """Replicas that take a second an iteration."""
    config = EngineConfig(block_size=4, async_scheduling=bool(more.pop("ahead", False)))
    return ReplicaGroup(replicas, config, FixedLatency(1.0), scheduler, 50, **more)  # type: ignore[arg-type]


def gaps(records: Records) -> list[float]:
    return sorted(np.repeat(records.gaps_s, records.gap_weights.astype(int)).tolist())


@pytest.mark.parametrize("scheduler", POLICIES)
def test_a_client_waits_from_the_last_token_it_had_to_the_first_that_is_new(scheduler: str) -> None:
    records = served(
        Workload(np.zeros(1), [8], [6]), seconds(2, scheduler), failures=[Failure(0, 3.5)]
    )
    # Tokens at 1, 2 and 3 s; again, from the first on, from 4.5 s.
    assert records.requests["first_token_s"].tolist() == [1.0]
    assert gaps(records) == [1.0] * (2 + 5) + [1.5]


@AHEAD
def test_a_token_in_flight_is_void(ahead: bool) -> None:
    records = served(
        Workload(np.array([0.0, 2.25]), [8, 8], [6, 6]),
        seconds(2, ahead=ahead),
        router="least_kv",
        failures=[Failure(1, 3.0)],
    )
    # The second one's first token would have gone out with the failure, or a second later.
    assert records.requests["first_token_s"].tolist()[1] >= 4.0
    assert records.requests["finished_s"].tolist() == [
        6.0,
        records.requests["first_token_s"][1] + 5,
    ]


def pools(ahead: bool, *failures: Failure) -> Records:
    """A prompt is computed by 1 s and sent for 3 s; without a failure its tokens come from 5 s."""
    return served(
        Workload(np.zeros(1), [8], [6]),
        seconds(1, role="prefill", ahead=ahead, kv_bytes_per_token=1.0),
        seconds(2, role="decode", ahead=ahead),
        kv_link=KvLink(1e9, latency_s=3.0),
        failures=list(failures),
    )


@AHEAD
def test_clients_of_pools_hear_the_decode_pool_alone(ahead: bool) -> None:
    requests = pools(ahead).requests
    assert requests["prefilled_s"].tolist() == [1.0]
    assert requests["first_token_s"].tolist() == pytest.approx([1.0 + 3.0 + 1.0])
    assert requests["last_token_s"].tolist() == pytest.approx([5.0 + 5.0])


@AHEAD
def test_a_first_token_in_flight_at_a_decode_pool_is_void(ahead: bool) -> None:
    records = pools(ahead, Failure(1, 4.5))
    assert gaps(records) == pytest.approx([1.0] * 5)
    # Lost at 4.5 s; the prompt is computed again by 5.5 s, and sent for 3 s.
    assert records.requests["prefilled_s"].tolist() == [5.5]
    assert records.requests["first_token_s"].tolist() == pytest.approx([5.5 + 3.0 + 1.0])


@AHEAD
def test_a_first_token_that_a_decode_pool_gave_is_not_counted_again(ahead: bool) -> None:
    records = pools(ahead, Failure(1, 6.5))
    assert records.requests["first_token_s"].tolist() == pytest.approx([5.0])
    # The second was heard at 6 s; the first that is new comes at 6.5 + 1 + 3 + 1 s.
    assert gaps(records) == pytest.approx([1.0] * 6 + [5.5])
    assert records.requests["last_token_s"].tolist() == pytest.approx([11.5 + 5.0])


def test_who_was_held_back_has_an_older_last_token_than_the_others() -> None:
    """With a budget of one token an iteration, requests decode in turn."""
    config = EngineConfig(max_num_seqs=2, max_num_batched_tokens=2, block_size=4)
    group = ReplicaGroup(2, config, FixedLatency(1.0), "chunked", 50)
    workload = Workload(np.array([0.0, 0.0, 0.1]), [2, 6, 4], [9, 9, 9])
    for at_s in np.arange(1.5, 12.0):
        served(workload, group, failures=[Failure(0, float(at_s), 2.0)])
