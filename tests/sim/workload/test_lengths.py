"""Length distributions: moments and bounds as promised, the same seed the same lengths."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload.lengths import LONGEST_TOKENS, empirical, fixed, lognormal, uniform

N = 200_000


def rng():
    return np.random.default_rng(5)


def test_fixed_lengths_are_all_the_same():
    lengths = fixed(4, 512)
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [512] * 4


def test_uniform_reaches_both_bounds_equally_often():
    lengths = uniform(rng(), N, min_tokens=3, max_tokens=7)
    values, counts = np.unique(lengths, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7]
    assert counts / N == pytest.approx(0.2, abs=0.006)


def test_lognormal_has_the_asked_mean_and_spread():
    lengths = lognormal(rng(), N, mean_tokens=800, sigma=0.8)
    assert lengths.dtype == np.int64
    assert lengths.mean() == pytest.approx(800, rel=0.015)
    assert np.log(lengths).std() == pytest.approx(0.8, rel=0.01)


def test_lognormal_has_the_asked_median():
    lengths = lognormal(rng(), N, median_tokens=800, sigma=0.8)
    assert np.median(lengths) == pytest.approx(800, rel=0.015)
    assert lengths.mean() == pytest.approx(800 * math.exp(0.32), rel=0.015)


def test_lognormal_without_spread_is_fixed():
    assert set(lognormal(rng(), 100, mean_tokens=12, sigma=0).tolist()) == {12}


def test_clipped_lengths_pile_up_at_the_bounds():
    free = lognormal(rng(), N, median_tokens=100, sigma=1.0)
    clipped = lognormal(rng(), N, median_tokens=100, sigma=1.0, min_tokens=50, max_tokens=200)
    assert np.array_equal(clipped, np.clip(free, 50, 200))
    assert np.mean(clipped == 50) == pytest.approx(np.mean(free <= 50))


@given(st.floats(0, 50), st.floats(1e-3, 1e9), st.integers(1, 100), st.integers(100, 10_000))
def test_lognormal_lengths_stay_within_their_bounds(sigma, median, low, high):
    lengths = lognormal(
        rng(), 50, median_tokens=median, sigma=sigma, min_tokens=low, max_tokens=high
    )
    assert lengths.min() >= low
    assert lengths.max() <= high


def test_a_huge_spread_does_not_overflow():
    lengths = lognormal(rng(), 1000, median_tokens=1000, sigma=1e6)
    assert lengths.min() == 1
    assert lengths.max() == LONGEST_TOKENS


def test_empirical_draws_given_values_in_their_proportions():
    lengths = empirical(rng(), N, [10, 10, 10, 99])
    values, counts = np.unique(lengths, return_counts=True)
    assert values.tolist() == [10, 99]
    assert counts[0] / N == pytest.approx(0.75, abs=0.006)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: uniform(rng, 500, min_tokens=1, max_tokens=4096),
        lambda rng: lognormal(rng, 500, mean_tokens=300, sigma=1.0),
        lambda rng: empirical(rng, 500, np.arange(1, 1000)),
    ],
)
def test_the_same_seed_gives_the_same_lengths(make):
    first, second = make(np.random.default_rng(7)), make(np.random.default_rng(7))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != make(np.random.default_rng(8)).tobytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed(4, 0), "tokens is 0, expected a whole number of at least 1"),
        (lambda: fixed(4, 2**31), "tokens is 2147483648, expected at most 2147483647"),
        (lambda: fixed(0, 4), "num_requests is 0"),
        (lambda: uniform(rng(), 4, min_tokens=0, max_tokens=4), "min_tokens is 0"),
        (lambda: uniform(rng(), 4, min_tokens=1.5, max_tokens=4), "min_tokens is 1.5"),
        (
            lambda: uniform(rng(), 4, min_tokens=9, max_tokens=4),
            "min_tokens is 9, expected at most max_tokens, which is 4",
        ),
        (lambda: lognormal(rng(), 4, mean_tokens=0, sigma=1), "mean_tokens is 0"),
        (lambda: lognormal(rng(), 4, median_tokens=-5, sigma=1), "median_tokens is -5"),
        (lambda: lognormal(rng(), 4, mean_tokens=math.nan, sigma=1), "mean_tokens is nan"),
        (lambda: lognormal(rng(), 4, mean_tokens=math.inf, sigma=1), "mean_tokens is inf"),
        (lambda: lognormal(rng(), 4, mean_tokens=9, sigma=-1), "sigma is -1, expected a finite"),
        (lambda: lognormal(rng(), 4, mean_tokens=9, sigma=math.nan), "sigma is nan"),
        (lambda: lognormal(rng(), 4, sigma=1), "neither of mean_tokens and median_tokens given"),
        (
            lambda: lognormal(rng(), 4, mean_tokens=9, median_tokens=9, sigma=1),
            "both of mean_tokens and median_tokens given",
        ),
        (
            lambda: lognormal(rng(), 4, mean_tokens=9, sigma=1, min_tokens=8, max_tokens=7),
            "min_tokens is 8, expected at most max_tokens, which is 7",
        ),
        (lambda: empirical(rng(), 4, []), "expected a non-empty list of numbers"),
        (lambda: empirical(rng(), 4, ["a"]), "expected a non-empty list of numbers"),
        (lambda: empirical(rng(), 4, [3, 0]), r"values\[1\] is 0, expected a whole number"),
        (lambda: empirical(rng(), 4, [3, math.nan]), r"values\[1\] is nan, expected a whole"),
        (lambda: empirical(rng(), 4, [3.5]), r"values\[0\] is 3.5, expected a whole number"),
    ],
)
def test_impossible_lengths_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
