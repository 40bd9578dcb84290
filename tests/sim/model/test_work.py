"""Work of an iteration: counted from the shape, and never done faster than the roof allows."""

import numpy as np
import pytest

from sim.batch import Batch
from sim.latency.pipeline import roofline_latency
from sim.model.parallelism import Parallelism
from sim.model.work import Features, ModelWork
from tests.sim.latency.test_roofline import decodes, prefill, spec
from tests.sim.latency.test_spread_roofline import H200

PERFECT = {
    **dict.fromkeys(
        ("gemm_efficiency", "moe_efficiency", "attention_efficiency", "memory_efficiency",
         "attention_memory_efficiency", "link_efficiency"),
        1.0,
    ),
    "kernel_overheads": False, "host_per_iteration_s": 0.0, "host_per_sequence_s": 0.0,
}  # fmt: skip


def features(batch: Batch) -> Features:
    chunks = batch.prefills
    pairs = sum(c.new_tokens * (c.cached_tokens + (c.new_tokens + 1) / 2) for c in chunks)
    values = (
        batch.num_tokens, batch.num_emitting, sum(c.new_tokens for c in chunks), pairs,
        sum(c.cached_tokens for c in chunks), batch.num_decodes, batch.context_tokens,
    )  # fmt: skip
    return Features(*(np.array([float(value)]) for value in values))


def test_a_decode_of_llama_is_two_flops_a_weight_and_reads_weights_and_cache() -> None:
    model = spec("llama-3.1-8b")
    work = ModelWork(model, Parallelism()).of(features(decodes(1, 1000)))
    embedding = model.vocab_size * model.hidden_size
    norms = 65 * model.hidden_size
    products = model.num_parameters - embedding - norms
    attention = 1000 * 32 * 4 * 32 * 128
    assert work.flops[0] == pytest.approx(2 * products + attention)
    cache = 1000 * model.kv_bytes_per_token()
    assert work.moved_bytes[0] == pytest.approx(2 * products + cache, rel=1e-3)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"])
@pytest.mark.parametrize("degree", [1, 2])
def test_a_perfect_gpu_is_never_faster_than_the_work_allows(name: str, degree: int) -> None:
    model, parallelism = spec(name), Parallelism(degree)
    latency = roofline_latency(model, H200, parallelism=parallelism, **PERFECT)
    work = ModelWork(model, parallelism)
    for batch in (
        decodes(1, 10),
        decodes(200, 2000),
        prefill(16),
        prefill(4096),
        prefill(64, 8000),
    ):
        asked = work.of(features(batch))
        duration_s = latency.iteration_s(batch)
        peak = H200.peak_flops_per_s(model.weight_dtype)
        assert asked.flops[0] / peak <= duration_s * (1 + 1e-9)
        assert asked.flops[0] / asked.moved_bytes[0] > 0.5
    compute_bound = work.of(features(prefill(8192))).flops[0] / peak
    assert compute_bound > 0.5 * latency.iteration_s(prefill(8192)) or name == "deepseek-v3"


def test_gpus_that_share_an_iteration_share_its_work() -> None:
    model = spec("mixtral-8x7b")
    batch = features(prefill(4096))
    whole = ModelWork(model, Parallelism()).of(batch).flops[0]
    for degrees in ({"tensor_parallel": 4}, {"expert_parallel": 4}, {"sequence_parallel": 4}):
        share = ModelWork(model, Parallelism(**degrees)).of(batch).flops[0]
        assert share == pytest.approx(whole / 4, rel=0.01)


def test_ranks_that_share_out_contexts_score_as_many_keys_and_read_fewer() -> None:
    model, batch = spec("deepseek-v3"), features(decodes(4, 100_000))
    copied, shared = (
        ModelWork(model, Parallelism(8, decode_context_parallel=ranks)).of(batch)
        for ranks in (1, 8)
    )
    assert shared.flops[0] == copied.flops[0]
    context = 400_000 * model.kv_bytes_per_token()
    saved = copied.moved_bytes[0] - shared.moved_bytes[0]
    assert saved == pytest.approx(context * 7 / 8, rel=1e-3)
