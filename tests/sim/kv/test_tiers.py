"""Tiers of memory behind the prefix cache: what goes where, when it is found, what it costs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.conservation import ConservationError
from sim.engine.simulation import simulate
from sim.kv.tiers import TierSpec, TierStack
from sim.latency.block_moves import BlockMoves
from sim.latency.refetch import TimedRefetch
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.serving import LinearLatency, assert_same_records, engines, workloads
from tests.sim.sharing.device_memory import DeviceMemory

LATENCY = BlockMoves(LinearLatency())


@st.composite
def tiers(draw: st.DrawFn) -> tuple[TierSpec, ...]:
    """One to three, small and slow ones too."""
    kinds = draw(
        st.sampled_from([("host",), ("nvme",), ("host", "nvme"), ("host", "nvme", "shared")])
    )
    return tuple(
        TierSpec(
            kind,
            draw(st.integers(1, 40)),
            read_s=0.0 if kind == "host" else draw(st.sampled_from([0.0, 1e-3, 0.1])),
            write_s=0.0 if kind == "host" else draw(st.sampled_from([0.0, 1e-3, 0.3])),
            latency_s=draw(st.sampled_from([0.0, 3e-3])),
            ttl_s=draw(st.sampled_from([float("inf"), 0.5, 5.0])),
        )
        for kind in kinds
    )


def serve(
    workload: Workload, config: EngineConfig, *, scheduler: str, num_blocks: int, leap: bool = True
) -> Records:
    return simulate(
        workload, config, LATENCY, scheduler=scheduler, num_blocks=num_blocks, leap=leap, check=True
    )


def test_what_one_tier_drops_goes_on_to_the_next() -> None:
    stack = TierStack([TierSpec("host", 1), TierSpec("nvme", 2)])
    for block_hash in (11, 12, 13):
        stack.store(block_hash, block_hash - 10)
    host, nvme = stack.tiers
    assert host.has(13) and nvme.has(11) and nvme.has(12)
    # 11 goes on before 12 takes its place.
    assert stack.drain()[0] == [(1, 0), (~0, 1), (2, 0), (~0, 2), (3, 0)]
    stack.store(14, 4)
    assert nvme.has(13) and not nvme.has(11), "the last tier drops what was used least recently"
    assert stack.find(11) is None and stack.find(12) == 2
    stack.check()


def test_written_through_every_tier_has_it_at_once() -> None:
    stack = TierStack([TierSpec("host", 1), TierSpec("nvme", 8)], writes="through")
    stack.store(11, 1)
    stack.store(12, 2)
    assert [tier.has(12) for tier in stack.tiers] == [True, True]
    assert stack.find(11) == 1, "the host has dropped it"
    assert stack.drain()[0] == [(1, 0), (~0, 1), (2, 0), (~0, 2)]


def test_a_block_is_found_once_it_is_written_and_until_its_time_to_live_is_over() -> None:
    stack = TierStack([TierSpec("nvme", 8, write_s=1.0, latency_s=0.5, ttl_s=10.0)])
    stack.store(11, 1)
    stack.store(12, 2)  # behind the first
    found = {}
    for now_s in (1.4, 1.5, 2.4, 2.5, 10.0, 10.1):
        stack.now_s = now_s
        found[now_s] = [stack.find(11) is not None, stack.find(12) is not None]
    assert list(found.values()) == [
        [False, False], [True, False], [True, False], [True, True], [True, True], [False, False],
    ]  # fmt: skip
    stack.now_s = 10.0
    block = stack.find(12)
    assert block is not None
    assert stack.load([block]) == [12]  # used: it lives on
    stack.now_s = 20.0
    assert stack.find(12) is not None
    stack.store(13, 3)
    assert len(stack.tiers[0]) == 2, "what is too old has been dropped"
    stack.check()


def test_reading_takes_each_tiers_latency_and_its_blocks() -> None:
    stack = TierStack([TierSpec("host", 4), TierSpec("nvme", 4, read_s=0.1, latency_s=1.0)])
    assert stack.reading_s([0, 1]) == 0.0
    assert stack.reading_s([0, 4, 5]) == pytest.approx(1.2)


def test_a_block_that_was_lost_is_noticed() -> None:
    stack = TierStack([TierSpec("host", 4)])
    stack.store(11, 1)
    stack.tiers[0]._slots.clear()
    with pytest.raises(ConservationError):
        stack.check()


TURNS = Workload(
    np.array([0.0, 10.0, 20.0]),
    [380, 780, 780],
    [20] * 3,
    content=PromptContent.from_lists(
        [[1], [2], [1]], unit_tokens=1000, known_tokens=[400, 800, 800]
    ),
)
TURNS_CONFIG = EngineConfig(block_size=16, max_num_batched_tokens=1024)


def test_a_later_turn_is_fetched_where_that_is_faster_and_else_computed_again() -> None:
    # Between two turns of a conversation another takes the whole cache; 24 blocks are found.
    cached = []
    for read_s in (1e-3, 1.0):
        config = replace(
            TURNS_CONFIG,
            kv_tiers=(TierSpec("nvme", 200, read_s=read_s),),
            refetch=TimedRefetch(LATENCY),
        )
        ran = serve(TURNS, config, scheduler="chunked", num_blocks=50)
        assert ran.tiers is not None
        fetched = ran.iterations["tier_s"].sum() > 0
        assert ran.tiers["found"].tolist() == [0, 24 if fetched else 0]
        assert ran.tiers["passed_over"].tolist() == [0, 0 if fetched else 24]
        cached.append(ran.requests["cached_tokens"].tolist())
    assert cached == [[0, 0, 384], [0, 0, 0]]


def test_the_time_of_reading_is_part_of_the_iteration() -> None:
    fast, slow = (
        serve(
            TURNS,
            replace(TURNS_CONFIG, kv_tiers=(TierSpec("nvme", 200, read_s=read_s, latency_s=0.5),)),
            scheduler="chunked",
            num_blocks=50,
        )
        for read_s in (0.0, 0.25)
    )
    assert slow.iterations["tier_s"].sum() == pytest.approx(0.5 + 24 * 0.25)
    later = slow.requests["first_token_s"][2] - fast.requests["first_token_s"][2]
    assert later == pytest.approx(24 * 0.25)


@pytest.mark.parametrize("scheduler", ["paged", "chunked"])
@pytest.mark.parametrize("writes", ["back", "through"])
@settings(max_examples=100, deadline=None)
@given(
    workload=workloads(), engine=engines(), some=tiers(), weighed=st.booleans(), ahead=st.booleans()
)
def test_leap_equals_step_with_tiers(
    scheduler: str,
    writes: str,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    some: tuple[TierSpec, ...],
    weighed: bool,
    ahead: bool,
) -> None:
    config, num_blocks = engine
    config = replace(
        config,
        enable_prefix_caching=True,
        kv_tiers=some,
        kv_tier_writes=writes,
        refetch=TimedRefetch(LATENCY) if weighed else None,
        async_scheduling=ahead,
        scheduler_reserve_full_isl=not ahead,
    )
    leapt = serve(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    stepped = serve(workload, config, scheduler=scheduler, num_blocks=num_blocks, leap=False)
    assert_same_records(leapt, stepped)
    assert leapt.tiers is not None and stepped.tiers is not None
    for name, column in leapt.tiers.items():
        np.testing.assert_array_equal(column, stepped.tiers[name], err_msg=name)
    found = leapt.tiers["found"] + leapt.tiers["passed_over"]
    assert found.sum() <= leapt.tiers["asked"][0]
    assert leapt.tiers["found"][1:].sum() == leapt.iterations["loaded_blocks"].sum()


@pytest.mark.parametrize("scheduler", ["paged", "chunked"])
@pytest.mark.parametrize("writes", ["back", "through"])
@settings(max_examples=60, deadline=None)
@given(workload=workloads(), engine=engines(), some=tiers())
def test_what_is_fetched_is_what_was_stored(
    scheduler: str,
    writes: str,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    some: tuple[TierSpec, ...],
) -> None:
    config, num_blocks = engine
    config = replace(config, enable_prefix_caching=True, kv_tiers=some, kv_tier_writes=writes)
    DeviceMemory(workload, config, scheduler=scheduler, num_blocks=num_blocks).serve()
