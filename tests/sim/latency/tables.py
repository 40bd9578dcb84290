"""A small latency table for tests: its times follow closed forms, so look-ups can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.latency.table_data import LatencyTable
from sim.latency.table_folder import table_of, write_table

META: dict[str, Any] = {
    "source": "made for tests",
    "gpu": "test",
    "model": {
        "name": "llama-3.1-8b",
        "num_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
    "dtype": "bfloat16",
    "tensor_parallel": 1,
    "launch": "graph",
    "host_overhead_us": {"per_iteration": 100.0, "per_sequence": 2.0},
}

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)


def linear_us(tokens: float) -> float:
    return 4000.0 + 15.0 * tokens


def decode_us(sequences: float, context: float) -> float:
    return 300.0 + 5.0 * sequences + 0.02 * sequences * context


def prefill_us(new: float, cached: float) -> float:
    return 300.0 + 1e-3 * new * (cached + 0.5 * (new + 1))


def rows() -> dict[str, list[tuple[Any, ...]]]:
    counts = (1, 2, 4, 8, 16, 32, 64)
    contexts = (16, 64, 256, 1024, 4096)
    return {
        "linear": [("qkv", t, linear_us(t) / 4) for t in (1, *LENGTHS)]
        + [("mlp", t, linear_us(t) * 3 / 4) for t in (1, *LENGTHS)],
        "logits": [("lm_head", n, 900.0 + 2.0 * n) for n in counts],
        "prefill_attention": [
            (new, cached, prefill_us(new, cached)) for new in LENGTHS for cached in (0, 512, 4096)
        ],
        "decode_attention": [(n, c, decode_us(n, c)) for n in counts for c in contexts],
        "mixed_attention": [
            (new, cached, n, c, prefill_us(new, cached) + decode_us(n, c) - 300.0)
            for new in LENGTHS
            for cached in (0, 4096)
            for n in counts
            for c in contexts
        ],
        "decode_skew": [
            # one long context among short ones: 0.4 of the time of all that long
            (n, round(c / 4 * (1 + 3 / n)), c, 0.4 * decode_us(n, c),
             decode_us(n, c / 4 * (1 + 3 / n)), decode_us(n, c))
            for n in (4, 16, 64)
            for c in (1024, 4096)
        ],
    }  # fmt: skip


def small_table(**meta: Any) -> LatencyTable:
    return table_of({**META, **meta}, rows())


def small_table_folder(folder: Path, **meta: Any) -> Path:
    write_table(folder, {**META, **meta}, rows())
    return folder


# A mixture of the shape of qwen3-30b-a3b.
MIXTURE: dict[str, Any] = {
    "name": "qwen3-30b-a3b",
    "num_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_kv_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
}


def moe_us(tokens: float, experts: float) -> float:
    return 500.0 + 4.0 * tokens + 30.0 * experts


def moe_rows(experts: tuple[int, ...] = (1, 8, 32, 64, 128)) -> dict[str, list[tuple[Any, ...]]]:
    return {**rows(), "moe": [(t, e, moe_us(t, e)) for t in (1, 16, 256, 2048) for e in experts]}


def moe_table(*, experts: tuple[int, ...] = (1, 8, 32, 64, 128), **meta: Any) -> LatencyTable:
    return table_of({**META, "model": MIXTURE, **meta}, moe_rows(experts))


def moe_table_folder(folder: Path, **meta: Any) -> Path:
    write_table(folder, {**META, "model": MIXTURE, **meta}, moe_rows())
    return folder
