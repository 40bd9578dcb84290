"""Sampling against a sorted float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.linear import linear
from kernels.logits_and_sample import (
    logits_and_sample,
    restricted_probabilities,
    sample,
    sample_checked,
)

VOCABULARY = 5003


@pytest.fixture
def settings(device):
    """Temperature, top-k, top-p and uniform numbers of a batch that mixes every kind of row."""

    def make(rows: int, *, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        choice = torch.arange(rows)
        values = {
            "temperature": torch.tensor([1.0, 0.7, 0.0, 1.8])[choice % 4],
            "top_k": torch.tensor([VOCABULARY, 1, 7, 50, VOCABULARY])[choice % 5],
            "top_p": torch.tensor([1.0, 0.9, 0.3])[choice % 3],
            "uniform": torch.rand(rows, generator=generator),
        }
        return {name: value.to(device) for name, value in values.items()}

    return make


def _assert_drawn_from(tokens, logits, options):
    """Each token is where the restricted distribution's running sum passes u, within rounding."""
    limits = {n: options.get(n) for n in ("top_k", "top_p")}
    probabilities = restricted_probabilities(logits, options["temperature"], **limits)
    running = probabilities.cumsum(-1)
    own = probabilities.gather(1, tokens[:, None])[:, 0]
    above = running.gather(1, tokens[:, None])[:, 0]
    assert (own > 0).all(), "a token outside the restriction"
    uniform = options["uniform"].double()
    assert (above > uniform - 1e-4).all()
    assert (above - own < uniform + 1e-4).all()


@pytest.mark.parametrize("vocabulary", [1, 37, VOCABULARY])
def test_greedy_takes_the_first_largest_logit(vocabulary, draw):
    logits = draw(5, vocabulary)
    logits[1, vocabulary // 2 :] = logits[1].max() + 1
    assert torch.equal(sample(logits), logits.argmax(-1))


def test_mixed_rows_draw_from_their_restricted_distributions(draw, settings):
    logits, options = draw(16, VOCABULARY, scale=2.0), settings(16)
    logits[:9] *= 3.0  # candidates suffice; of the others those of flat rows do not
    tokens = sample(logits, **options)
    _assert_drawn_from(tokens, logits, options)
    _assert_drawn_from(sample(logits, **options, backend="torch"), logits, options)
    greedy = options["temperature"] == 0
    assert torch.equal(tokens[greedy], logits[greedy].argmax(-1))


@pytest.mark.parametrize("limited", [False, True])
def test_rows_that_hold_what_is_no_number_are_told(limited, draw, settings):
    logits, options = draw(6, VOCABULARY), settings(6)
    logits[1, 7] = logits[2, -1] = float("nan")
    logits[3, 4500] = float("inf")
    logits[4] = float("-inf")
    logits[5, 3:4000] = float("-inf")  # as a mask leaves them
    for given in (options,) if limited else (options, {}):
        if not limited:
            given = {n: t for n, t in given.items() if n in ("temperature", "uniform")}
        tokens, finite = sample_checked(logits, **given)
        assert finite.tolist() == [True, False, False, False, False, True]
        assert ((tokens >= 0) & (tokens < VOCABULARY)).all()
        expected = sample_checked(logits, **given, backend="torch")
        assert torch.equal(finite, expected[1])
        assert (tokens == expected[0])[finite].all()


def test_half_precision_logits_with_many_ties_keep_tied_tokens_together(draw, settings):
    logits, options = (draw(8, 600) * 2).round().half(), settings(8, seed=3)
    _assert_drawn_from(sample(logits, **options), logits, options)


def test_unlimited_rows_need_no_limits(draw, settings):
    logits, options = draw(6, 500), settings(6)
    options = {n: options[n] for n in ("temperature", "uniform")}
    _assert_drawn_from(sample(logits, **options), logits, options)


def test_frequencies_follow_the_distribution(device):
    """Equally spaced uniform numbers must give each token its share, to one part in the count."""
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0, -1.0], device=device).expand(12, 5).contiguous()
    ones = torch.ones(12, device=device)
    options = {"temperature": ones, "uniform": (torch.arange(12, device=device) + 0.5) / 12}
    options |= {"top_k": torch.full((12,), 3, device=device), "top_p": ones}
    tokens = sample(logits, **options)
    shares = torch.bincount(tokens, minlength=5).double() / 12
    expected = restricted_probabilities(logits[:1], ones[:1], options["top_k"][:1])[0]
    assert (shares - expected).abs().max() <= 1 / 12
    assert shares[0] == shares[4] == 0


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_uniform_range_give_kept_tokens(uniform, draw, settings):
    logits, options = draw(6, 300), settings(6)
    options["uniform"][:] = uniform
    _assert_drawn_from(sample(logits, **options), logits, options)


def test_projection_and_sampling_compose(draw, settings, device):
    hidden, weight = draw(3, 64), draw(200, 64)
    for backend in ("triton", "best"):
        logits = linear(hidden, weight, backend=backend)
        tokens = logits_and_sample(hidden, weight, projection_backend=backend)
        assert torch.equal(tokens, logits.argmax(-1))
    assert sample(draw(0, 50)).shape == (0,)


def test_wrong_arguments_are_refused_before_any_launch(draw, settings):
    logits, options = draw(4, 50), settings(4)
    for change, message in (
        ({"uniform": None}, "uniform: needed with temperature"),
        ({"temperature": None}, "temperature: needed with top_k"),
        ({"top_k": options["top_k"].float()}, "top_k: dtype"),
        ({"top_p": options["top_p"][:2]}, r"top_p: shape \[4\]"),
        ({"temperature": options["temperature"].to("meta")}, "temperature: must be on"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(logits, **(options | change))
    with pytest.raises(ValueError, match="logits: must be contiguous"):
        sample(logits.t(), **options)
