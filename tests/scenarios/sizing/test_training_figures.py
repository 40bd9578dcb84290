"""Memory of a device, a layer's tensors, bytes sent and FLOPs of a training step."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scenarios import library
from scenarios.sizing.model_anatomy import parameter_split
from scenarios.sizing.training import (
    ActivationSettings,
    layer_bytes_per_token,
    training_activation_bytes,
    training_memory,
)
from scenarios.sizing.training_figures import (
    Degrees,
    layer_activations,
    layer_weights,
    training_figures,
)
from tests.orcast.command_line import orcast

LLAMA = library.model("llama-2-7b")
MODELS = ("llama-2-7b", "llama-3.1-8b", "opt-13b", "gpt-3-175b")


@pytest.mark.parametrize("name", [*MODELS, "mixtral-8x7b"])
@pytest.mark.parametrize("checkpointing", ["none", "layer"])
def test_one_device_has_the_memory_of_the_whole_model(name: str, checkpointing: Any) -> None:
    model = library.model(name)
    settings = ActivationSettings(2, 512, checkpointing)
    memory = training_figures(model, settings, Degrees())["memory_bytes"]
    whole = training_memory(model, settings)
    assert memory["activations"] == pytest.approx(training_activation_bytes(model, settings))
    assert memory["parameters"] == pytest.approx(whole.parameter_bytes)
    assert memory["total"] == pytest.approx(whole.total_bytes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_layers_tensors_add_up_to_what_it_keeps(name: str, fused: bool) -> None:
    model = library.model(name)
    settings = ActivationSettings(3, 128, fused_attention=fused)
    kept = sum(tensor.num_bytes for tensor in layer_activations(model, settings))
    assert kept == layer_bytes_per_token(model, settings)[0] * settings.tokens


def test_a_layers_matrices_add_up_to_the_models_parameters() -> None:
    matrices = sum(tensor.elements for tensor in layer_weights(LLAMA)) * LLAMA.num_layers
    split = parameter_split(LLAMA)
    assert matrices + split.embedding + split.norms == LLAMA.num_parameters == 6_738_415_616


def test_checkpoints_at_the_layers_boundaries_take_one_gib() -> None:
    figures = training_figures(LLAMA, ActivationSettings(1, 4096), Degrees())
    assert figures["checkpoints_bytes"] == 32 * 1 * 4096 * 4096 * 2 == 2**30


def test_the_causal_mask_halves_attention_and_nothing_else() -> None:
    for length in (1, 2, 1000):
        flops = training_figures(LLAMA, ActivationSettings(1, length), Degrees())["flops_per_token"]
        attention = 4 * 32 * 4096 * length  # two products of 2 L h for each token of the sequence
        seen = 4 * 32 * 4096 * (length + 1) // 2  # the mean over a sequence's tokens
        assert flops["forward"] - flops["forward_causal"] == attention - seen
        assert flops["training"] == 4 * flops["forward"], "a layer is computed again"


def test_degrees_divide_what_they_should() -> None:
    settings = ActivationSettings(1, 4096, "none")

    def memory(**degrees: int) -> dict[str, float]:
        found: dict[str, float] = training_figures(LLAMA, settings, Degrees(**degrees))[
            "memory_bytes"
        ]
        return found

    one = memory()
    assert memory(tensor=4)["parameters"] == one["parameters"] / 4
    assert one["activations"] / 4 < memory(tensor=4)["activations"] < one["activations"] / 2
    assert memory(sequence=8)["activations"] == one["activations"] / 8
    assert memory(sequence=8)["parameters"] == one["parameters"]
    assert memory(data=8, zero_stage=1)["optimizer"] == one["optimizer"] / 8
    assert memory(data=8, zero_stage=1)["gradients"] == one["gradients"]
    # A pipeline's first stage holds as many micro-batches as it has stages: as much as all layers.
    piped = memory(pipeline=4, micro_batches=8)
    layers = one["activations"] - settings.tokens * (4 * 4096 + 4 * 32_000)
    assert piped["activations"] == pytest.approx(layers)
    assert memory(pipeline=4)["activations"] < piped["activations"] / 3


def test_what_devices_send() -> None:
    settings = ActivationSettings(1, 4096)
    degrees = Degrees(tensor=2, pipeline=4, sequence=8, data=2, micro_batches=9)
    figures = training_figures(LLAMA, settings, degrees)
    sent, own = figures["sent_bytes"], 4096 // 8
    assert sent["between stages, forward"] == own * 4096 * 2
    assert sent["all-reduces of tensor ranks"] == 8 * 4 * own * 4096 * 2
    # Queries, keys, values and outputs: 4 h of a token, 7 of 8 parts go elsewhere.
    assert sent["Ulysses, a layer forward"] == 4 * 4096 * own * 2 * 7 / 8
    assert sent["ring attention, a layer forward"] == 7 * 2 * 4096 * own * 2
    assert figures["bubble"] == 3 / 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tensor-parallel", "5"), "tensor degree 5 does not divide 32"),
        (("--sequence-parallel", "3"), "sequence degree 3 does not divide 4096"),
        (("--pipeline-parallel", "33"), "pipeline degree 33 for 32 layers"),
    ],
)
def test_a_division_that_cannot_be_is_refused(arguments: tuple[str, ...], words: str) -> None:
    outcome = orcast("show", "training", "llama-2-7b", *arguments)
    assert outcome.status != 0
    assert words in outcome.stderr


def test_the_command_prints_tables_and_json() -> None:
    outcome = orcast("show", "training", "llama-2-7b")
    assert outcome.status == 0, outcome.stderr
    assert "6,738,415,616 parameters" in outcome.stdout
    assert "(b, n, s, d)" in outcome.stdout
    mixture = json.loads(orcast("show", "training", "mixtral-8x7b", "--json").stdout)
    assert "layer_weights" not in mixture
    assert mixture["memory_bytes"]["total"] > 0
