"""Routing and the grouped products against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.linear import linear
from kernels.moe import Rule, moe, moe_reference, route, route_reference


@pytest.fixture
def layer(draw):
    """Weights of a small expert layer, scaled so that outputs stay near 1."""

    def make(num_experts: int, hidden: int, intermediate: int):
        return (
            draw(num_experts, hidden),
            draw(num_experts, 2 * intermediate, hidden, scale=hidden**-0.5),
            draw(num_experts, hidden, intermediate, scale=intermediate**-0.5),
        )

    return make


def _expected(x, weights, *, top_k, renormalize=True):
    """The float64 reference, routed by the same rounded logits: near ties must not matter."""
    logits = linear(x, weights[0]).double()
    return moe_reference(
        x.double(),
        *(weight.double() for weight in weights),
        top_k=top_k,
        routing=route_reference(logits, top_k, renormalize=renormalize),
    )


@pytest.mark.parametrize(("num_experts", "top_k"), [(128, 8), (60, 4), (1, 1)])
@pytest.mark.parametrize("renormalize", [True, False])
def test_routing_takes_the_likeliest_experts_and_sorts_the_pairs(
    num_experts, top_k, renormalize, draw, close
):
    logits = draw(37, num_experts)
    routing = route(logits, top_k, renormalize=renormalize)
    experts, weights = route_reference(logits.double(), top_k, renormalize=renormalize)
    assert torch.equal(routing.experts.long(), experts)
    close(routing.weights, weights)
    pairs = experts.flatten()
    assert torch.equal(routing.counts.long(), torch.bincount(pairs, minlength=num_experts))
    assert (pairs[routing.sorted_pairs.long()].diff() >= 0).all()
    assert routing.sorted_pairs.sort().values.tolist() == list(range(37 * top_k))


@pytest.mark.parametrize("renormalize", [True, False])
def test_deepseeks_rule_keeps_groups_and_prefers_without_weighing(renormalize, draw, close):
    logits, preference = draw(19, 32), draw(32).float()
    rule = Rule(sigmoid=True, preference=preference, groups=8, kept_groups=3, scale=2.5)
    routing = route(logits, 6, renormalize=renormalize, rule=rule)
    experts, weights = route_reference(logits.double(), 6, renormalize=renormalize, rule=rule)
    assert torch.equal(routing.experts.long(), experts)
    close(routing.weights, weights)
    assert all(len(set((row // 4).tolist())) <= 3 for row in experts)
    assert not torch.equal(experts, route_reference(logits, 6)[0])
    with pytest.raises(ValueError, match="kept_groups: 1 have fewer than 6"):
        route(logits, 6, rule=Rule(groups=8))


def test_tied_experts_go_to_the_lower_index(draw):
    logits = draw(4, 8)
    logits[:] = 0
    assert route(logits, 3).experts.tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("columns", [[3], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_logits_that_are_no_numbers_go_to_experts_that_exist(
    wrong, columns, renormalize, draw, close
):
    logits = draw(5, 8)
    logits[2, columns] = wrong
    routing = route(logits, 2, renormalize=renormalize)
    experts, weights = route_reference(logits.double(), 2, renormalize=renormalize)
    others = [0, 1, 3, 4]
    assert torch.equal(routing.experts[others].long(), experts[others])
    close(routing.weights[others], weights[others])
    assert torch.equal(routing.weights[2].isnan(), weights[2].isnan())
    first, second = routing.experts[2].tolist()
    assert first != second and {first, second} <= set(range(8))
    chosen = routing.experts.flatten().long()
    assert torch.equal(routing.counts.long(), torch.bincount(chosen, minlength=8))
    assert routing.sorted_pairs.sort().values.tolist() == list(range(10))


def test_a_token_that_is_no_number_spoils_only_its_own_result(draw, layer):
    x, weights = draw(9, 64), layer(8, 64, 32)
    expected = moe(x, *weights, top_k=2)
    x[4, 7] = float("nan")
    y = moe(x, *weights, top_k=2)
    assert y[4].isnan().all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(y[others], expected[others])


@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_every_number_of_tokens_matches_the_reference(num_tokens, draw, layer, close):
    x, weights = draw(num_tokens, 64), layer(6, 64, 72)
    expected = _expected(x, weights, top_k=2)
    close(moe(x, *weights, top_k=2), expected)


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(12, 16), (96, 2), (300, 2)])
def test_sparse_and_crowded_experts_match_the_reference(
    num_tokens, num_experts, draw, layer, close
):
    x, weights = draw(num_tokens, 136), layer(num_experts, 136, 72)
    expected = _expected(x, weights, top_k=2, renormalize=False)
    close(moe(x, *weights, top_k=2, renormalize=False), expected)


def test_all_tokens_to_one_expert_match_the_reference(draw, layer, close):
    x, weights = draw(50, 64), layer(8, 64, 64)
    x[:] = x.abs()
    weights[0][:] = -1
    weights[0][5] = 1
    expected = _expected(x, weights, top_k=1)
    close(moe(x, *weights, top_k=1), expected)


def test_torch_and_best_backends_agree_with_the_kernels(draw, layer, close):
    x, weights = draw(9, 64), layer(4, 64, 32)
    for backend in ("torch", "best"):
        close(moe(x, *weights, top_k=2, backend=backend), moe(x, *weights, top_k=2))
    assert moe(x[:0], *weights, top_k=2).shape == (0, 64)


def test_wrong_arguments_are_refused_before_any_launch(draw, layer):
    x, (router, gate_up, down) = draw(5, 64), layer(4, 64, 32)
    for arguments, top_k, message in (
        ((x, router, gate_up[:3], down), 2, r"gate_up_weight: shape \[4, any, 64\]"),
        ((x, router, gate_up, down.transpose(1, 2)), 2, "down_weight: shape"),
        ((x, router, gate_up[:, :63].contiguous(), down), 2, "no gate and up pair"),
        ((x.t().contiguous().t(), router, gate_up, down), 2, "x: must be contiguous"),
        ((x, router.double(), gate_up, down), 2, "router_weight: dtype"),
        ((x, router, gate_up, down), 5, "top_k: must be 1 to 4, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            moe(*arguments, top_k=top_k)
