"""The time of a matrix product by its tiles, from shapes alone: which tiles and splits to launch.

    T = max(operations / matrix rate · busiest ÷ mean, bytes / memory ÷ f, operands / L2 ÷ f) + sums

*Busiest ÷ mean* is the most tiles on one multiprocessor over their mean; f is the share of the
multiprocessors that have a program at all, since each takes only so many bytes a second. Every tile
reads BLOCK_M rows of x and BLOCK_N of W, from L2 at best: small tiles are bound by these operands.
*Sums* is what splitting a tile's depth costs: float32 partial sums written and read, and a launch.
The rates are assumptions that rank choices, not measurements; no table of latencies rests on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels import gpu

LAUNCH_S = 2e-6  # of a kernel more, in a captured graph


@dataclass(frozen=True, slots=True)
class Rates:
    """What a GPU reaches on large shapes: bf16 operations, bytes of memory and of L2, a second."""

    flops_per_s: float
    memory_bytes_per_s: float
    l2_bytes_per_s: float


# By generation: nine tenths of the published memory rate, 0.8 of the dense bf16 rate (A100, H200,
# B200). L2's is what a product at 0.8 of its rate in tiles of 128 × 128 needs, so that these tiles
# are just not bound by it and smaller ones are.
RATES = {
    8: Rates(250e12, 1.8e12, 3.1e12),
    9: Rates(790e12, 4.3e12, 9.9e12),
    10: Rates(1800e12, 7.2e12, 22.5e12),
}


def rates(on: gpu.Gpu) -> Rates:
    """Those of a GPU's generation, or of the newest one that it is not older than."""
    known = [generation for generation in RATES if generation <= on.capability[0]]
    return RATES[max(known, default=min(RATES))]


def product_s(
    num_tokens: int,
    out_features: int,
    in_features: int,
    *,
    block_m: int,
    block_n: int,
    splits: int = 1,
    on: gpu.Gpu,
    weight_bytes: float = 2.0,
    products: int = 1,
) -> float:
    """Seconds of ``x @ weight.T`` in output tiles of block_m × block_n, their depth in ``splits``.

    Args:
        weight_bytes: of an element of either operand; the matrix rate doubles where it is 1.
        products: weights that share a tile of x, as gate and up do.
    """
    at = rates(on)
    tiles = -(-num_tokens // block_m) * -(-out_features // block_n)
    computed = 2.0 * tiles * block_m * block_n * in_features * products
    rows = num_tokens + products * out_features
    moved = weight_bytes * in_features * rows + 2.0 * num_tokens * out_features
    operands = weight_bytes * in_features * tiles * (block_m + products * block_n)
    programs = tiles * splits
    busiest = -(-programs // on.multiprocessors) * on.multiprocessors / programs
    filled = min(1.0, programs / on.multiprocessors)
    busy_s = max(
        computed / (at.flops_per_s * (2.0 / weight_bytes)) * busiest,
        moved / at.memory_bytes_per_s / filled,
        operands / at.l2_bytes_per_s / filled,
    )
    sums_s = 0.0
    if splits > 1:
        sums_s = LAUNCH_S + 8.0 * splits * num_tokens * out_features / at.memory_bytes_per_s
    return busy_s + sums_s


def best_splits(
    num_tokens: int, out_features: int, in_features: int, *, block_m: int, block_n: int, on: gpu.Gpu
) -> int:
    """Programs that share a tile's depth: 1 or 4, with 512 columns each at least.

    Below that the pipeline of a split does not fill. A shape without depth (0) is not split. Two or
    eight would gain little on these, and each is one more kernel to compile.
    """
    allowed = [n for n in (1, 4) if n == 1 or in_features >= 512 * n]

    def time_s(splits: int) -> float:
        return product_s(
            num_tokens, out_features, in_features,
            block_m=block_m, block_n=block_n, splits=splits, on=on,
        )  # fmt: skip

    return min(allowed, key=time_s)
