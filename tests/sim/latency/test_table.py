"""Table look-ups: exact at points, true to closed forms between them, held outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scenarios import library
from sim.batch import Batch, PrefillChunk
from sim.engine.simulation import simulate
from sim.latency.attention_table import AttentionTable
from sim.latency.communication import all_gather_s
from sim.latency.grid import Line, filled_grid
from sim.latency.operators import operator_class
from sim.latency.protocol import HostOverhead
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.latency.table_folder import table_of
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.latency.tables import META, decode_us, linear_us, prefill_us, rows, small_table
from tests.sim.serving import assert_same_records, workloads

MODEL = library.model("llama-3.1-8b")
LINK = library.gpu("h200-sxm").interconnect
HOST = HostOverhead(100e-6, 2e-6, "test")
SOMEONE = Request(0, 0.0, 1, 1, 1)


def model_of(table: LatencyTable | None = None, **options: object) -> TableLatency:
    given = {"max_num_batched_tokens": 2048, "max_num_seqs": 64, **options}
    return TableLatency(table or small_table(), MODEL, interconnect=LINK, host=HOST, **given)  # type: ignore[arg-type]


def decodes(sequences: int, context: float, longest: int | None = None) -> Batch:
    total = round(sequences * context)
    return Batch(
        num_decodes=sequences,
        context_tokens=total,
        longest_tokens=longest or -(-total // sequences),
        num_tokens=sequences,
        num_emitting=sequences,
        num_seqs=sequences,
    )


def prefill(*chunks: tuple[int, int], beside: Batch | None = None) -> Batch:
    batch = beside or Batch()
    batch.prefills = [PrefillChunk(SOMEONE, new, cached) for new, cached in chunks]
    batch.num_tokens += sum(new for new, _ in chunks)
    batch.num_emitting += len(chunks)
    batch.num_seqs += len(chunks)
    return batch


def rest_us(batch: Batch) -> float:
    """All but attention."""
    logits = 900.0 + 2.0 * batch.num_emitting
    return linear_us(batch.num_tokens) + logits + 100.0 + 2.0 * batch.num_seqs


@pytest.mark.parametrize(
    ("sequences", "context"), [(1, 16), (8, 256), (64, 4096), (5, 700), (48, 33)]
)
def test_decode_is_exact_where_time_is_linear_in_sequences_and_context(
    sequences: int, context: int
) -> None:
    batch = decodes(sequences, context)
    expected_us = rest_us(batch) + decode_us(sequences, context)
    assert model_of(skew=False).iteration_s(batch) * 1e6 == pytest.approx(expected_us, rel=1e-9)
    assert not batch.extrapolated


@pytest.mark.parametrize(
    ("new", "cached"), [(16, 0), (2048, 4096), (100, 0), (1500, 0), (777, 1000)]
)
def test_prefill_is_exact_where_time_is_linear_in_pairs(new: int, cached: int) -> None:
    batch = prefill((new, cached))
    expected_us = rest_us(batch) + prefill_us(new, cached)
    assert model_of().iteration_s(batch) * 1e6 == pytest.approx(expected_us, rel=1e-9)


def test_prompts_of_one_iteration_share_one_launch() -> None:
    batch = prefill((100, 0), (200, 300), (50, 0))
    scored = sum(prefill_us(*chunk) - 300.0 for chunk in [(100, 0), (200, 300), (50, 0)])
    found_us = model_of().iteration_s(batch) * 1e6 - rest_us(batch)
    # The floor is the smallest time measured, a little above the launch alone.
    assert found_us == pytest.approx(300.0 + scored, rel=2e-3)


def test_a_prompt_beside_decodes_costs_what_both_cost_in_one_launch() -> None:
    batch = prefill((512, 0), beside=decodes(16, 256))
    expected_us = rest_us(batch) + prefill_us(512, 0) + decode_us(16, 256) - 300.0
    assert model_of(skew=False).iteration_s(batch) * 1e6 == pytest.approx(expected_us, rel=1e-9)


def test_a_batch_takes_no_less_time_than_its_longest_sequence() -> None:
    even = decodes(16, 300)
    uneven = decodes(16, 300, longest=4000)
    model = model_of()
    bound_us = 0.4 * decode_us(16, 4000)
    assert model.iteration_s(even) < model.iteration_s(uneven)
    assert model.iteration_s(uneven) * 1e6 == pytest.approx(rest_us(uneven) + bound_us, rel=1e-6)
    assert model_of(skew=False).iteration_s(uneven) == model_of(skew=False).iteration_s(even)


@pytest.mark.parametrize(
    ("batch", "attention_us"),
    [
        (decodes(64, 8192), 2 * decode_us(64, 4096)),
        (prefill((2048, 8192)), prefill_us(2048, 4096) * (8192 + 1024.5) / (4096 + 1024.5)),
    ],
)
def test_beyond_the_grid_utilisation_is_held_and_the_batch_marked(
    batch: Batch, attention_us: float
) -> None:
    found_us = model_of(skew=False).iteration_s(batch) * 1e6 - rest_us(batch)
    assert found_us == pytest.approx(attention_us, rel=1e-6)
    assert batch.extrapolated


def test_a_prompt_beside_more_decodes_than_were_measured_together_costs_ever_more() -> None:
    """Decodes alone are measured to 64, beside prompts to 16 only."""
    parts = rows()
    parts["mixed_attention"] = [row for row in parts["mixed_attention"] if row[2] <= 16]
    table = table_of(META, parts)
    attention, whole = (AttentionTable(each, skew=False) for each in (table, small_table()))
    chunk, context = PrefillChunk(SOMEONE, 512, 0), 256
    added_us = {n: attention.prefills_s([chunk], n, n * context) * 1e6 for n in (8, 16, 24, 32, 64)}
    assert added_us[16] == whole.prefills_s([chunk], 16, 16 * context) * 1e6 > 0
    # Beyond, what is added grows as the decodes' own time does.
    held = added_us[16] * decode_us(64, context) / decode_us(16, context)
    assert added_us[64] == pytest.approx(held)
    assert list(added_us.values())[1:] == sorted(list(added_us.values())[1:])
    for count in added_us:
        batch = prefill((512, 0), beside=decodes(count, context))
        model_of(table, skew=False).iteration_s(batch)
        assert batch.extrapolated == (count > 16)


def test_more_tokens_than_measured_keep_the_last_rate() -> None:
    model = model_of(max_num_batched_tokens=8192)
    part = model.parts_s(
        {
            name: np.array([value])
            for name, value in {
                "num_tokens": 4096, "num_emitting": 0, "num_seqs": 0, "swap_blocks": 0,
                "duration_s": 1.0,
            }.items()
        }
    )  # fmt: skip
    assert part["linear"][0] * 1e6 == pytest.approx(2 * linear_us(2048))


def test_steps_at_tile_boundaries_are_kept() -> None:
    line = Line([1024, 1025, 2048], [100.0, 144.0, 200.0])
    assert line(1024) == 100.0 and line(1025) == 144.0


def test_batches_are_padded_to_captured_sizes_and_no_further() -> None:
    model = model_of(capture_sizes=(1, 8, 16), skew=False)
    plain = model_of(skew=False)
    padded_us = (model.iteration_s(decodes(9, 256)) - plain.iteration_s(decodes(9, 256))) * 1e6
    assert padded_us == pytest.approx(linear_us(16) - linear_us(9))
    assert model.iteration_s(decodes(17, 256)) == plain.iteration_s(decodes(17, 256))


def with_parts(parts: dict[str, list[tuple[float, ...]]], **meta: object) -> LatencyTable:
    return table_of({**META, **meta}, rows() | parts)


def test_host_times_that_were_measured_are_used_point_by_point() -> None:
    table = with_parts({"host": [(1, 50.0), (8, 120.0), (64, 400.0)]})
    measured = TableLatency(table, MODEL, interconnect=LINK, host=None, skew=False)
    without = TableLatency(
        table, MODEL, interconnect=LINK, host=HostOverhead(0.0, 0.0, "test"), skew=False
    )
    for count, host_us in ((1, 50.0), (8, 120.0), (36, 260.0), (64, 400.0)):
        batch = decodes(count, 256)
        added_us = (measured.iteration_s(batch) - without.iteration_s(batch)) * 1e6
        assert added_us == pytest.approx(host_us)
    assert measured.host.source == "measured, in the table"


def test_a_host_given_by_the_scenario_comes_before_the_measured_one() -> None:
    table = with_parts({"host": [(1, 50.0), (64, 400.0)]})
    plain = small_table()
    batch = decodes(8, 256)
    assert model_of(table).iteration_s(batch) == model_of(plain).iteration_s(batch)


def test_no_host_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no host overhead measured"):
        TableLatency(small_table(), MODEL, interconnect=LINK, host=None)


@pytest.mark.parametrize("block_size", [16, 32])
def test_measured_swaps_count_and_scale_with_the_block(block_size: int) -> None:
    table = with_parts({"swap": [(1, 100.0), (4, 300.0), (64, 4000.0)]}, block_size=16)
    model = model_of(table, block_size=block_size, swapped_block_s=7.0)
    batch, still = decodes(4, 256), decodes(4, 256)
    batch.swap_in_blocks, batch.swap_out_blocks = 1, 3
    added_us = (model.iteration_s(batch) - model.iteration_s(still)) * 1e6
    assert added_us == pytest.approx({16: 300.0, 32: 300.0 + 4 * 3700 / 60}[block_size])


def test_prompts_one_by_one_take_the_sum_of_their_times() -> None:
    table = with_parts({}, prefills="one_by_one")
    chunks = ((64, 0), (128, 512))
    whole = model_of(table).iteration_s(prefill(*chunks)) * 1e6
    attention_us = sum(prefill_us(*chunk) for chunk in chunks)
    assert whole == pytest.approx(attention_us + rest_us(prefill(*chunks)))


LAUNCH_S = 30e-3


def test_a_pass_launched_kernel_by_kernel_is_unpadded_and_takes_its_launches() -> None:
    model = model_of(capture_sizes=(1, 8, 16), launch_s=LAUNCH_S, skew=False)
    graph = model_of(capture_sizes=(1, 8, 16), skew=False)
    plain = model_of(skew=False)
    assert model.iteration_s(decodes(9, 256)) == graph.iteration_s(decodes(9, 256))
    assert model.iteration_s(prefill((16, 0))) == pytest.approx(LAUNCH_S + 102e-6)
    long = prefill((2048, 4096), (2048, 4096))
    assert plain.iteration_s(long) > LAUNCH_S
    assert model.iteration_s(long) == pytest.approx(plain.iteration_s(long))
    beyond = decodes(17, 256)
    assert model.iteration_s(beyond) == pytest.approx(LAUNCH_S + 134e-6)
    iterations = {
        "num_tokens": np.array([9, 16]),
        "num_emitting": np.array([9, 1]),
        "num_seqs": np.array([9, 1]),
        "swap_blocks": np.zeros(2, dtype=int),
        "prefill_seqs": np.array([0, 1]),
        "duration_s": np.array(
            [model.iteration_s(decodes(9, 256)), model.iteration_s(prefill((16, 0)))]
        ),
    }
    parts = model.parts_s(iterations)
    assert sum(parts.values()) == pytest.approx(iterations["duration_s"])
    assert parts["linear"] * 1e6 == pytest.approx([linear_us(16), linear_us(16)])
    assert parts["launch"][0] == 0.0 and parts["launch"][1] > 0.02


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("qkv_proj", "contractions"), ("down_proj", "contractions"), ("lm_head", "contractions"),
        ("lm_head (estimated)", "contractions"), ("attn_pre_proj", "contractions"),
        ("input_layernorm", "elementwise"), ("attn_rope", "elementwise"),
        ("mlp_act", "elementwise"),
        ("element-wise (estimated)", "elementwise"), ("emb", "elementwise"),
        ("sampling (estimated)", "sampling"), ("pass without attention", "layers"),
        ("projection and sampling", "logits"), ("whatever", "layers"),
    ],
)  # fmt: skip
def test_operations_that_tables_name_have_their_class(operation: str, expected: str) -> None:
    assert operator_class(operation, "layers") == expected


def test_operators_of_a_table_add_up_to_the_durations_also_where_launches_are_waited_for() -> None:
    for given_ in ({}, {"capture_sizes": (1, 8, 16), "launch_s": LAUNCH_S}):
        model = model_of(skew=False, **given_)
        works = [decodes(9, 256), prefill((16, 0))]
        iterations = {
            "num_tokens": np.array([9, 16]),
            "num_emitting": np.array([9, 1]),
            "num_seqs": np.array([9, 1]),
            "swap_blocks": np.zeros(2, dtype=int),
            "prefill_seqs": np.array([0, 1]),
            "duration_s": np.array([model.iteration_s(work) for work in works]),
        }
        classes, parts = model.operators_s(iterations), model.parts_s(iterations)
        assert sum(classes.values()) == pytest.approx(iterations["duration_s"])
        assert classes["attention"] == pytest.approx(parts["attention"])
        assert ("launch" in classes) == bool(given_)


def test_parts_of_a_batch_add_up_to_its_iteration() -> None:
    model = model_of(skew=False)
    batch = prefill((64, 512), beside=decodes(8, 256))
    parts_s = model.batch_parts_s(batch)
    assert sum(parts_s.values()) + 118e-6 == pytest.approx(model.iteration_s(batch))
    assert set(parts_s) == {"linear", "logits", "prefill_attention", "decode_attention"}


@pytest.mark.parametrize("launch_s", [0.0, 9e-3])
@settings(max_examples=25, deadline=None)
@given(workload=workloads())
def test_leaping_steps_with_measured_host_swaps_and_launches(
    launch_s: float, workload: Workload
) -> None:
    table = with_parts({"host": [(1, 50.0), (64, 400.0)], "swap": [(1, 90.0), (64, 4e3)]})
    model = TableLatency(
        table,
        MODEL,
        interconnect=LINK,
        host=None,
        capture_sizes=(1, 2),
        launch_s=launch_s,
        max_num_seqs=4,
    )
    config = EngineConfig(
        max_num_seqs=6, max_num_batched_tokens=64, block_size=4, preemption="swap", swap_blocks=50
    )
    both = [
        simulate(workload, config, model, scheduler="paged", num_blocks=40, leap=leap)
        for leap in (True, False)
    ]
    assert_same_records(*both)


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.integers(1, 80),
    mean=st.integers(1, 9000),
    extra=st.integers(0, 9000),
    iterations=st.integers(1, 60),
)
@example(sequences=65, mean=4080, extra=0, iterations=30)
@example(sequences=64, mean=4080, extra=0, iterations=30)
def test_a_run_adds_up_single_iterations_to_the_last_bit(
    sequences: int, mean: int, extra: int, iterations: int
) -> None:
    model = model_of()
    batch = decodes(sequences, mean, longest=mean + extra)
    now_s, expected = 1.25, []
    for j in range(iterations):
        step = decodes(sequences, mean + j, longest=mean + extra + j)
        now_s += model.iteration_s(step)
        expected.append(now_s)
    ends_s = model.run_ends_s(batch, 1.25, iterations, float("inf"))
    assert ends_s == expected[: len(ends_s)]
    # A batch of more sequences than were measured is outside from the start.
    crosses = sequences <= 64 and mean <= 4096 < mean + iterations - 1
    assert len(ends_s) == (4096 - mean + 1 if crosses else iterations)
    assert model.run_ends_s(batch, 1.25, iterations, expected[0]) == expected[:1]
    for j, (step_s, outside) in zip(range(1, iterations), model.steps_s(batch), strict=False):
        step = decodes(sequences, mean + j, longest=mean + extra + j)
        assert (step_s, outside) == (model.iteration_s(step), step.extrapolated)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.integers(1, 9000), st.integers(1, 500))
def test_more_work_never_takes_less_time(sequences: int, context: int, more: int) -> None:
    model = model_of()
    base = model.iteration_s(decodes(sequences, context))
    assert model.iteration_s(decodes(sequences, context + more)) >= base
    assert model.iteration_s(decodes(sequences + 1, context)) >= base
    short, longer = prefill((more, context)), prefill((more + 1, context))
    assert model.iteration_s(longer) >= model.iteration_s(short)


def test_a_run_ends_where_the_measured_range_does() -> None:
    from sim.workload import Workload

    workload = Workload(np.zeros(2), np.array([4000, 3990]), np.full(2, 400))
    both = [
        simulate(
            workload,
            EngineConfig(max_num_seqs=8, max_num_batched_tokens=2048),
            model_of(),
            scheduler="chunked",
            num_blocks=1000,
            leap=leap,
        )
        for leap in (True, False)
    ]
    assert_same_records(*both)
    share = both[0].iterations["extrapolated"].mean()
    assert 0.0 < share < 1.0


@settings(max_examples=25, deadline=None)
@given(workload=workloads(longest=600))
def test_leap_equals_step_with_a_table(workload) -> None:  # type: ignore[no-untyped-def]
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=256, block_size=16)
    both = [
        simulate(
            workload, config, model_of(), scheduler="chunked", num_blocks=60, leap=leap, check=True
        )
        for leap in (True, False)
    ]
    assert_same_records(*both)


def test_parts_add_up_to_the_iterations_they_were_recorded_from() -> None:
    from sim.workload import Workload

    workload = Workload(np.linspace(0, 1, 30), np.full(30, 200), np.full(30, 20))
    records = simulate(
        workload, EngineConfig(max_num_seqs=64), model_of(), scheduler="chunked", num_blocks=2000
    )
    parts = model_of().parts_s(records.iterations)
    assert set(parts) == {"linear", "logits", "host", "attention"}
    np.testing.assert_allclose(sum(parts.values()), records.iterations["duration_s"], rtol=1e-9)


def test_a_table_of_another_shape_or_degree_is_refused() -> None:
    with pytest.raises(ValueError, match="measured for a model with num_layers 32"):
        TableLatency(small_table(), library.model("llama-3.1-70b"), interconnect=LINK, host=HOST)
    with pytest.raises(ValueError, match="tensor_parallel 1, the scenario asks for 2"):
        TableLatency(small_table(), MODEL, tensor_parallel=2, interconnect=LINK, host=HOST)


def test_tensor_parallel_adds_two_sums_a_layer_one_behind_the_embedding_and_gathers_logits() -> (
    None
):
    table = small_table(tensor_parallel=2)
    model = TableLatency(
        table, MODEL, tensor_parallel=2, interconnect=LINK, link_measured=True, host=HOST
    )
    batch = decodes(8, 256)
    size = 8 * 4096 * 2
    ring_s = 2 * LINK.latency_s + size / LINK.bytes_per_s
    extra_s = model.iteration_s(batch) - model_of().iteration_s(decodes(8, 256))
    gathered_s = float(all_gather_s(np.array(8.0 * 128_256 * 2), 2, LINK))
    assert extra_s == pytest.approx((2 * 32 + 1) * ring_s + gathered_s, rel=1e-6)
    row = {"num_tokens": 8, "num_emitting": 8, "num_seqs": 8, "swap_blocks": 0, "prefill_seqs": 0}
    columns = {name: np.array([value]) for name, value in row.items()}
    columns["duration_s"] = np.array([model.iteration_s(batch)])
    for split in (model.parts_s(columns), model.operators_s(columns)):
        assert sum(split.values())[0] == pytest.approx(columns["duration_s"][0])


def test_eager_tables_leave_skew_out_unless_asked() -> None:
    assert small_table().corrects_skew
    assert not small_table(launch="eager").corrects_skew


def test_a_hole_in_a_grid_is_filled_in_proportion() -> None:
    x = np.array([1, 2, 4, 1, 2])
    y = np.array([10, 10, 10, 20, 20])
    axes, grid = filled_grid([x, y], np.array([1.0, 2.0, 4.0, 2.0, 4.0]))
    assert axes == [[1.0, 2.0, 4.0], [10.0, 20.0]]
    assert grid[2, 1] == 8.0


def test_a_hole_between_measured_points_lies_between_them() -> None:
    x = np.array([1, 4, 1, 2, 4])
    y = np.array([10, 10, 20, 20, 20])
    _, grid = filled_grid([x, y], np.array([1.0, 7.0, 2.0, 4.0, 8.0]))
    assert grid[1, 0] == 3.0
