"""Ranks that share out experts step together, each with its own scheduler and cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.batch import Batch
from sim.cluster.cluster import ReplicaGroup, simulate_cluster
from sim.cluster.routers import ROUTERS
from sim.latency.protocol import FixedLatency, LatencyModel
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import LinearLatency, assert_same_records, engines, workloads

ENGINE = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, block_size=4)


class Joint(LinearLatency):
    """1 s, a 16th a token of all ranks, an 8th a token of the fullest, a 64th a token attended."""

    def iteration_s(self, batch: Batch) -> float:
        assert batch.fullest_tokens >= batch.num_tokens
        assert batch.all_tokens >= batch.fullest_tokens
        return (
            1.0
            + batch.all_tokens / 16
            + batch.fullest_tokens / 8
            + batch.context_tokens / 64
            + self.per_token_s * 0.0
        )

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"all": iterations["duration_s"]}


def ranks(
    count: int,
    *,
    latency: LatencyModel | None = None,
    config: EngineConfig = ENGINE,
    blocks: int = 100,
) -> ReplicaGroup:
    return ReplicaGroup(count, config, latency or Joint(), "chunked", blocks, in_lockstep=count)


def both_ways(workload: Workload, *groups: ReplicaGroup, **how: object) -> Records:
    """Leapt, after a look that stepping gives the same."""
    leapt, _ = simulate_cluster(workload, groups, check=True, **how)  # type: ignore[arg-type]
    stepped, _ = simulate_cluster(workload, groups, leap=False, check=True, **how)  # type: ignore[arg-type]
    assert_same_records(leapt, stepped)
    return leapt


def test_a_step_lasts_as_long_as_the_slowest_ranks() -> None:
    """Prompts of 4 and 8 tokens on two ranks; answers of 3 and 2.

    Both prompts      1 + 12/16 + 8/8                     = 2.75     (no contexts yet)
    two decodes       1 + 2/16 + 1/8 + max(5, 9)/64       = 1.390625
    the first alone   1 + 1/16 + 1/8 + 6/64               = 1.28125
    """
    workload = Workload(np.zeros(2), np.array([4, 8]), np.array([3, 2]))
    records = both_ways(workload, ranks(2), router="round_robin")
    assert records.requests["finished_s"].tolist() == [5.421875, 4.140625]
    iterations = records.iterations
    assert iterations["start_s"].tolist() == [0.0, 0.0, 2.75, 2.75, 4.140625]
    assert iterations["duration_s"].tolist() == [2.75, 2.75, 1.390625, 1.390625, 1.28125]
    assert iterations["replica"].tolist() == [0, 1, 0, 1, 0]
    assert iterations["num_tokens"].tolist() == [4, 8, 1, 1, 1]
    assert iterations["fullest_tokens"].tolist() == [8, 8, 1, 1, 1]
    assert iterations["all_tokens"].tolist() == [12, 12, 2, 2, 1]


@pytest.mark.parametrize(("ahead", "begins_s"), [(False, 3.0), (True, 4.0)])
def test_who_comes_to_an_idle_rank_waits_for_the_step_of_the_others(
    ahead: bool, begins_s: float
) -> None:
    """A step decided an iteration ahead has begun to be prepared: one more to wait for."""
    config = replace(ENGINE, async_scheduling=ahead)
    workload = Workload(np.array([0.0, 2.5, 30.0]), np.full(3, 4), np.array([20, 2, 1]))
    records = both_ways(
        workload, ranks(2, latency=FixedLatency(1.0), config=config), router="round_robin"
    )
    assert records.requests["replica"].tolist() == [0, 1, 0]
    mine = records.iterations["replica"] == 1
    assert records.iterations["start_s"][mine].tolist() == [begins_s, begins_s + 1.0]
    # Once all are idle, the next wave begins as somebody comes.
    assert records.iterations["start_s"][-1] == 30.0


def test_engines_of_several_ranks_keep_step_each_for_itself() -> None:
    group = replace(ranks(4, latency=FixedLatency(1.0)), in_lockstep=2)
    workload = Workload(np.array([0.0, 0.25, 0.5, 0.75]), np.full(4, 4), np.full(4, 5))
    records = both_ways(workload, group, router="round_robin")
    starts_s = [
        records.iterations["start_s"][records.iterations["replica"] == number][0]
        for number in range(4)
    ]
    assert starts_s == [0.0, 1.0, 0.5, 1.5]
    together = records.iterations["all_tokens"]
    assert together.max() == 5, "a prompt beside one decode, never two of them"


def test_ranks_have_caches_of_their_own() -> None:
    """A request as large as a rank's cache keeps the next one there waiting, and nobody else."""
    config = replace(ENGINE, max_model_len=40)
    workload = Workload(np.zeros(3), np.array([30, 30, 30]), np.full(3, 10))
    group = ranks(2, latency=FixedLatency(1.0), config=config, blocks=10)
    records = both_ways(workload, group, router="round_robin")
    assert records.requests["scheduled_s"].tolist() == [0.0, 0.0, 10.0]


@settings(max_examples=60, deadline=None)
@given(workloads(), engines(), st.integers(2, 3), st.sampled_from(sorted(ROUTERS)), st.booleans())
def test_ranks_leap_as_they_step_and_serve_everybody(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    count: int,
    router: str,
    ahead: bool,
) -> None:
    config, blocks = engine
    group = ranks(count, config=replace(config, async_scheduling=ahead), blocks=blocks)
    records = both_ways(workload, group, router=router)
    requests, iterations = records.requests, records.iterations
    assert requests["request"].tolist() == list(range(len(workload)))
    served = ~requests["rejected"]
    assert np.isfinite(requests["finished_s"][served]).all()
    assert (iterations["all_tokens"] >= iterations["fullest_tokens"]).all()
    # What begins together ends together.
    ends_s = dict(
        zip(iterations["start_s"].tolist(), iterations["duration_s"].tolist(), strict=True)
    )
    assert all(
        ends_s[start_s] == duration_s
        for start_s, duration_s in zip(
            iterations["start_s"].tolist(), iterations["duration_s"].tolist(), strict=True
        )
    )
