"""The study of flash against standard attention in low precision."""

from __future__ import annotations

import pytest
import torch

from kernels.numerics import (
    deviations,
    emulated_flash,
    emulated_standard,
    kernel_deviations,
)


@pytest.mark.parametrize("block_tokens", [7, 64, 500])
def test_without_rounding_both_emulations_are_the_same_function(block_tokens):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(130, 64, generator=generator) for _ in range(3))
    flash = emulated_flash(q, k, v, torch.float32, block_tokens=block_tokens)
    standard = emulated_standard(q, k, v, torch.float32)
    torch.testing.assert_close(flash, standard, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_rounded_statistics_hurt_more_the_more_blocks_there_are(low):
    generator = torch.Generator().manual_seed(1)
    found = deviations([700], [16, 64, 256], generator=generator, head_dim=64, dtype=low)
    rounded = [deviation.flash_rounded for deviation in found]
    assert rounded[0] > rounded[1] > rounded[2]
    for deviation in found:
        assert 0 < deviation.flash < deviation.standard
        assert deviation.flash < deviation.flash_rounded
        assert deviation.rounded_ratio > deviation.flash_ratio > 0
        assert deviation.weights > 0


def test_the_kernels_deviate_as_their_emulations_do(device, dtype):
    generator = torch.Generator(device).manual_seed(2)
    low = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    standard, flash = kernel_deviations(
        260, generator=generator, head_dim=64, num_heads=2, dtype=low
    )
    on_cpu = torch.Generator().manual_seed(2)
    emulated = deviations([260], [64], generator=on_cpu, head_dim=64, dtype=low)[0]
    assert flash < 2 * emulated.flash
    assert standard < 2 * emulated.standard
