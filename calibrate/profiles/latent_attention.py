"""Latent attention (MLA) from the package's measured attention modules of DeepSeek-V3.

A module is all of a layer's attention: the projections down to the latents, up from them and out,
and the kernels between, timed together. What these kernels take is the module less its five
products, each as the package measured it alone, in 16 bits. The kernels know heads and latents, not
the width of the model, so the difference is that of any model with the same latents.

On an H100 (vLLM 0.24) the same difference taken from the modules with block-scaled float8
products, which compute 16-bit attention too, lies 3 to 11 µs a layer below, of 54 to 93.

What lies between products and the attention kernel (norms, rotary embedding, writing the cache) was
timed as it is written, not as an engine compiles it: vLLM's modules take 90 µs on an H100 where
TensorRT-LLM's take 53 around the same kernel. So of the engines that were timed on a GPU the one
that takes least stands for all of them, and for those that were not timed.
"""

from __future__ import annotations

from collections.abc import Callable

from calibrate.profiles.attention_kernels import Grid
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured
from calibrate.profiles.matrix_products import products_of
from sim.latency.grid import Line
from sim.model.spec import MlaSpec

MEASURED = MlaSpec(
    q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
)
MEASURED_HIDDEN_SIZE = 7168
HOW = "DeepSeek-V3's attention module less its products, the fastest engine's"
LEAST_US = 5.0  # a layer has several kernels besides its products, of 2 µs and more each


def prefill_us(tables: KernelTables, mla: MlaSpec, *, heads: int, kv_dtype: str) -> Grid:
    """µs of one layer's kernels but products, by (new, cached) tokens of a lone prompt.

    Raises NotMeasured where latents of this size, or so many heads, were not.
    """

    def of(engine: KernelTables) -> Grid:
        points = _module(
            engine, mla, "mla_context_module_perf", ("isl", "step"), heads, kv_dtype, batch_size=1
        )
        products = _products_us(engine, heads)
        return {
            (new, cached): max(time_us - products(new), LEAST_US)
            for (new, cached), time_us in points.items()
        }

    return _least(tables, of)


def decode_us(tables: KernelTables, mla: MlaSpec, *, heads: int, kv_dtype: str) -> Grid:
    """The same by (sequences, context tokens of each)."""

    def of(engine: KernelTables) -> Grid:
        columns = ("batch_size", "isl", "step")
        points = _module(engine, mla, "mla_generation_module_perf", columns, heads, kv_dtype)
        products = _products_us(engine, heads)
        # The package steps by 2 to 131,072 here, elsewhere by 1 to 131,071: the context.
        return {
            (sequences, context): max(time_us - products(sequences), LEAST_US)
            for (sequences, _, context), time_us in points.items()
        }

    return _least(tables, of)


def _least(tables: KernelTables, of: Callable[[KernelTables], Grid]) -> Grid:
    """The asked engine's points, else the first other's, each at the least that any takes."""
    grids: list[Grid] = []
    refusal: NotMeasured | None = None
    for engine in (tables, *tables.elsewhere()):
        try:
            grids.append(of(engine))
        except NotMeasured as error:
            refusal = refusal or error
    if not grids:
        assert refusal is not None
        raise refusal
    return {key: min(grid[key] for grid in grids if key in grid) for key in grids[0]}


def _module(
    tables: KernelTables,
    mla: MlaSpec,
    name: str,
    columns: tuple[str, ...],
    heads: int,
    kv_dtype: str,
    **wanted: int,
) -> dict[tuple[int, ...], float]:
    kernels = (mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim)
    there = (
        MEASURED.kv_lora_rank,
        MEASURED.qk_nope_head_dim,
        MEASURED.qk_rope_head_dim,
        MEASURED.v_head_dim,
    )
    if kernels != there:
        raise NotMeasured(
            f"{tables.system.name}: latent attention was measured with latents of {there} "
            f"(KV rank, head without and with positions, values), not of {kernels}"
        )
    return tables.points(
        "mla",
        name,
        *columns,
        num_heads=heads,
        gemm_type="bfloat16",
        kv_cache_dtype=kv_dtype,
        **wanted,
    )


def _products_us(tables: KernelTables, heads: int) -> Line:
    """A measured module's products by rows."""
    mla, hidden, products = MEASURED, MEASURED_HIDDEN_SIZE, products_of(tables, "bfloat16")
    assert mla.q_lora_rank is not None
    total: dict[int, float] = {}
    for width, depth in (
        (mla.q_lora_rank, hidden),
        (heads * mla.qk_head_dim, mla.q_lora_rank),
        (mla.latent_dim, hidden),
        (heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank),
        (hidden, heads * mla.v_head_dim),
    ):
        for rows, time_us in products.times_us(width, depth):
            total[rows] = total.get(rows, 0.0) + time_us
    return Line(sorted(total), [total[rows] for rows in sorted(total)])
