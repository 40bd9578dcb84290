"""Models with windows and states, from a scenario to its records."""

from typing import Any

import numpy as np
import pytest

from orcast import simulate
from scenarios import library
from scenarios.forecast.typical_length import typical_tokens
from scenarios.schema.load import load_scenario
from sim.kv.memory import memory_budget

SMALL: dict[str, Any] = {"workload.num_requests": 60, "latency.source": "roofline"}
HYBRIDS = ["gpt-oss-20b", "qwen3.5-35b-a3b", "nemotron-3-nano", "mistral-7b-v0.1"]


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_leap_is_as_good_as_steps(name: str) -> None:
    settings = {**SMALL, "model": name}
    leap, step = simulate("quickstart", settings), simulate("quickstart", settings, step=True)
    for table in ("requests", "iterations"):
        first, second = getattr(leap.records, table), getattr(step.records, table)
        for column in first:
            assert np.array_equal(first[column], second[column]), column


def test_windows_and_states_are_spread_over_an_average_sequence() -> None:
    gpu = library.gpu("h200-sxm")
    gemma = library.model("gemma-3-27b")
    short, long = (memory_budget(gemma, gpu, sequence_tokens=n) for n in (1024, 32_768))
    assert short.bytes_per_block == 16 * (81_920 + 425_984)
    assert long.bytes_per_block == 16 * (81_920 + 425_984 // 32)
    dense = library.model("llama-3.1-8b")
    assert memory_budget(dense, gpu, sequence_tokens=1000) == memory_budget(dense, gpu)


def test_what_is_approximated_is_said() -> None:
    warnings = simulate("quickstart", {**SMALL, "model": "gemma-3-27b"}).summary["warnings"]
    assert any("keeps sliding 1,024 tokens a sequence beside 81,920 B" in w for w in warnings)
    assert any("image tower" in warning for warning in warnings)


def test_a_context_longer_than_the_model_knows_is_warned_of() -> None:
    settings = {**SMALL, "engine.max_model_len": 200_000}
    warnings = simulate("quickstart", settings).summary["warnings"]
    assert any("longer than the 131,072 positions" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("prompt", "output", "tokens"),
    [
        ("{distribution: fixed, tokens: 100}", "{distribution: fixed, tokens: 20}", 120),
        ("{distribution: uniform, min: 10, max: 30}", "{distribution: fixed, tokens: 20}", 40),
        ("{distribution: empirical, values: [1, 3]}", "{distribution: fixed, tokens: 20}", 22),
        (
            "{distribution: lognormal, sigma: 1, mean: 500, max: 400}",
            "{distribution: fixed, tokens: 20}",
            420,
        ),
    ],
)
def test_the_average_sequence_is_that_of_the_workload(
    prompt: str, output: str, tokens: int
) -> None:
    settings = [f"workload.lengths.prompt={prompt}", f"workload.lengths.output={output}"]
    scenario, _ = load_scenario("quickstart", settings)
    assert typical_tokens(scenario.workload, 10_000) == tokens
    assert typical_tokens(scenario.workload, 30) == min(tokens, 30)


@pytest.mark.parametrize("weights", ["nvfp4", "mxfp4", "fp4", "int8"])
def test_weights_of_few_bits_are_served_from_a_scenario(weights: str) -> None:
    plain = simulate("quickstart", SMALL).summary
    few = simulate("quickstart", {**SMALL, "engine.weight_dtype": weights}).summary
    assert few["mean_tpot_ms"] < plain["mean_tpot_ms"]
