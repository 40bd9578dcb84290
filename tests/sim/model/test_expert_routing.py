"""Activated experts and loads of ranks against routers that are simulated token by token."""

import numpy as np
import pytest

from sim.model.expert_routing import ExpertRouting


def routed(routing: ExpertRouting, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """bool[tokens, experts]: k experts a token, each with its chance (systematic sampling)."""
    chances = routing.chances[0]
    chosen = np.zeros((tokens, len(chances)), dtype=bool)
    for row in chosen:
        order = rng.permutation(len(chances))
        ends = np.cumsum(chances[order])
        points = rng.random() + np.arange(routing.experts_per_token)
        row[order[np.minimum(np.searchsorted(ends, points), len(order) - 1)]] = True
    return chosen


def zipf(exponent: float, **settings: str) -> ExpertRouting:
    rng = np.random.default_rng(5)
    return ExpertRouting.zipf(64, 8, exponent=exponent, rng=rng, **settings)  # type: ignore[arg-type]


ROUTINGS = {
    "uniform 8 choose 2": (ExpertRouting.uniform(8, 2), 4),
    "uniform 128 choose 8": (ExpertRouting.uniform(128, 8), 16),
    "zipf 1.0": (zipf(1.0), 8),
    "zipf 0.5 balanced": (zipf(0.5, placement="balanced"), 8),
}
EACH = pytest.mark.parametrize("name", ROUTINGS)


@EACH
@pytest.mark.parametrize("tokens", [1, 4, 32, 128])
def test_activated_experts_match_a_simulated_router(name: str, tokens: int) -> None:
    routing, _ = ROUTINGS[name]
    rng = np.random.default_rng(1)
    seen = [routed(routing, tokens, rng).any(axis=0).sum() for _ in range(120)]
    expected = routing.activated(np.array([tokens]))[0]
    assert expected == pytest.approx(np.mean(seen), rel=0.03)
    assert abs(expected - np.mean(seen)) <= 4 * np.std(seen) / np.sqrt(len(seen)) + 1e-2


@EACH
@pytest.mark.parametrize("tokens", [8, 32, 128])
def test_the_slowest_rank_matches_a_simulated_router(name: str, tokens: int) -> None:
    routing, ranks = ROUTINGS[name]
    held = routing._placed(routing.chances[0], ranks)
    rng = np.random.default_rng(2)
    fullest = []
    for _ in range(120):
        loads = routed(routing, tokens, rng).sum(axis=0)
        fullest.append(max(loads[experts].sum() for experts in held))
    expected = routing.slowest_rank_load(np.array([tokens]), ranks)[0]
    assert expected == pytest.approx(np.mean(fullest), rel=0.08)
    assert expected > tokens * routing.experts_per_token / ranks, "never better than even"


def test_uniform_routing_activates_the_closed_form() -> None:
    tokens = np.array([0, 1, 7, 100])
    activated = ExpertRouting.uniform(128, 8).activated(tokens)
    np.testing.assert_allclose(activated, 128 * (1 - (1 - 8 / 128) ** tokens))
    every = ExpertRouting.uniform(4, 4)
    assert every.activated(np.array([0, 1, 9])).tolist() == [0, 4, 4]


def test_skewed_routing_activates_fewer_experts_and_loads_ranks_less_evenly() -> None:
    tokens, ranks = np.array([64]), 8
    kinds = [ExpertRouting.uniform(64, 8), zipf(0.5), zipf(1.0), zipf(1.5)]
    activated = [routing.activated(tokens)[0] for routing in kinds]
    loads = [routing.slowest_rank_load(tokens, ranks)[0] for routing in kinds]
    assert activated == sorted(activated, reverse=True)
    assert loads == sorted(loads)


def test_balanced_placement_is_never_worse() -> None:
    tokens = np.array([256])
    for exponent in (0.3, 0.8, 1.2):
        contiguous, balanced = zipf(exponent), zipf(exponent, placement="balanced")
        assert balanced.slowest_rank_load(tokens, 8) <= contiguous.slowest_rank_load(tokens, 8)
        held = balanced._placed(balanced.chances[0], 8)
        assert sorted(np.concatenate(held)) == list(range(64))
        assert {len(experts) for experts in held} == {8}


def test_no_expert_is_sent_more_than_every_token() -> None:
    routing = zipf(3.0)
    assert routing.chances.max() == 1.0
    assert routing.chances.sum() == pytest.approx(8)
    alone = routing.slowest_rank_load(np.array([50]), 64)[0]
    assert alone == pytest.approx(50, rel=1e-6), "one expert a rank: all tokens, and no more"


def test_a_trace_of_counts_gives_its_chances_layer_by_layer() -> None:
    counts = np.array([[30, 10, 40, 20], [0, 50, 25, 25]])
    routing = ExpertRouting.from_counts(counts, 2)
    np.testing.assert_allclose(routing.chances[0], [0.6, 0.2, 0.8, 0.4])
    np.testing.assert_allclose(routing.chances[1], [0.0, 1.0, 0.5, 0.5])
    one = routing.activated(np.array([1, 10_000]))
    np.testing.assert_allclose(one, [2.0, 3.5])  # four experts in one layer, three in the other


def test_equal_counts_are_uniform_routing() -> None:
    tokens = np.array([1, 10, 300])
    counted = ExpertRouting.from_counts(np.full(16, 7), 4)
    uniform = ExpertRouting.uniform(16, 4)
    np.testing.assert_allclose(counted.activated(tokens), uniform.activated(tokens))
    np.testing.assert_allclose(
        counted.slowest_rank_load(tokens, 4), uniform.slowest_rank_load(tokens, 4)
    )
    np.testing.assert_allclose(
        counted.activated_on_slowest_rank(tokens, 4), uniform.activated(tokens) / 4
    )


@pytest.mark.parametrize(
    ("counts", "says"),
    [([0, 0, 5, 0], "name 1 experts"), ([1, -1, 2, 3], "not negative")],
)
def test_impossible_counts_are_refused(counts: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ExpertRouting.from_counts(np.array(counts), 2)


def test_loads_grow_with_tokens_and_approach_the_mean() -> None:
    routing = ExpertRouting.uniform(64, 4)
    tokens = np.arange(0, 20_000, 37)
    loads = routing.slowest_rank_load(tokens, 16)
    assert (np.diff(loads) > 0).all()
    assert loads[-1] / (tokens[-1] * 4 / 16) == pytest.approx(1.0, abs=0.04)
