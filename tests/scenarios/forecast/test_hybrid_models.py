"""Models with windows and states, from a scenario to its records."""

from typing import Any

import numpy as np
import pytest

from orcast import simulate
from scenarios import library
from scenarios.forecast.memory import sequence_bytes
from sim.kv.layout import cache_layout
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


@pytest.mark.parametrize(
    ("name", "block_size", "block_bytes", "tables"),
    [
        ("gpt-oss-120b", 16, 16 * 36_864, ["sliding 128 1", "full 0 1"]),
        ("gemma-3-27b", 16, 16 * 81_920, ["sliding 1024 6", "full 0 1"]),
        ("gemma-3-4b", 16, 16 * 20_480, ["sliding 1024 6", "full 0 1"]),
        ("llama-4-scout", 16, 16 * 49_152, ["chunked 8192 3", "full 0 1"]),
        ("mistral-7b-v0.1", 16, 16 * 131_072, ["sliding 4096 1"]),
        ("qwen3.5-35b-a3b", 1056, 1056 * 20_480, ["full 0 1", "state 0 3"]),
        ("deepseek-v2-lite", 16, 16 * 31_104, []),
    ],
)
def test_layers_share_out_blocks_as_in_vllm(
    name: str, block_size: int, block_bytes: int, tables: list[str]
) -> None:
    """Types of layers are dealt out to tables of equally many; a block of any takes the same."""
    layout = cache_layout(library.model(name))
    assert (layout.block_size, layout.block_bytes) == (block_size, block_bytes)
    rules = [f"{rule.kind} {rule.window} {rule.tables}" for rule in layout.rules]
    assert rules == tables


def test_windows_are_held_to_their_length_and_no_more() -> None:
    layout = cache_layout(library.model("gemma-3-27b"))
    windows = layout.rules[0]
    most = windows.most_blocks(100_000, 16, 1) * layout.block_bytes * windows.tables
    assert most == pytest.approx(416 * 2**20 * 60 / 52, rel=0.02), "six tables of ten layers"
    held = layout.blocks_held(100_000) * layout.block_bytes
    assert held == pytest.approx(100_000 * 81_920 + most, rel=0.001)


@pytest.mark.parametrize("name", ["gemma-4-26b-a4b", "deepseek-v4-flash"])
def test_layers_of_unequal_pages_take_their_bytes(name: str) -> None:
    model = library.model(name)
    layout = cache_layout(model)
    for tokens in (4096, 32_768):
        held = layout.blocks_held(tokens) * layout.block_bytes
        assert held == pytest.approx(model.kv_bytes(tokens), rel=0.02)


def test_a_stage_of_a_pipeline_pays_for_its_own_layers() -> None:
    model = library.model("gpt-oss-120b")
    stages = [cache_layout(model, stage=stage) for stage in model.stages(4)]
    assert {layout.rules for layout in stages} == {cache_layout(model).rules}
    assert sum(layout.block_bytes for layout in stages) == pytest.approx(16 * 36_864, rel=0.12)


def test_an_engine_without_a_hybrid_cache_keeps_every_token() -> None:
    gpu, gemma = library.gpu("h200-sxm"), library.model("gemma-3-27b")
    whole = memory_budget(gemma, gpu, by_groups=False)
    assert whole.layout is None
    assert whole.bytes_per_block == 16 * (81_920 + 425_984)
    qwen = library.model("qwen3.5-35b-a3b")
    states = memory_budget(qwen, gpu, by_groups=False, max_num_seqs=10)
    assert states.bytes_per_block == 16 * 20_480
    assert states.state_bytes == 10 * qwen.state_bytes()


def test_the_most_blocks_of_each_group_are_told() -> None:
    length = {"distribution": "fixed", "tokens": 4000}
    settings = {**SMALL, "model": "gpt-oss-20b", "workload.lengths.prompt": length}
    windows, full = simulate("quickstart", settings).summary["kv_groups"]
    assert (windows["kind"], windows["tables"], windows["window"]) == ("sliding 128", 1, 128)
    assert (full["kind"], full["layers"], full["window"]) == ("full", 12, None)
    assert 0 < windows["most_blocks"] < full["most_blocks"]


def test_what_an_engine_makes_of_a_hybrid_model_is_said() -> None:
    warnings = simulate("quickstart", {**SMALL, "model": "gemma-3-27b"}).summary["warnings"]
    assert any("image tower" in warning for warning in warnings)
    assert not any("every layer keeps" in warning for warning in warnings)
    for setting in (
        {"engine.scheduler": "orca"},
        {"engine.kv_offloading_size_gib": 4},
        {"engine.disable_hybrid_kv_cache_manager": True},
    ):
        given = {**SMALL, "model": "gemma-3-27b", **setting}
        warnings = simulate("quickstart", given).summary["warnings"]
        assert any("every layer keeps every token" in warning for warning in warnings)
    states = {**SMALL, "model": "qwen3.5-35b-a3b"}
    warnings = simulate("quickstart", states).summary["warnings"]
    assert any("KV blocks of 1,056 tokens" in warning for warning in warnings)
    assert not any("no prefix is found again" in warning for warning in warnings)
    drafts = {"method": "ngram", "num_draft_tokens": 2, "acceptance": {"rate": 0.5}}
    warnings = simulate("quickstart", {**states, "speculation": drafts}).summary["warnings"]
    assert any("no prefix is found again" in warning for warning in warnings)


def test_prefixes_are_found_again_beside_states() -> None:
    prefixes = {"num_prefixes": 2, "tokens": 3000}
    settings = {
        **SMALL,
        "model": "qwen3.5-35b-a3b",
        "workload.shared_prefixes": prefixes,
        "workload.lengths.prompt": {"distribution": "fixed", "tokens": 3500},
    }
    cached = simulate("quickstart", settings).records.requests["cached_tokens"]
    assert set(cached) == {0, 2112}, "two whole blocks of 1,056 tokens"
    assert (cached > 0).mean() > 0.8


def test_a_context_longer_than_the_model_knows_is_warned_of() -> None:
    settings = {**SMALL, "engine.max_model_len": 200_000}
    warnings = simulate("quickstart", settings).summary["warnings"]
    assert any("longer than the 131,072 positions" in warning for warning in warnings)


def test_what_is_sent_from_pool_to_pool_has_windows_no_longer_than_they_are() -> None:
    gemma, llama = library.model("gemma-3-27b"), library.model("llama-3.1-8b")
    sent = sequence_bytes(gemma, "auto")
    assert sequence_bytes(llama, "auto") is None, "as much for every token"
    assert sent is not None
    assert sent(100) == 100 * (81_920 + 425_984)
    assert sent(10_000) == 10_000 * 81_920 + 416 * 2**20


@pytest.mark.parametrize("weights", ["nvfp4", "mxfp4", "fp4", "int8"])
def test_weights_of_few_bits_are_served_from_a_scenario(weights: str) -> None:
    plain = simulate("quickstart", SMALL).summary
    few = simulate("quickstart", {**SMALL, "engine.weight_dtype": weights}).summary
    assert few["mean_tpot_ms"] < plain["mean_tpot_ms"]
