"""Grids, batches and what the parts run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from calibrate.device.timer import Timer  # noqa: E402
from calibrate.measure.batches import Lengths, emitting_rows, forward_batch  # noqa: E402
from calibrate.measure.grids import coarse_first, doubling, token_axis  # noqa: E402
from calibrate.measure.parts import benches, routed  # noqa: E402
from calibrate.measure.rig import Limits, Rig  # noqa: E402
from calibrate.measure.service import Iteration  # noqa: E402
from calibrate.measure.whole_iterations import Whole, fitted, random_lengths  # noqa: E402
from calibrate.measure.work import WorkOf  # noqa: E402
from kernels.model_config import ModelConfig  # noqa: E402
from kernels.moe import route_reference  # noqa: E402
from scenarios import library  # noqa: E402
from sim.model.config import read_config  # noqa: E402

LIMITS = Limits(max_tokens=64, max_seqs=8, max_context=128, cache_tokens=2048)
TINY = ModelConfig.from_hugging_face(library.model_config(library.model_path("tiny")))


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(replace(TINY, num_layers=1), timer=Timer("cpu"), limits=LIMITS)


@pytest.fixture(scope="module")
def expert_rig() -> Rig:
    config = replace(
        TINY, num_layers=2, num_experts=8, experts_per_token=2, moe_intermediate_size=64
    )
    return Rig(config, timer=Timer("cpu"), limits=LIMITS)


@given(first=st.integers(1, 64), times=st.integers(1, 4000))
def test_steps_of_an_axis_are_at_most_two(first: int, times: int) -> None:
    last = first * times
    axis = doubling(first, last)
    assert axis[0] == first and axis[-1] == last
    assert all(b <= 2 * a for a, b in pairwise(axis))


def test_tokens_have_both_sides_of_a_tile_and_every_graph_size() -> None:
    axis = token_axis(8192, captured=(24, 40))
    assert {64, 65, 128, 129, 256, 257, 1024, 1025, 24, 40, 8192} <= set(axis)
    assert max(axis) == 8192 and 65 not in token_axis(8192, tiled=False)


def test_a_grid_spans_its_range_from_the_first_points_on() -> None:
    points = coarse_first((1, 2, 4, 8, 16), (0, 5, 9))
    assert set(points[:4]) == {(1, 0), (1, 9), (16, 0), (16, 9)}
    assert len(points) == len(set(points)) == 15


def test_a_batch_owns_its_blocks_and_writes_where_it_reads() -> None:
    lengths = Lengths(decodes=(5, 33), prefills=((7, 0), (3, 20)))
    order = np.random.default_rng(0).permutation(40)
    batch = forward_batch(
        lengths, block_order=order, block_size=16, vocab_size=50, device=torch.device("cpu"),
        width=9,
    )  # fmt: skip
    assert batch.context_lens.tolist() == [5, 33, 7, 23]
    assert batch.positions.tolist() == [4, 32, *range(7), 20, 21, 22]
    assert batch.cu_seqlens is not None and batch.cu_seqlens.tolist() == [0, 7, 10]
    assert batch.num_decodes == 2 and batch.has_past
    assert batch.block_tables.shape == (4, 9)
    contexts = (5, 33, 7, 23)
    tables = zip(batch.block_tables.tolist(), contexts, strict=True)
    used = [table[: -(-context // 16)] for table, context in tables]
    assert len({block for row in used for block in row}) == sum(map(len, used))
    rows = [0, 1, *[2] * 7, *[3] * 3]
    for row, position, slot in zip(
        rows, batch.positions.tolist(), batch.slot_mapping.tolist(), strict=True
    ):
        assert slot == batch.block_tables[row, position // 16] * 16 + position % 16
    assert emitting_rows(lengths, torch.device("cpu")).tolist() == [0, 1, 8, 11]
    with pytest.raises(ValueError, match="7 blocks are needed, the cache has 3"):
        forward_batch(
            lengths, block_order=order[:3], block_size=16, vocab_size=50,
            device=torch.device("cpu"),
        )  # fmt: skip


def test_random_batches_stay_within_their_limits() -> None:
    drawn = random_lengths(np.random.default_rng(3), LIMITS, 16)
    batches = [next(drawn) for _ in range(200)]
    assert all(LIMITS.holds(lengths, 16) for lengths in batches)
    assert any(b.decodes and b.prefills for b in batches)
    assert any(len(b.prefills) > 1 for b in batches)
    assert any(cached for b in batches for _, cached in b.prefills)


def test_every_part_runs_at_its_ends(rig: Rig) -> None:
    for bench in benches(rig):
        points = bench.points()
        assert points and all(bench.fits(point) for point in points)
        for point in (points[0], points[-1]):
            for calls in bench.calls(point):
                assert rig.timer.measure(calls, mode=bench.mode).time_us > 0


def test_attention_and_the_rest_make_up_a_pass(rig: Rig) -> None:
    ticks = iter(range(1000))
    rig.timed._clock = lambda: float(next(ticks))
    batch = rig.batch(Lengths(decodes=(16, 16)))
    with torch.inference_mode():
        # Each look at the clock is a tick: one within attention, and one before and after it.
        assert rig.timed.attention_s(batch, rig.kv_cache) == 1.0
        assert rig.timed.rest_s(batch, rig.kv_cache) == 2.0
    rig.timed._clock = rig.timer.clock


def test_a_pass_without_attention_leaves_out_nothing_else(rig: Rig) -> None:
    batch = rig.batch(Lengths(prefills=((20, 0),)))
    with torch.inference_mode():
        hidden = rig.bare.forward(batch, rig.kv_cache)
    assert hidden.shape == (20, rig.config.hidden_size) and hidden.isfinite().all()


@pytest.mark.parametrize(("tokens", "experts"), [(1, 2), (3, 4), (7, 8), (64, 2), (64, 8)])
def test_routing_activates_as_many_experts_as_asked(
    expert_rig: Rig, tokens: int, experts: int
) -> None:
    x, router = routed(expert_rig, tokens, experts)
    chosen, _ = route_reference(x.float() @ router.float().T, 2)
    assert len(chosen.unique()) == experts
    assert all(len(set(row)) == 2 for row in chosen.tolist())


def test_experts_are_a_part_and_no_part_of_linear(expert_rig: Rig) -> None:
    found = {bench.name: bench for bench in benches(expert_rig)}
    assert "moe" in found
    assert all(point[1] <= 2 * point[0] for point in found["moe"].points())
    assert expert_rig.timer.measure(found["moe"].calls((8, 4))[0]).time_us > 0


def test_work_is_that_of_the_model() -> None:
    name, config = "llama-3.1-8b", library.model_config(library.model_path("llama-3.1-8b"))
    spec = read_config(config, name=name)
    work_of = WorkOf(ModelConfig.from_hugging_face(config), block_size=16)
    counted = sum(op.flops(100) for op in spec.linear_operations(1))
    assert work_of("linear", (100,)).flops == pytest.approx(counted)
    kv_bytes = spec.kv_bytes_per_token("auto", 1)
    queries = 2 * 2 * 32 * 32 * 128 * 64
    decode = work_of("decode_attention", (64, 1024))
    assert decode.bytes == pytest.approx(64 * 1024 * kv_bytes + queries)
    pair_flops = spec.prefill_attention_flops(1)
    assert work_of("prefill_attention", (512, 0)).flops == pytest.approx(512 * 513 / 2 * pair_flops)
    assert work_of("swap", (3,)).bytes == pytest.approx(3 * 16 * kv_bytes)


def whole(measured_us: float, **parts_us: float) -> Whole:
    return Whole(Iteration(1, 1, 1, (), measured_us), parts_us)


def test_what_company_costs_is_found_and_factors_are_kept_near_one() -> None:
    rng = np.random.default_rng(0)
    wholes = []
    for _ in range(200):
        parts = {"linear": rng.uniform(1, 9), "decode_attention": rng.uniform(1, 9), "host": 0.1}
        measured = 1.06 * parts["linear"] + 1.12 * parts["decode_attention"] + 0.1 + 0.5
        wholes.append(whole(measured * rng.normal(1, 0.01), **parts))
    wholes.append(whole(90.0, linear=9.0, decode_attention=1.0))  # disturbed
    found = fitted(wholes)
    assert found.factors["linear"] == pytest.approx(1.06, abs=0.03)
    assert found.factors["decode_attention"] == pytest.approx(1.12, abs=0.03)
    assert found.besides_us == pytest.approx(0.5, abs=0.15)
    assert "host" not in found.factors
    lonely = fitted([whole(2.0, linear=1.99, logits=0.01)])
    assert lonely.factors["logits"] == pytest.approx(1.0, abs=1e-3)
