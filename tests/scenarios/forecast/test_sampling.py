"""How tokens are chosen: as clients ask, else as the model's own file does, by whose kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scenarios import library
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.model_library import TRUNCATED_FILE
from scenarios.schema.load import load_scenario
from scenarios.yaml_file import read_yaml


def served(*settings: str) -> str:
    scenario, origin = load_scenario("quickstart", ["latency.source=roofline", *settings])
    return deploy(scenario, origin=origin).model.sampling


def test_what_clients_ask_for_comes_before_what_the_model_asks_for() -> None:
    assert served() == "sorted"
    assert served("engine.sampler=flashinfer") == "truncated"
    assert served("model=mistral-7b") == "random"
    assert served("model=mistral-7b", "workload.sampling=truncated") == "sorted"
    assert served("workload.sampling=greedy") == "greedy"


def test_every_model_that_filters_is_in_the_library() -> None:
    names = read_yaml(TRUNCATED_FILE)
    assert len(set(names)) == len(names)
    assert set(names) <= set(library.model_names())


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, "truncated"),
        ({"top_k": 20}, "truncated"),
        ({"temperature": 0.9, "top_p": 1.0, "top_k": -1}, "random"),
        ({"temperature": 1e-6, "top_k": 1}, "greedy"),
        ({"top_p": None}, "random"),
    ],
)
def test_a_checkpoints_generation_config_is_read(
    tmp_path: Path, asked: dict[str, Any], sampling: str
) -> None:
    config = library.model_config(library.model_path("tiny"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert library.model(str(tmp_path)).sampling == "random"
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    assert library.model(str(tmp_path)).sampling == sampling


def test_where_it_has_no_effect_is_told() -> None:
    fixed = ["workload.sampling=greedy", "workload.num_requests=5"]
    fixed.append("latency={source: fixed, iteration_ms: 10}")
    scenario, origin = load_scenario("quickstart", fixed)
    warnings = forecast(scenario, origin=origin).summary["warnings"]
    assert "workload.sampling has no effect on a fixed latency" in warnings
