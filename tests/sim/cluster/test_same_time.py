"""What happens at the very same time, or in the midst of a leap, is seen as stepping sees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.cluster.cluster import Autoscaling, ReplicaGroup, simulate_cluster
from sim.latency.protocol import FixedLatency
from sim.queues import QueueRules
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.serving import assert_same_records

SECOND = FixedLatency(1.0)  # an iteration
ENGINE = EngineConfig(max_num_seqs=2, max_num_batched_tokens=64, block_size=4)


def both_ways(workload: Workload, *groups: ReplicaGroup, **how: object) -> Records:
    """Leapt, after a look that stepping gives the same."""
    leapt, _ = simulate_cluster(workload, groups, check=True, **how)  # type: ignore[arg-type]
    stepped, _ = simulate_cluster(workload, groups, leap=False, check=True, **how)  # type: ignore[arg-type]
    assert_same_records(leapt, stepped)
    return leapt


@pytest.mark.parametrize("ahead", [False, True])
def test_who_comes_after_a_replica_has_decided_at_that_time_waits_for_its_next_decision(
    ahead: bool,
) -> None:
    """In the second replica somebody gives up as it decides, and the client tries the first."""
    engine = replace(ENGINE, async_scheduling=ahead, queue=QueueRules(max_wait_s=3.5))
    groups = [
        ReplicaGroup(1, replace(engine, max_num_seqs=seats), SECOND, "chunked", 100)
        for seats in (2, 1)
    ]
    workload = Workload(np.zeros(5), np.full(5, 4), np.array([20, 20, 1, 3, 3]), max_concurrency=3)
    requests = both_ways(workload, *groups, router="round_robin").requests
    assert requests["gave_up"].tolist() == [False, False, False, True, False]
    assert requests["replica"].tolist() == [0, 1, 0, 1, 0]
    assert requests["arrival_s"][4] == 5.0, "the first replica has decided what begins then"
    assert requests["scheduled_s"][4] == 6.0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("at_s", [9.0, 9.5])
def test_a_router_sees_the_blocks_that_a_decode_has_filled_by_now(ahead: bool, at_s: float) -> None:
    """Both replicas have the prompt; one is at the answer that the third request goes on with."""
    prompt, answer, other = [1] * 4, [2] * 20, [3] * 20
    content = PromptContent.from_lists(
        [[*prompt, *other], [*prompt, *answer], [*prompt, *answer[:4], 4]]
    )
    workload = Workload(
        np.array([0.0, 0.0, at_s]), np.array([4, 4, 9]), np.array([20, 20, 1]), content=content
    )
    group = ReplicaGroup(2, replace(ENGINE, async_scheduling=ahead), SECOND, "chunked", 100)
    requests = both_ways(workload, group, router="prefix_aware").requests
    assert requests["replica"].tolist() == [0, 1, 1]
    assert requests["cached_tokens"].tolist() == [0, 0, 8]


def test_a_replica_without_a_prefix_cache_has_nothing_that_a_router_could_find() -> None:
    content = PromptContent.from_lists([[1] * 24, [1] * 9])
    workload = Workload(np.array([0.0, 9.5]), np.array([4, 9]), np.array([20, 1]), content=content)
    groups = [
        ReplicaGroup(1, replace(ENGINE, enable_prefix_caching=caching), SECOND, "chunked", 100)
        for caching in (False, True)
    ]
    assert both_ways(workload, *groups, router="prefix_aware").requests["replica"][1] == 1


def test_who_waits_for_room_comes_in_as_a_decode_fills_a_block_of_its_prompt() -> None:
    """One block less is asked for by the waiting, and the decode has not yet taken the next."""
    ids = [1] * 4 + [2] * 12
    content = PromptContent.from_lists([ids, [*ids[:12], 4]])
    workload = Workload(np.array([0.0, 1.5]), np.array([4, 13]), np.array([12, 1]), content=content)
    group = ReplicaGroup(1, ENGINE, SECOND, "chunked", 4)
    requests = both_ways(workload, group).requests
    assert requests["scheduled_s"][1] < requests["finished_s"][0] - 5.0


def test_an_autoscaler_looks_once_at_a_time_however_that_is_rounded() -> None:
    """Of two replicas one is still starting as fewer are wanted, and none can be given up."""
    every_s = 0.01
    assert 29 * every_s / every_s < 29, "the look after that one would be that one again"
    scaling = Autoscaling(1, 3.0, every_s, startup_s=0.04, cooldown_s=0.0)
    workload = Workload(np.array([0.005] * 3 + [0.25]), np.full(4, 4), np.array([60, 60, 60, 3]))
    engine = replace(ENGINE, max_num_seqs=4)
    group = ReplicaGroup(2, engine, FixedLatency(0.01), "chunked", 100)
    records = both_ways(workload, group, autoscaling=scaling, router="least_outstanding")
    np.testing.assert_allclose(records.requests["finished_s"], [0.605] * 3 + [0.285])
