"""A linear layer without bias:  y = x Wᵀ.

A persistent matrix product: each program takes output tiles one after another, in an order that
keeps a few rows of tiles together so that both operands are found in L2. On Hopper tiles come
through the tensor copy engine. For few tokens the time is that of reading W once: small tiles, one
program each, deep pipelines; where they are fewer than fill the GPU, several share a tile's depth
(split-K) and a second kernel adds their float32 sums in a fixed order. Accumulation is in float32.

cuBLAS (``backend="best"``) is the alternative; ``fastest_backend`` measures which of the two wins
for a shape and remembers it.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import gpu
from kernels.checks import Backend, float_types, require, require_backend, require_tensor
from kernels.tile_time import best_splits, product_s


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


@triton.jit(do_not_specialize=["M", "split_depth"])
def _linear_kernel(
    x_source,  # [M, K], read in tiles [BLOCK_M, BLOCK_K]
    weight_source,  # [N, K], read in tiles [BLOCK_N, BLOCK_K]
    y_source,  # [M, N], a descriptor where STORE_TMA; float32 [SPLITS, M, N] where SPLITS > 1
    bias_ptr,  # [N] where BIAS
    x_scales_ptr,  # [M] or, BY_BLOCK, [M, K / 128], float32, where SCALED
    weight_scales_ptr,  # [N] or, BY_BLOCK, [N / 128, K / 128], float32
    M,
    N,
    K,
    split_depth,  # columns of x that one split multiplies, whole tiles
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    STORE_TMA: tl.constexpr,
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
        rows = row + tl.arange(0, BLOCK_M)
        columns = column + tl.arange(0, BLOCK_N)
        if SWAP:  # Wxᵀ: the wide side of W feeds the tensor cores' 64 rows
            accumulator = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        else:
            accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        k_from, k_end = 0, K
        if SPLITS > 1:
            # Without the hint loads by pointer are taken as unaligned, and are not pipelined.
            k_from = tl.multiple_of(tl.program_id(1) * split_depth, BLOCK_K)
            k_end = tl.minimum(k_from + split_depth, K)
        for k in range(k_from, k_end, BLOCK_K):
            x = load_tile(x_source, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            weight = load_tile(weight_source, column, k, N, K, BLOCK_N, BLOCK_K, TMA)
            if BY_BLOCK:
                blocks = tl.cdiv(K, 128)
                block = k // 128
                x_scale_ptrs = x_scales_ptr + rows.to(tl.int64) * blocks + block
                x_scale = tl.load(x_scale_ptrs, mask=rows < M, other=0.0)
                weight_scale_ptrs = weight_scales_ptr + columns // 128 * blocks + block
                weight_scale = tl.load(weight_scale_ptrs, mask=columns < N, other=0.0)
                if SWAP:
                    product = tl.dot(weight, tl.trans(x))
                    accumulator += product * weight_scale[:, None] * x_scale[None, :]
                else:
                    product = tl.dot(x, tl.trans(weight))
                    accumulator += product * x_scale[:, None] * weight_scale[None, :]
            elif SWAP:
                accumulator = tl.dot(weight, tl.trans(x), accumulator)
            else:
                accumulator = tl.dot(x, tl.trans(weight), accumulator)
        if SWAP:
            accumulator = tl.trans(accumulator)
        if SCALED and not BY_BLOCK:
            x_scale = tl.load(x_scales_ptr + rows, mask=rows < M, other=0.0)
            weight_scale = tl.load(weight_scales_ptr + columns, mask=columns < N, other=0.0)
            accumulator = accumulator * x_scale[:, None] * weight_scale[None, :]
        if BIAS:
            bias = tl.load(bias_ptr + columns, mask=columns < N, other=0.0)
            accumulator += bias.to(tl.float32)[None, :]
        if STORE_TMA:
            y_source.store([row, column], accumulator.to(y_source.dtype))
        else:
            inside = (rows < M)[:, None] & (columns < N)[None, :]
            offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
            if SPLITS > 1:
                offsets += tl.program_id(1).to(tl.int64) * M * N
            y = accumulator.to(y_source.dtype.element_ty)
            tl.store(y_source + offsets, y, mask=inside)


@triton.jit(do_not_specialize=["M"])
def _sum_splits_kernel(
    partial_ptr,  # [SPLITS, M, N] float32
    bias_ptr,  # [N] where BIAS
    y_ptr,  # [M, N]
    M,
    N,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        part_ptrs = partial_ptr + (split * M + row) * N + columns
        total += tl.load(part_ptrs, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * N + columns, total.to(y_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class LinearTiles:
    """Tile sizes of one launch.

    ``swap`` computes the transpose, ``persistent`` loops over tiles, ``tma`` loads through the
    tensor copy engine, ``store_tma`` also stores so (through swizzled shared memory), ``splits``
    programs share a tile's depth.
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
    store_tma: bool = False
    splits: int = 1


# What a tuning run on a GPU tries for many tokens and for few.
CANDIDATES = {
    "many": (
        LinearTiles(128, 256, 64, 8, 3),
        LinearTiles(128, 128, 64, 8, 4),
        LinearTiles(128, 256, 64, 4, 3, warp_specialize=True),
        LinearTiles(128, 128, 64, 8, 4, store_tma=True),
    ),
    "few": (
        LinearTiles(16, 64, 128, 4, 5, swap=True, persistent=False),
        LinearTiles(16, 64, 256, 4, 4, swap=True, persistent=False),
        LinearTiles(16, 32, 256, 4, 4, persistent=False),
        LinearTiles(64, 64, 128, 4, 3, swap=True, persistent=False),
        LinearTiles(64, 64, 128, 4, 5, swap=True, persistent=False),
        LinearTiles(16, 64, 128, 4, 5, swap=True, persistent=False, splits=4),
    ),
}


# Tiles for 65 tokens and more on Hopper, split or not; `product_s` says which are fastest for a
# shape. Few kinds: each is compiled before an engine serves.
_ONE_WAVE = (
    CANDIDATES["many"][0],
    CANDIDATES["many"][1],
)


def choose_tiles(
    num_tokens: int, out_features: int, on: gpu.Gpu, *, in_features: int = 0
) -> LinearTiles:
    """Tiles for a launch; the reasons and predictions are in NOTES.md.

    ``in_features`` 0 (not known) splits no tile's depth.
    """
    if num_tokens <= 64:
        block_m = max(16, triton.next_power_of_2(num_tokens))
        splits = best_splits(
            num_tokens, out_features, in_features, block_m=block_m, block_n=64, on=on
        )
        if not on.is_hopper:
            return LinearTiles(block_m, 64, 64, 4, 5, persistent=False, tma=False, splits=splits)
        # About 100 KiB each, so that two programs share an SM and no wave is left half empty.
        stages = {16: 5, 32: 4, 64: 3}[block_m]
        return LinearTiles(block_m, 64, 128, 4, stages, swap=True, persistent=False, splits=splits)
    if not on.is_hopper:
        tiles_256 = triton.cdiv(num_tokens, 128) * triton.cdiv(out_features, 256)
        if tiles_256 < on.multiprocessors:
            return LinearTiles(64, 128, 32, 4, 4, persistent=False, tma=False)
        return LinearTiles(128, 128, 32, 8, 4, persistent=False, tma=False)
    times_s = {}
    for tiles in _ONE_WAVE:
        block_m, block_n = tiles.block_m, tiles.block_n
        splits = best_splits(
            num_tokens, out_features, in_features, block_m=block_m, block_n=block_n, on=on
        )
        split = replace(tiles, splits=splits, persistent=tiles.persistent and splits == 1)
        times_s[split] = product_s(
            num_tokens, out_features, in_features or 4096,
            block_m=block_m, block_n=block_n, splits=splits, on=on,
        )  # fmt: skip
    return min(times_s, key=times_s.__getitem__)


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
    bias: torch.Tensor | None = None,
    tiles: LinearTiles | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: [num_tokens, in_features], bf16 or fp16, contiguous; rows a multiple of 16 bytes.
        weight: [out_features, in_features], same dtype, contiguous.
        bias: [out_features], same dtype.
        tiles: for tuning; by default ``choose_tiles``.
        backend: ``best`` is cuBLAS through torch.

    Returns: [num_tokens, out_features], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    in_features = x.shape[1]
    like = {"dtypes": (x.dtype,), "device": x.device}
    require_tensor("weight", weight, (None, in_features), **like)
    if bias is not None:
        require_tensor("bias", bias, (weight.shape[0],), **like)
    if backend == "best":
        return torch.nn.functional.linear(x, weight, bias)
    if backend == "torch":
        return linear_reference(x, weight, bias)
    return launch_linear(x, weight, bias=bias, tiles=tiles, dtype=x.dtype)


def launch_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    tiles: LinearTiles | None,
    dtype: torch.dtype,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    by_block: bool = False,
) -> torch.Tensor:
    """The product of checked operands; ``scales`` are those of float8 ones (`float8_linear`).

    Returns: [num_tokens, out_features] in ``dtype``.
    """
    num_tokens, in_features = x.shape
    out_features = weight.shape[0]
    require_aligned_rows("x", x)
    require_aligned_rows("weight", weight)
    on = gpu.gpu_of(x)
    require_tma(tiles, on)
    y = torch.empty((num_tokens, out_features), dtype=dtype, device=x.device)
    if y.numel() == 0:
        return y
    if tiles is None:
        tiles = choose_tiles(num_tokens, out_features, on, in_features=in_features)
        if scales is not None:
            tiles = for_float8(tiles, by_block=by_block)
    num_tiles = triton.cdiv(num_tokens, tiles.block_m) * triton.cdiv(out_features, tiles.block_n)
    programs = min(num_tiles, on.multiprocessors) if tiles.persistent else num_tiles
    splits = tiles.splits
    split_depth = triton.cdiv(triton.cdiv(in_features, splits), tiles.block_k) * tiles.block_k
    target, store_tma = y, tiles.store_tma and y.shape[1] * y.element_size() % 16 == 0
    if splits > 1:
        shape = (splits, num_tokens, out_features)
        target = torch.empty(shape, dtype=torch.float32, device=x.device)
    _linear_kernel[(programs, splits)](
        tile_source(x, [tiles.block_m, tiles.block_k], tma=tiles.tma),
        tile_source(weight, [tiles.block_n, tiles.block_k], tma=tiles.tma),
        tile_source(target, [tiles.block_m, tiles.block_n], tma=store_tma and splits == 1),
        weight if bias is None else bias,
        *(scales or (weight, weight)),
        num_tokens,
        out_features,
        in_features,
        split_depth,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        SPLITS=splits,
        BIAS=bias is not None and splits == 1,
        SCALED=scales is not None,
        BY_BLOCK=by_block,
        SWAP=tiles.swap,
        TMA=tiles.tma,
        STORE_TMA=store_tma and splits == 1,
        FLATTEN=tiles.persistent and not tiles.warp_specialize,
        WARP_SPECIALIZE=tiles.warp_specialize,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if splits > 1:
        block = 1024
        _sum_splits_kernel[(num_tokens, triton.cdiv(out_features, block))](
            target,
            y if bias is None else bias,
            y,
            num_tokens,
            out_features,
            SPLITS=splits,
            BIAS=bias is not None,
            BLOCK=block,
            num_warps=4,
        )
    return y


def for_float8(tiles: LinearTiles, *, by_block: bool) -> LinearTiles:
    """The same tile for operands of one byte: twice the depth a step, 128 where scales change."""
    block_k = 128 if by_block else max(32, 2 * tiles.block_k)
    block_n = min(tiles.block_n, 128) if by_block else tiles.block_n
    # A block's product and the sum that it adds to are accumulators both: more warps hold them.
    num_warps = 8 if by_block and tiles.block_m >= 64 and not tiles.swap else tiles.num_warps
    return replace(tiles, block_k=block_k, block_n=block_n, num_warps=num_warps, store_tma=False)


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same in plain PyTorch, float32 (float64 for float64 inputs) inside."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(wide) @ weight.to(wide).T
    return (y if bias is None else y + bias.to(wide)).to(x.dtype)


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
