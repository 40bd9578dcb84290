"""Rotary tables against complex rotation and the published Llama 3.1 rule."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.rotary import rotary_table, rotate

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_rotation_is_multiplication_by_a_unit_complex_number():
    table = rotary_table(64, 50)
    x = torch.randn(50, 2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    angles = torch.arange(50)[:, None] * 10_000.0 ** -(torch.arange(32, dtype=torch.float64) / 32)
    turned = torch.complex(x[..., :32], x[..., 32:]) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, table), expected, rtol=0, atol=1e-6)


def test_llama3_scaling_keeps_short_and_divides_long_wavelengths():
    # angles from the sines of position 1, not the cosines, so that small ones keep their digits
    plain, scaled = (
        torch.asin(rotary_table(128, 2, theta=500_000.0, scaling=scaling)[1, 64:].double())
        for scaling in (None, LLAMA3)
    )
    wavelengths = 2 * math.pi * 500_000.0 ** (torch.arange(64, dtype=torch.float64) / 64)
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    torch.testing.assert_close(scaled[short], plain[short], rtol=1e-5, atol=0)
    expected = 2 * math.pi / wavelengths / 8
    torch.testing.assert_close(scaled[long], expected[long], rtol=1e-5, atol=0)
    between = ~short & ~long
    assert ((scaled > 2 * math.pi / wavelengths / 8) & between).sum() == between.sum() > 0


def test_an_odd_head_and_an_unknown_scaling_are_refused():
    with pytest.raises(ValueError, match="head_dim: must be even"):
        rotary_table(63, 4)
    with pytest.raises(ValueError, match="type must be default, linear, llama3 or yarn"):
        rotary_table(64, 4, scaling={"rope_type": "dynamic", "factor": 2})
