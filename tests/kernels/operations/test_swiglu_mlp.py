"""The gated MLP against its float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.linear import LinearTiles, linear_reference
from kernels.swiglu_mlp import (
    gate_up,
    gate_up_reference,
    gated,
    swiglu_mlp,
    swiglu_mlp_reference,
)


@pytest.mark.parametrize("num_tokens", [1, 33, 64, 150])
def test_the_gated_product_matches_for_every_number_of_tokens(num_tokens, draw, close):
    x, weight = draw(num_tokens, 136), draw(2 * 200, 136, scale=0.1)
    close(gate_up(x, weight), gate_up_reference(x.double(), weight.double()))


@pytest.mark.parametrize(
    "tiles",
    [
        LinearTiles(128, 128, 64, 8, 3),
        LinearTiles(64, 64, 64, 4, 3, persistent=False, tma=False),
        LinearTiles(16, 64, 64, 4, 3, swap=True, persistent=False),
    ],
    ids=str,
)
def test_every_kind_of_tile_matches_the_reference(tiles, draw, close):
    x, weight = draw(141, 72), draw(2 * 333, 72, scale=0.1)
    close(gate_up(x, weight, tiles=tiles), gate_up_reference(x.double(), weight.double()))


@pytest.mark.parametrize("activation", ["gelu", "clamped"])
def test_every_activation_matches_fused_and_alone(activation, draw, close):
    x, weight = draw(5, 64), draw(2 * 40, 64)
    expected = gate_up_reference(x.double(), weight.double(), activation)
    close(gate_up(x, weight, activation=activation), expected)
    for backend in ("triton", "torch"):
        both = linear_reference(x, weight)
        close(gated(both, activation=activation, backend=backend), expected, slack=4.0)


def test_the_whole_mlp_matches_and_backends_agree(draw, close):
    x, first, second = draw(19, 128), draw(2 * 192, 128, scale=0.1), draw(128, 192, scale=0.1)
    expected = swiglu_mlp_reference(x.double(), first.double(), second.double())
    for backend in ("triton", "torch", "best"):
        close(swiglu_mlp(x, first, second, backend=backend), expected)
    close(swiglu_mlp(x, first, second, down_backend="best"), expected)


def test_very_negative_gates_give_zero_not_nan(draw):
    x, weight = draw(4, 64), draw(2 * 64, 64)
    x[:], weight[:64] = 10.0, -10.0
    assert (gate_up(x, weight) == 0).all()


def test_wrong_arguments_are_refused_before_any_launch(draw):
    x, first, second = draw(4, 128), draw(64, 128), draw(128, 32)
    with pytest.raises(ValueError, match=r"weight: shape \[any, 128\]"):
        gate_up(x, first[:, :64].contiguous())
    with pytest.raises(ValueError, match="equally many, got 63 rows"):
        gate_up(x, first[:63])
    with pytest.raises(ValueError, match=r"down_weight: shape \[128, 32\]"):
        swiglu_mlp(x, first, second[:, :16].contiguous())
    with pytest.raises(ValueError, match="x: must be contiguous"):
        gate_up(x.t(), first)
    with pytest.raises(ValueError, match="weight: dtype"):
        gate_up(x, first.to(torch.float64))
