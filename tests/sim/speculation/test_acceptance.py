"""Closed forms of acceptance, and draws that follow them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.speculation import DraftShape, Speculation
from sim.speculation.acceptance import (
    RandomAcceptance,
    chain,
    parallel_guesses,
    ranked_tree,
    recorded,
    sampled_tree,
)


def expected_tokens(survival: np.ndarray) -> float:
    shape = DraftShape.chain(len(survival))
    return Speculation("any", shape, RandomAcceptance(survival)).expected_tokens_per_step


@given(rate=st.floats(0, 0.999), k=st.integers(1, 16))
def test_a_chain_yields_the_published_number_of_tokens(rate: float, k: int) -> None:
    # Leviathan et al., 2023, equation 1.
    expected = (1 - rate ** (k + 1)) / (1 - rate)
    assert expected_tokens(chain(rate, k)) == pytest.approx(expected, rel=1e-9)


def test_rates_of_nothing_and_everything() -> None:
    assert expected_tokens(chain(0.0, 5)) == 1.0
    assert expected_tokens(chain(1.0, 5)) == 6.0


@given(rate=st.floats(0, 1), depth=st.integers(1, 6))
def test_a_tree_of_single_children_is_a_chain(rate: float, depth: int) -> None:
    np.testing.assert_allclose(sampled_tree(rate, [1] * depth), chain(rate, depth), atol=1e-15)
    np.testing.assert_allclose(ranked_tree([rate], [1] * depth), chain(rate, depth), atol=1e-15)


def test_a_sampled_tree_by_enumeration() -> None:
    # Every candidate accepted or not, all 2^3 x 2^2 outcomes of a tree with 3, then 2 children.
    rate, branching = 0.4, (3, 2)
    first = second = 0.0
    for outcome in range(2**5):
        tries = [bool(outcome >> bit & 1) for bit in range(5)]
        probability = np.prod([rate if accepted else 1 - rate for accepted in tries])
        first += probability * any(tries[:3])
        second += probability * (any(tries[:3]) and any(tries[3:]))
    np.testing.assert_allclose(sampled_tree(rate, branching), [first, second])


def test_a_ranked_tree_takes_the_targets_token_among_its_choices() -> None:
    np.testing.assert_allclose(ranked_tree([0.6, 0.2, 0.1], [3, 2, 1]), [0.9, 0.72, 0.432])


def test_parallel_guesses_are_the_best_of_independent_chains() -> None:
    rng = np.random.default_rng(3)
    tries = rng.random((200_000, 4, 3)) < 0.5  # samples, guesses, positions
    longest = tries.cumprod(axis=2).sum(axis=2).max(axis=1)
    expected = parallel_guesses(0.5, 3, 4)
    for j in (1, 2, 3):
        assert (longest >= j).mean() == pytest.approx(expected[j - 1], abs=0.005)
    np.testing.assert_allclose(parallel_guesses(0.5, 3, 1), chain(0.5, 3))


@given(
    survival=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    match_rate=st.sampled_from([1.0, 0.4]),
)
def test_draws_follow_the_profile(survival: list[float], match_rate: float) -> None:
    profile = np.sort(survival)[::-1]
    steps = 20_000
    accepted, drafted = RandomAcceptance(profile, match_rate=match_rate, seed=7).draw(3, steps)
    for position, share in enumerate(match_rate * profile, start=1):
        deviation = np.sqrt(share * (1 - share) / steps)
        assert abs((accepted >= position).mean() - share) <= 5 * deviation + 1e-12
    if drafted is None:
        assert match_rate == 1
    else:
        assert not accepted[~drafted].any()
        assert abs(drafted.mean() - match_rate) < 5 * np.sqrt(0.24 / steps)


def test_each_request_has_its_own_stream_and_more_steps_change_none_before() -> None:
    acceptance = RandomAcceptance(chain(0.7, 4), seed=11)
    first, _ = acceptance.draw(0, 100)
    np.testing.assert_array_equal(first, acceptance.draw(0, 500)[0][:100])
    assert (first != acceptance.draw(1, 100)[0]).any()
    other = RandomAcceptance(chain(0.7, 4), seed=12)
    assert (first != other.draw(0, 100)[0]).any()


def test_a_longer_draft_accepts_at_least_as_much_at_every_step() -> None:
    short, _ = RandomAcceptance(chain(0.7, 2), seed=5).draw(0, 1000)
    long, _ = RandomAcceptance(chain(0.7, 6), seed=5).draw(0, 1000)
    np.testing.assert_array_equal(np.minimum(long, 2), short)


def test_a_trace_repeats_from_its_start() -> None:
    trace = recorded([[3, 0, 1], [2]], 3)
    assert trace.draw(0, 7)[0].tolist() == [3, 0, 1, 3, 0, 1, 3]
    assert trace.draw(3, 2)[0].tolist() == [2, 2]
    # 21 tokens: nine verifications of the first row, seven of the second.
    assert 1 + trace.mean == pytest.approx(2 * 21 / (9 + 7))


@pytest.mark.parametrize(
    ("survival", "message"),
    [([0.5, 0.6], "rises"), ([1.2], "between 0 and 1"), ([-0.1], "between 0 and 1")],
)
def test_impossible_profiles_are_refused(survival: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomAcceptance(np.array(survival))


def test_impossible_trees_traces_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="adds up to"):
        ranked_tree([0.8, 0.4], [2])
    with pytest.raises(ValueError, match="up to 3 candidates"):
        ranked_tree([0.8], [3])
    with pytest.raises(ValueError, match=r"rate must be between 0 and 1, not 1\.5"):
        chain(1.5, 3)
    with pytest.raises(ValueError, match=r"line 2 .* accepts 5 tokens; drafts are 4 deep"):
        recorded([[1], [5, 0]], 4)
    with pytest.raises(ValueError, match="empty"):
        recorded([], 4)
    with pytest.raises(ValueError, match="at least 1"):
        DraftShape.chain(0)
    with pytest.raises(ValueError, match="tree without nodes"):
        DraftShape.tree(())
    with pytest.raises(ValueError, match="ngram at least 2"):
        DraftShape.lookahead(5, 1, 5)


def test_shapes_count_their_tokens() -> None:
    assert DraftShape.chain(4).query_tokens == 5
    tree = DraftShape.tree((3, 2, 1))
    assert (tree.depth, tree.drafted_tokens, tree.frontiers) == (3, 15, (3, 6, 6))
    # Fu et al.: (W + G)(N - 1) tokens a step, 120 for W = G = 15 and N = 5.
    assert DraftShape.lookahead(15, 5, 15).query_tokens == 120
