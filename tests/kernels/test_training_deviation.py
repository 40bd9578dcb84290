"""What roundings come to in trained weights: a study small enough to know its answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from kernels.training_deviation import RUNS, Training, distances, drifts, sentences, trained  # noqa: E402

TINY = Training(
    steps=4, layers=1, width=16, heads=2, tokens=24, batch=2, vocabulary=12, block_tokens=8
)


def after(training: Training, steps: int = 4):
    """Losses and the last weights."""
    said = list(islice(trained(training, sentences(training)), steps))
    return [loss for loss, _ in said], said[-1][1]


def test_the_distance_is_zero_of_equal_weights_and_the_shift_of_shifted_ones():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    assert distances(weights, weights) == (0.0, 0.0)
    moved = {name: weight + 0.25 for name, weight in weights.items()}
    assert distances(moved, weights) == pytest.approx((0.25, 0.25))
    # The same values elsewhere: no distance of distributions, but a largest difference.
    turned = {"a": weights["a"].flip(0), "b": weights["b"]}
    assert distances(turned, weights) == pytest.approx((0.0, 1.5))


def test_without_rounding_flash_trains_the_same_weights():
    exact = replace(TINY, dtype=torch.float32)
    losses, weights = after(exact)
    for attention in ("flash", "flash_rounded"):
        others, own = after(replace(exact, attention=attention))
        assert others == pytest.approx(losses, rel=1e-5)
        assert distances(own, weights)[1] < 1e-4


def test_the_language_can_be_learnt():
    losses, _ = after(replace(TINY, dtype=torch.float32), steps=40)
    assert losses[-1] < 0.95 * losses[0]


def test_every_run_drifts_and_another_seed_furthest():
    found = list(drifts(TINY, every=2))
    assert [one.step for one in found] == [2] * len(RUNS) + [4] * len(RUNS)
    assert found == list(drifts(TINY, every=2))  # nothing random but what the seeds say
    last = {one.run: one for one in found[-len(RUNS) :]}
    assert all(one.wasserstein > 0 and one.largest > 0 for one in last.values())
    assert max(last, key=lambda run: last[run].wasserstein) == "another_seed"
