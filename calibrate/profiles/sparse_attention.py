"""Sparse attention from the measured modules of DeepSeek-V3.2 and GLM-5, an indexer in them.

A module is all of a layer's attention, timed as a whole: the latents' products, the indexer's, its
scores, the choice of the best and attention to these. What the kernels take is the module less its
products, as the package measured those alone, in the module's own number format. Modules of another
engine are of other kernels (TensorRT-LLM's take three times as long as SGLang's for few tokens), so
only the asked engine's stand for it.
"""

from __future__ import annotations

from typing import Any

from calibrate.profiles.attention_kernels import Grid
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured
from calibrate.profiles.latent_attention import LEAST_US
from calibrate.profiles.matrix_products import Products, products_of
from sim.latency.grid import Line
from sim.model.layers import Mixer

# KV rank, head without positions, of values -> the family whose modules have these latents.
FAMILIES = {
    (512, 128, 128): "DeepseekV32ForCausalLM",
    (512, 192, 256): "GlmMoeDsaForCausalLM",
}
LONG_PREFIX = 1024  # prefixes below tell nothing of long ones: then none is taken


def prefill_us(
    tables: KernelTables, mixer: Mixer, degree: int, kv_dtype: str
) -> tuple[Grid, str | None]:
    """µs of one layer's kernels but products, by (new, cached) tokens of a lone prompt.

    Raises NotMeasured where latents or heads of this size were not.
    """
    points, products, how = _module(
        tables, mixer, degree, kv_dtype, "dsa_context_module", ("isl", "step"), batch_size=1
    )
    if max(cached for _, cached in points) < LONG_PREFIX:
        points = {key: time_us for key, time_us in points.items() if key[1] == 0}
    grid = {
        (new, cached): max(time_us - products(new), LEAST_US)
        for (new, cached), time_us in points.items()
    }
    return grid, how


def decode_us(
    tables: KernelTables, mixer: Mixer, degree: int, kv_dtype: str
) -> tuple[Grid, str | None]:
    """The same by (sequences, context tokens of each)."""
    points, products, how = _module(
        tables, mixer, degree, kv_dtype, "dsa_generation_module", ("batch_size", "step")
    )
    grid = {
        (sequences, context): max(time_us - products(sequences), LEAST_US)
        for (sequences, context), time_us in points.items()
    }
    return grid, how


def _module(
    tables: KernelTables,
    mixer: Mixer,
    degree: int,
    kv_dtype: str,
    name: str,
    columns: tuple[str, ...],
    **wanted: Any,
) -> tuple[dict[tuple[int, ...], float], Line, str]:
    """A module's points, what its products take by rows, and whose module it is."""
    mla = mixer.latent
    assert mla is not None
    shape = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.v_head_dim
    if shape not in FAMILIES:
        raise NotMeasured(
            f"{tables.system.name}: sparse attention was measured with latents (KV rank, head, "
            f"values) of {' and '.join(map(str, FAMILIES))}, not of {shape}"
        )
    refusal: NotMeasured | None = None
    for dtype in ("bfloat16", "fp8_block"):
        try:
            points = tables.points(
                "sparse_attention",
                f"{name}_perf",
                *columns,
                architecture=FAMILIES[shape],
                op_name=name,
                num_heads=mixer.heads_on_gpu(degree),
                gemm_type=dtype,
                kv_cache_dtype=kv_dtype,
                **wanted,
            )
            products = _products_us(products_of(tables, dtype), mixer, degree)
        except NotMeasured as error:
            refusal = refusal or error
            continue
        family = FAMILIES[shape].removesuffix("ForCausalLM")
        return points, products, f"{family}'s attention module in {dtype} less its products"
    assert refusal is not None
    raise refusal


def _products_us(products: Products, mixer: Mixer, degree: int) -> Line:
    """All of the module's products by rows."""
    total: dict[int, float] = {}
    for matrix in mixer.matrices:
        one = matrix.operation(degree, 1)
        for rows, time_us in products.times_us(one.out_features, one.in_features):
            total[rows] = total.get(rows, 0.0) + time_us
    return Line(sorted(total), [total[rows] for rows in sorted(total)])
