"""vidur's profiling CSVs: one layer in milliseconds becomes a whole model in microseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.import_vidur import OPERATIONS, import_vidur
from scenarios import library
from sim.latency.table_folder import TableError, read_table, write_table

MODEL = library.model("llama-2-7b")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    folder = tmp_path / "a100"
    folder.mkdir()
    names = [f"time_stats.{name}.median" for name in (*OPERATIONS, "emb")]
    lines = [",".join(["n_embd", "num_tokens", "num_tensor_parallel_workers", *names])]
    for tp in (1, 2):
        for tokens in (1, 64, 4096):
            # One cell is empty: not every operation is measured everywhere.
            cells = ["" if i == 0 and tokens == 64 else f"{0.1 / tp * (i + 1)}" for i in range(10)]
            lines.append(",".join(["4096", str(tokens), str(tp), *cells]))
    (folder / "mlp.csv").write_text("\n".join(lines) + "\n")
    (folder / "attention.csv").write_text(
        "n_embd,n_q_head,n_kv_head,block_size,num_tensor_parallel_workers,batch_size,"
        "prefill_chunk_size,kv_cache_size,is_prefill,time_stats.attn_prefill.median,"
        "time_stats.attn_decode.median,time_stats.attn_kv_cache_save.median\n"
        "4096,32,32,16,1,1,64,0,True,0.05,,0.01\n"
        "4096,32,32,16,1,1,128,512,True,0.09,,0.01\n"
        "4096,32,32,16,1,1,0,64,False,,0.02,0.01\n"
        "4096,32,32,16,1,8,0,64,False,,0.04,0.01\n"
        "4096,32,32,16,2,8,0,64,False,,0.03,0.01\n"
        "4096,32,32,16,2,1,64,0,True,0.03,,0.01\n"
    )
    (folder / "all_reduce.csv").write_text(
        "num_workers,size,time_stats.all_reduce.median\n2,8192,0.02\n2,16384,0.03\n4,8192,0.04\n"
    )
    return folder


def test_layers_are_counted_and_times_are_microseconds(profile: Path, tmp_path: Path) -> None:
    meta, parts = import_vidur(profile, MODEL, gpu="a100-80gb")
    linear = {(name, tokens): us for name, tokens, us in parts["linear"]}
    assert linear["attn_pre_proj", 64] == pytest.approx(0.2e3 * 32)
    assert linear["emb", 1] == pytest.approx(1.0e3)
    assert ("input_layernorm", 64) not in linear
    assert parts["prefill_attention"] == [
        (64, 0, pytest.approx(0.06e3 * 32)),
        (128, 512, pytest.approx(0.10e3 * 32)),
    ]
    assert (8, 64, pytest.approx(0.05e3 * 32)) in parts["decode_attention"]
    assert "communication" not in parts
    write_table(tmp_path / "table", meta, parts)
    assert read_table(tmp_path / "table").meta["gpu"] == "a100-80gb"


def test_tensor_parallelism_takes_its_own_rows(profile: Path) -> None:
    _, parts = import_vidur(profile, MODEL, tensor_parallel=2)
    assert parts["communication"] == [("all_reduce", 2, 8192, 20.0), ("all_reduce", 2, 16384, 30.0)]
    assert [row[:2] for row in parts["decode_attention"]] == [(8, 64)]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("mlp.csv", "num_tokens", "tokens", r"mlp\.csv:1: no column 'num_tokens'"),
        ("mlp.csv", "0.2,", "fast,", r"mlp\.csv:2: time_stats\.attn_pre_proj\.median is 'fast'"),
        ("attention.csv", "0.05", "-1", r"attention\.csv:2: time_stats\.attn_prefill\.median"),
        ("mlp.csv", "4096,1,1,", "5120,1,1,", r"^$"),
    ],
)
def test_a_broken_profile_is_refused(
    profile: Path, name: str, old: str, new: str, message: str
) -> None:
    path = profile / name
    path.write_text(path.read_text().replace(old, new, 1))
    if message == "^$":  # a row of another model is somebody else's, not an error
        assert import_vidur(profile, MODEL)[1]["linear"]
        return
    with pytest.raises(TableError, match=message):
        import_vidur(profile, MODEL)


def test_a_model_that_was_not_profiled_is_named(profile: Path) -> None:
    with pytest.raises(TableError, match="no row with num_tensor_parallel_workers 1, n_embd 5120"):
        import_vidur(profile, library.model("llama-2-13b"))
    (profile / "attention.csv").unlink()
    with pytest.raises(TableError, match=r"attention\.csv: missing"):
        import_vidur(profile, MODEL)
