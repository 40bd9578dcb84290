"""Packed and paged prefill attention against the float64 reference."""

from __future__ import annotations

import itertools

import pytest
import torch

from kernels.prefill_attention import (
    PrefillTiles,
    prefill_attention,
    prefill_attention_reference,
)
from tests import needs

SMALL = PrefillTiles(64, 64, 4, 2)


def _bounds(lengths, device):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


@pytest.fixture
def packed(draw, device):
    """Arguments of a call without a past: slices of one packed projection."""

    def make(lengths, *, heads, kv_heads, head_dim, padding=0):
        total = sum(lengths) + padding
        projection = draw(total, (heads + 2 * kv_heads) * head_dim)
        if padding:
            projection[-padding:] = float("nan")
        sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        q, k, v = (t.unflatten(1, (-1, head_dim)) for t in projection.split(sizes, dim=1))
        return {"q": q, "k": k, "v": v, "cu_seqlens": _bounds(lengths, device)}

    return make


@pytest.fixture
def paged(draw, paged_cache, device):
    """Arguments of a call whose sequences have a past in the paged cache."""

    def make(news, pasts, *, heads, kv_heads, head_dim, block_size=16):
        lengths = [new + past for new, past in zip(news, pasts, strict=True)]
        cache = paged_cache(lengths, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
        return {
            "q": draw(sum(news), heads, head_dim),
            "k": cache.pop("k_cache"),
            "v": cache.pop("v_cache"),
            "cu_seqlens": _bounds(news, device),
            **cache,
        }

    return make


def _check(inputs, close, *, tiles=None, **options):
    wide = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    out = prefill_attention(**inputs, tiles=tiles, **options)
    close(out, prefill_attention_reference(**wide, **options))
    return out


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (2, 80), (4, 128), (7, 96), (16, 256)])
def test_every_group_and_head_size_matches_the_reference(group, head_dim, packed, close):
    shape = {"heads": 2 * group, "kv_heads": 2, "head_dim": head_dim}
    _check(packed([5, 70], **shape), close)


@pytest.mark.parametrize("group", [4, 7])
def test_empty_and_one_token_sequences_and_tile_boundaries_match(group, packed, close):
    lengths = [0, 1, 0, 64, 1, 65, 0]
    shape = {"heads": group, "kv_heads": 1, "head_dim": 64}
    _check(packed(lengths, **shape), close, tiles=SMALL)


@pytest.mark.parametrize("block_size", [16, 20, 256])
def test_chunks_find_their_past_in_the_paged_cache(block_size, paged, close):
    news, pasts = [33, 1, 64, 0, 100], [64, 129, 0, 17, block_size]
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "block_size": block_size}
    _check(paged(news, pasts, **shape), close)


@pytest.mark.parametrize(("group", "head_dim"), [(1, 96), (5, 80), (16, 256)])
def test_paged_keys_match_for_every_group_and_head_size(group, head_dim, paged, close):
    shape = {"heads": group, "kv_heads": 1, "head_dim": head_dim}
    _check(paged([3, 40], [90, 0], **shape), close)


def test_chunked_prefill_gives_the_rows_of_whole_prefill(paged, close):
    inputs = paged([200], [0], heads=4, kv_heads=2, head_dim=64)
    whole = prefill_attention(**inputs, tiles=SMALL)
    for first, last in ((0, 50), (50, 179), (179, 200)):
        chunk = inputs | {
            "q": inputs["q"][first:last].contiguous(),
            "cu_seqlens": _bounds([last - first], inputs["q"].device),
            "context_lens": torch.tensor([last], dtype=torch.int32, device=inputs["q"].device),
        }
        close(prefill_attention(**chunk, tiles=SMALL), whole[first:last])


@pytest.mark.parametrize("window", [1, 40, 100])
def test_a_sliding_window_hides_older_keys(window, packed, paged, close):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    _check(packed([150, 30], **shape), close, window=window, tiles=SMALL)
    _check(paged([70, 2], [100, 60], **shape), close, window=window, tiles=SMALL)


@pytest.mark.parametrize(("softcap", "window", "sunk"), [(5.0, 0, False), (0.0, 40, True)])
def test_caps_and_sinks_change_the_softmax_as_in_the_reference(
    softcap, window, sunk, packed, paged, draw, close
):
    shape = {"heads": 6, "kv_heads": 2, "head_dim": 64}
    sinks = draw(6) * 2 + 1 if sunk else None
    for inputs in (packed([90, 3], **shape, padding=2), paged([20, 1], [50, 9], **shape)):
        inputs["q"] *= 3.0
        options = {"softcap": softcap, "window": window, "sinks": sinks}
        _check(inputs, close, tiles=SMALL, **options)


def test_a_float8_cache_counts_times_its_scales(paged, close):
    inputs = paged([20, 3], [50, 0], heads=4, kv_heads=1, head_dim=64)
    for name in ("k", "v"):
        inputs[name] = (inputs[name] * 8).to(torch.float8_e4m3fn)
    _check(inputs, close, tiles=SMALL, k_scale=0.1, v_scale=0.25)


def test_padded_rows_after_the_last_sequence_are_zero_and_harm_nobody(packed, close):
    inputs = packed([40, 9], heads=4, kv_heads=2, head_dim=64, padding=83)
    out = _check(inputs, close, tiles=SMALL)
    assert (out[49:] == 0).all()


@pytest.mark.parametrize("head_dim", [64, 128])
def test_tensor_copy_tiles_match_too(head_dim, packed, close):
    tiles = PrefillTiles(64, 64, 4, 2, tma=True)
    shape = {"heads": 4, "kv_heads": 1, "head_dim": head_dim}
    _check(packed([130, 3], **shape, padding=20), close, tiles=tiles)


def test_torch_and_best_backends_agree_with_the_kernel(packed, paged, close):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    for inputs in (packed([30, 0, 7], **shape), paged([30, 5], [10, 0], **shape)):
        out = prefill_attention(**inputs)
        for backend in ("torch", "best"):
            close(prefill_attention(**inputs, backend=backend), out)


def test_large_scores_do_not_overflow(packed, close):
    inputs = packed([90], heads=2, kv_heads=1, head_dim=64)
    inputs["q"] = inputs["q"] * 40
    _check(inputs, close)


def test_wrong_arguments_are_refused_before_any_launch(packed, paged):
    shape = {"heads": 6, "kv_heads": 2, "head_dim": 64}
    inputs = packed([20, 9], **shape)
    for name, wrong, message in (
        ("q", inputs["q"][:, :5], "5 heads do not divide into 2 KV heads"),
        ("q", inputs["q"].double(), "q: dtype must be one of"),
        ("q", inputs["q"].transpose(0, 1).contiguous().transpose(0, 1), "heads and head_dim must"),
        ("k", inputs["k"][:7], r"k: shape \[29, any, 64\]"),
        ("cu_seqlens", inputs["cu_seqlens"].float(), "cu_seqlens: dtype"),
        ("cu_seqlens", inputs["cu_seqlens"].to("meta"), "cu_seqlens: must be on"),
        ("context_lens", inputs["cu_seqlens"][1:], "only with block_tables"),
        ("scale", -1.0, "scale: must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            prefill_attention(**(inputs | {name: wrong}))
    cached = paged([20, 9], [5, 5], **shape)
    with pytest.raises(ValueError, match="context_lens: needed with block_tables"):
        prefill_attention(**(cached | {"context_lens": None}))
    with pytest.raises(ValueError, match="k_cache: must be contiguous"):
        prefill_attention(**(cached | {"k": cached["k"].transpose(1, 2)}))


@needs.cuda  # the interpreter is too slow for these lengths
@pytest.mark.parametrize("total", [1000, 4096])
def test_long_sequences_match_on_a_gpu(total, packed, close, device):
    inputs = packed([total, 3 * total // 4], heads=32, kv_heads=8, head_dim=128)
    _check(inputs, close)
