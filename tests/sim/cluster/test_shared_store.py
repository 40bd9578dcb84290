"""A store of cached blocks that all replicas share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.cluster import Failure, ReplicaGroup, simulate_cluster
from sim.cluster.routers import ROUTERS
from sim.engine.simulation import simulate
from sim.kv.tiers import TierSpec
from sim.latency.block_moves import BlockMoves
from sim.latency.refetch import TimedRefetch
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.kv.test_tiers import tiers
from tests.sim.serving import LinearLatency, assert_same_records, engines, workloads

LATENCY = BlockMoves(LinearLatency())
STORE = TierSpec("shared", 100, read_s=1e-3, write_s=1e-3, latency_s=1e-2)


def serve(
    workload: Workload, config: EngineConfig, num_blocks: int, *, leap: bool = True, **how: object
) -> Records:
    scheduler = str(how.pop("scheduler", "chunked"))
    group = ReplicaGroup(3, config, LATENCY, scheduler, num_blocks)
    return simulate_cluster(workload, [group], leap=leap, check=True, **how)[0]  # type: ignore[arg-type]


def one_prompt_again_and_again() -> Workload:
    content = PromptContent.from_lists([[1]] * 3, unit_tokens=1000, known_tokens=[400] * 3)
    return Workload(np.array([0.0, 10.0, 20.0]), [380] * 3, [20] * 3, content=content)


def test_what_one_replica_computed_another_fetches() -> None:
    config = EngineConfig(block_size=16, kv_tiers=(STORE,), kv_tier_writes="through")
    records = serve(one_prompt_again_and_again(), config, 100)
    assert records.requests["replica"].tolist() == [0, 1, 2]
    assert records.requests["cached_tokens"].tolist() == [0, 368, 368]
    assert records.tiers is not None
    assert records.tiers["found"].reshape(3, 2).tolist() == [[0, 0], [0, 23], [0, 23]]
    assert records.tiers["stored"].reshape(3, 2)[:, 1].tolist() == [24, 0, 0]
    apart = replace(config, kv_tiers=(replace(STORE, kind="nvme"),))
    assert serve(one_prompt_again_and_again(), apart, 100).requests["cached_tokens"].sum() == 0


def test_what_is_on_its_way_to_the_store_is_not_found() -> None:
    slow = EngineConfig(
        block_size=16, kv_tiers=(replace(STORE, write_s=0.8),), kv_tier_writes="through"
    )
    cached = serve(one_prompt_again_and_again(), slow, 100).requests["cached_tokens"].tolist()
    assert 0 < cached[1] < cached[2] == 368


def test_groups_that_share_a_store_need_blocks_alike() -> None:
    groups = [
        ReplicaGroup(1, EngineConfig(block_size=size, kv_tiers=(STORE,)), LATENCY, "chunked", 100)
        for size in (16, 32)
    ]
    with pytest.raises(ValueError, match="blocks alike"):
        simulate_cluster(one_prompt_again_and_again(), groups)
    config = EngineConfig(kv_tiers=(STORE,))
    with pytest.raises(ValueError, match="one clock"):
        simulate(
            one_prompt_again_and_again(), config, LATENCY, scheduler="chunked", num_blocks=9,
            replicas=2,
        )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    above=tiers(),
    scheduler=st.sampled_from(["paged", "chunked"]),
    writes=st.sampled_from(["back", "through"]),
    router=st.sampled_from(sorted(ROUTERS)),
    weighed=st.booleans(),
    ahead=st.booleans(),
    failures=st.lists(
        st.builds(Failure, st.integers(0, 1), st.floats(0.0, 6.0), st.floats(0.0, 4.0)),
        max_size=2,
    ),
)
def test_replicas_that_share_a_store_leap_as_they_step(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    above: tuple[TierSpec, ...],
    scheduler: str,
    writes: str,
    router: str,
    weighed: bool,
    ahead: bool,
    failures: list[Failure],
) -> None:
    config, num_blocks = engine
    own = tuple(spec for spec in above if spec.kind != "shared")
    config = replace(
        config,
        enable_prefix_caching=True,
        kv_tiers=(*own, STORE),
        kv_tier_writes=writes,
        refetch=TimedRefetch(LATENCY) if weighed else None,
        async_scheduling=ahead,
    )
    how = {"router": router, "failures": failures, "scheduler": scheduler}
    leapt = serve(workload, config, num_blocks, **how)
    stepped = serve(workload, config, num_blocks, leap=False, **how)
    assert_same_records(leapt, stepped)
    assert leapt.tiers is not None and stepped.tiers is not None
    for name, column in leapt.tiers.items():
        np.testing.assert_array_equal(column, stepped.tiers[name], err_msg=name)
