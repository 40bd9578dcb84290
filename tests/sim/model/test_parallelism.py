"""Which splits are possible, what is refused and why, and where the GPUs are."""

from typing import Any

import pytest

from sim.model.parallelism import Parallelism
from tests.sim.model.test_spec import load


@pytest.mark.parametrize(
    ("name", "degrees", "says"),
    [
        ("llama-3.1-8b", {"tensor_parallel": 3}, "does not divide its 32 attention heads"),
        ("llama-3.1-8b", {"pipeline_parallel": 33}, "33 is more stages than its 32 layers"),
        ("llama-3.1-8b", {"expert_parallel": 2}, "expert_parallel 2, but it has no experts"),
        ("mixtral-8x7b", {"expert_parallel": 3}, "does not divide its 8 experts"),
        ("mixtral-8x7b", {"expert_parallel": 16}, "does not divide its 8 experts"),
        (
            "llama-3.1-8b",
            {"sequence_parallel": 16},
            "ulysses degree 16 does not divide its 8 key/value heads; ring is not limited by heads",
        ),
        (
            "llama-3.1-8b",
            {"sequence_parallel": 4, "tensor_parallel": 4},
            r"ulysses degree 4 x tensor_parallel 4 = 16 does not divide its 8 key/value heads",
        ),
        (
            "llama-3.1-8b",
            {"tensor_parallel": 8, "decode_context_parallel": 3},
            "decode_context_parallel 3 does not divide tensor_parallel 8",
        ),
        (
            "llama-3.1-8b",
            {"tensor_parallel": 8, "decode_context_parallel": 2},
            r"holds each of its 8 key/value heads 1 times, .*: it takes tensor_parallel 16",
        ),
        (
            "qwen3-235b-a22b",
            {"tensor_parallel": 8, "decode_context_parallel": 4},
            r"holds each of its 4 key/value heads 2 times, .*: it takes tensor_parallel 16",
        ),
        (
            "gpt-oss-120b",
            {"tensor_parallel": 16, "decode_context_parallel": 2},
            "it has sliding 128",
        ),
        (
            "deepseek-v3",
            {"tensor_parallel": 8, "decode_context_parallel": 8, "expert_parallel": 2},
            "beside ranks that share out tokens",
        ),
        (
            "command-r-plus",
            {"tensor_parallel": 24, "decode_context_parallel": 3},
            "beside 8 ranks of tensor_parallel in a node: .* straddle two nodes",
        ),
        ("deepseek-v3", {"sequence_parallel": 2}, "caches one latent for all heads; use ring"),
        ("llama-3.1-8b", {"sequence_kind": "rong"}, "kind 'rong'; allowed: ulysses, ring"),
        (
            "llama-3.1-8b",
            {"tensor_parallel": 8, "gpus_per_node": 3},
            "neither fits into a node of gpus_per_node 3 nor fills whole nodes",
        ),
        (
            "llama-3.1-8b",
            {"tensor_parallel": 2, "pipeline_parallel": 4, "gpus_per_node": 5},
            "would straddle two nodes",
        ),
        ("llama-3.1-8b", {"pipeline_parallel": 0}, "pipeline_parallel must be at least 1"),
        ("llama-3.1-8b", {"gpus_per_node": 0}, "gpus_per_node must be at least 1"),
        ("deepseek-v3", {"tensor_parallel": 16, "expert_parallel": 3}, "its 256 experts"),
    ],
)
def test_an_impossible_split_is_refused_with_its_reason(
    name: str, degrees: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Parallelism(**degrees).check(load(name))


def test_experts_over_tensor_ranks_are_whole_and_as_many_bytes() -> None:
    split = load("mixtral-8x7b")
    dealt = split.with_experts_over(4)
    for one, whole in zip(split.expert_operations(4), dealt.expert_operations(4), strict=True):
        assert whole.count * 4 == one.count
        assert whole.num_parameters == one.num_parameters
        assert whole.out_features * whole.in_features == 4 * one.out_features * one.in_features
    assert split.weight_bytes(4) == dealt.weight_bytes(4)
    assert split.num_parameters == dealt.num_parameters
    halves = split.with_experts_over(2).expert_operations(4)
    assert halves == split.expert_operations(2, 2)


@pytest.mark.parametrize(
    ("name", "groups", "says"),
    [
        ("llama-3.1-8b", 2, "experts_over 2, but it has no experts"),
        ("mixtral-8x7b", 3, "experts_over 3 does not divide its 8 experts"),
    ],
)
def test_experts_that_cannot_be_dealt_out_are_refused(name: str, groups: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(name).with_experts_over(groups)


def test_blocks_that_cannot_be_split_are_served_whole() -> None:
    model = load("qwen3-235b-a22b-fp8")
    with pytest.raises(ValueError, match=r"blocks of 128 do not divide.*experts_over"):
        Parallelism(8).check(model)
    Parallelism(8).check(model.with_experts_over(8))
    with pytest.raises(ValueError, match="experts_over 8 does not divide tensor_parallel 4"):
        Parallelism(4).check(model.with_experts_over(8))


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("llama-3.1-8b", {"sequence_parallel": 8}),
        ("llama-3.1-8b", {"sequence_parallel": 3, "sequence_kind": "ring"}),
        ("deepseek-v3", {"sequence_parallel": 4, "sequence_kind": "ring", "expert_parallel": 8}),
        ("mixtral-8x7b", {"tensor_parallel": 2, "expert_parallel": 4, "pipeline_parallel": 32}),
        ("llama-3.1-70b", {"tensor_parallel": 2, "sequence_parallel": 4, "pipeline_parallel": 3}),
        ("llama-3.1-70b", {"tensor_parallel": 4, "gpus_per_node": 2}),
        ("llama-3.1-70b", {"tensor_parallel": 16, "decode_context_parallel": 2}),
        ("deepseek-v3", {"tensor_parallel": 8, "decode_context_parallel": 8}),
        ("deepseek-v3", {"tensor_parallel": 8, "decode_context_parallel": 2, "gpus_per_node": 1}),
    ],
)
def test_a_possible_split_is_allowed(name: str, degrees: dict[str, Any]) -> None:
    Parallelism(**degrees).check(load(name))


def test_degrees_multiply() -> None:
    spread = Parallelism(
        tensor_parallel=2, pipeline_parallel=3, expert_parallel=4, sequence_parallel=5
    )
    assert (spread.gpus_per_stage, spread.num_gpus) == (40, 120)
    assert spread.words == "tensor 2 x ulysses sequence 5 x expert 4 x pipeline 3"


def test_groups_are_placed_innermost_first() -> None:
    spread = Parallelism(tensor_parallel=4, sequence_parallel=4, expert_parallel=2, gpus_per_node=8)
    assert spread.tensor_per_node == 4
    assert spread.sequence_per_node == 2, "two of the groups of four fit into a node"
    assert spread.expert_per_node == 1, "sixteen GPUs further on is another node"
    assert Parallelism(tensor_parallel=16).tensor_per_node == 8


def test_only_some_stages_have_a_node_between_them() -> None:
    halves = Parallelism(tensor_parallel=4, pipeline_parallel=4)
    assert [halves.send_crosses_nodes(stage) for stage in range(3)] == [False, True, False]
    whole = Parallelism(tensor_parallel=8, pipeline_parallel=3)
    assert [whole.send_crosses_nodes(stage) for stage in range(2)] == [True, True]
    straddling = Parallelism(tensor_parallel=1, pipeline_parallel=3, gpus_per_node=2)
    assert [straddling.send_crosses_nodes(stage) for stage in range(2)] == [False, True]


# -- a model over stages --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-0.6b", "deepseek-v3", "opt-13b"])
@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_stages_hold_all_layers_and_weights_once(name: str, stages: int) -> None:
    model = load(name)
    shares = model.stages(stages)
    assert sum(share.num_layers for share in shares) == model.num_layers
    assert max(s.num_layers for s in shares) - min(s.num_layers for s in shares) <= 1
    held = sum(
        share.weight_bytes(first_stage=number == 0, last_stage=number == stages - 1)
        for number, share in enumerate(shares)
    )
    tied_copy = 2 * model.vocab_size * model.hidden_size
    extra = tied_copy if model.tie_word_embeddings and stages > 1 else 0
    assert held == model.weight_bytes() + extra, "a tied head is a copy on the last stage"
    kv = sum(share.kv_bytes_per_token() for share in shares)
    assert kv == model.kv_bytes_per_token()


def test_the_dense_layers_of_a_mixture_are_in_the_first_stage() -> None:
    first, *rest = load("deepseek-v3").stages(8)
    assert (first.num_layers, first.num_dense_layers) == (8, 3)
    assert all(share.num_dense_layers == 0 for share in rest)
    dense = load("deepseek-v3", first_k_dense_replace=40).stages(61)
    assert [share.moe is None for share in dense] == [True] * 40 + [False] * 21


def test_experts_are_held_by_their_rank_and_the_rest_by_all() -> None:
    model = load("mixtral-8x7b")
    experts = sum(op.weight_bytes for op in model.expert_operations())
    whole, half = model.weight_bytes(), model.weight_bytes(expert_parallel=2)
    assert whole - half == experts // 2
