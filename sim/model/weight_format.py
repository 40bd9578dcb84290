"""How a matrix's weights lie on disk and in memory: bits, scales, zero points.

bf16, fp16          plain
fp8                 one byte; a float32 scale for each 128 x 128 block (DeepSeek-V3, section
                    3.3.2), for each output row (compressed-tensors, FBGEMM) or for the matrix
int8                one byte, a scale for each output row (SmoothQuant, W8A8)
int4, groups of g   half a byte, a 16-bit scale for g weights of a row, and a zero point of
                    four bits in AWQ and GPTQ (Lin et al., 2023; Frantar et al., 2022)
nvfp4               half a byte, one fp8 scale for 16 weights and float32 scales for the whole
                    (NVIDIA, "Introducing NVFP4", 2025)
mxfp4               half a byte, one e8m0 scale for 32 weights (OCP Microscaling 1.0, 2023)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

# What has a scale of its own: a whole matrix, each of its output channels, or each of its blocks.
Float8Scales = Literal["tensor", "channel", "block"]

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float8": 1}


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """``dtype`` is what the weights are in for the products: bfloat16, float16, float8, int8, int4,
    nvfp4, mxfp4, or int8_wo where only the weights are (int4 always is so).

    ``group`` is the block of weights (inputs, outputs) that shares ``group_bytes`` of scale and
    zero point; ``output_bytes`` and ``input_bytes`` are kept per row and column, ``matrix_bytes``
    once. ``words`` says it to people.
    """

    dtype: str
    bits: float
    words: str
    group: tuple[int, int] = (1, 1)
    group_bytes: float = 0.0
    output_bytes: float = 0.0
    input_bytes: float = 0.0
    matrix_bytes: float = 0.0

    def bytes_of(self, in_features: int, out_features: int) -> int:
        """Bytes of one matrix [out_features, in_features] without its biases."""
        if not self.group_bytes and self.bits == 16:
            return 2 * in_features * out_features
        packed = -(-in_features * out_features * self.bits // 8)
        inner, outer = self.group
        groups = -(-in_features // inner) * -(-out_features // outer)
        beside = groups * self.group_bytes + self.matrix_bytes
        beside += out_features * self.output_bytes + in_features * self.input_bytes
        return int(packed) + int(beside)

    @property
    def float8_scales(self) -> Float8Scales:
        """What has a scale of its own, where this is float8."""
        if self.group_bytes:
            return "block"
        return "channel" if self.output_bytes else "tensor"

    @property
    def is_plain(self) -> bool:
        """Whether these are the activations' sixteen bits."""
        return self.bits == 16


def plain(dtype: str) -> WeightFormat:
    """Sixteen bits, as they are trained."""
    return WeightFormat(dtype, 16, {"bfloat16": "bf16", "float16": "fp16"}[dtype])


def fp8_block(inner: int = 128, outer: int = 128, scale_bytes: int = 4) -> WeightFormat:
    """float8 with a scale for each block of weights."""
    words = f"fp8, a scale for {inner} x {outer}"
    return WeightFormat("float8", 8, words, group=(inner, outer), group_bytes=scale_bytes)


def fp8_channel() -> WeightFormat:
    """float8 with a scale for each output."""
    return WeightFormat("float8", 8, "fp8, a scale for each output", output_bytes=2)


def fp8_tensor() -> WeightFormat:
    """float8 with one scale of the matrix and one of its inputs, float32 both."""
    return WeightFormat("float8", 8, "fp8, one scale a matrix", matrix_bytes=8)


def int8_channel() -> WeightFormat:
    """int8 with a scale for each output."""
    return WeightFormat("int8", 8, "int8, a scale for each output", output_bytes=2)


def integers(bits: int, group: int, *, zero_point: bool, order: bool = False) -> WeightFormat:
    """Weight-only integers in groups along the inputs; ``group`` -1 is a whole row.

    ``order``: GPTQ's int32 group index of each input.
    """
    beside = 2 + (bits / 8 if zero_point else 0.0)
    words = f"int{bits}, groups of {group}" if group > 0 else f"int{bits}, a scale for each output"
    form = WeightFormat("int8_wo" if bits == 8 else "int4", bits, words)
    form = replace(form, input_bytes=4.0 if order else 0.0)
    if group <= 0:
        return replace(form, output_bytes=beside)
    return replace(form, group=(group, 1), group_bytes=beside)


def nvfp4() -> WeightFormat:
    """Four bits, an fp8 scale for 16 weights, float32 scales of the matrix and its inputs."""
    return WeightFormat(
        "nvfp4", 4, "nvfp4, groups of 16", group=(16, 1), group_bytes=1, matrix_bytes=8
    )


def mxfp4() -> WeightFormat:
    """Four bits, one byte of scale for 32 weights."""
    return WeightFormat("mxfp4", 4, "mxfp4, groups of 32", group=(32, 1), group_bytes=1)


def mxfp8() -> WeightFormat:
    """Eight bits, one byte of scale for 32 weights."""
    return WeightFormat("float8", 8, "mxfp8, groups of 32", group=(32, 1), group_bytes=1)


FLOAT8: Mapping[Float8Scales, WeightFormat] = {
    "tensor": fp8_tensor(),
    "channel": fp8_channel(),
    "block": fp8_block(),
}

# What a scenario may ask the quantisable matrices to be served in, under engines' short names.
# fp8 has a scale a tensor, as vLLM quantises by itself; int4 is symmetric in groups of 128 (GPTQ,
# AWQ and Marlin's): 4.125 bits a weight.
WEIGHT_DTYPES: Mapping[str, WeightFormat] = {
    "bf16": plain("bfloat16"),
    "fp16": plain("float16"),
    "fp8": fp8_tensor(),
    "int4": integers(4, 128, zero_point=False),
    "int8": int8_channel(),
    "fp4": nvfp4(),
    "nvfp4": nvfp4(),
    "mxfp4": mxfp4(),
}
