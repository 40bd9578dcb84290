"""Number formats: ours, and the package's names of the kernels that compute in them.

Float8 with one scale a tensor, one a channel and token, or one a block of 128 x 128 are different
kernels, up to tenfold apart at decode sizes. What has a scale a channel runs on the kernel of one a
tensor, which scales in its epilogue (CUTLASS's scaled_mm): its times are taken, and said to be.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibrate.profiles.kernel_tables import System
from sim.latency.table_folder import TableError
from sim.model.spec import ModelSpec

# Bytes of a weight in the package's formats of products; inputs and outputs take two.
WEIGHT_BYTES = {
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int4_wo": 0.5,
    "int8_wo": 1.0,
    "sq": 1.0,  # SmoothQuant: int8 by int8
    "nvfp4": 0.5625,
    "w4a16_mxfp4": 0.53125,
    "w4a8_mxfp4_mxfp8": 0.53125,
}
KV_DTYPES = {
    "auto": "bfloat16",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
}
_FORMATS = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "int4": "int4_wo",
    "int8_wo": "int8_wo",
    "int8": "sq",
    "nvfp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
}
_FLOAT8 = {"tensor": "fp8", "channel": "fp8", "block": "fp8_block"}


@dataclass(frozen=True, slots=True)
class Format:
    """The package's name of a number format; `how` says in what it is not quite the asked one."""

    name: str
    how: str | None = None


def product_format(model: ModelSpec, dtype: str | None = None) -> Format:
    """That of a model's quantisable products, or the one named. Raises TableError: unknown."""
    if dtype is not None:
        if dtype not in WEIGHT_BYTES:
            raise TableError(f"unknown dtype {dtype!r}; known: {', '.join(WEIGHT_BYTES)}")
        return Format(dtype)
    return weight_format(model.weight_dtype, model.float8_scales)


def weight_format(weight_dtype: str, float8_scales: str) -> Format:
    """That of products with weights of one of our types."""
    if weight_dtype != "float8":
        return Format(_FORMATS[weight_dtype])
    how = "a scale a channel at the times of one a tensor"
    return Format(_FLOAT8[float8_scales], how if float8_scales == "channel" else None)


def expert_formats(weights: Format, system: System) -> tuple[str, ...]:
    """Those that routed experts with such weights are computed in, the likeliest first.

    MXFP4 is unpacked to 16 bits on GPUs that cannot multiply it. On others engines have kernels
    with inputs in 8 bits (MXFP8) too, which the package calls recommended there: where an engine's
    were timed they are its experts.
    """
    if weights.name == "w4a16_mxfp4" and system.multiplies_4_bits:
        return "w4a8_mxfp4_mxfp8", weights.name
    return (weights.name,)


def cache_format(kv_cache_dtype: str, model: ModelSpec) -> str:
    """The package's name of a KV cache's numbers, a checkpoint's where that is left to it.

    Raises TableError: unknown.
    """
    if kv_cache_dtype == "auto":
        kv_cache_dtype = model.kv_cache_dtype or "auto"
    if kv_cache_dtype not in KV_DTYPES:
        raise TableError(
            f"unknown kv_cache_dtype {kv_cache_dtype!r}; known: {', '.join(KV_DTYPES)}"
        )
    return KV_DTYPES[kv_cache_dtype]
