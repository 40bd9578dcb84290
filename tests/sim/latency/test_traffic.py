"""Bytes sent in an iteration against their closed forms, written out by hand."""

from typing import Any

import pytest

from sim.batch import Batch
from sim.latency.traffic import traffic
from sim.model.parallelism import Parallelism
from tests.sim.latency.test_roofline import decodes, prefill, spec


def sent(model: str, batch: Batch, **degrees: Any) -> dict[str, tuple[int, Any]]:
    found = traffic(spec(model), Parallelism(**degrees), batch)
    return {name: (one.count, one.bytes_each) for name, one in found.items()}


def test_one_gpu_sends_nothing() -> None:
    assert sent("deepseek-v3", prefill(100)) == {}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_tensor_parallelism_sends_two_all_reduces_a_layer(ranks: int) -> None:
    batch = prefill(100)
    message = 100 * 4096 * 2  # tokens x hidden x bfloat16
    found = sent("llama-3.1-8b", batch, tensor_parallel=ranks)
    assert found["tensor_all_reduce"] == (2 * 32 + 1, 2 * (ranks - 1) / ranks * message)
    assert found["logits_all_gather"] == (1, (ranks - 1) / ranks * 1 * 128256 * 2)
    assert set(found) == {"tensor_all_reduce", "logits_all_gather"}


@pytest.mark.parametrize("stages", [2, 4, 32])
def test_a_pipeline_sends_activations_between_stages(stages: int) -> None:
    found = sent("llama-3.1-8b", decodes(64, 1000), pipeline_parallel=stages)
    assert found == {"pipeline_send": (stages - 1, 64 * 4096 * 2)}


@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_experts_cost_two_all_to_alls_a_mixture_layer(ranks: int) -> None:
    found = sent("deepseek-v3", decodes(256, 1000), expert_parallel=ranks)
    held = 256 / ranks * 8 * 7168 * 2  # every token to eight experts
    assert found == {"expert_all_to_all": (2 * 58, pytest.approx((ranks - 1) / ranks * held))}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ulysses_costs_four_all_to_alls_a_layer(ranks: int) -> None:
    found = sent("llama-3.1-8b", prefill(4000), sequence_parallel=ranks)
    token = 4000 / ranks * 2 * (ranks - 1) / ranks
    assert found == {
        "ulysses_q_all_to_all": (32, pytest.approx(token * 32 * 128)),
        "ulysses_k_all_to_all": (32, pytest.approx(token * 8 * 128)),
        "ulysses_v_all_to_all": (32, pytest.approx(token * 8 * 128)),
        "ulysses_o_all_to_all": (32, pytest.approx(token * 32 * 128)),
    }


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_a_ring_passes_keys_and_values_one_time_fewer_than_ranks(ranks: int) -> None:
    batch = prefill(3000, 9000)
    found = sent("llama-3.1-8b", batch, sequence_parallel=ranks, sequence_kind="ring")
    block = 12_000 / ranks * 2 * 8 * 128 * 2  # keys and values of a rank's tokens, one layer
    assert found["ring_kv_pass"] == (32 * (ranks - 1), pytest.approx(block))


def test_in_a_ring_a_decodes_query_travels_instead_of_its_context() -> None:
    short, long = (
        sent("llama-3.1-8b", decodes(5, context), sequence_parallel=4, sequence_kind="ring")
        for context in (1000, 100_000)
    )
    assert short == long
    queries, outputs = 32 * 128 * 2, 32 * (128 * 2 + 4)  # bfloat16; a log-sum-exp a head
    assert short["decode_query_all_gather"] == (32, 0.75 * 5 * queries)
    assert short["decode_output_all_to_all"] == (32, 0.75 * 5 * outputs)
    assert short["ring_kv_pass"][1] == 0


def test_in_a_ring_latent_attention_passes_latents() -> None:
    found = sent("deepseek-v3", prefill(1000), sequence_parallel=4, sequence_kind="ring")
    assert found["ring_kv_pass"] == (61 * 3, pytest.approx(250 * 576 * 2))


def test_ulysses_volume_per_gpu_falls_with_ranks_and_the_rings_does_not() -> None:
    def volume(kind: str, ranks: int) -> float:
        found = traffic(
            spec("llama-2-7b"),
            Parallelism(sequence_parallel=ranks, sequence_kind=kind),
            prefill(4096),
        )
        return sum(one.bytes_sent for one in found.values())

    assert volume("ulysses", 16) / volume("ulysses", 4) == pytest.approx((15 / 256) / (3 / 16))
    assert volume("ring", 16) / volume("ring", 4) == pytest.approx((15 / 16) / (3 / 4))


def test_degrees_multiply_and_each_keeps_its_form() -> None:
    found = sent(
        "deepseek-v3",
        prefill(1200),
        tensor_parallel=2,
        pipeline_parallel=3,
        expert_parallel=4,
        sequence_parallel=5,
        sequence_kind="ring",
    )
    token = 1200 / 20  # on one GPU
    assert found["tensor_all_reduce"] == (2 * 61 + 1, pytest.approx(token * 7168 * 2))
    assert found["pipeline_send"] == (2, pytest.approx(token * 7168 * 2))
    assert found["expert_all_to_all"] == (116, pytest.approx(0.75 * token * 8 * 7168 * 2))
