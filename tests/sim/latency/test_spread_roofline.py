"""The analytic latency of ranks that share out tokens, and of stages in a row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.batch import Batch
from sim.latency.pipeline import PipelineLatency, roofline_latency
from sim.latency.roofline import RooflineLatency
from sim.latency.spread_roofline import SpreadRoofline
from sim.latency.traffic import traffic
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Gpu, Interconnect
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec
from tests.sim.latency.test_roofline import GPUS, IDEAL, chunk, decodes, prefill, records, spec

H200 = Gpu.from_mapping(GPUS["h200-sxm"], name="h200-sxm")
SLOW = Interconnect(1e8, 1e-6, 1e8, 1e-6)  # so slow that the bytes are all that counts
SLOWER = Interconnect(0.5e8, 1e-6, 0.5e8, 1e-6)


def spread(model: str | ModelSpec, *, settings: Any = None, **degrees: Any) -> Any:
    shape = spec(model) if isinstance(model, str) else model
    return roofline_latency(shape, H200, parallelism=Parallelism(**degrees), **(settings or {}))


def even(name: str) -> ModelSpec:
    """A mixture whose tokens go to all experts: every rank is sent the same."""
    model = spec(name)
    runs = []
    for layer, count in model.runs:
        assert layer.moe is not None
        every = replace(layer.moe, experts_per_token=layer.moe.num_experts)
        runs.append((replace(layer, moe=every), count))
    return model.with_layers(runs)


KINDS: dict[str, tuple[str | ModelSpec, dict[str, Any]]] = {
    "tensor": ("llama-3.1-8b", {"tensor_parallel": 4}),
    "tensor over nodes": ("llama-3.1-8b", {"tensor_parallel": 8, "gpus_per_node": 4}),
    "decode context": (
        "qwen3-30b-a3b", {"tensor_parallel": 16, "decode_context_parallel": 4, "gpus_per_node": 16},
    ),
    "decode context over nodes": (
        "deepseek-v3",
        {"tensor_parallel": 8, "decode_context_parallel": 8, "gpus_per_node": 4},
    ),
    "ulysses": ("llama-3.1-8b", {"sequence_parallel": 4}),
    "ring": ("llama-3.1-8b", {"sequence_parallel": 4, "sequence_kind": "ring"}),
    "expert": (even("mixtral-8x7b"), {"expert_parallel": 4}),
    "data": (even("mixtral-8x7b"), {"expert_parallel": 4, "data_parallel": 4}),
    "data of tensor": (
        even("mixtral-8x7b"),
        {"expert_parallel": 8, "data_parallel": 4, "tensor_parallel": 2, "gpus_per_node": 4},
    ),
    "pipeline": ("llama-3.1-8b", {"pipeline_parallel": 4}),
    "all of them": (
        even("mixtral-8x7b"),
        {"tensor_parallel": 2, "sequence_parallel": 2, "expert_parallel": 2,
         "pipeline_parallel": 2, "gpus_per_node": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", ["prefill", "decode"])
def test_the_time_on_links_is_that_of_the_bytes_in_closed_form(kind: str, work: str) -> None:
    model, degrees = KINDS[kind]
    batch = prefill(4096) if work == "prefill" else decodes(256, 64)
    if degrees.get("expert_parallel") and work == "prefill":
        batch = Batch(prefills=[chunk(1024)] * 4, num_tokens=4096, num_emitting=4, num_seqs=4)
    batch.all_tokens = batch.num_tokens * degrees.get("data_parallel", 0)
    settings = {**IDEAL, "gemm_efficiency": 1.0}
    fast, slow = (
        spread(model, settings={**settings, "interconnect": link}, **degrees).iteration_s(batch)
        for link in (SLOW, SLOWER)
    )
    shape = spec(model) if isinstance(model, str) else model
    sent = traffic(shape, Parallelism(**degrees), batch)
    assert sent
    total = sum(one.bytes_sent for one in sent.values())
    if kind == "ring" and work == "prefill":  # one of the passes' steps hides behind attention
        assert (slow - fast) * 1e8 == pytest.approx(total, rel=1e-3)
    else:
        assert (slow - fast) * 1e8 == pytest.approx(total, rel=1e-6)


SPREAD = {
    "ulysses": spread("llama-3.1-8b", sequence_parallel=4),
    "decode context": spread("llama-3.1-70b", tensor_parallel=16, decode_context_parallel=2),
    "stages of contexts": spread(
        "deepseek-v2-lite", tensor_parallel=4, decode_context_parallel=4, pipeline_parallel=2
    ),
    "ring": spread("llama-3.1-70b", tensor_parallel=2, sequence_parallel=8, sequence_kind="ring"),
    "expert": spread("qwen3-30b-a3b", expert_parallel=4),
    "latent": spread("deepseek-v3", expert_parallel=8, sequence_parallel=2, sequence_kind="ring"),
    "stages": spread("llama-3.1-8b", pipeline_parallel=3),
    "spread stages": spread("mixtral-8x7b", pipeline_parallel=4, expert_parallel=2),
}
EACH = pytest.mark.parametrize("name", SPREAD)


@EACH
@pytest.mark.parametrize("sequences", [1, 7, 256])
def test_a_run_of_decodes_is_the_sum_of_its_iterations_to_the_bit(
    name: str, sequences: int
) -> None:
    model, context = SPREAD[name], 300
    work, now_s, expected = decodes(sequences, context), 0.125, []
    for _ in range(20):
        now_s += model.iteration_s(work)
        expected.append(now_s)
        work.context_tokens += sequences
    start = decodes(sequences, context)
    assert model.run_ends_s(start, 0.125, 20, float("inf")) == expected
    assert model.run_ends_s(start, 0.125, 20, expected[4]) == expected[:5]


@EACH
def test_parts_of_recorded_iterations_add_up_to_their_durations(name: str) -> None:
    model = SPREAD[name]
    works = [decodes(1, 10), decodes(250, 3000), prefill(4000), prefill(100, 9000)]
    columns = records(model, works)
    columns["prefill_tokens"] = np.array([sum(c.new_tokens for c in w.prefills) for w in works])
    parts = model.parts_s(columns)
    assert all((seconds >= 0).all() for seconds in parts.values())
    np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), columns["duration_s"])
    assert parts["communication"].min() > 0
    classes = model.operators_s(columns)
    np.testing.assert_allclose(np.sum(list(classes.values()), axis=0), columns["duration_s"])
    sent = sum(classes.get(name, 0.0) for name in ("all_reduce", "all_to_all", "gather_and_send"))
    np.testing.assert_allclose(sent, parts["communication"])


@pytest.mark.parametrize(
    ("kind", "sends"),
    [("tensor", "all_reduce"), ("ulysses", "all_to_all"), ("expert", "all_to_all"),
     ("pipeline", "gather_and_send")],
)  # fmt: skip
def test_time_on_links_is_of_the_collective_that_each_kind_uses(kind: str, sends: str) -> None:
    given, degrees = KINDS[kind]
    model = spread(given, **degrees)
    columns = records(model, [decodes(64, 1000)])
    columns["prefill_tokens"] = np.zeros(1, dtype=int)
    classes = model.operators_s(columns)
    found = {name for name in ("all_reduce", "all_to_all", "gather_and_send") if classes[name] > 0}
    assert found == {sends} | ({"gather_and_send"} if kind == "tensor" else set())


@EACH
def test_beyond_the_tables_the_same_formulas_hold(name: str) -> None:
    model = SPREAD[name]
    stage: Any = model.stages[0] if isinstance(model, PipelineLatency) else model
    small = type(stage)(
        stage.model,
        H200,
        parallelism=stage.parallelism,
        last_stage=not isinstance(model, PipelineLatency),
        max_num_batched_tokens=8,
        max_num_seqs=2,
    )
    for work in (decodes(200, 700), prefill(3000), decodes(5, 5)):
        assert small.iteration_s(work) == pytest.approx(stage.iteration_s(work), rel=1e-9)


# -- sequence parallelism -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_a_long_prompt_is_nearly_s_times_as_fast(kind: str) -> None:
    alone = spread("llama-3.1-8b").iteration_s(prefill(100_000))
    split = spread("llama-3.1-8b", sequence_parallel=8, sequence_kind=kind)
    assert 6.5 < alone / split.iteration_s(prefill(100_000)) < 8


def test_the_ring_hides_behind_attention_when_prompts_are_long() -> None:
    def share(new: int) -> float:
        """Of a prompt's time, what a ring adds to a link without limits."""
        degrees: dict[str, Any] = {"sequence_parallel": 8, "sequence_kind": "ring"}
        link = replace(H200.interconnect, bytes_per_s=2e10)
        free = replace(H200.interconnect, bytes_per_s=1e18, latency_s=1e-12)
        real, ideal = (
            spread("llama-3.1-8b", settings={"interconnect": each}, **degrees)
            for each in (link, free)
        )
        return float(real.iteration_s(prefill(new)) / ideal.iteration_s(prefill(new)) - 1)

    assert share(200_000) < 0.01 < 0.2 < share(4_000)


def test_a_decode_reads_its_context_from_all_ranks_at_once() -> None:
    one, eight = (
        spread("llama-3.1-8b", settings=IDEAL, sequence_parallel=ranks) for ranks in (1, 8)
    )
    extra = [
        model.iteration_s(decodes(4, 100_000)) - model.iteration_s(decodes(4, 1_000))
        for model in (one, eight)
    ]
    assert extra[0] / extra[1] == pytest.approx(8)


# -- expert parallelism ---------------------------------------------------------------------------


def test_weights_of_experts_are_read_by_all_ranks_at_once() -> None:
    """Decoding many sequences, a mixture is bound by its experts' weights."""
    one, eight = (
        spread("qwen3-30b-a3b", settings=IDEAL, expert_parallel=ranks) for ranks in (1, 8)
    )
    parts = [model.known_parts_s(_columns(model, decodes(64, 10))) for model in (one, eight)]
    assert parts[0]["moe"][0] / parts[1]["moe"][0] == pytest.approx(8, rel=0.02)


def test_one_long_prompt_keeps_its_group_busy_and_no_other() -> None:
    model = spread("deepseek-v3", expert_parallel=8)
    assert isinstance(model, SpreadRoofline)
    assert model.rank_tokens(prefill(4096)) == 4096
    assert model.rank_tokens(decodes(4096, 10)) == 512
    short = Batch(prefills=[chunk(512)] * 8, num_tokens=4096, num_emitting=8, num_seqs=8)
    assert model.rank_tokens(short) == 512
    assert model.iteration_s(short) < 0.5 * model.iteration_s(prefill(4096))


def test_skewed_experts_make_the_slowest_rank_slower() -> None:
    rng = np.random.default_rng(0)
    skewed = ExpertRouting.zipf(128, 8, exponent=1.0, rng=rng)
    even_s, skewed_s = (
        spread("qwen3-30b-a3b", settings={"routing": routing}, expert_parallel=8).iteration_s(
            decodes(1024, 500)
        )
        for routing in (None, skewed)
    )
    assert skewed_s > 1.05 * even_s


def test_on_one_gpu_skew_activates_fewer_experts_and_saves_time() -> None:
    rng = np.random.default_rng(0)
    skewed = ExpertRouting.zipf(128, 8, exponent=1.0, rng=rng)
    even_s, skewed_s = (
        spread("qwen3-30b-a3b", settings={"routing": routing}).iteration_s(decodes(16, 500))
        for routing in (None, skewed)
    )
    assert skewed_s < 0.95 * even_s


# -- stages ---------------------------------------------------------------------------------------


def test_stages_together_take_as_long_as_the_whole_and_their_sends() -> None:
    whole = spread("llama-3.1-8b")
    staged = spread("llama-3.1-8b", pipeline_parallel=4)
    for work in (decodes(64, 1000), prefill(2000)):
        stages_s, sends_s = staged.stages_s(work), staged.sends_s(work)
        assert sum(stages_s) == pytest.approx(whole.iteration_s(work), rel=1e-9)
        assert len(sends_s) == 3
        assert staged.iteration_s(work) == pytest.approx(sum(stages_s) + sum(sends_s))


def test_sends_between_nodes_take_the_link_between_nodes() -> None:
    staged = spread("llama-3.1-8b", pipeline_parallel=4, gpus_per_node=2)
    inside, across, _ = staged.sends_s(prefill(8192))
    ratio = H200.interconnect.bytes_per_s / H200.interconnect.inter_node_bytes_per_s
    assert across / inside == pytest.approx(ratio, rel=0.15)


def test_tensor_parallelism_over_nodes_is_slower_than_within_one() -> None:
    work = decodes(128, 1000)
    within, over = (
        spread("llama-3.1-70b", tensor_parallel=8, gpus_per_node=node).iteration_s(work)
        for node in (8, 2)
    )
    assert over > 1.1 * within


def test_a_fixed_duration_is_shared_among_stages() -> None:
    fixed = PipelineLatency.fixed(0.4, 4)
    assert fixed.stages_s(decodes(1, 1)) == [0.1] * 4
    assert fixed.iteration_s(decodes(1, 1)) == pytest.approx(0.4)
    assert not fixed.measured


# -- quantised weights ----------------------------------------------------------------------------


def test_one_sequence_decodes_at_the_rate_of_its_weights_bytes() -> None:
    model = spec("llama-3.1-70b")
    table = 2 * model.vocab_size * model.hidden_size  # the embedding is only looked up
    for kind in ("bf16", "fp8", "int4"):
        quantised = model.quantised(kind)
        streamed_s = (quantised.weight_bytes() - table) / 4.8e12
        latency = RooflineLatency(quantised, H200, **IDEAL)
        assert latency.iteration_s(decodes(1, 1)) == pytest.approx(streamed_s, rel=0.005)


def test_a_long_prompt_is_computed_at_the_rate_of_its_weights_type() -> None:
    model = spec("llama-3.1-70b")

    def linear_s(kind: str, gpu: str) -> float:
        latency = RooflineLatency(
            model.quantised(kind), Gpu.from_mapping(GPUS[gpu], name=gpu), **IDEAL
        )
        return float(latency.known_parts_s(_columns(latency, prefill(4096)))["linear"][0])

    sixteen_s = linear_s("bf16", "h200-sxm")
    assert 1.9 < sixteen_s / linear_s("fp8", "h200-sxm") <= 2, "norms and the like stay"
    assert sixteen_s / linear_s("int4", "h200-sxm") == pytest.approx(0.95, rel=0.01)
    old = [linear_s(kind, "a100-80gb") for kind in ("bf16", "fp8")]
    assert old[0] == pytest.approx(old[1], rel=0.01), "an A100 has no 8-bit products"


def _columns(model: RooflineLatency, work: Batch) -> dict[str, np.ndarray]:
    columns = records(model, [work])
    columns["prefill_tokens"] = np.array([sum(c.new_tokens for c in work.prefills)])
    return columns
