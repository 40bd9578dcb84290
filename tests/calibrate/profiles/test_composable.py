"""Which models profiles can be composed for: those whose kernels are all of measured kinds."""

import pytest

from calibrate.profiles.composable import why_not_composed
from scenarios import library
from sim.model.weight_format import WeightFormat


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt-oss-20b", "qwen3.5-35b-a3b", "opt-13b"])
def test_models_of_every_kind_of_layer_are_composed(name: str) -> None:
    assert why_not_composed(library.model(name)) is None


def test_weights_whose_products_nobody_timed_are_named() -> None:
    model, few = library.model("llama-3.1-8b"), WeightFormat("int2", 2, "int2")
    quantised = model.with_layers((layer.quantised(few), count) for layer, count in model.runs)
    assert why_not_composed(quantised) == "products with weights in int2"
