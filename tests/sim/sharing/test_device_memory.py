"""An engine that does what batches say finds every sequence's past where its block table says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kv.tiers import TierSpec
from sim.request import BeamSearch
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from sim.workload.sessions import conversations
from tests.sim.serving import engines, workloads
from tests.sim.sharing.device_memory import DeviceMemory
from tests.sim.sharing.sampling import sampled_workloads, with_samples

PAGED = ("paged", "chunked")


@pytest.mark.parametrize("scheduler", PAGED)
@settings(max_examples=120, deadline=None)
@given(data=st.data(), engine=engines())
def test_every_sample_finds_its_own_tokens(
    scheduler: str, data: st.DataObject, engine: tuple[EngineConfig, int]
) -> None:
    workload = data.draw(sampled_workloads(beams=scheduler == "paged"))
    config, num_blocks = engine
    DeviceMemory(workload, config, scheduler=scheduler, num_blocks=num_blocks).serve()


@pytest.mark.parametrize("scheduler", PAGED)
@settings(max_examples=120, deadline=None)
@given(workload=workloads(), engine=engines(), host_blocks=st.integers(1, 40))
def test_what_was_offloaded_comes_back_to_where_it_is_looked_for(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int], host_blocks: int
) -> None:
    config, num_blocks = engine
    config = replace(config, enable_prefix_caching=True, kv_tiers=(TierSpec("host", host_blocks),))
    DeviceMemory(workload, config, scheduler=scheduler, num_blocks=num_blocks).serve()


@pytest.mark.parametrize("scheduler", PAGED)
@settings(max_examples=60, deadline=None)
@given(engine=engines(), host_blocks=st.integers(0, 40), seed=st.integers(0, 1000))
def test_a_later_turn_finds_the_answers_of_earlier_ones(
    scheduler: str, engine: tuple[EngineConfig, int], host_blocks: int, seed: int
) -> None:
    config, num_blocks = engine
    tiers = (TierSpec("host", host_blocks),) if host_blocks else ()
    config = replace(config, enable_prefix_caching=True, kv_tiers=tiers)
    rng = np.random.default_rng(seed)
    turns = rng.integers(1, 5, size=5)
    total = int(turns.sum())
    talk = conversations(
        session_arrival_s=np.sort(rng.uniform(0, 5, 5)),
        turns=turns,
        gaps_s=rng.uniform(0, 3, total),
        user_tokens=rng.integers(1, 20, total),
        reply_tokens=rng.integers(1, 20, total),
        max_context_tokens=60,
        prefixes=rng.integers(2, size=5),
        prefix_tokens=8,
    )
    workload = Workload(
        talk.arrival_s, talk.prompt_tokens, talk.output_tokens, content=talk.content
    )
    DeviceMemory(workload, config, scheduler=scheduler, num_blocks=num_blocks).serve()


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("beam", [None, BeamSearch(0.6)], ids=["samples", "beam"])
def test_preempted_groups_come_back_whole(preemption: str, beam: BeamSearch | None) -> None:
    workload = Workload(np.zeros(6), np.array([5, 9, 14, 3, 8, 11]), np.full(6, 16))
    workload = with_samples(workload, [[16] * 3] * 6, beam)
    config = EngineConfig(
        block_size=4, max_num_seqs=12, preemption=preemption, swap_blocks=60, watermark=0.0
    )
    memory = DeviceMemory(workload, config, scheduler="paged", num_blocks=28)
    memory.serve()
    log = memory.scheduler.pool.log
    assert len(log.preemptions()["request"]) > 0
    swapped = sum(batch.swap_in_blocks for batch in memory.batches)
    assert (swapped > 0) == (preemption == "swap")


@pytest.mark.parametrize(("prompt_tokens", "copies"), [(10, 3), (8, 0), (3, 3), (1, 3)])
def test_copy_on_write_copies_exactly_the_shared_partial_block(
    prompt_tokens: int, copies: int
) -> None:
    workload = with_samples(Workload(np.zeros(1), [prompt_tokens], [9]), [[9] * 4])
    config = EngineConfig(block_size=4)
    memory = DeviceMemory(workload, config, scheduler="paged", num_blocks=60)
    tables: list[list[list[int]]] = []
    memory.serve(lambda _: tables.append([list(t) for t in memory.scheduler.pool.tables()]))
    assert len(memory.copied) == copies
    prompt, split = tables[0][0], tables[1]
    full = prompt_tokens // 4
    assert all(table[:full] == prompt[:full] for table in split), "full blocks stay shared"
    assert len({table[full] for table in split}) == 4, "everyone writes to a block of its own"
    if copies:
        assert {source for source, _ in memory.copied} == {prompt[-1]}
        assert split[-1][full] == prompt[-1], "the last writer does not copy"
        assert sorted(t for _, t in memory.copied) == sorted(t[full] for t in split[:-1])
        assert memory.batches[1].copies == memory.copied, "before the first token is written"
