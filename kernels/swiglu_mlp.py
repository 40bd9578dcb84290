"""The gated MLP of Llama and Qwen:  y = (silu(x Gᵀ) · (x Uᵀ)) Dᵀ,  silu(z) = z / (1 + e^(−z)).

Gemma's gate is gelu(z) = z / (1 + e^(−2u)), u = √(2/π) (z + 0.044715 z³); gpt-oss's is
z / (1 + e^(−1.702 z)) with z at most 7, times the up projection, within ±7, plus one.

G and U are stacked in one weight, gate rows first. The first product computes a gate tile and the
matching up tile in one program and writes only their gated product, so the two intermediates never
reach device memory (Shazeer, GLU Variants Improve Transformer, 2020, for the formula). The down
product is ``linear``. Accumulation and the activation are in float32.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Literal, get_args

import torch
import triton
import triton.language as tl

from kernels import gpu
from kernels.checks import Backend, float_types, require, require_backend, require_tensor
from kernels.linear import (
    LinearTiles,
    linear,
    linear_reference,
    load_tile,
    require_aligned_rows,
    require_tma,
    tile_position,
    tile_source,
)

Activation = Literal["silu", "gelu", "clamped"]
"""Of gated MLPs: Llama's and Qwen's; Gemma's (``gelu_pytorch_tanh``); gpt-oss's."""


@triton.jit
def gated_product(gate, up, ACTIVATION: tl.constexpr):
    """What goes into the down projection, from float32 tiles of both halves."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    if ACTIVATION == "silu":
        slope = gate * LOG2_E
    elif ACTIVATION == "gelu":
        slope = gate * (1.0 + 0.044715 * gate * gate) * (1.5957691216057308 * LOG2_E)
    else:
        gate = tl.minimum(gate, 7.0)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0) + 1.0
        slope = gate * (1.702 * LOG2_E)
    return gate / (1.0 + tl.math.exp2(-slope)) * up


def gated_product_reference(
    gate: torch.Tensor, up: torch.Tensor, activation: Activation = "silu"
) -> torch.Tensor:
    """The same in plain PyTorch, in the dtype of its arguments."""
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    if activation == "gelu":
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    gate = gate.clamp(max=7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1.0)


@triton.jit(do_not_specialize=["M"])
def _gate_up_kernel(
    x_source,  # [M, K], read in tiles [BLOCK_M, BLOCK_K]
    weight_source,  # [2 · N, K], gate rows then up rows, read in tiles [BLOCK_N, BLOCK_K]
    y_ptr,  # [M, N]
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    # Not flattened: with two products a step ptxas then serialises their wgmmas (C7515).
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_position(tile, tiles_m, tiles_n, GROUP_M)
        row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
        if SWAP:
            gate = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        else:
            gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            x = load_tile(x_source, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            gate_rows = load_tile(weight_source, column, k, 2 * N, K, BLOCK_N, BLOCK_K, TMA)
            up_rows = load_tile(weight_source, N + column, k, 2 * N, K, BLOCK_N, BLOCK_K, TMA)
            if SWAP:
                gate = tl.dot(gate_rows, tl.trans(x), gate)
                up = tl.dot(up_rows, tl.trans(x), up)
            else:
                gate = tl.dot(x, tl.trans(gate_rows), gate)
                up = tl.dot(x, tl.trans(up_rows), up)
        y = gated_product(gate, up, ACTIVATION).to(y_ptr.dtype.element_ty)
        if SWAP:
            y = tl.trans(y)
        rows = (row + tl.arange(0, BLOCK_M)).to(tl.int64)
        columns = column + tl.arange(0, BLOCK_N)
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        tl.store(y_ptr + rows[:, None] * N + columns[None, :], y, mask=inside)


@triton.jit
def _gated_kernel(
    x_ptr,  # [num_rows, 2 · N], gate columns then up columns
    y_ptr,  # [num_rows, N]
    N,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    gate_ptrs = x_ptr + row * 2 * N + columns
    gate = tl.load(gate_ptrs, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + N, mask=inside, other=0.0).to(tl.float32)
    y = gated_product(gate, up, ACTIVATION)
    tl.store(y_ptr + row * N + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


def gated(
    x: torch.Tensor, *, activation: Activation = "silu", backend: Backend = "triton"
) -> torch.Tensor:
    """The activation alone, where gate and up are a product in float8.

    Args:
        x: [num_rows, 2 · intermediate], gate columns first, bf16 or fp16, contiguous.

    Returns: [num_rows, intermediate], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    require(x.shape[1] % 2 == 0, f"x: gate and up must be equally wide, got {x.shape[1]} columns")
    if backend != "triton":
        gate, up = x.float().chunk(2, dim=-1)
        return gated_product_reference(gate, up, activation).to(x.dtype)
    num_rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    if y.numel():
        block = min(2048, triton.next_power_of_2(width))
        _gated_kernel[(num_rows, triton.cdiv(width, block))](
            x, y, width, ACTIVATION=activation, BLOCK=block, num_warps=4
        )
    return y


# What a tuning run on a GPU tries; block_n counts gated outputs, each from two rows of the weight.
CANDIDATES = {
    "many": (LinearTiles(128, 128, 64, 8, 3), LinearTiles(128, 128, 64, 8, 4)),
    "few": (
        LinearTiles(16, 64, 128, 4, 3, swap=True, persistent=False),
        LinearTiles(16, 64, 64, 4, 6, swap=True, persistent=False),
        LinearTiles(64, 64, 64, 4, 4, swap=True, persistent=False),
    ),
}


def choose_tiles(num_tokens: int, intermediate: int, on: gpu.Gpu) -> LinearTiles:
    """Tiles for a launch; the reasons and predictions are in NOTES.md."""
    block_m = max(16, triton.next_power_of_2(num_tokens))
    if not on.is_hopper:
        if num_tokens <= 64:
            return LinearTiles(block_m, 32, 64, 4, 4, persistent=False, tma=False)
        return LinearTiles(128, 64, 32, 8, 4, persistent=False, tma=False)
    if num_tokens <= 64:
        # Two programs an SM; 64 rows of gate and of up are a warpgroup's tile each.
        stages = {16: 5, 32: 5, 64: 4}[block_m]
        return LinearTiles(block_m, 64, 64, 4, stages, swap=True, persistent=False)
    tiles_128 = triton.cdiv(num_tokens, 128) * triton.cdiv(intermediate, 128)
    if 2 * tiles_128 >= on.multiprocessors:
        return CANDIDATES["many"][0]
    return LinearTiles(64, 64, 64, 4, 4)


def gate_up(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    activation: Activation = "silu",
    tiles: LinearTiles | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """``silu(x @ gate.T) * (x @ up.T)`` with gate and up stacked in ``weight``.

    Args:
        x: [num_tokens, hidden], bf16 or fp16, contiguous; rows a multiple of 16 bytes.
        weight: [2 · intermediate, hidden], gate rows first, same dtype, contiguous.
        activation: of the gate.
        tiles: for tuning; by default ``choose_tiles``.
        backend: ``best`` is cuBLAS, then the activation as separate torch kernels.

    Returns: [num_tokens, intermediate], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    num_tokens, hidden = x.shape
    like = {"dtypes": (x.dtype,), "device": x.device}
    require_tensor("weight", weight, (None, hidden), **like)
    even = weight.shape[0] % 2 == 0
    require(even, f"weight: gate and up rows must be equally many, got {weight.shape[0]} rows")
    intermediate = weight.shape[0] // 2
    allowed = get_args(Activation)
    require(activation in allowed, f"activation: one of {', '.join(allowed)}, got {activation!r}")
    if backend == "torch":
        return gate_up_reference(x, weight, activation)
    if backend == "best":
        gate, up = torch.nn.functional.linear(x, weight).chunk(2, dim=-1)
        return gated_product_reference(gate, up, activation)
    require_aligned_rows("x", x)
    require_aligned_rows("weight", weight)
    on = gpu.gpu_of(x)
    require_tma(tiles, on)
    y = torch.empty((num_tokens, intermediate), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if tiles is None:
        tiles = choose_tiles(num_tokens, intermediate, on)
    num_tiles = triton.cdiv(num_tokens, tiles.block_m) * triton.cdiv(intermediate, tiles.block_n)
    programs = min(num_tiles, on.multiprocessors) if tiles.persistent else num_tiles
    _gate_up_kernel[(programs,)](
        tile_source(x, [tiles.block_m, tiles.block_k], tma=tiles.tma),
        tile_source(weight, [tiles.block_n, tiles.block_k], tma=tiles.tma),
        y,
        num_tokens,
        intermediate,
        hidden,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        ACTIVATION=activation,
        SWAP=tiles.swap,
        TMA=tiles.tma,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return y


def swiglu_mlp(
    x: torch.Tensor,
    gate_up_weight: torch.Tensor,
    down_weight: torch.Tensor,
    *,
    activation: Activation = "silu",
    backend: Backend = "triton",
    down_backend: Backend | None = None,
) -> torch.Tensor:
    """The whole gated MLP.

    Args:
        x: [num_tokens, hidden], bf16 or fp16, contiguous.
        gate_up_weight: [2 · intermediate, hidden], gate rows first.
        down_weight: [hidden, intermediate].
        activation: of the gate.
        backend: of the first product, for example from ``fastest_backend``; ``best`` is cuBLAS and
            separate activation kernels.
        down_backend: of the second, likewise; ``backend`` by default.

    Returns: [num_tokens, hidden], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend if down_backend is None else down_backend, x)
    require_tensor("x", x, (None, None))
    intermediate = gate_up_weight.shape[0] // 2
    like = {"dtypes": (x.dtype,), "device": x.device}
    require_tensor("gate_up_weight", gate_up_weight, (None, x.shape[1]), **like)
    require_tensor("down_weight", down_weight, (x.shape[1], intermediate), **like)
    gated = gate_up(x, gate_up_weight, activation=activation, backend=backend)
    return linear(gated, down_weight, backend=backend if down_backend is None else down_backend)


def gate_up_reference(
    x: torch.Tensor, weight: torch.Tensor, activation: Activation = "silu"
) -> torch.Tensor:
    """The first product in plain PyTorch, float32 (float64 for float64 inputs) inside."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate, up = (x.to(wide) @ weight.to(wide).T).chunk(2, dim=-1)
    return gated_product_reference(gate, up, activation).to(x.dtype)


def swiglu_mlp_reference(
    x: torch.Tensor, gate_up_weight: torch.Tensor, down_weight: torch.Tensor
) -> torch.Tensor:
    """The whole MLP in plain PyTorch; the gated product is rounded to the working dtype."""
    return linear_reference(gate_up_reference(x, gate_up_weight), down_weight)
