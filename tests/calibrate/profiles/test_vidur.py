"""vidur's profiling CSVs: one layer in milliseconds becomes a whole model in microseconds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from calibrate.profiles.vidur import OPERATIONS, import_vidur
from scenarios import library
from sim.latency.table_folder import TableError, read_table, write_table

MODEL = library.model("llama-3.1-8b")
STATISTICS = ("min", "max", "mean", "median", "std")
SHAPE = {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336}
HEADS = {"n_embd": 4096, "n_q_head": 32, "n_kv_head": 8, "block_size": 16}


def times(**medians_ms: float | str) -> dict[str, Any]:
    """The five columns of each operation; the others than the median mislead whoever reads them."""
    return {
        f"time_stats.{name}.{statistic}": value if statistic == "median" else 999.0
        for name, value in medians_ms.items()
        for statistic in STATISTICS
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """mlp.csv, attention.csv and all_reduce.csv with the columns of vidur's own files."""
    folder = tmp_path / "a100"
    folder.mkdir()
    names = (*OPERATIONS, "emb")
    write(
        folder / "mlp.csv",
        [
            {
                **times(**{name: 0.1 * (i + 1) / degree for i, name in enumerate(names)}),
                **(times(input_layernorm="") if tokens == 64 else {}),
                **{**SHAPE, "n_expanded_embd": width},
                "vocab_size": 128256,
                "use_gated_mlp": True,
                "num_tokens": tokens,
                "num_tensor_parallel_workers": degree,
            }
            for width in (11008, 14336)  # another model in the same file
            for degree in (1, 2)
            for tokens in (1, 64, 4096, 4096)  # the last one measured twice
        ],
    )
    write(
        folder / "attention.csv",
        [
            {
                **times(attn_input_reshape=0.0, attn_decode=decode, attn_prefill=prefill),
                **times(attn_kv_cache_save=0.01),
                **{**HEADS, "block_size": block},
                "num_tensor_parallel_workers": degree,
                "max_model_len": 4096,
                "batch_size": batch,
                "prefill_chunk_size": chunk,
                "kv_cache_size": cached,
                "is_prefill": chunk > 0,
                "attention_backend": "AttentionBackend.FLASHINFER",
            }
            for block, degree, batch, chunk, cached, prefill, decode in (
                (16, 1, 1, 64, 0, 0.05, ""),
                (16, 1, 1, 128, 512, 0.09, ""),
                (16, 1, 1, 0, 63, "", 0.02),
                (16, 1, 8, 0, 63, "", 0.04),
                (32, 1, 8, 0, 63, "", 0.08),
                (16, 2, 8, 0, 63, "", 0.03),
                (16, 2, 1, 64, 0, 0.03, ""),
            )
        ],
    )
    write(
        folder / "all_reduce.csv",
        [
            {
                **times(all_reduce=0.01 * ranks + (0.2 if nodes > 1 else 0.0)),
                "rank": rank,
                "num_workers": ranks,
                "size": size,
                "collective": collective,
                "devices_per_node": ranks // nodes,
                "max_devices_per_node": 8,
            }
            for ranks in (2, 4)
            for rank in range(ranks)
            for nodes in (1, 2)
            for size in (8192, 16384)
            for collective in ("all_reduce", "send_recv")
        ],
    )
    return folder


def test_layers_are_counted_and_times_are_microseconds(profile: Path, tmp_path: Path) -> None:
    meta, parts = import_vidur(profile, MODEL, gpu="a100-80gb")
    linear = {(name, tokens): us for name, tokens, us in parts["linear"]}
    assert len(linear) == len(parts["linear"]), "each point once"
    assert linear["attn_pre_proj", 64] == pytest.approx(0.2e3 * 32)
    assert linear["emb", 1] == pytest.approx(1.0e3), "the embedding is no part of a layer"
    assert ("input_layernorm", 64) not in linear, "an empty cell is not a time"
    assert parts["prefill_attention"] == [
        (64, 0, pytest.approx(0.06e3 * 32)),
        (128, 512, pytest.approx(0.10e3 * 32)),
    ]
    assert parts["decode_attention"] == [
        (1, 64, pytest.approx(0.03e3 * 32)),
        (8, 64, pytest.approx(0.05e3 * 32)),
    ], "a decode attends to the cached tokens and its own"
    assert "communication" not in parts
    write_table(tmp_path / "table", meta, parts)
    assert read_table(tmp_path / "table").meta["gpu"] == "a100-80gb"


def test_the_vocabulary_projection_is_scaled_from_the_up_projection(profile: Path) -> None:
    meta, parts = import_vidur(profile, MODEL)
    logits = {rows: us for _, rows, us in parts["logits"]}
    assert logits[64] == pytest.approx(0.6e3 * 128256 / (2 * 14336))
    assert "logits" in meta["estimated"][0]


def test_tensor_parallelism_takes_its_own_rows_of_one_node(profile: Path) -> None:
    _, parts = import_vidur(profile, MODEL, tensor_parallel=2)
    assert parts["communication"] == [
        ("all_reduce", 2, 8192, pytest.approx(20.0)),
        ("all_reduce", 2, 16384, pytest.approx(20.0)),
    ]
    assert [row[:2] for row in parts["decode_attention"]] == [(8, 64)]


def change(path: Path, line: int, column: str, text: str) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[line - 2][column] = text
    write(path, rows)


@pytest.mark.parametrize(
    ("name", "line", "column", "text"),
    [
        ("mlp.csv", 6, "time_stats.attn_rope.median", "fast"),
        ("mlp.csv", 10, "num_tokens", "many"),
        ("attention.csv", 2, "time_stats.attn_prefill.median", "-1"),
        ("attention.csv", 3, "kv_cache_size", "inf"),
        ("all_reduce.csv", 2, "size", ""),
    ],
)
def test_a_bad_cell_is_refused_with_its_file_and_row(
    profile: Path, name: str, line: int, column: str, text: str
) -> None:
    # Rows of another shape are never looked at: take the first that counts.
    line = {"mlp.csv": 14, "attention.csv": line, "all_reduce.csv": line}[name]
    degree = 2 if name != "attention.csv" else 1
    change(profile / name, line, column, text)
    with pytest.raises(TableError, match=rf"{name}:{line}: {column} is '{text}'"):
        import_vidur(profile, MODEL, tensor_parallel=degree)


def test_a_cut_off_row_and_a_missing_column_are_refused(profile: Path) -> None:
    path = profile / "mlp.csv"
    whole = path.read_text()
    path.write_text(whole.rstrip("\n").rsplit(",", 3)[0] + "\n")
    with pytest.raises(TableError, match=r"mlp\.csv:17: not as many cells"):
        import_vidur(profile, MODEL)
    path.write_text(whole.replace("num_tokens", "tokens", 1))
    with pytest.raises(TableError, match=r"mlp\.csv:1: no column 'num_tokens'"):
        import_vidur(profile, MODEL)


def test_a_model_that_was_not_profiled_is_named(profile: Path) -> None:
    with pytest.raises(TableError, match=r"mlp\.csv: no row with .* n_embd there: 4096"):
        import_vidur(profile, library.model("llama-2-13b"))
    with pytest.raises(TableError, match="n_kv_head 32"):  # the same width, other heads
        import_vidur(profile, library.model("llama-2-7b"))
    with pytest.raises(TableError, match="num_tensor_parallel_workers there: 1, 2"):
        import_vidur(profile, MODEL, tensor_parallel=4)
    with pytest.raises(TableError, match="block_size there: 16, 32"):
        import_vidur(profile, MODEL, block_size=64)
    with pytest.raises(TableError, match="dense models"):
        import_vidur(profile, library.model("mixtral-8x7b"))


def test_a_missing_file_is_named(profile: Path) -> None:
    (profile / "attention.csv").unlink()
    with pytest.raises(TableError, match=r"attention\.csv: missing"):
        import_vidur(profile, MODEL)
    with pytest.raises(TableError, match="no such folder"):
        import_vidur(profile / "nothing", MODEL)
