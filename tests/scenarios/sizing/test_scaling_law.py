"""Scaling laws against published optima, and their closed forms against a search."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.sizing.scaling_law import (
    LAWS,
    AdditiveLaw,
    RosenfeldLaw,
    ScalingLaw,
    kaplan_frontier,
    lifetime_optimum,
    numeric_optimum,
)

GOPHER_FLOPS = 5.76e23
CHINCHILLA = LAWS["chinchilla"]
ROSENFELD = RosenfeldLaw("own", "", 40.0, 0.34, 41.0, 0.29, 0.17, 1.0, 11.0)


def test_the_chinchilla_law_is_the_one_courses_write() -> None:
    n, d = 7e9, 1.4e11
    expected = 406.4 / n**0.34 + 410.7 / d**0.29 + 1.69
    assert float(CHINCHILLA.loss(n, d)) == pytest.approx(expected, rel=1e-12)


def test_the_unrounded_fit_gives_the_40_billion_parameters_the_paper_names_for_gophers_budget() -> (
    None
):
    """Hoffmann et al. 2022, figure 4: 40B by approach 3, so 5.76e23 / (6 x 40e9) tokens."""
    best = LAWS["chinchilla-unrounded"].optimum(GOPHER_FLOPS)
    assert best.parameters == pytest.approx(40e9, rel=0.01)
    assert best.tokens == pytest.approx(GOPHER_FLOPS / 6 / 40e9, rel=0.01)


def test_the_courses_form_has_its_own_optimum_for_gophers_budget() -> None:
    """By equation 4 of the paper, written out with the exponents 0.34 and 0.29."""
    g = (0.34 * 406.4 / (0.29 * 410.7)) ** (1 / 0.63)
    parameters = g * (GOPHER_FLOPS / 6) ** (0.29 / 0.63)
    best = CHINCHILLA.optimum(GOPHER_FLOPS)
    assert best.parameters == pytest.approx(parameters, rel=1e-9)
    assert best.parameters == pytest.approx(48.0e9, rel=0.01)
    assert best.tokens == pytest.approx(2.00e12, rel=0.01)


def test_the_exponents_as_the_paper_rounds_them_miss_its_own_40_billion() -> None:
    rounded = AdditiveLaw("rounded", "", 406.4, 0.34, 410.7, 0.28, 1.69)
    assert rounded.optimum(GOPHER_FLOPS).parameters == pytest.approx(32.2e9, rel=0.01)


def test_the_refitted_law_agrees_with_chinchilla_as_it_was_trained() -> None:
    """70B parameters, 1.4T tokens; Besiroglu et al. 2024 say about 20 tokens a parameter."""
    best = LAWS["besiroglu"].optimum(6 * 70e9 * 1.4e12)
    assert best.parameters == pytest.approx(70e9, rel=0.05)
    assert best.tokens_per_parameter == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("law", [*LAWS.values(), ROSENFELD], ids=lambda law: law.name)
@settings(deadline=None)
@given(exponent=st.floats(14, 28))
def test_the_closed_form_is_where_a_search_finds_the_lowest_loss(
    law: ScalingLaw, exponent: float
) -> None:
    flops = 10**exponent
    closed, searched = law.optimum(flops), numeric_optimum(law, flops)
    assert closed.loss <= searched.loss * (1 + 1e-12)
    assert closed.parameters == pytest.approx(searched.parameters, rel=1e-3)
    assert 6 * closed.parameters * closed.tokens == pytest.approx(flops, rel=1e-12)


@pytest.mark.parametrize("law", [*LAWS.values(), ROSENFELD], ids=lambda law: law.name)
def test_tokens_for_a_loss_reach_that_loss(law: ScalingLaw) -> None:
    best = law.optimum(1e22)
    tokens = law.tokens_for_loss(best.parameters / 2, best.loss)
    assert tokens is not None
    assert tokens > best.tokens
    assert float(law.loss(best.parameters / 2, tokens)) == pytest.approx(best.loss, rel=1e-12)
    assert law.tokens_for_loss(best.parameters / 1e4, best.loss) is None


def test_no_number_of_tokens_reaches_a_loss_below_the_irreducible_one() -> None:
    assert CHINCHILLA.tokens_for_loss(1e15, 1.69) is None
    assert ROSENFELD.tokens_for_loss(1e15, 11.0) is None
    assert ROSENFELD.tokens_for_loss(1e15, 12.0) is None
    with pytest.raises(ValueError, match=r"no model reaches a loss of 1\.5 under the law chin"):
        lifetime_optimum(CHINCHILLA, loss=1.5, served_tokens=1e12)


def test_rosenfelds_law_far_from_its_bend_is_the_additive_one() -> None:
    bent = RosenfeldLaw("r", "", 406.4, 0.34, 410.7, 0.29, 1.69, 1e6, 1e6)
    assert float(bent.loss(7e9, 1e11)) == pytest.approx(float(CHINCHILLA.loss(7e9, 1e11)))
    assert float(ROSENFELD.loss(1.0, 1.0)) == pytest.approx(11.0, rel=1e-3), "nothing learned"


def test_kaplans_frontier_is_the_published_one() -> None:
    """One PF-day: 1.3e9 parameters; ten times the compute, 5.4 times the size (table 6)."""
    parameters, tokens = kaplan_frontier(8.64e19)
    assert parameters == pytest.approx(1.3e9)
    assert 6 * parameters * tokens == pytest.approx(8.64e19)
    assert kaplan_frontier(8.64e20)[0] / parameters == pytest.approx(10**0.73)


# Sardana et al. 2024 ("Beyond Chinchilla-Optimal") use these coefficients.
SARDANA = replace(CHINCHILLA, alpha=0.336, beta=0.283)


def optimal_of_size(law: AdditiveLaw, parameters: float) -> tuple[float, float]:
    """FLOPs and loss of the budget whose optimum has this size."""
    exponent = law.beta / (law.alpha + law.beta)
    flops = 6 * (parameters / law.optimum(6.0).parameters) ** (1 / exponent)
    return flops, law.optimum(flops).loss


def test_a_13b_model_that_serves_two_trillion_tokens_is_better_a_7b_as_published() -> None:
    """Sardana et al., figure 1: a 7B model saves 1.7e22 FLOPs, 17 %."""
    assert isinstance(SARDANA, AdditiveLaw)
    flops, loss = optimal_of_size(SARDANA, 13e9)
    best = lifetime_optimum(SARDANA, loss=loss, served_tokens=2e12)
    before, after = flops + 2 * 13e9 * 2e12, best.flops + 2 * best.parameters * 2e12
    assert best.parameters == pytest.approx(7e9, rel=0.01)
    assert before - after == pytest.approx(1.7e22, rel=0.01)
    assert 1 - after / before == pytest.approx(0.17, abs=0.005)


def test_without_anything_to_serve_the_lifetime_optimum_is_the_compute_optimum() -> None:
    best = CHINCHILLA.optimum(1e22)
    lifetime = lifetime_optimum(CHINCHILLA, loss=best.loss, served_tokens=0.0)
    assert lifetime.parameters == pytest.approx(best.parameters, rel=1e-4)
    assert lifetime.flops == pytest.approx(1e22, rel=1e-9)


def test_the_more_is_served_the_smaller_the_best_model() -> None:
    loss = CHINCHILLA.optimum(1e22).loss
    sizes = [
        lifetime_optimum(CHINCHILLA, loss=loss, served_tokens=tokens).parameters
        for tokens in (0, 1e11, 1e12, 1e13, 1e14)
    ]
    assert sizes == sorted(sizes, reverse=True)
