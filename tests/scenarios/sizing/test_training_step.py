"""Seconds of a training step: against published runs, by arithmetic, and over layouts."""

from __future__ import annotations

import pytest

from scenarios import library
from scenarios.sizing.layer_tensors import ActivationSettings
from scenarios.sizing.training import Degrees, training_memory
from scenarios.sizing.training_layout import layouts
from scenarios.sizing.training_step import training_step
from sim.model.config import read_config
from sim.model.spec import ModelSpec

# Narayanan et al. 2021 ("Efficient Large-Scale Language Model Training"), table 1: heads, width,
# layers, tensor, pipeline, GPUs (A100 80 GB), batch, TFLOP/s of a GPU with the recomputed forward
# pass. The sequence is 2,048, the vocabulary 51,200; attention was not fused.
MEGATRON = [
    (24, 2304, 24, 1, 1, 32, 512, 137),
    (32, 3072, 30, 2, 1, 64, 512, 138),
    (32, 4096, 36, 4, 1, 128, 512, 142),
    (48, 6144, 40, 8, 1, 256, 1024, 135),
    (64, 8192, 48, 8, 2, 512, 1536, 138),
    (80, 10240, 60, 8, 4, 1024, 1792, 140),
    (96, 12288, 80, 8, 8, 1536, 2304, 148),
    (128, 16384, 96, 8, 16, 1920, 2160, 155),
    (128, 20480, 105, 8, 35, 2520, 2520, 163),
    (160, 25600, 128, 8, 64, 3072, 3072, 163),
]


def gpt(heads: int, width: int, layers: int) -> ModelSpec:
    config = {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 51_200,
        "n_positions": 2048,
        "torch_dtype": "bfloat16",
    }
    return read_config(config, name="gpt")


def test_ten_published_runs_are_met_within_a_tenth() -> None:
    gpu = library.gpu("a100-80gb")
    settings = ActivationSettings(1, 2048, "layer", fused_attention=False, dropout=True)
    errors = []
    for heads, width, layers, tensor, pipeline, gpus, batch, teraflops in MEGATRON:
        data = gpus // tensor // pipeline
        degrees = Degrees(tensor, pipeline, data, zero_stage=1, micro_batches=batch // data)
        step = training_step(gpt(heads, width, layers), settings, degrees, gpu)
        done = step.share_of_peak(step.model_flops) * 4 / 3 * 312
        errors.append(done / teraflops - 1)
    assert max(map(abs, errors)) < 0.11
    assert sum(map(abs, errors)) / len(errors) < 0.06


def test_a_steps_parts_add_up_and_its_share_is_below_what_products_reach() -> None:
    model, gpu = library.model("llama-2-7b"), library.gpu("h100-sxm")
    step = training_step(model, ActivationSettings(), Degrees(data=8, micro_batches=4), gpu)
    figures = step.figures()
    assert sum(figures["seconds_by_part"].values()) == pytest.approx(figures["step_s"])
    assert sum(one["flop_share"] for one in figures["classes"].values()) == pytest.approx(1)
    assert 0 < figures["mfu"] < figures["mfu_with_attention"]
    again = 4 / 3 * figures["mfu_with_attention"]
    assert again < gpu.kernel_rates.products.efficiency
    assert step.tokens == 8 * 4 * 4096


def test_a_pipeline_idles_as_its_formula_says() -> None:
    model, gpu = library.model("llama-2-7b"), library.gpu("h100-sxm")
    step = training_step(
        model, ActivationSettings(), Degrees(pipeline=4, micro_batches=9, zero_stage=0), gpu
    )
    parts = step.by_part
    working = parts["computing"] + parts["stages"]
    assert parts["bubble"] / (parts["bubble"] + working) == pytest.approx(3 / 12)


def test_recomputing_costs_a_forward_pass_and_saves_memory() -> None:
    model, gpu = library.model("llama-2-7b"), library.gpu("h100-sxm")
    again, kept = (
        training_step(model, ActivationSettings(1, 4096, kind), Degrees(data=8), gpu)
        for kind in ("layer", "none")
    )
    assert 1.25 < again.by_part["computing"] / kept.by_part["computing"] < 1.34


def test_fused_attention_gains_more_the_longer_the_sequence() -> None:
    model, gpu = library.model("llama-2-7b"), library.gpu("a100-80gb")
    gains = []
    for length in (1024, 4096, 16384):
        fused, plain = (
            training_step(model, ActivationSettings(1, length, "none", kind), Degrees(), gpu)
            for kind in (True, False)
        )
        gains.append(plain.by_part["computing"] / fused.by_part["computing"])
    assert 1 < gains[0] < gains[1] < gains[2]


def test_every_layout_can_be_deployed_fits_and_they_come_fastest_first() -> None:
    model, gpu = library.model("mixtral-8x7b"), library.gpu("h100-sxm")
    settings = ActivationSettings(1, 4096)
    found = layouts(model, settings, gpu, gpus=24, batch_tokens=1e6)
    assert len(found) > 10
    rates = [one.step.tokens_per_s for one in found]
    assert rates == sorted(rates, reverse=True)
    for one in found:
        assert one.degrees.devices == 24
        one.degrees.check(model, settings)
        memory = training_memory(model, settings, one.degrees)
        assert memory.total_bytes == one.memory.total_bytes <= gpu.memory_bytes
        assert one.degrees.tensor <= 8
    assert {one.degrees.tensor for one in found} <= {1, 2, 4, 8}, "three and six divide no heads"


def test_nothing_is_laid_out_where_nothing_fits() -> None:
    model, gpu = library.model("gpt-3-175b"), library.gpu("a100-40gb")
    assert layouts(model, ActivationSettings(1, 2048), gpu, gpus=10, batch_tokens=1e6) == []
