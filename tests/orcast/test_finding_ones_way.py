"""`orcast list`, `show` and `init`, standard input, and settings that replace others."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from scenarios.schema.load import load_scenario
from scenarios.sweep.axes import axes_from_mapping
from scenarios.sweep.points import load_study
from tests.orcast.command_line import orcast, refusal


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("what", "name", "says"),
    [
        ("models", "qwen3-30b-a3b", {"parameters": 30_532_122_624}),
        ("gpus", "h200-sxm", {"memory_bandwidth_gb_per_s": 4800, "bf16_tflops": 989.4}),
        ("scenarios", "plan-chat", {"for": "run, plan"}),
        ("policies", "least_kv", {"key": "cluster.router"}),
        ("policies", "fair", {"key": "engine.scheduling_policy"}),
        ("sources", "roofline", {}),
    ],
)
def test_what_can_be_named_is_listed(what: str, name: str, says: dict[str, object]) -> None:
    rows = json.loads(orcast("list", what, "--json").stdout)
    (row,) = (row for row in rows if row["name"] == name)
    assert says.items() <= row.items()
    shown = orcast("list", what, name)
    assert shown.status == 0 and name in shown.stdout


def test_every_choice_of_the_schema_has_its_words() -> None:
    rows = json.loads(orcast("list", "policies", "--json").stdout)
    assert all(row["description"] for row in rows)


def test_nothing_found_is_said() -> None:
    assert refusal("list", "gpus", "zx81").startswith("zx81: none of the ")


def test_a_resolved_scenario_is_a_scenario_again() -> None:
    shown = orcast("show", "scenario", "quickstart", "--set", "engine.max_num_seqs=7").stdout
    Path("again.yaml").write_text(shown)
    again, _ = load_scenario("again.yaml")
    first, _ = load_scenario("quickstart", ["engine.max_num_seqs=7"])
    assert again == first
    assert json.loads(orcast("show", "scenario", "quickstart", "--json").stdout)["model"]


def test_a_gpu_and_a_table_are_shown(tmp_path: Path) -> None:
    assert "4,800 GB/s" in orcast("show", "gpu", "h200").stdout
    assert "did you mean" in refusal("show", "gpu", "h20000")
    assert "meta.yaml" in refusal("show", "table", str(tmp_path))


def test_init_writes_a_scenario_that_runs() -> None:
    outcome = orcast("init", "mine.yaml", "--model", "meta-llama/Llama-3.1-70B", "--gpu", "h100",
                     "--rate", "2")  # fmt: skip
    assert "orcast run mine.yaml" in outcome.stdout
    scenario, _ = load_scenario("mine.yaml")
    assert (scenario.name, scenario.hardware.tensor_parallel) == ("mine", 4)
    quiet = orcast("run", "mine.yaml", "--quiet", "--set", "workload.num_requests=20")
    assert (quiet.status, quiet.stdout, quiet.stderr) == (0, "", "")
    assert "there already" in refusal("init", "mine.yaml")
    assert "unknown model" in refusal("init", "other.yaml", "--model", "no-such")
    assert not Path("other.yaml").exists()


def test_a_scenario_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    text = orcast("show", "scenario", "static-vs-continuous").stdout
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    outcome = orcast("run", "-", "--json")
    assert json.loads(outcome.stdout)["completed"] > 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    axes = axes_from_mapping({"engine.max_num_seqs": [8, 16]}, source="axes")
    study = load_study("-", axes=axes)
    assert len(study.points) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("modle: tiny"))
    assert refusal("run", "-").startswith("standard input: ")


def test_a_trace_replaces_drawn_requests_and_lengths_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"arrival_time_ns": 0, "input_toks": 9, "output_toks": 2}\n')
    scenario, _ = load_scenario("quickstart", [f"workload.trace={trace}"])
    assert scenario.workload.lengths is None and scenario.workload.num_requests is None
    drawn = "workload.arrivals={process: constant, request_rate: 2}"
    kept, _ = load_scenario("quickstart", [f"workload.trace={trace}", drawn])
    assert kept.workload.arrivals is not None and kept.workload.lengths is None
    one = "{distribution: fixed, tokens: 4}"
    (tmp_path / "recorded.yaml").write_text(
        f"name: r\nmodel: tiny\nhardware: {{gpu: cpu}}\nworkload: {{trace: {trace}, stop: 1}}\n"
    )
    again, _ = load_scenario(
        "recorded.yaml",
        [f"workload.lengths={{prompt: {one}, output: {one}}}", drawn, "workload.num_requests=3"],
    )
    assert again.workload.trace is None and again.workload.num_requests == 3
