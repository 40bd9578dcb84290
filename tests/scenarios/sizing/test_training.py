"""Training memory against published tables, time and money against arithmetic."""

import pytest

from scenarios import library
from scenarios.sizing.layer_tensors import ActivationSettings
from scenarios.sizing.training import (
    Degrees,
    cost_of_flops,
    flops_of_usd,
    gpus_to_hold_weights,
    least_gpus_to_train,
    training_activation_bytes,
    training_flops_per_token,
    training_memory,
)

GIB = 2**30
LLAMA = library.model("llama-2-7b")


def test_llama_7bs_training_memory_is_the_measured_one() -> None:
    """Lv et al. 2023 ("LOMO"), table 1, AdamW in mixed precision with activation checkpointing,
    8 sequences of 512: 12.55 + 12.55 + 75.31 + 1.79 = 102.20 GiB."""
    settings = ActivationSettings(micro_batch=8, sequence_length=512, fused_attention=False)
    memory = training_memory(LLAMA, settings)
    assert memory.parameter_bytes / GIB == pytest.approx(12.55, rel=0.01)
    assert memory.gradient_bytes / GIB == pytest.approx(12.55, rel=0.01)
    assert memory.optimizer_bytes / GIB == pytest.approx(75.31, rel=0.01)
    assert memory.total_bytes / GIB == pytest.approx(102.20, rel=0.01)
    assert memory.activation_bytes / GIB == pytest.approx(1.79, rel=0.06)


def test_states_take_sixteen_bytes_a_parameter() -> None:
    """Rajbhandari et al. 2020 ("ZeRO"), section 3.1."""
    memory = training_memory(LLAMA, ActivationSettings())
    assert memory.state_bytes == 16 * LLAMA.num_parameters
    single = training_memory(LLAMA, ActivationSettings(), gradient_bytes_each=4)
    assert single.state_bytes == 18 * LLAMA.num_parameters


def test_gpts_activations_are_korthikantis_formula() -> None:
    """s b h l (34 + 5 a s / h), Korthikanti et al. 2022, equation 2; GPT-3, sequences of 2,048."""
    model = library.model("gpt-3-175b")
    settings = ActivationSettings(
        sequence_length=2048, checkpointing="none", fused_attention=False, dropout=True
    )
    sbhl = 2048 * 12288 * 96
    formula = sbhl * (34 + 5 * 96 * 2048 / 12288)
    assert training_activation_bytes(model, settings) == pytest.approx(formula, rel=0.01)


def test_checkpointing_at_layer_boundaries_keeps_each_layers_input_and_one_layer() -> None:
    kept = ActivationSettings(micro_batch=2, sequence_length=1024)
    everything = ActivationSettings(micro_batch=2, sequence_length=1024, checkpointing="none")
    inputs = 2 * LLAMA.num_layers * LLAMA.hidden_size * 2048
    short = training_activation_bytes(LLAMA, kept)
    whole = training_activation_bytes(LLAMA, everything)
    assert inputs < short < inputs + whole / LLAMA.num_layers
    assert short < whole / 8


def test_activations_grow_with_the_square_of_the_length_unless_attention_is_fused() -> None:
    def at(length: int, fused: bool) -> int:
        settings = ActivationSettings(
            sequence_length=length, checkpointing="none", fused_attention=fused
        )
        return training_activation_bytes(LLAMA, settings)

    assert at(8192, True) == 2 * at(4096, True)
    assert at(8192, False) > 3 * at(4096, False)


def test_a_mixture_of_experts_keeps_only_chosen_experts() -> None:
    model = library.model("mixtral-8x7b")
    settings = ActivationSettings(sequence_length=1, checkpointing="none")
    per_layer = training_activation_bytes(model, settings) / model.num_layers
    two_experts = 2 * (4 * 2 * 14336 + 2 * 2 * 4096)
    assert two_experts < per_layer < 1.5 * two_experts


@pytest.mark.parametrize(
    ("stage", "shared"),
    [(0, 0.0), (1, 12.0), (2, 14.0), (3, 16.0)],  # bytes a parameter
)
def test_zero_shares_what_its_stage_says(stage: int, shared: float) -> None:
    memory = training_memory(LLAMA, ActivationSettings(), Degrees(data=64, zero_stage=stage))
    expected = (16 - shared + shared / 64) * LLAMA.num_parameters
    assert memory.state_bytes == pytest.approx(expected)


def test_zeros_published_example() -> None:
    """ZeRO, figure 1: 7.5B parameters on 64 GPUs: 120, 31.4, 16.6 and 1.9 GB."""
    states = []
    for stage in range(4):
        memory = training_memory(LLAMA, ActivationSettings(), Degrees(data=64, zero_stage=stage))
        states.append(memory.state_bytes / LLAMA.num_parameters * 7.5)
    assert states == pytest.approx([120, 31.4, 16.6, 1.9], rel=0.02)


def test_ten_a100_40gb_hold_gpt_3_in_half_precision() -> None:
    model, gpu = library.model("gpt-3-175b"), library.gpu("a100-40gb")
    assert gpus_to_hold_weights(model, gpu, utilization=0.9) == 10
    assert model.weight_bytes() / (0.9 * 40e9) == pytest.approx(9.7, rel=0.01), "by the box"


def test_the_fewest_gpus_that_train_are_the_fewest_that_fit() -> None:
    model, gpu = library.model("llama-3.1-70b"), library.gpu("a100-80gb")
    settings = ActivationSettings()
    least = least_gpus_to_train(model, settings, gpu)
    assert least is not None
    fits = training_memory(model, settings, Degrees(data=least))
    assert fits.total_bytes <= gpu.memory_bytes
    one_less = training_memory(model, settings, Degrees(data=least - 1))
    assert one_less.total_bytes > gpu.memory_bytes
    assert least_gpus_to_train(model, settings, gpu, Degrees(zero_stage=0)) is None


def test_one_gpu_can_be_enough() -> None:
    small, gpu = library.model("qwen3-0.6b"), library.gpu("a100-80gb")
    assert least_gpus_to_train(small, ActivationSettings(), gpu) == 1


def test_time_and_money_follow_from_flops() -> None:
    """Llama 2 7B took 184,320 A100 hours (Touvron et al. 2023, table 2) for 2T tokens: 39 %."""
    gpu = library.gpu("a100-80gb")
    flops = 6 * LLAMA.num_parameters * 2e12
    utilisation = flops / (184_320 * 3600 * 312e12)
    assert 0.3 < utilisation < 0.5
    cost = cost_of_flops(flops, gpu, gpus=1024, mfu=utilisation)
    assert cost.gpu_hours == pytest.approx(184_320)
    assert cost.wall_s == pytest.approx(184_320 * 3600 / 1024)
    assert cost.usd == pytest.approx(184_320 * gpu.price_usd_per_hour)
    assert flops_of_usd(cost.usd, gpu, mfu=utilisation) == pytest.approx(flops)


def test_recomputing_layers_costs_a_third_more() -> None:
    plain = training_flops_per_token(LLAMA, 4096)
    assert training_flops_per_token(LLAMA, 4096, checkpointing="layer") * 3 == plain * 4
