"""A linear layer without bias:  y = x Wᵀ.

A persistent matrix product: each program takes output tiles one after another, in an order that
keeps a few rows of tiles together so that both operands are found in L2. On Hopper tiles come
through the tensor copy engine. For few tokens the time is that of reading W once: small tiles, one
program each, deep pipelines. Accumulation is in float32.

cuBLAS (``backend="best"``) is the alternative; ``fastest_backend`` measures which of the two wins
for a shape and remembers it.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import gpu
from kernels.checks import Backend, float_types, require, require_backend, require_tensor


@triton.jit
def tile_position(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of an output tile: columns first within groups of GROUP_M rows."""
    per_group = GROUP_M * tiles_n
    group = tile // per_group
    first_m = group * GROUP_M
    rows = tl.minimum(tiles_m - first_m, GROUP_M)
    return first_m + tile % per_group % rows, tile % per_group // rows


@triton.jit
def load_tile(
    source,  # [num_rows, num_columns]: a tensor descriptor where TMA, else a pointer
    row,
    column,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
):
    """The tile at (row, column), zero outside the matrix: [ROWS, COLUMNS]."""
    if TMA:
        tile = source.load([row, column])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        offsets = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        tile = tl.load(source + offsets, mask=inside, other=0.0)
    return tile


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x_source,  # [M, K], read in tiles [BLOCK_M, BLOCK_K]
    weight_source,  # [N, K], read in tiles [BLOCK_N, BLOCK_K]
    y_ptr,  # [M, N]
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0)
    step = tl.num_programs(0)
    for tile in tl.range(
        first, tiles_m * tiles_n, step, flatten=FLATTEN, warp_specialize=WARP_SPECIALIZE
    ):
        tile_m, tile_n = tile_position(tile, tiles_m, tiles_n, GROUP_M)
        row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
        if SWAP:  # Wxᵀ: the wide side of W feeds the tensor cores' 64 rows
            accumulator = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        else:
            accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            x = load_tile(x_source, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            weight = load_tile(weight_source, column, k, N, K, BLOCK_N, BLOCK_K, TMA)
            if SWAP:
                accumulator = tl.dot(weight, tl.trans(x), accumulator)
            else:
                accumulator = tl.dot(x, tl.trans(weight), accumulator)
        y = accumulator.to(y_ptr.dtype.element_ty)
        if SWAP:
            y = tl.trans(y)
        rows = (row + tl.arange(0, BLOCK_M)).to(tl.int64)
        columns = column + tl.arange(0, BLOCK_N)
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        tl.store(y_ptr + rows[:, None] * N + columns[None, :], y, mask=inside)


@dataclass(frozen=True, slots=True)
class LinearTiles:
    """Tile sizes of one launch.

    ``swap`` computes the transpose, ``persistent`` loops over tiles, ``tma`` loads through the
    tensor copy engine.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    swap: bool = False
    persistent: bool = True
    tma: bool = True
    warp_specialize: bool = False


# What a tuning run on a GPU tries for many tokens and for few.
CANDIDATES = {
    "many": (
        LinearTiles(128, 256, 64, 8, 3),
        LinearTiles(128, 128, 64, 8, 4),
        LinearTiles(128, 256, 64, 4, 3, warp_specialize=True),
    ),
    "few": (
        LinearTiles(16, 64, 128, 4, 5, swap=True, persistent=False),
        LinearTiles(16, 64, 256, 4, 4, swap=True, persistent=False),
        LinearTiles(16, 32, 256, 4, 4, persistent=False),
        LinearTiles(64, 64, 128, 4, 3, swap=True, persistent=False),
        LinearTiles(64, 64, 128, 4, 5, swap=True, persistent=False),
    ),
}


def choose_tiles(num_tokens: int, out_features: int, on: gpu.Gpu) -> LinearTiles:
    """Tiles for a launch; the reasons and predictions are in NOTES.md."""
    tiles_256 = triton.cdiv(num_tokens, 128) * triton.cdiv(out_features, 256)
    if not on.is_hopper:
        if num_tokens <= 64:
            block_m = max(16, triton.next_power_of_2(num_tokens))
            return LinearTiles(block_m, 64, 64, 4, 5, persistent=False, tma=False)
        if tiles_256 < on.multiprocessors:
            return LinearTiles(64, 128, 32, 4, 4, persistent=False, tma=False)
        return LinearTiles(128, 128, 32, 8, 4, persistent=False, tma=False)
    if num_tokens <= 64:
        block_m = max(16, triton.next_power_of_2(num_tokens))
        # About 100 KiB each, so that two programs share an SM and no wave is left half empty.
        stages = {16: 5, 32: 4, 64: 3}[block_m]
        return LinearTiles(block_m, 64, 128, 4, stages, swap=True, persistent=False)
    if tiles_256 >= on.multiprocessors:
        return CANDIDATES["many"][0]
    if 2 * tiles_256 >= on.multiprocessors:
        return CANDIDATES["many"][1]
    return LinearTiles(64, 64, 128, 4, 4)


def require_aligned_rows(name: str, tensor: torch.Tensor) -> None:
    """Raise ``ValueError`` unless rows start on 16 bytes, as the tensor copy engine needs."""
    columns = tensor.shape[-1]
    aligned = columns * tensor.element_size() % 16 == 0 and tensor.data_ptr() % 16 == 0
    require(aligned, f"{name}: rows must be multiples of 16 bytes, got {columns} columns")


def require_tma(tiles: LinearTiles | None, on: gpu.Gpu) -> None:
    """Raise ``ValueError`` for tiles that need the tensor copy engine where there is none."""
    needs = tiles is not None and (tiles.tma or tiles.warp_specialize)
    require(not needs or on.capability[0] >= 9, f"tiles: tma needs sm_90, got {on.capability}")


def tile_source(
    matrix: torch.Tensor, block: list[int], *, tma: bool
) -> torch.Tensor | TensorDescriptor:
    """What ``load_tile`` reads: a tensor descriptor with TMA, the matrix itself without."""
    return TensorDescriptor.from_tensor(matrix, block) if tma else matrix


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    tiles: LinearTiles | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """``x @ weight.T``.

    Args:
        x: [num_tokens, in_features], bf16 or fp16, contiguous; rows a multiple of 16 bytes.
        weight: [out_features, in_features], same dtype, contiguous.
        tiles: for tuning; by default ``choose_tiles``.
        backend: ``best`` is cuBLAS through torch.

    Returns: [num_tokens, out_features], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    num_tokens, in_features = x.shape
    require_tensor("weight", weight, (None, in_features), dtypes=(x.dtype,), device=x.device)
    out_features = weight.shape[0]
    if backend == "best":
        return torch.nn.functional.linear(x, weight)
    if backend == "torch":
        return linear_reference(x, weight)
    require_aligned_rows("x", x)
    require_aligned_rows("weight", weight)
    require_tma(tiles, gpu.gpu_of(x))
    y = torch.empty((num_tokens, out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    on = gpu.gpu_of(x)
    if tiles is None:
        tiles = choose_tiles(num_tokens, out_features, on)
    num_tiles = triton.cdiv(num_tokens, tiles.block_m) * triton.cdiv(out_features, tiles.block_n)
    programs = min(num_tiles, on.multiprocessors) if tiles.persistent else num_tiles
    _linear_kernel[(programs,)](
        tile_source(x, [tiles.block_m, tiles.block_k], tma=tiles.tma),
        tile_source(weight, [tiles.block_n, tiles.block_k], tma=tiles.tma),
        y,
        num_tokens,
        out_features,
        in_features,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        SWAP=tiles.swap,
        TMA=tiles.tma,
        FLATTEN=tiles.persistent and not tiles.warp_specialize,
        WARP_SPECIALIZE=tiles.warp_specialize,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return y


def linear_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch, float32 (float64 for float64 inputs) inside."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(wide) @ weight.to(wide).T).to(x.dtype)


def token_bucket(num_tokens: int) -> int:
    """The measured size that stands for ``num_tokens``: the next power of two, at least 16."""
    return max(16, 1 << (num_tokens - 1).bit_length())


class Product(Protocol):
    """A dense product with a backend of choice: ``linear``, or ``gate_up`` with its activation."""

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, *, backend: Backend
    ) -> torch.Tensor: ...
    def __hash__(self) -> int: ...  # answers are kept by it


def fastest_backend(num_tokens: int, weight: torch.Tensor, *, product: Product = linear) -> Backend:
    """``triton`` or ``best``, whichever was measured faster for this shape's token bucket.

    The first call for a bucket times both on random data (some tens of milliseconds) and must not
    happen while a CUDA graph is captured. Without CUDA the answer is ``best``.
    """
    if weight.device.type != "cuda":
        return "best"
    shape = (token_bucket(num_tokens), *weight.shape)
    return _measured_backend(product, shape, weight.dtype, weight.device)


@cache
def _measured_backend(
    product: Product, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Backend:
    """shape: [num_tokens, rows of the weight, in_features]."""
    num_tokens, rows, in_features = shape
    generator = torch.Generator(device).manual_seed(0)
    options = {"dtype": dtype, "device": device, "generator": generator}
    x = torch.randn((num_tokens, in_features), **options)
    weight = torch.randn((rows, in_features), **options)
    times_ms: dict[Backend, float] = {}
    for backend in ("triton", "best"):
        times_ms[backend] = triton.testing.do_bench(
            lambda backend=backend: product(x, weight, backend=backend),
            warmup=5, rep=20, return_mode="median",
        )  # fmt: skip
    return min(times_ms, key=times_ms.__getitem__)
