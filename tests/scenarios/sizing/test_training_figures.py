"""Memory of a device, a layer's tensors, bytes sent and FLOPs of a training step."""

from __future__ import annotations

import json

import pytest

from scenarios import library
from scenarios.sizing.layer_tensors import (
    ActivationSettings,
    layer_activations,
    layer_weights,
    outer_weights,
)
from scenarios.sizing.model_anatomy import parameter_split
from scenarios.sizing.training import Degrees, layer_bytes, training_memory
from scenarios.sizing.training_figures import training_figures
from tests.orcast.command_line import orcast

LLAMA = library.model("llama-2-7b")
MIXTRAL = library.model("mixtral-8x7b")


@pytest.mark.parametrize("name", ["llama-2-7b", "gpt-3-175b", "mixtral-8x7b", "deepseek-v3"])
def test_a_layers_tensors_add_up_to_the_models_parameters(name: str) -> None:
    model = library.model(name)
    mixed = 0 if model.moe is None else model.moe.num_layers
    layers = [(model.num_layers - mixed, False), (mixed, True)]
    inside = sum(
        count * sum(one.elements for one in layer_weights(model, experts=experts))
        for count, experts in layers
        if count
    )
    outside = sum(one.elements for one in outer_weights(model))
    biases_and_latents_norms = 1e-3 * model.num_parameters
    assert inside + outside == pytest.approx(model.num_parameters, abs=biases_and_latents_norms)
    if name == "llama-2-7b":
        assert inside + outside == model.num_parameters == 6_738_415_616
    split = parameter_split(model)
    assert split.total == model.num_parameters


def test_tensor_ranks_divide_all_but_what_the_norms_see() -> None:
    settings = ActivationSettings(3, 128)
    whole = sum(one.num_bytes for one in layer_activations(LLAMA, settings) if one.whole)
    one, four = (layer_bytes(LLAMA, settings, tensor_parallel=t)[0] for t in (1, 4))
    assert whole == 4 * 3 * 128 * 4096 * 2
    assert four == whole + (one - whole) / 4


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
    assert memory(sequence=8, zero_stage=0)["parameters"] == one["parameters"]
    assert memory(sequence=8)["parameters"] == one["parameters"] / 8, "ranks that hold the same"
    assert memory(data=8, zero_stage=1)["optimizer"] == one["optimizer"] / 8
    assert memory(data=8, zero_stage=1)["gradients"] == one["gradients"]
    # A pipeline's first stage holds as many micro-batches as it has stages: as much as all layers.
    piped = memory(pipeline=4, micro_batches=8)
    layers = one["activations"] - settings.tokens * (4 * 4096 + 4 * 32_000)
    assert piped["activations"] == pytest.approx(layers)
    assert memory(pipeline=4)["activations"] < piped["activations"] / 3


def test_expert_ranks_divide_experts_alone() -> None:
    settings = ActivationSettings(1, 4096)
    split = parameter_split(MIXTRAL)
    rest = split.total - split.experts
    alone, shared = (
        training_memory(MIXTRAL, settings, Degrees(data=8, expert=expert, zero_stage=0))
        for expert in (1, 8)
    )
    assert alone.parameter_bytes == 2 * split.total
    assert shared.parameter_bytes == 2 * (rest + split.experts / 8)
    assert shared.activation_bytes == alone.activation_bytes
    # With all states dealt out, it is the same whoever has which.
    dealt = [
        training_memory(MIXTRAL, settings, Degrees(data=8, expert=expert)).state_bytes
        for expert in (1, 8)
    ]
    assert dealt[0] == pytest.approx(dealt[1]) == pytest.approx(16 * split.total / 8)


def test_what_devices_send() -> None:
    settings = ActivationSettings(1, 4096)
    degrees = Degrees(tensor=2, pipeline=4, sequence=8, data=2, micro_batches=9)
    figures = training_figures(LLAMA, settings, degrees)
    sent, own = figures["sent_bytes"], 4096 // 8
    assert sent["between stages, a micro-batch forward"] == own * 4096 * 2
    # Two forward, two back, and two where the layer is computed again.
    assert sent["tensor ranks' all-reduces, a micro-batch"] == 8 * 6 * own * 4096 * 2
    # Queries, keys, values and outputs: 4 h of a token, half on each tensor rank, 7 of 8 parts go.
    assert sent["Ulysses' all-to-all, a layer forward"] == 4 * 4096 / 2 * own * 2 * 7 / 8
    assert sent["or ring attention, a layer forward"] == 7 * 2 * 4096 / 2 * own * 2
    assert figures["bubble"] == 3 / 12
    # Two experts of a token: to them and back, 7 of 8 to others.
    mixed = training_figures(MIXTRAL, settings, Degrees(data=8, expert=8))["sent_bytes"]
    assert mixed["experts' all-to-all, a layer forward"] == 2 * 2 * 4096 * 4096 * 2 * 7 / 8
    # Zero's traffic (Rajbhandari et al. 2020, section 7): 2 of the model's bytes, 3 at stage 3.
    whole = 2 * LLAMA.num_parameters * 63 / 64
    for stage, times in ((0, 2), (1, 2), (2, 2), (3, 3)):
        sent = training_figures(LLAMA, settings, Degrees(data=64, zero_stage=stage))["sent_bytes"]
        replicas = [value for name, value in sent.items() if "parameters" in name]
        assert sent["gradients, a step"] + sum(replicas) == pytest.approx(times * whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("llama-2-7b", "--tensor-parallel", "5"), "tensor degree 5 does not divide 32"),
        (("llama-2-7b", "--sequence-parallel", "3"), "sequence degree 3 does not divide 4096"),
        (("llama-2-7b", "--pipeline-parallel", "33"), "pipeline degree 33 for 32 layers"),
        (("llama-2-7b", "--expert-parallel", "2"), "llama-2-7b has no experts"),
        (("mixtral-8x7b", "--expert-parallel", "2"), "expert degree 2 does not divide 1"),
        (("llama-2-7b", "--gpus", "8"), "--gpus needs --gpu"),
        (
            ("gpt-3-175b", "--gpus", "10", "--gpu", "a100-40gb"),
            "no layout on 10 x a100-40gb fits their memory",
        ),
    ],
)
def test_a_division_that_cannot_be_is_refused(arguments: tuple[str, ...], words: str) -> None:
    outcome = orcast("show", "training", *arguments)
    assert outcome.status == 2
    assert words in outcome.stderr


def test_the_command_prints_tables_and_json() -> None:
    outcome = orcast("show", "training", "llama-2-7b", "--gpu", "h100-sxm", "--gpus", "16")
    assert outcome.status == 0, outcome.stderr
    assert "6,738,415,616 parameters" in outcome.stdout
    assert "(b, n, s, d)" in outcome.stdout
    assert "(b, s, v)" in outcome.stdout
    assert "of the peak by 6 N" in outcome.stdout
    mixture = json.loads(orcast("show", "training", "mixtral-8x7b", "--json").stdout)
    names = [one["name"] for one in mixture["tensors"]["A layer with experts keeps"]]
    assert "experts' gate" in names
    assert mixture["memory_bytes"]["total"] > 0
