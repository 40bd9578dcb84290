"""How a checkpoint's matrices are quantised, from its config's ``quantization_config``.

fp8                  one scale a block (``weight_block_size``), else one a tensor
fbgemm_fp8           one scale a channel
compressed-tensors   float8 or integers of 4 bits, as its groups of weights say
modelopt             ``quant_algo`` FP8: one scale a tensor
gptq, awq            integers of 4 bits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

# What has a scale of its own: a whole matrix, each of its output channels, or each of its blocks.
Float8Scales = Literal["tensor", "channel", "block"]
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class Quantization:
    """The quantised matrices' type, and what has a scale where that is float8."""

    weight_dtype: str
    float8_scales: Float8Scales = "tensor"


def read_quantization(given: Any) -> Quantization:
    """Raises ValueError, one line, where this is not understood."""
    method = given.get("quant_method") if isinstance(given, Mapping) else None
    if method == "fp8":
        return Quantization("float8", "block" if given.get("weight_block_size") else "tensor")
    if method == "fbgemm_fp8":
        return Quantization("float8", "channel")
    if method == "modelopt":
        algorithm = given.get("quant_algo")
        if algorithm != "FP8":
            raise ValueError(f"quant_algo {algorithm!r} is not understood; understood: FP8")
        return Quantization("float8")
    if method in ("gptq", "awq"):
        bits = given.get("bits")
        if bits != 4:
            raise ValueError(
                f"quant_method {method}: bits {bits!r} is not understood; understood: 4"
            )
        return Quantization("int4")
    if method == "compressed-tensors":
        return _of_groups(given.get("config_groups"))
    raise ValueError(f"quant_method {method!r} is not understood; understood: {', '.join(METHODS)}")


def _of_groups(groups: Any) -> Quantization:
    """compressed-tensors has groups of layers; all have to be quantised alike."""
    found = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        weights = weights if isinstance(weights, Mapping) else {}
        kind, bits, strategy = (weights.get(key) for key in ("type", "num_bits", "strategy"))
        if (kind, bits) == ("float", 8) and strategy in get_args(Float8Scales):
            found.add(Quantization("float8", cast(Float8Scales, strategy)))
        elif (kind, bits) == ("int", 4):
            found.add(Quantization("int4"))
        else:
            raise ValueError(
                f"compressed-tensors weights of type {kind!r}, {bits!r} bits, strategy "
                f"{strategy!r} are not understood; understood: float 8 by tensor, channel or "
                "block, int 4"
            )
    if len(found) != 1:
        raise ValueError("compressed-tensors: config_groups must quantise their weights alike")
    return found.pop()
