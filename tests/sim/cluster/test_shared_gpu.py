"""Engines that share a GPU: what each gets of its time, and that none of it is lost or made."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.cluster import ReplicaGroup, simulate_cluster
from sim.cluster.plan import Failure
from sim.cluster.routers import ROUTERS
from sim.latency.overlapped import OverlappedLatency
from sim.latency.protocol import FixedLatency, HostOverhead, LatencyModel
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import LinearLatency, assert_same_records, engines, workloads

ENGINE = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, block_size=4)


class Hosted(FixedLatency):
    """A second of the GPU after a quarter of the host's."""

    host = HostOverhead(0.25, 0.0, "test")

    def __init__(self) -> None:
        super().__init__(1.25)


def instances(count: int, latency: LatencyModel | None = None, **further: Any) -> ReplicaGroup:
    given = {"config": ENGINE, "scheduler": "chunked", "num_blocks": 100, "shared_gpu": "gpu-0"}
    return ReplicaGroup(count, latency=latency or FixedLatency(1.0), **(given | further))


def served(workload: Workload, *groups: ReplicaGroup, **how: Any) -> Records:
    return simulate_cluster(workload, groups, check=True, **how)[0]


def spans(records: Records, replica: int) -> list[tuple[float, float]]:
    iterations = records.iterations
    mine = iterations["replica"] == replica
    start_s, duration_s = iterations["start_s"][mine], iterations["duration_s"][mine]
    return list(zip(start_s.tolist(), (start_s + duration_s).tolist(), strict=True))


def test_two_that_compute_are_half_as_fast_and_one_alone_as_fast_as_ever() -> None:
    """Answers of 3 and 2 tokens, a second each; the second comes half a second later.

    Half of the first one's iteration is done by then; the other half takes a second.
    """
    workload = Workload(np.array([0.0, 0.5]), np.full(2, 4), np.array([3, 2]))
    records = served(workload, instances(2))
    assert spans(records, 0) == [(0.0, 1.5), (1.5, 3.5), (3.5, 5.0)]
    assert spans(records, 1) == [(0.5, 2.5), (2.5, 4.5)]
    assert records.iterations["alone_s"].tolist() == [1.0] * 5


def test_in_turns_an_execution_has_the_gpu_to_itself() -> None:
    workload = Workload(np.array([0.0, 0.5]), np.full(2, 4), np.array([3, 2]))
    records = served(workload, instances(2), gpu_sharing="turns")
    assert spans(records, 0) == [(0.0, 1.0), (1.0, 3.0), (3.0, 5.0)]
    assert spans(records, 1) == [(0.5, 2.0), (2.0, 4.0)]


@pytest.mark.parametrize("sharing", ["time_slices", "turns"])
def test_the_host_of_one_works_while_the_gpu_computes_for_the_other(sharing: Any) -> None:
    """Alone a token takes 1.25 s; two instances together need 2 s for two tokens, not 2.5."""
    workload = Workload(np.zeros(2), np.full(2, 4), np.full(2, 40))
    alone = served(workload.slice(0, 1), instances(1, Hosted()), gpu_sharing=sharing)
    both = served(workload, instances(2, Hosted()), gpu_sharing=sharing)
    assert alone.requests["finished_s"][0] == pytest.approx(50.0)
    if sharing == "turns":  # one waits for its host once, then the GPU is never idle
        assert both.requests["finished_s"].max() == pytest.approx(80.25)
    else:  # equal ones stay in step: both hosts work at the same time
        assert both.requests["finished_s"].max() == pytest.approx(90.0)


def test_requests_go_to_the_groups_of_their_class() -> None:
    workload = Workload(np.zeros(4), np.full(4, 4), np.full(4, 2), labels=["a", "b", "b", "a"])
    groups = [instances(1, classes=frozenset({name})) for name in "ab"]
    records = served(workload, *groups, router="least_outstanding")
    assert records.requests["replica"].tolist() == [0, 1, 1, 0]


@settings(max_examples=25, deadline=None)
@given(workloads(), engines(), st.sampled_from(sorted(ROUTERS)), st.booleans(), st.booleans())
def test_a_lone_instance_serves_as_on_a_gpu_of_its_own(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    router: str,
    ahead: bool,
    turns: bool,
) -> None:
    config, blocks = engine
    latency: LatencyModel = OverlappedLatency(LinearLatency()) if ahead else LinearLatency()
    group = instances(1, latency, config=replace(config, async_scheduling=ahead), num_blocks=blocks)
    sharing: Any = "turns" if turns else "time_slices"
    records = served(workload, group, router=router, gpu_sharing=sharing)
    own = served(workload, replace(group, shared_gpu=""), router=router)
    for name in ("start_s", "duration_s"):
        np.testing.assert_allclose(records.iterations[name], own.iterations[name], rtol=1e-9)
    for name in ("scheduled_s", "first_token_s", "finished_s"):
        np.testing.assert_allclose(records.requests[name], own.requests[name], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    workloads(), engines(), st.integers(2, 3), st.sampled_from(sorted(ROUTERS)), st.booleans(),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_the_gpus_time_is_conserved_and_leaping_changes_nothing(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    count: int,
    router: str,
    ahead: bool,
    turns: bool,
    failing: bool,
) -> None:
    config, blocks = engine
    group = instances(
        count,
        LinearLatency(),
        config=replace(config, async_scheduling=ahead),
        num_blocks=blocks,
    )
    how: dict[str, Any] = {"router": router, "gpu_sharing": "turns" if turns else "time_slices"}
    if failing:
        how["failures"] = [Failure(0, 0.05, 0.1)]
    records = served(workload, group, **how)
    assert_same_records(records, served(workload, group, leap=False, **how))
    iterations = records.iterations
    begin_s, duration_s = iterations["start_s"], iterations["duration_s"]
    assert (duration_s >= iterations["alone_s"] * (1 - 1e-9)).all()
    # An instance never overtakes itself.
    for replica in range(count):
        mine = spans(records, replica)
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(mine))
    # While anybody computes the GPU does, for one after the other or for all at once: what is done
    # in a stretch without a pause is as long as the stretch.
    if failing:  # what was lost was computed, and is not in the records
        return
    order = np.argsort(begin_s, kind="stable")
    reached_s, done_s, busy_s = -1.0, 0.0, 0.0
    for row in order:
        end_s = begin_s[row] + duration_s[row]
        busy_s += max(end_s - max(begin_s[row], reached_s), 0.0)
        reached_s = max(reached_s, end_s)
        done_s += iterations["alone_s"][row]
    assert done_s == pytest.approx(busy_s, rel=1e-9, abs=1e-9)
