"""Blocks of sequences that were swapped out, in host memory."""

from __future__ import annotations

import torch

from kernels.checks import Backend
from kernels.swap_blocks import swap_blocks
from sim.request import Request


class HostBlocks:
    """Host memory for `num_blocks` KV blocks, pinned where the cache is on a GPU.

    kv_cache: [num_layers, 2, num_device_blocks, block_size, num_kv_heads, head_dim].
    """

    def __init__(self, kv_cache: torch.Tensor, num_blocks: int, *, backend: Backend) -> None:
        layers, _, _, *block_shape = kv_cache.shape
        self._kv_cache = kv_cache
        self._backend: Backend = backend
        self._host = torch.empty(
            (num_blocks, layers, 2, *block_shape),
            dtype=kv_cache.dtype,
            pin_memory=kv_cache.device.type == "cuda" and num_blocks > 0,
        )
        self._free = list(range(num_blocks))
        self._held: dict[Request, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Host blocks that no sequence holds."""
        return len(self._free)

    def swap_out(self, request: Request, blocks: list[int]) -> None:
        """Copy a sequence's device `blocks` here; they may be overwritten afterwards."""
        assert len(blocks) <= len(self._free), "the scheduler swapped out more than the host holds"
        held = self._free[: len(blocks)]
        self._move(blocks, held, "out")
        del self._free[: len(blocks)]
        self._held[request] = held

    def swap_in(self, request: Request) -> None:
        """Copy a sequence's blocks back, to the first blocks of its new table."""
        held = self._held[request]
        self._move(request.block_table[: len(held)], held, "in")
        if self._kv_cache.device.type == "cuda":
            # The host blocks are free now: nothing may overwrite them while they are being read.
            torch.cuda.current_stream().synchronize()
        self.release(request)

    def release(self, request: Request) -> None:
        """Forget what is kept of a sequence that will not come back."""
        self._free += self._held.pop(request, [])

    def _move(self, device: list[int], host: list[int], direction: str) -> None:
        pairs = list(zip(device, host, strict=True))
        swap_blocks(
            self._kv_cache,
            self._host,
            pairs,
            direction="out" if direction == "out" else "in",
            backend=self._backend,
        )
