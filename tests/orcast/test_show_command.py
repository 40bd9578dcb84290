"""`orcast show`: the figures of a model or a GPU, in words, as JSON, and in a run's report."""

import json
from pathlib import Path

import pytest

from tests.orcast.command_line import orcast


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_model_is_shown_with_its_layers_weights_and_cache() -> None:
    outcome = orcast("show", "model", "llama-3.1-8b")
    assert outcome.status == 0, outcome.stderr
    for words in ("8.03", "16.1", "131,072", "32 x 128, 8 KV"):
        assert words in outcome.stdout


def test_the_figures_of_a_model_as_json_add_up() -> None:
    figures = json.loads(orcast("show", "model", "qwen3-30b-a3b", "--json").stdout)
    assert figures["parameters"]["total"] == 30_532_122_624
    assert sum(kind["layers"] for kind in figures["layer_kinds"]) == figures["layers"] == 48
    layers = sum(kind["layers"] * kind["parameters_each"] for kind in figures["layer_kinds"])
    assert layers + (2 * 151_936 + 1) * 2048 == figures["parameters"]["total"]
    cache = figures["kv_cache"]
    assert sum(group["bytes_per_token"] for group in cache["groups"]) == cache["bytes_per_token"]


def test_types_of_weights_and_cache_are_heeded() -> None:
    plain = json.loads(orcast("show", "model", "llama-3.1-8b", "--json").stdout)
    small = json.loads(
        orcast(
            "show", "model", "llama-3.1-8b", "--weight-dtype", "nvfp4", "--kv-cache-dtype", "fp8",
            "--json",
        ).stdout
    )  # fmt: skip
    assert small["weights"]["bytes"] < 0.4 * plain["weights"]["bytes"]
    assert 2 * small["kv_cache"]["bytes_per_token"] == plain["kv_cache"]["bytes_per_token"]


def test_an_unknown_model_or_type_is_refused_in_one_line() -> None:
    for arguments in (["llama-3"], ["llama-3.1-8b", "--weight-dtype", "int3"]):
        outcome = orcast("show", "model", *arguments)
        assert outcome.status == 2
        assert outcome.stderr.count("\n") == 1


def test_the_report_of_a_run_shows_its_model(tmp_path: Path) -> None:
    outcome = orcast(
        "run", "quickstart", "--set", "workload.num_requests=20", "--out", str(tmp_path / "run")
    )
    assert outcome.status == 0, outcome.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="model"' in page
    assert "KV cache of a token" in page


def test_a_gpu_is_shown_by_an_alias() -> None:
    shown = orcast("show", "gpu", "h200").stdout
    assert "h200-sxm" in shown and "NVIDIA H200 datasheet" in shown
    figures = json.loads(orcast("show", "gpu", "L40S", "--json").stdout)
    assert (figures["fp8_tflops"], figures["int8_tops"], figures["peak_watts"]) == (733, 733, 350)
    assert figures["all_reduce_gb_per_s"].startswith("19.8 GB/s among 2")
    every = json.loads(orcast("list", "gpus", "--json").stdout)
    assert {"b300", "gaudi3", "tpu-v6e"} <= {one["name"] for one in every}
    wrong = orcast("show", "gpu", "h200-sxn")
    assert wrong.status == 2 and "did you mean 'h200-sxm'" in wrong.stderr
