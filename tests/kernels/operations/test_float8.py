"""Float8 products against the same rounded operands in float32, and against the wide weight."""

from __future__ import annotations

import pytest
import torch

from kernels.float8 import Float8Weight, float8_linear, quantize, quantize_weight
from kernels.linear import LinearTiles, linear_reference


@pytest.mark.parametrize("group", [0, 128])
def test_numbers_are_divided_by_the_largest_of_their_row_or_group(group, draw):
    x = draw(3, 208) * 5
    x[1] = 0.0
    values, scales = quantize(x, group=group)
    expected, expected_scales = quantize(x, group=group, backend="torch")
    assert torch.allclose(scales, expected_scales)
    assert (values.float() == expected.float()).float().mean() > 0.9  # the rest: see below
    width = group or 208
    widened = values.float() * scales.view(3, -1).repeat_interleave(width, 1)[:, :208]
    # Half a last place; a whole binade where Triton's interpreter loses a carry.
    assert (widened - x.float()).norm() < 0.1 * x.float().norm()


@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
@pytest.mark.parametrize(
    "tiles",
    [
        LinearTiles(16, 64, 128, 4, 3, swap=True, persistent=False, splits=2),
        LinearTiles(64, 64, 128, 4, 3),
    ],
    ids=["split, swapped", "persistent"],
)
def test_products_count_times_the_scales_of_a_checkpoint(tiles, kind, draw, close):
    """The activations are their own float8: what is off is what the weight loses."""
    x, weight = draw(17, 336), draw(200, 336)
    x = x.to(torch.float8_e4m3fn).to(x.dtype)
    x[:, ::128] = 448.0
    # The scale of each group is 1.
    packed = quantize_weight(weight, kind=kind)
    bias = draw(200)
    out = float8_linear(x, packed, bias=bias, tiles=tiles)
    expected = float8_linear(x, packed, bias=bias, backend="torch")
    close(out, expected, slack=20.0)
    wide = linear_reference(x.double(), weight.double(), bias.double())
    close(out, wide, slack=3e3)


def test_wrong_arguments_are_refused_before_any_launch(draw):
    weight = quantize_weight(draw(64, 128))
    x = draw(4, 128)
    for arguments, message in (
        ((x[:, :64].contiguous(), weight), r"weight: shape \[any, 64\]"),
        ((x, Float8Weight(weight.values.float(), weight.scales)), "weight: dtype"),
        ((x, Float8Weight(weight.values, weight.scales[:5])), "scales: 1 or 64 are needed"),
        ((x, Float8Weight(weight.values, weight.scales[:3, None])), r"scales: shape \[1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            float8_linear(*arguments)
    with pytest.raises(ValueError, match="tensor, channel or block"):
        quantize_weight(x, kind="row")
