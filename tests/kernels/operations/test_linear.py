"""The matrix product against its float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.gpu import Gpu
from kernels.linear import (
    LinearTiles,
    choose_tiles,
    fastest_backend,
    linear,
    linear_reference,
    token_bucket,
)
from kernels.swiglu_mlp import gate_up


@pytest.mark.parametrize("num_tokens", [1, 17, 64, 130])
def test_every_number_of_tokens_matches_the_reference(num_tokens, draw, close):
    x, weight, bias = draw(num_tokens, 200), draw(264, 200), draw(264)
    expected = linear_reference(x.double(), weight.double(), bias.double())
    close(linear(x, weight, bias=bias), expected)


@pytest.mark.parametrize(
    "tiles",
    [
        LinearTiles(64, 64, 32, 4, 3),
        LinearTiles(64, 64, 64, 4, 3, tma=False),
        LinearTiles(64, 64, 64, 4, 3, persistent=False, tma=False),
        LinearTiles(16, 64, 64, 4, 3, swap=True, persistent=False, splits=2),
        LinearTiles(64, 64, 32, 4, 3, persistent=False, splits=4),
        LinearTiles(64, 64, 64, 4, 3, store_tma=True),
        LinearTiles(128, 128, 64, 4, 3, warp_specialize=True),
    ],
    ids=str,
)
def test_every_kind_of_tile_matches_the_reference(tiles, draw, close):
    # Odd in every dimension: more tiles than programs, ragged rows, columns and depth.
    x, weight, bias = draw(70, 136), draw(204, 136), draw(204)
    expected = linear_reference(x.double(), weight.double(), bias.double())
    close(linear(x, weight, bias=bias, tiles=tiles), expected)


def test_few_tiles_are_split_until_they_fill_the_gpu_and_no_further():
    on = Gpu("sm_90", (9, 0), 132)

    def programs(tokens, out_features, in_features):
        tiles = choose_tiles(tokens, out_features, on, in_features=in_features)
        count = -(-tokens // tiles.block_m) * -(-out_features // tiles.block_n)
        return count, tiles.splits

    assert programs(16, 4096, 4096) == (64, 4)  # 64 programs on 132 multiprocessors
    assert programs(16, 4096, 512) == (64, 1)  # too shallow
    assert programs(16, 28_672, 4096)[1] == 1  # wide enough
    assert programs(16, 4096, 0)[1] == 1
    assert programs(512, 4096, 4096) == (128, 1)  # one wave
    assert programs(8192, 4096, 4096) == (1024, 1)


def test_no_tokens_give_no_rows(draw):
    assert linear(draw(0, 64), draw(32, 64)).shape == (0, 32)


def test_torch_and_best_backends_agree_with_the_kernel(draw, close):
    x, weight = draw(6, 192), draw(80, 192)
    for backend in ("torch", "best"):
        close(linear(x, weight, backend=backend), linear(x, weight))


def test_the_faster_backend_is_measured_once_a_bucket(device, dtype):
    assert [token_bucket(n) for n in (1, 16, 17, 1025)] == [16, 16, 32, 2048]
    weight = torch.empty(128, 256, dtype=dtype, device=device)
    for product in (linear, gate_up):
        choice = fastest_backend(33, weight, product=product)
        assert choice == "best" or (device.type == "cuda" and choice == "triton")
        assert fastest_backend(64, weight, product=product) == choice


def test_wrong_arguments_are_refused_before_any_launch(draw):
    x, weight = draw(4, 128), draw(64, 128)
    for arguments, message in (
        ((x, weight[:, :64].contiguous()), r"weight: shape \[any, 128\] is needed"),
        ((x.t(), weight), "x: must be contiguous"),
        ((x, weight.t().contiguous().t()), "weight: must be contiguous"),
        ((x.double(), weight.double()), "x: dtype must be one of"),
        ((x, weight.to("meta")), "weight: must be on"),
        ((x[:, :33].contiguous(), weight[:, :33].contiguous()), "multiples of 16 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(*arguments)
