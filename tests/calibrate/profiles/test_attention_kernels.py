"""Attention of numbers of heads that were not measured, composed from those that were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.profiles.attention_kernels import decode_us, prefill_us
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, System

SHAPE: dict[str, Any] = {"head_dim": 128, "kv_dtype": "bfloat16"}


def decode_ms(kv_heads: int, heads: int, sequences: int, context: int) -> float:
    """Work items are (sequence, KV head) pairs; the query heads of each add a little."""
    pairs = sequences * kv_heads
    return 0.01 + 1e-7 * pairs * context + 1e-6 * pairs * (heads // kv_heads)


@pytest.fixture
def tables(tmp_path: Path) -> KernelTables:
    folder = tmp_path / "attention" / "vllm" / "1.0"
    folder.mkdir(parents=True)
    same = {"head_dim": 128, "kv_cache_dtype": "bfloat16", "window_size": 0}
    pairs = [(1, 4), (4, 16), (4, 24), (4, 32), (8, 8), (8, 32)]
    decode = [
        {**same, "num_key_value_heads": kv, "num_heads": heads, "batch_size": n, "isl": 1,
         "step": context - 1, "latency": decode_ms(kv, heads, n, context)}
        for kv, heads in pairs
        for n in (1, 2, 4, 8, 16, 64)
        for context in (16, 1024)
    ]  # fmt: skip
    prefill = [
        {**same, "num_key_value_heads": kv, "num_heads": heads, "batch_size": batch, "isl": length,
         "step": 0, "latency": batch * (0.01 + 1e-9 * heads * length**2)}
        for kv, heads in pairs
        for batch in (1, 2)
        for length in (16, 4096)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(decode), folder / "generation_attention_perf.parquet")
    pq.write_table(pa.Table.from_pylist(prefill), folder / "context_attention_perf.parquet")
    return KernelTables(System("test", "test", tmp_path, {}), "vllm", "1.0")


def test_measured_heads_are_the_rows_themselves(tables: KernelTables) -> None:
    decode, how = decode_us(tables, heads=32, kv_heads=8, **SHAPE)
    assert how is None
    assert decode[4, 1024] == pytest.approx(decode_ms(8, 32, 4, 1024) * 1e3)
    prefill, how = prefill_us(tables, heads=32, kv_heads=8, **SHAPE)
    assert how is None
    assert prefill == {
        (16, 0): pytest.approx(10 + 32 * 256e-6),
        (4096, 0): pytest.approx(10 + 32 * 4096**2 * 1e-6),
    }


def test_heads_between_two_measured_numbers_are_linear_between_them(tables: KernelTables) -> None:
    decode, how = decode_us(tables, heads=28, kv_heads=4, **SHAPE)
    assert how == "between 24 and 32 heads"
    assert decode[8, 1024] == pytest.approx(decode_ms(4, 28, 8, 1024) * 1e3)
    prefill, how = prefill_us(tables, heads=20, kv_heads=4, **SHAPE)
    assert how == "between 16 and 24 heads"
    assert prefill[4096, 0] == pytest.approx(10 + 20 * 4096**2 * 1e-6)


def test_more_kv_heads_than_measured_are_more_sequences_with_fewer(tables: KernelTables) -> None:
    decode, how = decode_us(tables, heads=32, kv_heads=32, **SHAPE)
    assert how == "as of 4 times as many sequences with 8 heads on 8"
    for sequences in (1, 2, 16):
        whole_us = decode_ms(32, 32, sequences, 1024) * 1e3
        assert decode[sequences, 1024] == pytest.approx(whole_us)
    assert max(sequences for sequences, _ in decode) == 16, "64 sequences of a quarter"


def test_a_prefill_takes_the_nearest_number_of_kv_heads(tables: KernelTables) -> None:
    prefill, how = prefill_us(tables, heads=32, kv_heads=32, **SHAPE)
    assert how == "as of 8 KV heads"
    assert prefill[4096, 0] == pytest.approx(10 + 32 * 4096**2 * 1e-6)


def test_heads_beyond_those_measured_are_refused(tables: KernelTables) -> None:
    with pytest.raises(NotMeasured, match="no decode attention of 72 heads on 8 KV heads; there"):
        decode_us(tables, heads=72, kv_heads=8, **SHAPE)
    with pytest.raises(NotMeasured, match="no prefill attention of 72 heads"):
        prefill_us(tables, heads=72, kv_heads=8, **SHAPE)


@pytest.mark.parametrize(("kv_dtype", "faster"), [("bfloat16", False), ("fp8", True)])
def test_keys_in_eight_bits_are_scored_in_eight_bits_where_that_was_measured(
    tables: KernelTables, kv_dtype: str, faster: bool
) -> None:
    file = tables.system.folder / "attention" / "vllm" / "1.0" / "context_attention_perf.parquet"
    rows = pq.read_table(file).to_pylist()
    both = [
        {**row, "kv_cache_dtype": cache, "attn_dtype": attended, "latency": factor * row["latency"]}
        for row in rows
        for cache in ("bfloat16", "fp8")
        for attended, factor in (("bfloat16", 1.0), ("fp8", 0.5))
    ]
    pq.write_table(pa.Table.from_pylist(both), file)
    found, _ = prefill_us(tables, heads=32, kv_heads=8, head_dim=128, kv_dtype=kv_dtype)
    slow = 10 + 32 * 4096**2 * 1e-6
    assert found[4096, 0] == pytest.approx(0.5 * slow if faster else slow)
