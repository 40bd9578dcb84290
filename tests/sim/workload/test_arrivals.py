"""Arrival processes: rates and spreads as promised, the same seed the same times."""

import math

import numpy as np
import pytest

from sim.workload import Workload
from sim.workload.arrivals import all_at_once, along, constant_rate, gamma, poisson

N = 200_000


def rng():
    return np.random.default_rng(11)


def gaps_of(arrival_s):
    return np.diff(arrival_s, prepend=0.0)


def test_poisson_gaps_are_exponential_with_the_asked_mean():
    gaps = gaps_of(poisson(rng(), N, rate_per_s=4.0))
    standard_error = 0.25 / math.sqrt(N)
    assert abs(gaps.mean() - 0.25) < 5 * standard_error
    assert gaps.std() == pytest.approx(0.25, rel=0.02)
    assert np.mean(gaps > 0.25) == pytest.approx(math.exp(-1), abs=0.01)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_keeps_the_mean_rate_and_spreads_by_burstiness(burstiness):
    gaps = gaps_of(gamma(rng(), N, rate_per_s=4.0, burstiness=burstiness))
    spread = burstiness**-0.5
    assert abs(gaps.mean() - 0.25) < 5 * 0.25 * spread / math.sqrt(N)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.03)


def test_gamma_of_burstiness_one_is_distributed_as_poisson():
    one = np.sort(gaps_of(gamma(rng(), N, rate_per_s=1.0, burstiness=1.0)))
    quantiles = -np.log1p(-(np.arange(N) + 0.5) / N)
    assert np.abs(np.exp(-one) - np.exp(-quantiles)).max() < 0.005  # Kolmogorov-Smirnov


def test_constant_rate_spaces_requests_evenly_from_zero():
    assert constant_rate(5, rate_per_s=2.0).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_all_at_once_is_time_zero_for_everyone():
    assert all_at_once(3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: poisson(rng, 1000, rate_per_s=3.0),
        lambda rng: gamma(rng, 1000, rate_per_s=3.0, burstiness=0.01),
        lambda rng: constant_rate(1000, rate_per_s=3.0),
        lambda rng: all_at_once(1000),
    ],
)
def test_the_same_seed_gives_the_same_ascending_times(make):
    first, second = make(np.random.default_rng(7)), make(np.random.default_rng(7))
    assert first.tobytes() == second.tobytes()
    workload = Workload(first, np.ones(1000), np.ones(1000))
    assert len(workload) == 1000


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_rate_must_be_finite_and_positive(rate):
    for make in (
        lambda: poisson(rng(), 5, rate_per_s=rate),
        lambda: gamma(rng(), 5, rate_per_s=rate, burstiness=1.0),
        lambda: constant_rate(5, rate_per_s=rate),
    ):
        with pytest.raises(ValueError, match=rf"rate_per_s is {rate}, expected a finite number"):
            make()


def test_an_infinite_rate_names_what_it_means():
    with pytest.raises(ValueError, match="all_at_once"):
        poisson(rng(), 5, rate_per_s=float("inf"))
    with pytest.raises(ValueError, match="constant_rate"):
        gamma(rng(), 5, rate_per_s=1.0, burstiness=float("inf"))


@pytest.mark.parametrize("burstiness", [0.0, -0.5, float("nan"), float("inf")])
def test_burstiness_must_be_finite_and_positive(burstiness):
    with pytest.raises(ValueError, match=rf"burstiness is {burstiness}, expected a finite"):
        gamma(rng(), 5, rate_per_s=1.0, burstiness=burstiness)


@pytest.mark.parametrize("count", [0, -3, 2.5, True])
def test_the_number_of_requests_must_be_whole_and_positive(count):
    for make in (
        lambda: poisson(rng(), count, rate_per_s=1.0),
        lambda: constant_rate(count, rate_per_s=1.0),
        lambda: all_at_once(count),
    ):
        with pytest.raises(ValueError, match=rf"num_requests is {count}, expected a whole number"):
            make()


def test_a_profile_changes_the_rate_over_time():
    steady = constant_rate(1000, rate_per_s=10.0)
    ramp = along(steady, [0, 20], [0.5, 1.5])  # 20 seconds' worth of 20
    assert ((ramp >= 0) & (ramp < 10)).sum() == pytest.approx(75, abs=1)
    assert ((ramp >= 10) & (ramp < 20)).sum() == pytest.approx(125, abs=1)
    assert ((ramp >= 20) & (ramp < 30)).sum() == pytest.approx(150, abs=1)
    assert (np.diff(ramp) > 0).all()


def test_a_step_is_two_points_at_one_time_and_nobody_comes_at_nought():
    steady = constant_rate(400, rate_per_s=10.0)
    stepped = along(steady, [0, 10, 10, 20, 20, 30], [1, 1, 0, 0, 2, 2])
    counts, _ = np.histogram(stepped, [0, 10 - 1e-6, 20 - 1e-6, 30 - 1e-6])
    assert counts.tolist() == pytest.approx([100, 0, 200], abs=1)


def test_a_repeated_profile_is_the_same_every_day():
    steady = poisson(rng(), N, rate_per_s=10.0)
    days = along(steady, [0, 50, 100], [0.2, 1.8, 0.2], repeat=True)
    phase, _ = np.histogram(days % 100, [0, 25, 50, 75, 100])
    assert phase / phase.sum() == pytest.approx([0.15, 0.35, 0.35, 0.15], abs=0.005)
    assert days[-1] == pytest.approx(steady[-1], rel=0.01)


def test_a_flat_profile_changes_nothing():
    steady = poisson(rng(), 500, rate_per_s=3.0)
    assert along(steady, [0, 40], [1, 1]) == pytest.approx(steady)
    assert along(steady, [0, 40], [1, 1], repeat=True) == pytest.approx(steady)


@pytest.mark.parametrize(
    ("times", "multiples", "repeat"),
    [
        ([0], [1], False), ([1, 2], [1, 1], False), ([0, 2, 1], [1, 1, 1], False),
        ([0, 1], [1, 0], False), ([0, 1], [0, 0], True), ([0, 1], [1, -1], False),
    ],
)  # fmt: skip
def test_a_profile_that_is_none_is_refused(times, multiples, repeat):
    with pytest.raises(ValueError, match="profile"):
        along(np.zeros(1), times, multiples, repeat=repeat)
