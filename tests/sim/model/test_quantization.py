"""What a checkpoint's quantization_config says of its weights."""

from __future__ import annotations

from typing import Any

import pytest

from sim.model.quantization import Quantization, read_quantization


def groups(**weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"quant_method": "fp8"}, Quantization("float8", "tensor")),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            Quantization("float8", "block"),
        ),
        ({"quant_method": "fbgemm_fp8"}, Quantization("float8", "channel")),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Quantization("float8", "tensor")),
        ({"quant_method": "awq", "bits": 4}, Quantization("int4")),
        (groups(type="float", num_bits=8, strategy="channel"), Quantization("float8", "channel")),
        (groups(type="float", num_bits=8, strategy="tensor"), Quantization("float8", "tensor")),
        (groups(type="int", num_bits=4, strategy="group"), Quantization("int4")),
    ],
)
def test_a_format_is_understood(given: dict[str, Any], expected: Quantization) -> None:
    assert read_quantization(given) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("fp8", "quant_method None is not understood; understood: fp8, fbgemm_fp8"),
        ({"quant_method": "gptq", "bits": 3}, "quant_method gptq: bits 3 is not understood"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, "quant_algo 'W4A8' is not"),
        (groups(type="int", num_bits=8, strategy="channel"), "weights of type 'int', 8 bits"),
        ({"quant_method": "compressed-tensors"}, "config_groups must quantise their weights alike"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    name: {"weights": {"type": "float", "num_bits": 8, "strategy": name}}
                    for name in ("tensor", "block")
                },
            },
            "config_groups must quantise their weights alike",
        ),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        read_quantization(given)
    assert "\n" not in str(error.value)
