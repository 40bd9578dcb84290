"""The analytic latency at its limits, its monotonicity, and its exactness between modes."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sim.batch import Batch, PrefillChunk
from sim.latency.padding import padded
from sim.latency.protocol import OPERATORS, LatencyModel
from sim.latency.roofline import RooflineLatency
from sim.model.config import read_config
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec
from sim.request import Request

SCENARIOS = Path(__file__).parents[3] / "scenarios"
GPUS = yaml.safe_load((SCENARIOS / "gpus.yaml").read_text())


def chunk(new: int, cached: int = 0) -> PrefillChunk:
    request = Request(0, 0.0, prompt_tokens=new + cached, output_tokens=1, max_tokens=1)
    return PrefillChunk(request, new_tokens=new, cached_tokens=cached)


def decodes(sequences: int, context: int) -> Batch:
    return Batch(
        num_decodes=sequences,
        context_tokens=sequences * context,
        num_tokens=sequences,
        num_emitting=sequences,
        num_seqs=sequences,
    )


def prefill(new: int, cached: int = 0) -> Batch:
    return Batch(prefills=[chunk(new, cached)], num_tokens=new, num_emitting=1, num_seqs=1)


@cache
def spec(name: str) -> ModelSpec:
    text = (SCENARIOS / "models" / f"{name}.json").read_text()
    return read_config(json.loads(text), name=name)


def latency(model: str = "llama-3.1-8b", gpu: str = "h200-sxm", **settings: Any) -> RooflineLatency:
    return RooflineLatency(spec(model), Gpu.from_mapping(GPUS[gpu], name=gpu), **settings)


# No overheads, perfect efficiency: what the datasheet alone says.
IDEAL: dict[str, Any] = {
    "gemm_efficiency": 1.0,
    "moe_efficiency": 1.0,
    "attention_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "attention_memory_efficiency": 1.0,
    "link_efficiency": 1.0,
    "kernel_overheads": False,
    "host_per_iteration_s": 0.0,
    "host_per_sequence_s": 0.0,
}

SHARED = {
    "llama": latency(),
    "moe": latency("qwen3-30b-a3b", tensor_parallel=2),
    "mla": latency("deepseek-v3", tensor_parallel=8),
}
EACH = pytest.mark.parametrize("name", SHARED)


def test_decode_of_one_approaches_streaming_the_weights() -> None:
    model = spec("llama-3.1-8b")
    streamed = model.weight_bytes() - 128256 * 4096 * 2  # the embedding table is only looked up
    assert latency(**IDEAL).iteration_s(decodes(1, 16)) == pytest.approx(
        streamed / 4.8e12, rel=0.005
    )


def test_long_prefill_approaches_the_peak() -> None:
    model = spec("llama-3.1-8b")
    flops = sum(op.flops(8192) for op in model.linear_operations())
    flops += 4 * 32 * 128 * 32 * 8192 * 8193 // 2 + 2 * 128256 * 4096
    ideal_s = flops / 989.4e12
    full_s = latency(**IDEAL).iteration_s(prefill(8192))
    assert ideal_s < full_s < 1.08 * ideal_s  # norms and activations move bytes besides
    half = latency(**{**IDEAL, "gemm_efficiency": 0.5, "attention_efficiency": 0.5})
    assert half.iteration_s(prefill(8192)) - full_s == pytest.approx(ideal_s, rel=1e-3)


def test_long_contexts_approach_streaming_the_cache() -> None:
    model = latency(**IDEAL)
    more, less = (model.iteration_s(decodes(64, context)) for context in (9000, 1000))
    assert more - less == pytest.approx(64 * 8000 * 131_072 / 4.8e12, rel=1e-9)


@pytest.mark.parametrize(("sequences", "floor_ms"), [(1, 4.5), (32, 5.9), (128, 9.3), (256, 14.8)])
def test_defaults_reach_the_published_step_floors_of_an_h200(
    sequences: int, floor_ms: float
) -> None:
    # The floors count matrix products and attention only, at context 1,024.
    model = latency(host_per_iteration_s=0.0, host_per_sequence_s=0.0)
    got_ms = 1e3 * model.iteration_s(decodes(sequences, 1024))
    assert floor_ms < got_ms < 1.2 * floor_ms


def test_few_tokens_touch_few_experts() -> None:
    moe = latency("qwen3-30b-a3b", **IDEAL)
    experts_bytes = 2 * 3 * 2048 * 768 * 48
    extra_s = moe.iteration_s(decodes(2, 1)) - moe.iteration_s(decodes(1, 1))
    touched = 128 * (1 - (15 / 16) ** 2) - 8
    assert extra_s == pytest.approx(touched * experts_bytes / 4.8e12, rel=0.01)


def test_float8_weights_stream_in_half_the_time() -> None:
    dense = spec("llama-3.1-8b").quantised("fp8")
    gpu = Gpu.from_mapping(GPUS["h200-sxm"], name="h200-sxm")
    half = RooflineLatency(dense, gpu, **IDEAL).iteration_s(decodes(1, 1))
    head = 128256 * 4096 * 2 / 4.8e12  # stays in 16 bits
    full = latency(**IDEAL).iteration_s(decodes(1, 1))
    assert half - head == pytest.approx((full - head) / 2, rel=0.005)


def test_absorbed_latent_attention_is_bound_by_compute_or_cache_whichever_is_slower() -> None:
    mla = latency("deepseek-v3", tensor_parallel=1, **IDEAL)
    per_token_s = mla.iteration_s(decodes(8, 2000)) - mla.iteration_s(decodes(8, 1000))
    flops = 61 * 2 * 128 * (576 + 512)
    assert per_token_s / 8000 == pytest.approx(max(flops / 989.4e12, 61 * 1152 / 4.8e12), rel=1e-6)


def test_cached_latents_are_expanded_again_by_a_later_chunk() -> None:
    mla = latency("deepseek-v3", tensor_parallel=1, **IDEAL)
    extra_s = mla.iteration_s(prefill(512, 4096)) - mla.iteration_s(prefill(512))
    pairs = 61 * 2 * 128 * (192 + 128) * 512 * 4096
    expansion = 61 * 2 * 512 * 128 * 256 * 4096
    assert extra_s == pytest.approx((pairs + expansion) / 989.4e12, rel=1e-6)


def test_splitting_over_gpus_helps_and_is_never_free() -> None:
    one, eight = (latency("llama-3.1-70b", tensor_parallel=tp) for tp in (1, 8))
    work = decodes(64, 1000)
    assert one.iteration_s(work) / 8 < eight.iteration_s(work) < one.iteration_s(work)


def test_swapped_blocks_cross_the_host_link() -> None:
    model = latency(block_size=32)
    work = decodes(4, 100)
    extra_s = model.iteration_s(replace(work, swap_in_blocks=3, swap_out_blocks=2))
    extra_s -= model.iteration_s(work)
    assert extra_s == pytest.approx(5 * 32 * 131_072 / (0.8 * 63e9), rel=1e-9)


@EACH
@given(
    sequences=st.integers(1, 256),
    context=st.integers(1, 20_000),
    padding=st.integers(0, 64),
    iterations=st.integers(1, 40),
)
def test_a_run_of_decodes_has_the_very_bits_of_its_iterations(
    name: str, sequences: int, context: int, padding: int, iterations: int
) -> None:
    model = SHARED[name]
    work = replace(decodes(sequences, context), num_tokens=sequences + padding)
    now_s, ends_s = 3.7, []
    for j in range(iterations):
        step = replace(work, context_tokens=work.context_tokens + j * sequences)
        now_s += model.iteration_s(step)
        ends_s.append(now_s)
    assert model.run_ends_s(work, 3.7, iterations, float("inf")) == ends_s
    assert model.run_ends_s(work, 3.7, iterations, ends_s[0]) == ends_s[:1]


@EACH
@given(
    new=st.integers(1, 8000),
    cached=st.integers(0, 9000),
    sequences=st.integers(0, 200),
    context=st.integers(1, 4000),
    more=st.integers(1, 100),
)
def test_more_of_anything_never_takes_less_time(
    name: str, new: int, cached: int, sequences: int, context: int, more: int
) -> None:
    model = SHARED[name]
    work = replace(
        decodes(sequences, context),
        prefills=[chunk(new, cached)],
        num_tokens=new + sequences,
        num_emitting=sequences,
        num_seqs=sequences + 1,
    )
    base_s = model.iteration_s(work)
    for changes in (
        {"num_tokens": work.num_tokens + more},
        {"num_emitting": work.num_emitting + more},
        {"num_seqs": work.num_seqs + more},
        {"num_decodes": work.num_decodes + more},
        {"context_tokens": work.context_tokens + more},
        {"prefills": [chunk(new + more, cached)]},
        {"prefills": [chunk(new, cached + more)]},
        {"prefills": [chunk(new, cached), chunk(more)]},
        {"swap_in_blocks": more},
        {"swap_out_blocks": more},
    ):
        assert model.iteration_s(replace(work, **changes)) >= base_s


@EACH
def test_beyond_the_tables_the_same_formulas_hold(name: str) -> None:
    model = SHARED[name]
    small = RooflineLatency(
        model.model,
        model.gpu,
        tensor_parallel=model.tensor_parallel,
        max_num_batched_tokens=16,
        max_num_seqs=4,
    )
    for work in (decodes(200, 700), prefill(3000), decodes(5, 5)):
        assert small.iteration_s(work) == pytest.approx(model.iteration_s(work), rel=1e-12)


def records(model: RooflineLatency, works: list[Batch]) -> dict[str, np.ndarray]:
    return {
        "duration_s": np.array([model.iteration_s(work) for work in works]),
        "prefill_seqs": np.array([len(work.prefills) for work in works]),
        "decode_seqs": np.array([work.num_decodes for work in works]),
        "num_tokens": np.array([work.num_tokens for work in works]),
        "context_tokens": np.array([work.context_tokens for work in works]),
        "num_emitting": np.array([work.num_emitting for work in works]),
        "num_seqs": np.array([work.num_seqs for work in works]),
        "swap_blocks": np.array([work.swap_in_blocks + work.swap_out_blocks for work in works]),
    }


@EACH
def test_parts_of_recorded_iterations_add_up_to_their_durations(name: str) -> None:
    model = SHARED[name]
    works = [decodes(1, 10), decodes(250, 3000), prefill(4000), prefill(100, 9000)]
    columns = records(model, works)
    parts = model.parts_s(columns)
    expected = {"linear", "attention", "logits", "communication", "host"}
    assert set(parts) == (expected if name == "llama" else expected | {"moe"})
    assert all(np.all(value >= 0) and value.dtype == np.float64 for value in parts.values())
    np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), columns["duration_s"])


@EACH
def test_operators_of_recorded_iterations_add_up_to_their_durations(name: str) -> None:
    model = SHARED[name]
    works = [decodes(1, 10), decodes(250, 3000), prefill(4000), prefill(100, 9000)]
    columns = records(model, works)
    classes, parts = model.operators_s(columns), model.parts_s(columns)
    assert set(classes) <= set(OPERATORS)
    assert all(np.all(value >= 0) for value in classes.values())
    np.testing.assert_allclose(np.sum(list(classes.values()), axis=0), columns["duration_s"])
    np.testing.assert_allclose(classes["attention"], parts["attention"], atol=1e-15)
    products = classes["contractions"] + classes["elementwise"] + classes["sampling"]
    np.testing.assert_allclose(products, parts["linear"] + parts["logits"])
    # 64 norms, rotaries and activations of 4,000 tokens move more than those of one.
    assert classes["elementwise"][2] > classes["elementwise"][0] > 0


def test_swapped_blocks_are_a_part_of_their_own() -> None:
    model = latency()
    columns = records(model, [replace(decodes(8, 1000), swap_out_blocks=50), decodes(8, 1000)])
    parts = model.parts_s(columns)
    assert parts["swap"][0] > 0.0 == parts["swap"][1]
    np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), columns["duration_s"])


def test_attention_is_recovered_from_a_record_of_decodes() -> None:
    model = latency()
    works = [decodes(128, 1000), decodes(128, 2000)]
    attention = model.parts_s(records(model, works))["attention"]
    seconds = attention[1] - attention[0]
    assert seconds == pytest.approx(128_000 * 131_072 / (4.8e12 * 0.9), rel=1e-9)


def test_communication_appears_only_between_gpus() -> None:
    one, two = (latency(tensor_parallel=tp) for tp in (1, 2))
    work = [decodes(8, 8)]
    assert one.parts_s(records(one, work))["communication"].tolist() == [0.0]
    assert two.parts_s(records(two, work))["communication"][0] > 65 * 4e-6


def test_it_is_labelled_as_unmeasured() -> None:
    model: LatencyModel = latency()  # the protocol, for the type checker
    assert model.measured is False
    assert latency().label == "roofline (analytic, unmeasured): llama-3.1-8b on h200-sxm"
    assert latency(tensor_parallel=2).label.endswith("on h200-sxm x 2")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gemm_efficiency": 0.0}, "gemm_efficiency must be above 0 and at most 1"),
        ({"memory_efficiency": float("nan")}, "memory_efficiency must be above 0"),
        ({"attention_efficiency": 1.1}, "attention_efficiency must be above 0"),
        ({"host_per_iteration_s": -1.0}, "host_per_iteration_s must be a finite number"),
        ({"host_per_sequence_s": float("inf")}, "host_per_sequence_s must be a finite"),
        ({"tensor_parallel": 5}, "does not divide its 32 attention heads"),
        ({"kv_cache_dtype": "fp5"}, "unknown kv_cache_dtype 'fp5'"),
    ],
)
def test_bad_setting_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        latency(**settings)


def test_batches_are_padded_to_captured_sizes_as_tables_pad_them() -> None:
    plain, graphs = latency(), latency(capture_sizes=(8, 64))
    assert graphs.iteration_s(prefill(9)) > plain.iteration_s(prefill(9))
    one, eight = (graphs.known_parts_s(records(graphs, [decodes(n, 64)])) for n in (1, 8))
    assert one["linear"] == eight["linear"]
    assert graphs.iteration_s(prefill(65)) == plain.iteration_s(prefill(65))
    assert padded(np.array([0, 1, 8, 9, 65]), (8, 64)).tolist() == [0, 8, 8, 64, 65]
