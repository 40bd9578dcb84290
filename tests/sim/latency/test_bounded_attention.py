"""Windows, chunks and states in the roofline: what is looked back on, and what that costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import library
from sim.batch import Batch, PrefillChunk
from sim.latency.attention_table import AttentionTable, pairs
from sim.latency.bounded_attention import BoundedAttention
from sim.latency.pipeline import roofline_latency
from sim.latency.protocol import LatencyModel
from sim.latency.table_data import LatencyTable
from sim.latency.table_folder import TableError, read_table, rows_of, table_of, write_table
from sim.model.config import read_config
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec
from sim.request import Request
from tests.sim.latency.tables import LENGTHS, META, rows

WINDOW = 512


def bounded(limit: int = 100, *, chunked: bool = False) -> BoundedAttention:
    return BoundedAttention(limit, chunked, 1.0, 0.0, 0.0, 1.0, 0.0)


@given(new=st.integers(1, 400), cached=st.integers(0, 400), limit=st.integers(1, 300))
def test_pairs_of_a_chunk_are_those_counted_one_by_one(new: int, cached: int, limit: int) -> None:
    positions = range(cached + 1, cached + new + 1)
    window = sum(min(position, limit) for position in positions)
    assert bounded(limit).pairs(new, cached) == window
    chunk = sum((position - 1) % limit + 1 for position in positions)
    assert bounded(limit, chunked=True).pairs(new, cached) == chunk


def test_decodes_look_back_no_further_than_the_window() -> None:
    assert bounded().attended(4, 200) == 200
    assert bounded().attended(4, 4000) == 400
    assert bounded(chunked=True).attended(4, 4000) == 200  # half of a chunk on average


def config(**changes: Any) -> dict[str, Any]:
    told = json.loads((library.ROOT / "models" / "llama-3.1-8b.json").read_text())
    return {**told, **changes}


def windowed(**changes: Any) -> ModelSpec:
    kinds = ["sliding_attention", "full_attention"] * 16
    more = {"layer_types": kinds, "sliding_window": WINDOW, **changes}
    return read_config(config(**more), name="windowed")


def with_states() -> ModelSpec:
    return read_config(
        config(
            model_type="qwen3_next", full_attention_interval=4, num_experts=0,
            linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128,
            linear_value_head_dim=128,
        ),
        name="states",
    )  # fmt: skip


def latency(model: ModelSpec, **degrees: int) -> LatencyModel:
    return roofline_latency(model, library.gpu("h200-sxm"), parallelism=Parallelism(**degrees))


def decoding(sequences: int, context: int) -> Batch:
    return Batch(
        num_decodes=sequences, context_tokens=sequences * context, num_tokens=sequences,
        num_emitting=sequences, num_seqs=sequences,
    )  # fmt: skip


def prompt(new: int, cached: int) -> Batch:
    chunk = PrefillChunk(Request(0, 0.0, new + cached, 9, 9), new, cached)
    return Batch(prefills=[chunk], num_tokens=new, num_emitting=1, num_seqs=1)


@pytest.mark.parametrize("degrees", [{}, {"tensor_parallel": 2}, {"sequence_parallel": 2}])
@pytest.mark.parametrize("model", [windowed(), with_states()], ids=lambda model: model.name)
def test_a_run_ends_when_its_iterations_do_one_by_one(
    model: ModelSpec, degrees: dict[str, int]
) -> None:
    served = latency(model, **degrees)
    at_s, ends_s = 0.0, served.run_ends_s(decoding(8, WINDOW - 3), 0.0, 9, 1e9)
    for number, end_s in enumerate(ends_s):
        at_s += served.iteration_s(decoding(8, WINDOW - 3 + number))
        assert at_s == end_s


def test_beyond_the_window_only_full_layers_pay_for_the_context() -> None:
    short, long = windowed(), read_config(config(), name="full")

    def slope_s(model: ModelSpec, context: int) -> float:
        served = latency(model)
        further = decoding(64, context + 100)
        return served.iteration_s(further) - served.iteration_s(decoding(64, context))

    assert slope_s(short, 8 * WINDOW) == pytest.approx(slope_s(long, 8 * WINDOW) / 2, rel=1e-6)
    assert slope_s(short, WINDOW // 4) == pytest.approx(slope_s(long, WINDOW // 4), rel=1e-6)


def test_a_prompt_within_the_window_takes_what_full_attention_takes() -> None:
    short, long = latency(windowed()), latency(read_config(config(), name="full"))
    inside, beyond = prompt(WINDOW, 0), prompt(8 * WINDOW, 8 * WINDOW)
    assert short.iteration_s(inside) == pytest.approx(long.iteration_s(inside), rel=1e-9)
    assert short.iteration_s(beyond) < long.iteration_s(beyond)


def test_a_state_costs_the_same_whatever_the_context() -> None:
    model = with_states()
    served = latency(model)
    full = sum(n for layer, n in model.runs if layer.mixers[0].kind == "full")
    assert full == 8
    slope_s = served.iteration_s(decoding(64, 4100)) - served.iteration_s(decoding(64, 4000))
    moved = 64 * 100 * model.kv_bytes_per_token()
    assert slope_s == pytest.approx(moved / (4.8e12 * 0.9), rel=0.01)
    assert model.state_bytes() > 0


def test_an_indexer_scores_everything_and_attention_reads_the_best() -> None:
    told = json.loads((library.ROOT / "models" / "deepseek-v3.json").read_text())
    sparse = read_config(
        {**told, "model_type": "deepseek_v32", "index_topk": 2048, "index_n_heads": 64,
         "index_head_dim": 128},
        name="sparse",
    )  # fmt: skip
    dense, fewer = latency(library.model("deepseek-v3")), latency(sparse)
    far = decoding(8, 60_000), decoding(8, 61_000)
    slopes = [served.iteration_s(far[1]) - served.iteration_s(far[0]) for served in (dense, fewer)]
    assert 0 < slopes[1] < 0.5 * slopes[0]


# -- measured ---------------------------------------------------------------------------------


def half_windowed() -> LatencyTable:
    """The small table, and layers with a window and a state beside."""
    reaches = {WINDOW: (256, 1024), 1: (1,)}
    parts = {
        **rows(),
        "bounded_decode": [
            (reach, n, context, 50.0 + 0.1 * n * min(context, reach))
            for reach, contexts in reaches.items()
            for n in (1, 64)
            for context in contexts
        ],
        "bounded_prefill": [
            (reach, new, cached, 20.0 + 1e-3 * pairs(new, cached, reach))
            for reach in reaches
            for new in LENGTHS
            for cached in ((0, reach) if reach > 1 else (0,))
        ],
    }
    return table_of(META, parts)


def test_measured_windows_take_no_longer_past_their_end_and_states_have_none(
    tmp_path: Path,
) -> None:
    table = half_windowed()
    write_table(tmp_path / "table", table.meta, rows_of(table))
    whole = AttentionTable(table_of(META, rows()), skew=False)
    for each in (table, read_table(tmp_path / "table")):
        attention = AttentionTable(each, skew=False)
        for context in (256, 1024, 4096, 9000):
            found_s = (each.decode_s(64, 64 * context, 0) for each in (attention, whole))
            found_us = 1e6 * float(np.subtract(*found_s))
            seen = min(context, WINDOW) + 1  # the state's own token
            assert found_us == pytest.approx(2 * 50 + 0.1 * 64 * seen, rel=1e-4)
    (tmp_path / "table" / "bounded_prefill.csv").unlink()
    with pytest.raises(TableError, match=r"bounded_prefill\.csv: missing"):
        read_table(tmp_path / "table")


def test_several_prompts_within_a_window_score_what_each_scores() -> None:
    """For attention to every token two prompts of half a length score half the pairs."""
    attention, whole = (
        AttentionTable(t, skew=False) for t in (half_windowed(), table_of(META, rows()))
    )
    someone = Request(0, 0.0, 1, 1, 1)
    for lengths, cached in (((2048,), 0), ((1024, 1024), 0), ((512, 256), 4096)):
        chunks = [PrefillChunk(someone, new, cached) for new in lengths]
        beside_us = 1e6 * (attention.prefills_s(chunks, 0, 0) - whole.prefills_s(chunks, 0, 0))
        scored = sum(pairs(new, cached, reach) for new in lengths for reach in (WINDOW, 1))
        assert beside_us == pytest.approx(40 + 1e-3 * scored, rel=0.02)


@given(new=st.integers(1, 400), cached=st.integers(0, 400), reach=st.integers(1, 300))
def test_pairs_within_a_reach_are_the_rooflines(new: int, cached: int, reach: int) -> None:
    assert pairs(new, cached, reach) == bounded(reach).pairs(new, cached)
