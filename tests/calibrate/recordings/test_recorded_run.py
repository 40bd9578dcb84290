"""Agreement with a recorded vLLM run: Llama-3.1-8B on one RTX 4090, 300 ShareGPT requests.

No constant of the simulator was fitted to this run. The same commands handle any other recording;
see docs/how-to/check-against-your-vllm.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibrate.profiles.llmservingsim import import_llmservingsim
from orcast import simulate
from scenarios import library
from sim.latency.table_folder import TableError, read_table, write_table
from tests import needs
from tests.orcast.command_line import orcast

RECORDING = needs.SHARED / "vllm-rtx4090"
needs_recording = needs.shared("vllm-rtx4090")


@needs_recording
def test_a_profile_of_another_card_or_model_is_told(tmp_path: Path) -> None:
    def warnings(model: str, gpu: str) -> str:
        out = tmp_path / f"{model}-{gpu}"
        told = orcast(
            *("calibrate", "import", "llmservingsim", RECORDING / "profile"),
            *("--model", model, "--gpu", gpu, "--out", out),
        )
        assert told.status == 0
        return told.stderr

    assert warnings("llama-3.1-8b", "rtx-4090") == ""
    assert "the profile is of NVIDIA GeForce RTX 4090, not of h100-sxm" in warnings(
        "llama-3.1-8b", "h100-sxm"
    )
    assert "of meta-llama/Llama-3.1-8B, not of qwen3-8b" in warnings("qwen3-8b", "rtx-4090")


@needs_recording
def test_all_fifteen_figures_of_the_recorded_run_are_within_one_percent(tmp_path: Path) -> None:
    meta, parts = import_llmservingsim(RECORDING / "profile", library.model("llama-3.1-8b"))
    write_table(tmp_path / "table", meta, parts)
    run = simulate(
        "scenarios/validation/vllm-replay.yaml",
        {
            "model": "llama-3.1-8b",
            "hardware.gpu": "rtx-4090",
            "latency.table": str(tmp_path / "table"),
            "workload.trace": str(RECORDING / "workload.jsonl"),
            "engine.num_gpu_blocks_override": 2588,
            "engine.max_num_seqs": 256,
            "engine.max_num_batched_tokens": 2048,
        },
    )
    lines = (RECORDING / "run" / "requests.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    names = recorded[0].keys() - {"request_id"}
    column = {name: np.array([row[name] for row in recorded]) for name in names}
    measured = {
        "ttft": column["first_token_ts"] - column["queued_ts"],
        "e2e": column["last_token_ts"] - column["queued_ts"],
    }
    requests = run.records.requests
    predicted = {
        "ttft": requests["first_token_s"] - requests["arrival_s"],
        "e2e": requests["finished_s"] - requests["arrival_s"],
    }
    gaps = np.maximum(column["output_toks"] - 1, 1)
    for times in (measured, predicted):
        times["tpot"] = (times["e2e"] - times["ttft"]) / gaps
    for name in ("ttft", "tpot", "e2e"):
        found = [predicted[name].mean(), *np.percentile(predicted[name], (50, 90, 95, 99))]
        real = [measured[name].mean(), *np.percentile(measured[name], (50, 90, 95, 99))]
        np.testing.assert_allclose(found, real, rtol=0.01, err_msg=name)
    per_request = np.abs(predicted["e2e"] / measured["e2e"] - 1)
    assert per_request.mean() <= 0.01
    assert run.summary["extrapolated_share"] == 0.0


def profile(folder: Path) -> Path:
    """A profile of the true column names with a handful of points."""
    part = folder / "tp1"
    part.mkdir(parents=True)
    (folder / "meta.yaml").write_text(
        "model: test/model\nhardware: CARD\ngpu: A Card\nvllm_version: 0.19.0\n"
        "profiled_at: '2026-01-02T03:04:05'\nvariant: bf16\n"
        "engine_effective: {block_size: 16, enforce_eager: true}\n"
    )
    (part / "dense.csv").write_text(
        "layer,tokens,time_us\n"
        + "".join(
            f"{layer},{tokens},{time}\n"
            for layer, time in {"embedding": 3, "layernorm": 2, "qkv_proj": 50}.items()
            for tokens in (1, 8)
        )
    )
    (part / "per_sequence.csv").write_text(
        "layer,sequences,time_us\nlm_head,1,900\nlm_head,8,950\n"
    )
    (part / "attention.csv").write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
        "16,0,0,0,10\n32,0,0,0,12\n0,0,1,16,9\n0,0,2,16,9.5\n16,0,1,16,14\n"
    )
    (part / "skew.csv").write_text(
        "regime,n,nb,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha\n"
        "pure,2,1,0.5,4.0,0,0,128,512,320,52,56,53,0.3\n"
        "mixed,2,1,0.5,4.0,16,0,128,512,320,62,66,63,0.3\n"
    )
    return folder


def test_each_layer_is_counted_as_often_as_it_runs(tmp_path: Path) -> None:
    meta, parts = import_llmservingsim(profile(tmp_path / "p"), library.model("llama-3.1-8b"))
    times = {(name, tokens): time_us for name, tokens, time_us in parts["linear"]}
    assert times["embedding", 1] == 3
    assert times["layernorm", 1] == 2 * 2 * 32
    assert times["qkv_proj", 8] == 50 * 32
    assert parts["prefill_attention"] == [(16, 0, 320.0), (32, 0, 384.0)]
    assert parts["decode_attention"] == [(1, 16, 288.0), (2, 16, 304.0)]
    assert parts["mixed_attention"] == [(16, 0, 1, 16, 448.0)]
    assert len(parts["decode_skew"]) == 1
    assert meta["launch"] == "eager" and meta["gpu"] == "CARD"
    write_table(tmp_path / "t", meta, parts)
    assert read_table(tmp_path / "t").block_size == 16


def test_experts_are_taken_times_the_layers_that_have_them(tmp_path: Path) -> None:
    folder = profile(tmp_path / "p")
    (folder / "tp1" / "moe.csv").write_text("tokens,activated_experts,time_us\n1,8,40\n8,50,90\n")
    _, parts = import_llmservingsim(folder, library.model("qwen3-30b-a3b"))
    assert parts["moe"] == [(1, 8, 40.0 * 48), (8, 50, 90.0 * 48)]


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda p: (p / "tp1" / "dense.csv").unlink(), r"dense\.csv: missing"),
        (lambda p: (p / "meta.yaml").unlink(), r"meta\.yaml: missing"),
        (lambda p: (p / "tp1").rename(p / "tp4"), r"no tp1; tensor-parallel degrees: 4"),
        (
            lambda p: (p / "tp1" / "dense.csv").write_text("layer,tokens,time_us\nx,1,-4\n"),
            r"dense\.csv:2: time_us is '-4'",
        ),
        (
            lambda p: (p / "tp1" / "dense.csv").write_text("layer,tokens\nx,1\n"),
            r"dense\.csv:1: no column 'time_us'",
        ),
    ],
)
def test_a_broken_profile_is_refused_in_one_line(tmp_path: Path, breakage, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = profile(tmp_path / "p")
    breakage(folder)
    with pytest.raises(TableError, match=message) as refusal:
        import_llmservingsim(folder, library.model("llama-3.1-8b"))
    assert "\n" not in str(refusal.value)
