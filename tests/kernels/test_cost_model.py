"""The model of our kernels' cost ranks products as other stacks' measured times do.

That nothing compiled got worse is in ``test_ahead_of_time.py``, which compiles.
"""

from __future__ import annotations

import math

import pytest
from scipy.stats import spearmanr

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from calibrate.profiles.kernel_tables import KernelTables, find_system
from kernels.gpu import Gpu
from kernels.linear import choose_tiles
from kernels.tile_time import best_splits, product_s, rates
from tests.benchmarks import cost_model

H200 = Gpu("sm_90", (9, 0), 132)
SHAPES = ((4096, 4096), (6144, 4096), (4096, 14_336), (28_672, 4096), (7168, 2048), (1024, 8192))
COMPILED = {
    "kernel": "_linear_kernel", "arch": 90, "num_warps": 8, "num_stages": 3, "registers": 128,
    "shared_bytes": 100 * 1024, "async_copies": 0, "tma_loads": 6, "constants": {"BLOCK_M": 128},
}  # fmt: skip


@needs.tables
@pytest.mark.parametrize(
    ("system", "on", "least"),
    [("h200_sxm", H200, 0.98), ("a100_sxm", Gpu("sm_80", (8, 0), 108), 0.95)],
    ids=["h200", "a100"],
)
def test_products_are_ranked_as_other_stacks_measured_them(system, on, least):
    """Of all sizes by rank; from 16 to 1,024 tokens on an H200 closer than floors are, too."""
    tables = KernelTables(found := find_system(system), "vllm", found.versions("vllm")[-1])
    wide = [(shape, us) for shape, us in tables.products("bfloat16").items() if shape[0] >= 1024]
    points = sorted((s, us) for s, us in wide if s[1] >= 1024 and s[2] <= 16_384)[::29]
    assert len(points) > 100
    predicted = [cost_model.chosen_product_us(m, n, k, on) for (n, k, m), _ in points]
    measured = [time_us for _, time_us in points]
    assert spearmanr(predicted, measured).statistic > least
    if on is not H200:
        return
    at = rates(on)
    floors = [
        max(2 * m * n * k / at.flops_per_s, 2 * (m + n) * k / at.memory_bytes_per_s)
        for (n, k, m), _ in points
    ]
    few = [i for i, ((_, _, m), _) in enumerate(points) if 16 <= m <= 1024]
    assert _error(predicted, measured, few) < _error(floors, measured, few)


def _error(predicted, measured, places):
    """Spread of the ratios about their mean."""
    chosen = [predicted[i] for i in places], [measured[i] for i in places]
    return cost_model.fitted(*chosen)[1]


def test_a_shape_is_split_where_programs_are_few_and_deep():
    for out_features, in_features in SHAPES:
        for tokens in (1, 16, 64, 200, 512, 4096):
            tiles = choose_tiles(tokens, out_features, H200, in_features=in_features)
            shape = {"block_m": tiles.block_m, "block_n": tiles.block_n, "on": H200}
            chosen = product_s(tokens, out_features, in_features, splits=tiles.splits, **shape)
            plain = product_s(tokens, out_features, in_features, **shape)
            assert chosen <= plain
            assert tiles.splits == 1 or in_features >= 512 * tiles.splits
    assert best_splits(16, 4096, 4096, block_m=16, block_n=64, on=H200) > 1
    assert best_splits(8192, 4096, 4096, block_m=128, block_n=256, on=H200) == 1


def test_what_shares_a_multiprocessor_follows_from_registers_and_shared_memory():
    assert cost_model.cost(COMPILED).programs == 2  # of either
    assert cost_model.cost(COMPILED | {"registers": 200}).programs == 1
    assert cost_model.cost(COMPILED | {"shared_bytes": 120 * 1024}).programs == 1
    assert cost_model.cost(COMPILED).in_flight_bytes == 200 * 1024
    assert cost_model.cost(COMPILED | {"tma_loads": 0}).memory_share == 0.0


def test_a_worse_kernel_is_told_and_a_better_one_is_not(tmp_path):
    path = tmp_path / "compiled.csv"
    cost_model.write([cost_model.cost(COMPILED)], path)
    accepted = cost_model.read(path)
    for change, told in (
        ({}, False),
        ({"registers": 130}, True),  # one program instead of two
        ({"registers": 90}, False),
        ({"shared_bytes": 120 * 1024}, True),
        ({"constants": {"BLOCK_M": 64}, "registers": 255}, False),  # another configuration
    ):
        found = cost_model.worse([cost_model.cost(COMPILED | change)], accepted)
        assert bool(found) == told, change


def test_one_factor_is_fitted_to_measured_times():
    factor, spread = cost_model.fitted([1.0, 2.0, 4.0], [1.5, 3.0, 6.0])
    assert math.isclose(factor, 1.5)
    assert math.isclose(spread, 1.0)
