"""What drafting and verification cost, and the memory that a draft takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scenarios import library
from sim.batch import Batch, PrefillChunk, Verification
from sim.engine.simulation import simulate
from sim.kv.memory import memory_budget
from sim.latency.protocol import FixedLatency
from sim.latency.roofline import RooflineLatency
from sim.model.spec import ModelSpec
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.speculation.drafting import (
    FixedDraft,
    HeadsDraft,
    HostDraft,
    LayersDraft,
    ModelDraft,
    Projection,
)
from sim.speculation.latency import SpeculativeLatency
from sim.speculation.memory import share_memory
from tests.sim.speculation.speculating import requests, speculation

TARGET, DRAFT = "llama-3.1-8b", "llama-3.2-1b"


def roofline(model: ModelSpec | str, **given: float) -> RooflineLatency:
    spec = library.model(model) if isinstance(model, str) else model
    return RooflineLatency(spec, library.gpu("h100-sxm"), **given)  # type: ignore[arg-type]


def verifying(seqs: int = 4, stored: int = 500, queries: int = 5, **more: object) -> Batch:
    """`seqs` sequences of `stored` tokens that verify `queries` tokens each."""
    tokens = seqs * queries
    return Batch(
        num_decodes=seqs,
        context_tokens=seqs * stored + tokens,
        num_tokens=tokens,
        num_emitting=tokens,
        num_seqs=seqs,
        verification=Verification(tokens, seqs * (queries - 1), 0, seqs),
        **more,  # type: ignore[arg-type]
    )


def decoding(seqs: int, context: int, tokens: int | None = None) -> Batch:
    tokens = tokens or seqs
    return Batch(
        num_decodes=seqs,
        context_tokens=seqs * context,
        num_tokens=tokens,
        num_emitting=seqs,
        num_seqs=seqs,
    )


# -- drafting -------------------------------------------------------------------------------------


def test_a_draft_model_takes_k_passes_one_after_the_other() -> None:
    latency = roofline(DRAFT, host_per_iteration_s=5e-5, host_per_sequence_s=0.0)
    # The first catches up with what was accepted (padded to five tokens), three more follow.
    passes = [decoding(4, 501, 20), decoding(4, 502), decoding(4, 503), decoding(4, 504)]
    expected = sum(latency.iteration_s(batch) for batch in passes)
    expected += latency.further_queries_s(4, 4 * 501, 20)
    drafted_s = ModelDraft(latency, (1,) * 4).draft_s(verifying())
    assert drafted_s == pytest.approx(expected, rel=1e-12)


def test_a_draft_model_computes_the_prompts_too() -> None:
    latency = roofline(DRAFT)
    prompt = [PrefillChunk(Request(0, 0.0, 700, 9, 9), 700, 0)]
    alone = Batch(prefills=prompt, num_tokens=700, num_emitting=1, num_seqs=1)
    drafted_s = ModelDraft(latency, (1,) * 4).draft_s(alone)
    alone.num_emitting = 0  # nobody needs its token
    assert drafted_s == pytest.approx(latency.iteration_s(alone), rel=1e-12)
    assert ModelDraft(latency, (1,) * 4).draft_s(Batch()) == 0.0


def test_a_tree_is_drafted_level_by_level() -> None:
    latency = roofline(DRAFT)
    wide, narrow = ModelDraft(latency, (3, 6, 6)), ModelDraft(latency, (1, 1, 1))
    batch = verifying(queries=16)
    levels = [decoding(4, 500 + 1), decoding(4, 500 + 4, 12), decoding(4, 500 + 10, 24)]
    levels[0].num_tokens = 4 * 4
    for level in levels[1:]:
        level.num_emitting = level.num_tokens
    expected = sum(latency.iteration_s(level) for level in levels)
    expected += sum(
        latency.further_queries_s(4, level.context_tokens, level.num_tokens) for level in levels
    )
    assert wide.draft_s(batch) == pytest.approx(expected, rel=1e-12)
    assert narrow.draft_s(batch) < wide.draft_s(batch) < 1.2 * narrow.draft_s(batch)


def test_a_share_of_the_layers_costs_what_a_model_of_so_many_layers_does() -> None:
    model = library.model("llama-2-7b")
    target = roofline(model)
    host = {"host_per_iteration_s": 0.0, "host_per_sequence_s": 0.0}
    quarter = roofline(model.first_layers(8), **host)
    draft = LayersDraft(target, share=0.25, frontiers=(1,) * 3, keeps_cache=False)
    passes = [decoding(4, 501), decoding(4, 502), decoding(4, 503)]
    expected = sum(quarter.iteration_s(batch) for batch in passes)
    assert draft.draft_s(verifying(queries=4)) == pytest.approx(expected, rel=0.01)
    prompt = [PrefillChunk(Request(0, 0.0, 700, 9, 9), 700, 0)]
    alone = Batch(prefills=prompt, num_tokens=700, num_emitting=1, num_seqs=1)
    assert draft.draft_s(alone) == 0.0, "the target's own pass computes the prompt"
    eagle = LayersDraft(target, share=1 / 32, frontiers=(1,) * 3, keeps_cache=True)
    assert 0.0 < eagle.draft_s(alone) < target.iteration_s(alone) / 20


def test_heads_cost_their_vocabulary_projections() -> None:
    model = library.model("llama-2-7b")
    target = roofline(model)
    gpu = library.gpu("h100-sxm")
    block = Projection(4096, 4096, 4, gpu.bfloat16_flops_per_s, gpu.memory_bytes_per_s, 0.0)
    draft = HeadsDraft(target, heads=4, projection=block)
    rows = decoding(4, 501)
    without = replace(rows, num_emitting=0)
    logits_s = target.iteration_s(rows) - target.iteration_s(without)
    expected = 4 * logits_s + block.seconds(4)
    assert draft.draft_s(verifying(queries=65)) == pytest.approx(expected, rel=1e-9)
    assert block.seconds(4) == pytest.approx(
        4 * 2 * (4096**2 + 4 * 2 * 4096) / gpu.memory_bytes_per_s
    )
    assert block.seconds(10**6) == pytest.approx(10**6 * 4 * 2 * 4096**2 / gpu.bfloat16_flops_per_s)


def test_lookup_costs_host_time_only_and_only_where_something_decodes() -> None:
    draft = HostDraft(1e-4, 2e-5)
    assert draft.draft_s(verifying(seqs=4)) == pytest.approx(1.8e-4)
    assert draft.draft_s(Batch(num_tokens=10)) == 0.0


# -- verification ---------------------------------------------------------------------------------


def test_further_queries_cost_nothing_in_attention_until_scoring_binds() -> None:
    latency = roofline(TARGET)
    context = 8 * 4000
    few, many = (latency.further_queries_s(8, context, 8 * queries) for queries in (5, 200))
    read_s = latency.iteration_s(decoding(8, 4000)) - latency.iteration_s(decoding(8, 0))
    assert few < 0.05 * read_s
    # As many as a prefill of that many tokens behind this cache scores.
    request = Request(0, 0.0, 4200, 9, 9)
    chunks = [PrefillChunk(request, 200, 3900) for _ in range(8)]
    prefill = Batch(prefills=chunks, num_tokens=1600, num_seqs=8)
    tokens_only = Batch(num_tokens=1600, num_seqs=8)
    scored_s = latency.iteration_s(prefill) - latency.iteration_s(tokens_only)
    assert many + read_s == pytest.approx(scored_s, rel=0.1)


def test_an_iteration_is_the_targets_pass_and_the_drafting_and_its_parts_add_up() -> None:
    target = roofline(TARGET)
    latency = SpeculativeLatency(target, FixedDraft(0.001, 4))
    batch = verifying()
    duration_s = latency.iteration_s(batch)
    verified_s = target.iteration_s(batch) + target.further_queries_s(4, batch.context_tokens, 20)
    assert duration_s == pytest.approx(verified_s + 0.004, rel=1e-12)
    assert batch.verification is not None
    assert batch.verification.draft_s == pytest.approx(0.004)
    columns = {
        "duration_s": np.array([duration_s]),
        "draft_s": np.array([0.004]),
        "num_tokens": np.array([20]),
        "num_emitting": np.array([20]),
        "num_seqs": np.array([4]),
        "swap_blocks": np.array([0]),
    }
    parts = latency.parts_s(columns)
    assert parts["draft"][0] == 0.004
    assert sum(part[0] for part in parts.values()) == pytest.approx(duration_s)
    assert latency.measured is False
    assert target.label in latency.label


@pytest.mark.parametrize(
    # Leviathan et al., 2023: T5-XXL with T5-small, -base and -large as drafts, greedy, translation.
    ("rate", "k", "cost", "published"),
    [(0.75, 7, 0.02, 3.2), (0.8, 7, 0.04, 3.3), (0.82, 7, 0.11, 2.5)],
)
def test_the_published_improvement_factor_comes_out_of_a_run(
    rate: float, k: int, cost: float, published: float
) -> None:
    # One sequence at a time, every pass equally long, as the formula assumes:
    # (1 - a^(k+1)) / ((1 - a)(k c + 1)).
    pass_s = 0.01
    config = EngineConfig(max_num_seqs=1)
    workload = requests([1601] * 20)

    def spoken_s(drafts: int) -> float:
        latency: FixedLatency | SpeculativeLatency = FixedLatency(pass_s)
        chosen = config
        if drafts:
            latency = SpeculativeLatency(FixedLatency(pass_s), FixedDraft(cost * pass_s, drafts))
            chosen = replace(config, speculation=speculation(rate, drafts))
        records = simulate(workload, chosen, latency, scheduler="chunked", num_blocks=500)
        spoken = records.requests["last_token_s"] - records.requests["first_token_s"]
        return float(spoken.sum())

    factor = spoken_s(0) / spoken_s(k)
    assert factor == pytest.approx((1 - rate ** (k + 1)) / ((1 - rate) * (k * cost + 1)), rel=0.02)
    assert factor == pytest.approx(published, abs=0.1)


# -- memory ---------------------------------------------------------------------------------------


def test_a_draft_shares_the_targets_memory() -> None:
    model, draft, gpu = library.model(TARGET), library.model(DRAFT), library.gpu("h100-sxm")
    alone = memory_budget(model, gpu, max_num_seqs=64)
    shared = share_memory(
        alone,
        model,
        weight_bytes=draft.weight_bytes(),
        kv_bytes_per_token=draft.kv_bytes_per_token("auto"),
        query_tokens=5,
        max_num_seqs=64,
        max_num_batched_tokens=8192,
    )
    assert shared.weight_bytes == alone.weight_bytes + draft.weight_bytes()
    # 16 layers of 8 heads of 64, keys and values, 2 bytes: a quarter of the target's 131,072.
    assert shared.bytes_per_block == 16 * (131_072 + 32_768)
    spent = shared.weight_bytes + shared.activation_bytes + shared.reserve_bytes + shared.kv_bytes
    assert spent == shared.usable_bytes
    assert shared.num_gpu_blocks == shared.kv_bytes // shared.bytes_per_block


def test_a_draft_that_leaves_no_cache_is_refused() -> None:
    model, gpu = library.model(TARGET), library.gpu("rtx-4090")
    alone = memory_budget(model, gpu)
    with pytest.raises(ValueError, match="no memory is left for the KV cache: the draft takes"):
        share_memory(
            alone,
            model,
            weight_bytes=8 * 10**9,
            kv_bytes_per_token=0,
            query_tokens=5,
            max_num_seqs=64,
            max_num_batched_tokens=8192,
        )
