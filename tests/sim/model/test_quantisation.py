"""How a checkpoint's weights lie: every method's bytes, and modules that are left out."""

import json
from typing import Any

import pytest

from scenarios import library
from sim.model.config import read_config
from sim.model.spec import ModelSpec

HIDDEN, WIDTH, LAYERS, VOCABULARY = 4096, 14336, 32, 128256
TABLES = 2 * VOCABULARY * HIDDEN
NORMS = (2 * LAYERS + 1) * HIDDEN
MATRICES = 8_030_261_248 - TABLES - NORMS


def llama(beside: dict[str, Any] | None = None, **quantised: Any) -> ModelSpec:
    config = json.loads((library.ROOT / "models" / "llama-3.1-8b.json").read_text())
    return read_config({**config, **quantised}, name="checkpoint", quantised=beside)


def bits(model: ModelSpec) -> float:
    """Bits of a weight of the matrices, scales and all."""
    return (model.weight_bytes() - 2 * (TABLES + NORMS)) * 8 / MATRICES


def group(kind: str, number: int, **more: Any) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": number, **more}
    return {"targets": ["Linear"], "weights": weights, "input_activations": None}


@pytest.mark.parametrize(
    ("given", "expected", "dtype"),
    [
        ({"quant_method": "fp8"}, 8, "float8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2, "float8"),
        ({"quant_method": "fbgemm_fp8"}, 8, "float8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128, "int4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, 4 + 20 / 32, "int4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 8 + 24 / 128, "int8_wo"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 64}, 4 + 20 / 64, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5, "int4"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True,
             "bnb_4bit_use_double_quant": True},
            4 + (8 + 32 / 256) / 64,
            "int4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5, "nvfp4"),
        ({"quant_algo": "FP8", "producer": {"name": "modelopt"}}, 8, "float8"),
        (
            {"quant_method": "quark",
             "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group"}}},
            4.25,
            "mxfp4",
        ),
        (
            {"quant_method": "compressed-tensors",
             "config_groups": {"g": group("int", 4, strategy="group", group_size=128)}},
            4.125,
            "int4",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
             "config_groups": {"g": group("float", 4, strategy="tensor_group", group_size=16)}},
            4.5,
            "nvfp4",
        ),
        (
            {"quant_method": "compressed-tensors",
             "config_groups": {"g": group("float", 8, strategy="channel")}},
            8,
            "float8",
        ),
    ],
)  # fmt: skip
def test_every_method_takes_its_bits(given: dict[str, Any], expected: float, dtype: str) -> None:
    model = llama(quantization_config=given)
    assert bits(model) == pytest.approx(expected, rel=0.003)
    assert model.weight_dtype == dtype
    assert model.logits_operation().weight_dtype == "bfloat16"


def test_mlx_quantises_the_tables_too() -> None:
    model = llama(quantization={"group_size": 64, "bits": 4})
    held = model.weight_bytes() - 2 * NORMS
    assert held * 8 / (MATRICES + TABLES) == pytest.approx(4.5, rel=1e-4)


def test_what_lies_beside_and_what_is_compressed_is_read_as_well() -> None:
    algorithm = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = {"producer": {"name": "modelopt"}, "quantization": algorithm}
    model = llama(beside)
    assert bits(model) == pytest.approx(8, rel=1e-3)
    assert model.kv_bytes_per_token() == 65_536
    compressed = {"quant_method": "compressed-tensors", "config_groups": {
        "group_0": group("float", 8, strategy="channel")}}  # fmt: skip
    assert bits(llama(compression_config=compressed)) == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize(
    "patterns",
    [
        [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)],
        ["self_attn"],
        ["re:.*self_attn.*"],
        ["*self_attn*"],
        ["model.layers.*.self_attn"],
        [
            f"language_model.model.layers.{n}.self_attn.{m}_proj"
            for n in range(LAYERS)
            for m in "qo"
        ],
    ],
)
def test_modules_that_are_left_out_keep_sixteen_bits(patterns: list[str]) -> None:
    given = {"quant_method": "fp8", "modules_to_not_convert": [*patterns, "lm_head"]}
    kinds = {
        op.name: op.weight_dtype for op in llama(quantization_config=given).linear_operations()
    }
    assert kinds == {
        "qkv_proj": "bfloat16", "o_proj": "bfloat16",
        "gate_up_proj": "float8", "down_proj": "float8",
    }  # fmt: skip


def test_a_layer_left_out_is_a_kind_of_its_own() -> None:
    given = {"quant_method": "fp8", "ignored_layers": ["model.layers.0", "model.layers.1"]}
    model = llama(quantization_config=given)
    assert [count for _, count in model.runs] == [2, 30], "layer 10 begins like layer 1"
    counts = {(op.name, op.weight_dtype): op.count for op in model.linear_operations()}
    assert counts["down_proj", "bfloat16"] == 2
    assert counts["down_proj", "float8"] == 30
    assert sum(share.num_layers for share in model.stages(4)) == 32


def test_a_router_named_gate_is_not_a_gate_projection() -> None:
    config = json.loads((library.ROOT / "models" / "qwen3-30b-a3b.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": ["gate"]}
    model = read_config(config, name="moe")
    kinds = {op.name: op.weight_dtype for op in model.expert_operations()}
    assert kinds == {"experts_gate_up": "float8", "experts_down": "float8"}


def test_mixed_checkpoints_have_a_format_for_each_group() -> None:
    groups = {
        "attention": {**group("float", 8, strategy="channel"), "targets": ["re:.*self_attn.*"]},
        "rest": group("int", 4, strategy="group", group_size=128),
    }
    given = {"quant_method": "compressed-tensors", "config_groups": groups}
    kinds = {
        op.name: op.weight_dtype for op in llama(quantization_config=given).linear_operations()
    }
    assert kinds["qkv_proj"] == "float8"
    assert kinds["down_proj"] == "int4"


def test_mxfp4_checkpoints_have_only_their_experts_in_it() -> None:
    model = library.model("gpt-oss-20b")
    assert {op.weight_dtype for op in model.linear_operations()} == {"bfloat16"}
    assert {op.weight_dtype for op in model.expert_operations()} == {"mxfp4"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quant_method": "aqlm"}, "quant_method 'aqlm' is not understood; understood: awq"),
        ({"quant_method": "awq"}, "bits is missing"),
        ({"quant_method": "gptq", "bits": 7}, "bits 7 is not understood"),
        ({"quant_method": "gptq", "bits": "four"}, "bits must be a whole number, not 'four'"),
        ({"quant_method": "modelopt", "quant_algo": "FP2"}, "quant_algo 'FP2' is not understood"),
        ({"quant_method": "compressed-tensors"}, "config_groups names no weights"),
        ({"quant_method": "compressed-tensors", "config_groups": [1]}, "cannot be read"),
        ([1], "must be a mapping"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        llama(quantization_config=given)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("checkpoint: ")
