"""Fused rotary, per-head norm and KV-cache write against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.kv_cache_write import kv_cache_write, kv_cache_write_reference
from kernels.rotary import rotary_table


def _inputs(draw, device, *, tokens, heads, kv_heads, head_dim, block_size=16, num_blocks=9):
    """Slices of a packed projection, a cache of a known filling, shuffled slots."""
    packed = draw(tokens, (heads + 2 * kv_heads) * head_dim)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    q, k, v = (part.unflatten(1, (-1, head_dim)) for part in packed.split(sizes, dim=1))
    generator = torch.Generator().manual_seed(tokens)
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:tokens]
    positions = torch.randint(0, 300, (tokens,), generator=generator)
    return {
        "q": q, "k": k, "v": v,
        "k_cache": draw(num_blocks, block_size, kv_heads, head_dim),
        "v_cache": draw(num_blocks, block_size, kv_heads, head_dim),
        "slot_mapping": slots.to(device),
        "positions": positions.to(device),
        "table": rotary_table(head_dim, 300, device=device),
    }  # fmt: skip


def _wide(inputs):
    return {
        name: t.double() if t.is_floating_point() and name != "table" else t
        for name, t in inputs.items()
    }


def _check(inputs, close, **options):
    expected = _wide(inputs)
    wide_options = {n: o.double() if isinstance(o, torch.Tensor) else o for n, o in options.items()}
    kv_cache_write_reference(**expected, **wide_options)
    kv_cache_write(**inputs, **options)
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        close(inputs[name], expected[name])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 4, 64), (32, 8, 128), (7, 1, 80), (48, 3, 256)]
)
def test_rotated_keys_land_in_their_slots_for_every_head_layout(
    heads, kv_heads, head_dim, draw, device, close
):
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    _check(_inputs(draw, device, tokens=5, **shape), close)


def test_a_float8_cache_holds_what_its_scales_leave(draw, device):
    """Of numbers that need no rounding, in which Triton's interpreter loses carries."""
    inputs = _inputs(draw, device, tokens=5, heads=4, kv_heads=2, head_dim=64)
    inputs["positions"].zero_()
    for name in ("k", "v"):
        inputs[name].copy_(inputs[name].to(torch.float8_e4m3fn))
    inputs["k"][0] *= 2**12  # beyond the largest number
    for name in ("k_cache", "v_cache"):
        inputs[name] = inputs[name].to(torch.float8_e4m3fn)
    scales = {"k_scale": 0.5, "v_scale": 0.25}
    expected = {name: tensor.clone() for name, tensor in inputs.items()}
    kv_cache_write_reference(**expected, **scales)
    kv_cache_write(**inputs, **scales)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(inputs[name].float(), expected[name].float())
    assert inputs["k_cache"].float().abs().max() == 448
    plain = _inputs(draw, device, tokens=5, heads=4, kv_heads=2, head_dim=64)
    with pytest.raises(ValueError, match="only of a float8 cache"):
        kv_cache_write(**plain, **scales)


@pytest.mark.parametrize("block_size", [20, 256])
def test_padded_rows_write_nothing_at_any_block_size(block_size, draw, device, close):
    inputs = _inputs(
        draw, device, tokens=6, heads=8, kv_heads=2, head_dim=64, block_size=block_size
    )
    inputs["slot_mapping"][1::2] = -1
    _check(inputs, close)


@pytest.mark.parametrize("head_dim", [96, 128])
def test_qk_norm_comes_before_the_rotation_and_k_can_be_updated(head_dim, draw, device, close):
    inputs = _inputs(draw, device, tokens=4, heads=16, kv_heads=2, head_dim=head_dim)
    weights = {"q_norm_weight": draw(head_dim), "k_norm_weight": draw(head_dim)}
    _check(inputs, close, **weights, update_k=True)


def test_no_tokens_change_nothing(draw, device):
    inputs = _inputs(draw, device, tokens=3, heads=4, kv_heads=2, head_dim=64)
    empty = {
        n: t[:0] if n in {"q", "k", "v", "slot_mapping", "positions"} else t
        for n, t in inputs.items()
    }
    before = inputs["k_cache"].clone()
    kv_cache_write(**empty)
    assert torch.equal(inputs["k_cache"], before)


def test_wrong_arguments_are_refused_before_any_launch(draw, device):
    inputs = _inputs(draw, device, tokens=3, heads=4, kv_heads=2, head_dim=64)
    before = inputs["k_cache"].clone()
    for name, wrong, message in (
        ("k", inputs["k"][:2], r"k: shape \[3, any, 64\]"),
        ("q", inputs["q"].transpose(0, 1).contiguous().transpose(0, 1), "heads and head_dim must"),
        ("v_cache", inputs["v_cache"][:4], "v_cache: shape"),
        ("slot_mapping", inputs["slot_mapping"].float(), "slot_mapping: dtype"),
        ("table", inputs["table"].half(), "table: dtype"),
        ("positions", inputs["positions"].to("meta"), "positions: must be on"),
    ):
        with pytest.raises(ValueError, match=message):
            kv_cache_write(**(inputs | {name: wrong}))
    with pytest.raises(ValueError, match="give both or neither"):
        kv_cache_write(**inputs, q_norm_weight=inputs["q"][0, 0])
    assert torch.equal(inputs["k_cache"], before)
