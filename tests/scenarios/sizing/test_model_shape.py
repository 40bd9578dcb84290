"""Shapes near a size: sound, splittable, and refused where there is no such model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.sizing.model_shape import ShapeRules, config_of, nearest_shape, smallest_shape
from sim.model.config import read_config

DENSE = ShapeRules()
SPARSE = ShapeRules(num_experts=64, experts_per_token=8, expert_width_ratio=0.25)


@settings(deadline=None, max_examples=8)
@given(exponent=st.floats(9, 12.2))
@pytest.mark.parametrize("rules", [DENSE, SPARSE], ids=["dense", "experts"])
def test_a_shape_is_near_its_size_and_sound(rules: ShapeRules, exponent: float) -> None:
    wanted = 10**exponent
    model = nearest_shape(wanted, rules, name="sized")
    assert model.num_activated_parameters == pytest.approx(wanted, rel=0.06)
    assert 50 < model.hidden_size / model.num_layers < 260, "Kaplan et al.: hardly matters"
    assert model.hidden_size % 128 == model.intermediate_size % 256 == 0
    for degree in (1, 2, 4, 8):
        model.check_tensor_parallel(degree)


def test_seven_billion_parameters_make_a_llama() -> None:
    model = nearest_shape(6.74e9, ShapeRules(vocab_size=32_000, kv_heads=32), name="sized")
    assert (model.hidden_size, model.intermediate_size) == (4096, 11_008)
    assert model.num_layers in (31, 32, 33)


def test_the_configuration_describes_the_same_model() -> None:
    for rules in (DENSE, SPARSE):
        model = nearest_shape(3e9, rules, name="sized")
        assert read_config(config_of(model, rules), name="sized") == model


def test_experts_are_idle_parameters() -> None:
    model = nearest_shape(3e9, SPARSE, name="sized")
    assert model.num_parameters > 3 * model.num_activated_parameters
    assert model.moe is not None
    assert (model.moe.num_experts, model.moe.experts_per_token) == (64, 8)


def test_a_size_below_the_smallest_model_is_refused_with_it() -> None:
    least = smallest_shape(DENSE, name="least").num_parameters
    assert nearest_shape(least, DENSE, name="sized").num_parameters == least
    with pytest.raises(ValueError, match=r"1e\+06 parameters are too few for a model: the small"):
        nearest_shape(1e6, DENSE, name="sized")


def test_the_largest_sizes_have_a_shape() -> None:
    model = nearest_shape(1e13, DENSE, name="sized")
    assert model.num_activated_parameters > 1e12
