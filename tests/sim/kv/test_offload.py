"""The prefix cache's second tier: what the GPU gives up is found in host memory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.policy import scheduler_class
from sim.kv.offload import TieredAllocator
from sim.kv.tiers import TierSpec, TierStack
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.serving import assert_same_records, engines, run, workloads


def a_request(index: int, hashes: list[int]) -> Request:
    return Request(index, 0.0, 4 * len(hashes) + 1, 8, 8, block_hashes=hashes)


def admit(allocator: TieredAllocator, request: Request) -> int:
    """As a scheduler does; returns how many blocks were found."""
    hits = allocator.cached_prefix(request)
    blocks = allocator.blocks_for(request.num_tokens) - len(hits) + allocator.num_idle(hits)
    assert blocks <= allocator.num_free
    allocator.reuse(request.block_table, hits)
    allocator.allocate(
        request.block_table, allocator.blocks_for(request.num_tokens) - len(request.block_table)
    )
    allocator.cache_prompt(request, 0, request.num_tokens)
    return len(hits)


def test_an_evicted_block_goes_to_the_host_and_comes_back_into_a_device_block() -> None:
    allocator = TieredAllocator(4, 4, tiers=(TierSpec("host", 8),))
    first = a_request(0, [1, 2, 3])
    assert admit(allocator, first) == 0
    blocks = list(first.block_table)
    allocator.free(first.block_table)
    other = a_request(1, [7, 8, 9])
    admit(allocator, other)  # takes all four blocks
    stored, loaded, _ = allocator.tiers.drain()
    assert sorted(block for block, _ in stored) == sorted(blocks[:3]) and not loaded
    slot_of = dict(stored)
    allocator.free(other.block_table)
    again = a_request(2, [1, 2, 3])
    assert admit(allocator, again) == 3
    _, loaded, _ = allocator.tiers.drain()
    assert [slot for slot, _ in loaded] == [slot_of[block] for block in blocks[:3]]
    assert [block for _, block in loaded] == again.block_table[:3]
    allocator.check([again.block_table])


def test_what_the_host_has_already_is_not_copied_again() -> None:
    allocator = TieredAllocator(4, 4, tiers=(TierSpec("host", 8),))
    for number, hashes in enumerate([[1, 2, 3], [7, 8, 9], [1, 2, 3], [7, 8, 9], [1, 2, 3]]):
        request = a_request(number, hashes)
        admit(allocator, request)
        allocator.free(request.block_table)
        stored, loaded, _ = allocator.tiers.drain()
        assert len(stored) == (3 if number in (1, 2) else 0)
        assert len(loaded) == (3 if number >= 2 else 0)


def test_the_host_drops_its_least_recently_used_block_but_none_that_is_being_loaded() -> None:
    host = TierStack([TierSpec("host", 2)])
    host.store(11, 0)
    host.store(12, 1)
    block = host.find(11)
    assert block is not None
    assert host.load([block]) == [11]
    host.store(13, 2)  # in place of 12
    assert host.find(12) is None and host.find(11) == block
    host.store(14, 3)  # 11 is about to be read: 14 is let go
    assert host.find(14) is None and host.find(11) == block
    host.drain()
    host.store(14, 3)
    assert host.find(11) is None and host.find(14) is not None
    host.check()


def test_a_later_turn_costs_a_transfer_instead_of_a_prefill() -> None:
    # Between two turns of a conversation another takes the whole cache.
    content = PromptContent.from_lists(
        [[1], [2], [1]], unit_tokens=1000, known_tokens=[400, 800, 800]
    )
    workload = Workload(np.array([0.0, 10.0, 20.0]), [380, 780, 780], [20] * 3, content=content)
    config = EngineConfig(block_size=16, max_num_batched_tokens=1024)
    without = run(workload, config, scheduler="chunked", num_blocks=50)
    offload = replace(config, kv_tiers=(TierSpec("host", 200),))
    with_host = run(workload, offload, scheduler="chunked", num_blocks=50)
    assert without.requests["cached_tokens"].tolist() == [0, 0, 0]
    assert with_host.requests["cached_tokens"].tolist() == [0, 0, 384]
    assert with_host.iterations["loaded_blocks"].sum() == 384 // 16
    saved = (
        without.iterations["prefill_tokens"].sum() - with_host.iterations["prefill_tokens"].sum()
    )
    assert saved == 384


@pytest.mark.parametrize("scheduler", ["paged", "chunked"])
@settings(max_examples=150, deadline=None)
@given(workload=workloads(), engine=engines(), host_blocks=st.integers(1, 40))
def test_leap_equals_step_with_a_second_tier(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int], host_blocks: int
) -> None:
    config, num_blocks = engine
    config = replace(config, enable_prefix_caching=True, kv_tiers=(TierSpec("host", host_blocks),))
    leapt = run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    stepped = run(workload, config, scheduler=scheduler, num_blocks=num_blocks, leap=False)
    assert_same_records(leapt, stepped)


def test_a_policy_without_a_prefix_cache_offloads_nothing() -> None:
    for name in ("static", "orca"):
        with pytest.raises(ValueError, match="prefix cache"):
            scheduler_class(name, EngineConfig(kv_tiers=(TierSpec("host", 4),)))
    with pytest.raises(ValueError, match="enable_prefix_caching"):
        EngineConfig(kv_tiers=(TierSpec("host", 4),), enable_prefix_caching=False)
