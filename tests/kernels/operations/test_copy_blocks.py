"""Block copies within the cache and swaps with the host, bit for bit."""

from __future__ import annotations

import pytest
import torch

from kernels.copy_blocks import copy_blocks, copy_blocks_reference
from kernels.swap_blocks import swap_blocks


@pytest.fixture
def caches(draw, device):
    """A device cache of 3 layers and 9 blocks, and a host cache of 5 blocks."""

    def make(block_size: int = 16, kv_heads: int = 2, head_dim: int = 64):
        kv_cache = draw(3, 2, 9, block_size, kv_heads, head_dim)
        host_cache = draw(5, 3, 2, block_size, kv_heads, head_dim).cpu()
        return kv_cache, host_cache.pin_memory() if device.type == "cuda" else host_cache

    return make


@pytest.mark.parametrize(("block_size", "head_dim"), [(8, 64), (20, 96), (256, 128)])
def test_blocks_are_copied_in_every_layer_and_nothing_else_changes(
    block_size, head_dim, caches, device
):
    kv_cache, _ = caches(block_size, 2, head_dim)
    pairs = torch.tensor([[0, 8], [3, 1], [-1, -1], [3, 2]], device=device)
    expected = kv_cache.clone()
    copy_blocks_reference(expected, pairs)
    assert not torch.equal(expected, kv_cache)
    copy_blocks(kv_cache, pairs)
    assert torch.equal(kv_cache, expected)
    assert torch.equal(kv_cache[:, :, 8], kv_cache[:, :, 0])


def test_copying_no_blocks_changes_nothing(caches, device):
    kv_cache, _ = caches()
    before = kv_cache.clone()
    copy_blocks(kv_cache, torch.empty((0, 2), dtype=torch.int64, device=device))
    assert torch.equal(kv_cache, before)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_block_swapped_out_and_in_elsewhere_is_the_same(backend, caches, device):
    kv_cache, host_cache = caches(20, 3, 96)
    before = kv_cache.clone()
    swap_blocks(kv_cache, host_cache, [(4, 0), (7, 3)], direction="out", backend=backend)
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert torch.equal(host_cache[3], before[:, :, 7].cpu())
    swap_blocks(kv_cache, host_cache, [(1, 3), (0, 0)], direction="in", backend=backend)
    before[:, :, 1], before[:, :, 0] = before[:, :, 7].clone(), before[:, :, 4].clone()
    assert torch.equal(kv_cache, before)


def test_wrong_arguments_are_refused_before_any_copy(caches, device):
    kv_cache, host_cache = caches()
    pairs = torch.tensor([[0, 1]], device=device)
    for arguments, message in (
        ((kv_cache[0], pairs), "kv_cache: shape"),
        ((kv_cache, pairs.float()), "pairs: dtype"),
        ((kv_cache, pairs[0]), "pairs: shape"),
        ((kv_cache.transpose(3, 4), pairs), "kv_cache: must be contiguous"),
        ((kv_cache, pairs.to("meta")), "pairs: must be on"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_blocks(*arguments)
    for arguments, message in (
        ((kv_cache, host_cache, [(9, 0)]), "no such blocks"),
        ((kv_cache, host_cache, [(1, 0), (2, 0)]), "a host block appears twice"),
        ((kv_cache, host_cache[:, :2].contiguous(), [(1, 0)]), "host_cache: shape"),
        ((kv_cache, host_cache.double(), [(1, 0)]), "host_cache: dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            swap_blocks(*arguments, direction="out")
    with pytest.raises(ValueError, match="direction: must be out or in"):
        swap_blocks(kv_cache, host_cache, [(1, 0)], direction="sideways")
