"""Move whole blocks between the device's KV cache and a host cache:  H[to] ↔ C[:, :, from].

A block's layers lie far apart in the device cache, so a direct copy would be one small transfer a
layer. Instead a kernel gathers the blocks into one contiguous staging buffer and each block crosses
the host link whole (2 MiB at 16 tokens of Llama-3.1-8B); the host cache is block major for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from kernels.checks import Backend, require, require_backend, require_tensor
from kernels.copy_blocks import CACHE_TYPES, launch_copy

Direction = Literal["out", "in"]


def swap_blocks(
    kv_cache: torch.Tensor,
    host_cache: torch.Tensor,
    pairs: Sequence[tuple[int, int]],
    *,
    direction: Direction,
    backend: Backend = "triton",
) -> None:
    """Copy blocks out to the host or in from it.

    Args:
        kv_cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        host_cache: [num_host_blocks, num_layers, 2, block_size, num_kv_heads, head_dim], same
            dtype, contiguous, on the CPU; pinned, so that transfers do not block.
        pairs: (device block, host block) of each move, in both directions.
        direction: ``out`` device to host, ``in`` host to device.
        backend: ``torch`` and ``best`` copy block by block without staging.

    Transfers are queued on the current stream: synchronise before reading ``host_cache``.
    Raises: ValueError on a wrong argument, before any copy.
    """
    require_backend(backend, kv_cache)
    require_tensor("kv_cache", kv_cache, (None, 2, None, None, None, None), dtypes=CACHE_TYPES)
    layers, _, num_blocks, *block_shape = kv_cache.shape
    require_tensor(
        "host_cache",
        host_cache,
        (None, layers, 2, *block_shape),
        dtypes=(kv_cache.dtype,),
        device=torch.device("cpu"),
    )
    directions = get_args(Direction)
    require(direction in directions, f"direction: must be out or in, got {direction!r}")
    for device_block, host_block in pairs:
        known = 0 <= device_block < num_blocks and 0 <= host_block < host_cache.shape[0]
        require(known, f"pairs: no such blocks {(device_block, host_block)}")
    for side, blocks in (("device", [p[0] for p in pairs]), ("host", [p[1] for p in pairs])):
        require(len(set(blocks)) == len(blocks), f"pairs: a {side} block appears twice")
    if not pairs:
        return
    if backend != "triton":
        swap_blocks_reference(kv_cache, host_cache, pairs, direction=direction)
        return
    device = kv_cache.device
    staging = torch.empty((len(pairs), *host_cache.shape[1:]), dtype=kv_cache.dtype, device=device)
    staged = staging.flatten(3).flatten(1, 2).transpose(0, 1)  # [planes, pairs, elements]
    planes = kv_cache.flatten(3).flatten(0, 1)
    here = [pair[0] for pair in pairs]
    if direction == "out":
        moves = torch.tensor([(block, i) for i, block in enumerate(here)], device=device)
        launch_copy(planes, staged, moves)
        for i, (_, host_block) in enumerate(pairs):
            host_cache[host_block].copy_(staging[i], non_blocking=True)
    else:
        for i, (_, host_block) in enumerate(pairs):
            staging[i].copy_(host_cache[host_block], non_blocking=True)
        moves = torch.tensor([(i, block) for i, block in enumerate(here)], device=device)
        launch_copy(staged, planes, moves)


def swap_blocks_reference(
    kv_cache: torch.Tensor,
    host_cache: torch.Tensor,
    pairs: Sequence[tuple[int, int]],
    *,
    direction: Direction,
) -> None:
    """The same in plain PyTorch, a block at a time."""
    for device_block, host_block in pairs:
        if direction == "out":
            host_cache[host_block].copy_(kv_cache[:, :, device_block])
        else:
            kv_cache[:, :, device_block].copy_(host_cache[host_block])
