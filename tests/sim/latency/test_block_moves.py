"""What copying and swapping blocks adds to an iteration."""

import numpy as np
import pytest

from sim.batch import Batch
from sim.engine.simulation import simulate
from sim.latency.block_moves import BlockMoves
from sim.latency.protocol import FixedLatency
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import LinearLatency
from tests.sim.sharing.sampling import with_samples


def test_each_copied_and_each_swapped_block_costs_its_time() -> None:
    moves = BlockMoves(FixedLatency(1.0), copied_block_s=0.1, swapped_block_s=0.01)
    assert moves.iteration_s(Batch()) == 1.0
    assert moves.iteration_s(Batch(copies=[(1, 2), (1, 3)])) == pytest.approx(1.2)
    assert moves.iteration_s(Batch(swap_in_blocks=3, swap_out_blocks=2)) == pytest.approx(1.05)
    assert moves.run_ends_s(Batch(), 0.0, 3, 9.0) == [1.0, 2.0, 3.0]


def test_parts_add_up_to_the_durations() -> None:
    workload = with_samples(Workload(np.zeros(6), np.full(6, 9), np.full(6, 30)), [[30] * 3] * 6)
    config = EngineConfig(block_size=4, preemption="swap", swap_blocks=200, max_num_seqs=18)
    latency = BlockMoves(LinearLatency(), copied_block_s=0.02, swapped_block_s=0.003)
    records = simulate(workload, config, latency, scheduler="paged", num_blocks=60, check=True)
    iterations = records.iterations
    assert iterations["copied_blocks"].sum() and iterations["swap_blocks"].sum()
    parts = latency.parts_s(iterations)
    assert set(parts) == {"all", "copy", "swap"}
    np.testing.assert_allclose(sum(parts.values()), iterations["duration_s"])
    assert parts["copy"].sum() == pytest.approx(0.02 * iterations["copied_blocks"].sum())
