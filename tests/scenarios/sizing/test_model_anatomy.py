"""Published parameter counts, and FLOPs against the rules of thumb they refine."""

import pytest

from scenarios import library
from scenarios.schema.sizing import Training
from scenarios.sizing.model_anatomy import forward_flops_per_token, parameter_split
from scenarios.sizing.sized_model import model_figures

# As published; within 1 %. Sources: GPT-3 paper, table 2.1; Hugging Face's counts of the
# checkpoints for Llama 2, Llama 3.1, Mixtral and Qwen3; DeepSeek-V3 technical report.
PUBLISHED = {
    "gpt-3-175b": 175e9,
    "llama-2-7b": 6.74e9,
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.6e9,
    "llama-3.1-405b": 406e9,
    "mixtral-8x7b": 46.7e9,
    "qwen3-30b-a3b": 30.5e9,
    "deepseek-v3": 671e9,
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_parameters_are_the_published_ones(name: str, published: float) -> None:
    figures = model_figures(library.model(name), Training())
    assert figures["parameters"]["total"] == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mixtral-8x7b", 12.9e9),  # Mixtral paper, section 2.1: "uses 13B active"; 12.9B announced
        ("qwen3-30b-a3b", 3.35e9),  # Megatron-LM's examples; the model card cuts it to 3.3B
    ],
)
def test_activated_parameters_are_the_published_ones(name: str, published: float) -> None:
    figures = model_figures(library.model(name), Training())
    assert figures["parameters"]["activated"] == pytest.approx(published, rel=0.01)


def test_deepseeks_activated_parameters_are_the_published_ones() -> None:
    """README_WEIGHTS.md of its repository says 36.7B, which leaves out the input table (0.9B): a
    token reads one row of it. The report's 37B lies between the two ways of counting."""
    counts = model_figures(library.model("deepseek-v3"), Training())["parameters"]
    assert counts["activated_without_input_table"] == pytest.approx(36.7e9, rel=0.01)
    assert counts["activated_without_input_table"] < 37e9 < counts["activated"]
    table = counts["activated"] - counts["activated_without_input_table"]
    assert table == pytest.approx(0.9e9, rel=0.05)


@pytest.mark.parametrize("name", library.model_names())
def test_the_parts_of_a_model_add_up(name: str) -> None:
    model = library.model(name)
    split = parameter_split(model)
    assert split.total == model.num_parameters
    assert min(split.embedding, split.attention, split.norms) > 0
    assert bool(split.experts) == (model.moe is not None)
    assert split.norms < 0.001 * split.total, "what is left over is norms and nothing else"


def test_a_transformer_layer_has_twelve_squares_of_its_width() -> None:
    """GPT's 12 l h^2 (Kaplan et al. 2020, table 1), biases and norms aside."""
    model = library.model("gpt-3-175b")
    split = parameter_split(model)
    squares = model.num_layers * model.hidden_size**2
    assert split.attention == pytest.approx(4 * squares, rel=1e-3)
    assert split.mlp == pytest.approx(8 * squares, rel=1e-3)


def test_forward_flops_are_two_a_parameter_and_attention() -> None:
    """Kaplan et al. 2020, table 1: 2 N + 2 l s d, which counts the scores' product once."""
    model = library.model("gpt-3-175b")
    split = parameter_split(model)
    head = model.vocab_size * model.hidden_size
    weights = 2 * (split.attention + split.mlp + head)
    attention = 4 * model.num_layers * model.hidden_size * 2048
    assert forward_flops_per_token(model, 2048) == pytest.approx(weights + attention, rel=1e-3)


def test_gpt_3s_training_flops_are_the_published_ones() -> None:
    """Brown et al. 2020, table D.1: 3.14e23 FLOPs for 300 billion tokens."""
    six_n = model_figures(library.model("gpt-3-175b"), Training())["flops_per_token"]["six_n"]
    assert six_n * 300e9 == pytest.approx(3.14e23, rel=0.01)


def test_idle_experts_cost_no_flops() -> None:
    flops = forward_flops_per_token(library.model("mixtral-8x7b"), 1)
    assert flops == pytest.approx(2 * 12.9e9, rel=0.02)
