"""Watched block tables are those of the run: same records, same blocks, same slots."""

import numpy as np
import pytest
from hypothesis import given, settings

from sim.engine.block_history import BlockRecorder, EngineHistory
from sim.engine.simulation import simulate
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import POLICIES, LinearLatency, assert_same_records, engines, workloads
from tests.sim.sharing.sampling import with_samples


def watched_run(
    workload: Workload, config: EngineConfig, *, scheduler: str, num_blocks: int
) -> tuple[Records, EngineHistory]:
    recorder = BlockRecorder()
    records = simulate(
        workload, config, LinearLatency(), scheduler=scheduler, num_blocks=num_blocks,
        leap=False, recorder=recorder,
    )  # fmt: skip
    (history,) = recorder.engines.values()
    return records, history


def assert_tables_are_those_of(records: Records, history: EngineHistory, block_size: int) -> None:
    iterations = records.iterations
    assert len(history.iterations) == len(iterations["start_s"])
    for row, tables in enumerate(history.iterations):
        held = {block for table in tables for block in table.blocks}
        entries = sum(len(table.blocks) for table in tables)
        kinds = [iterations[f"kv_{kind}_tokens"][row] for kind in ("used", "reserved")]
        lost = iterations["kv_fragmentation_tokens"][row]
        shared = iterations["kv_shared_tokens"][row]
        assert len(held) * block_size == sum(kinds) + lost
        assert (entries - len(held)) * block_size == shared
        assert sum(table.used_tokens for table in tables) - shared == kinds[0]
        assert sum(table.reserved_tokens for table in tables) == kinds[1]
        assert not held & set(history.idle_blocks[row])
        for table in tables:
            assert 0 <= table.used_tokens + table.reserved_tokens <= len(table.blocks) * block_size
            assert len(set(table.blocks)) == len(table.blocks)


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=60, deadline=None)
@given(workload=workloads(), engine=engines())
def test_tables_add_up_to_the_records_of_the_run_that_leapt(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    records, history = watched_run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    leapt = simulate(workload, config, LinearLatency(), scheduler=scheduler, num_blocks=num_blocks)
    assert_same_records(leapt, records)
    assert_tables_are_those_of(records, history, config.block_size)


def test_shared_prefix_is_one_block_in_two_tables() -> None:
    from sim.workload import PromptContent

    content = PromptContent.from_lists([[1] * 8, [1] * 8], unit_tokens=2, known_tokens=[16, 16])
    workload = Workload(
        arrival_s=np.array([0.0, 0.03]), prompt_tokens=np.array([16, 16]),
        output_tokens=np.array([9, 9]), max_tokens=np.array([9, 9]), content=content,
    )  # fmt: skip
    config = EngineConfig(max_num_seqs=2, block_size=4, enable_prefix_caching=True)
    records, history = watched_run(workload, config, scheduler="chunked", num_blocks=40)
    assert_tables_are_those_of(records, history, 4)
    both = next(tables for tables in history.iterations if len(tables) == 2)
    assert both[0].blocks[:3] == both[1].blocks[:3]
    assert both[0].blocks[3:] != both[1].blocks[3:]


@pytest.mark.parametrize("scheduler", ["paged", "chunked"])
def test_each_sample_has_a_table_of_its_request(scheduler: str) -> None:
    workload = with_samples(Workload(np.zeros(2), [9, 9], [4, 4]), [[4, 4], [4]])
    config = EngineConfig(block_size=4)
    records, history = watched_run(workload, config, scheduler=scheduler, num_blocks=40)
    assert_tables_are_those_of(records, history, 4)
    seen = {(table.request, table.sample) for tables in history.iterations[1:] for table in tables}
    assert seen == {(0, 1), (0, 2), (1, 0)}
