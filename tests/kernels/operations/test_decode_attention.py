"""Paged split-KV decode attention against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.decode_attention import (
    choose_num_splits,
    decode_attention,
    decode_attention_reference,
    latent_attention,
    latent_attention_reference,
)
from kernels.standard_attention import standard_attention_reference
from tests import needs


@pytest.fixture
def paged(draw, paged_cache):
    """The arguments of one call: queries and a cache with NaN in its unused slots."""

    def make(lengths, *, heads, kv_heads, head_dim, query_len=1, block_size=16):
        cache = paged_cache(lengths, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
        q = draw(len(lengths) * query_len, heads, head_dim)
        return {"q": q, **cache, "query_len": query_len}

    return make


def _check(inputs, close, *, num_splits=None, **options):
    wide = {
        n: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for n, t in inputs.items()
    }
    out = decode_attention(**inputs, num_splits=num_splits, **options)
    close(out, decode_attention_reference(**wide, **options))
    return out


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (2, 80), (4, 128), (7, 96), (16, 256)])
def test_every_group_and_head_size_matches_the_reference(group, head_dim, paged, close):
    shape = {"heads": 2 * group, "kv_heads": 2, "head_dim": head_dim}
    _check(paged([1, 130, 65], **shape), close, num_splits=2)


@pytest.mark.parametrize("num_splits", [1, 2])
@pytest.mark.parametrize(("softcap", "window", "sunk"), [(5.0, 0, False), (0.0, 40, True)])
def test_caps_and_sinks_change_the_softmax_as_in_the_reference(
    softcap, window, sunk, num_splits, paged, draw, close
):
    inputs = paged([1, 150, 0], heads=6, kv_heads=2, head_dim=64)
    inputs["q"] *= 3.0
    sinks = draw(6) * 2 + 1 if sunk else None
    plain = decode_attention_reference(**inputs, window=window)
    out = _check(inputs, close, num_splits=num_splits, softcap=softcap, window=window, sinks=sinks)
    assert (out - plain).norm() > 0.05 * plain.norm()


@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_float8_cache_counts_times_its_scales(num_splits, paged, close):
    inputs = paged([90, 3], heads=4, kv_heads=1, head_dim=64)
    for name in ("k_cache", "v_cache"):
        inputs[name] = (inputs[name] * 8).to(torch.float8_e4m3fn)
    _check(inputs, close, num_splits=num_splits, k_scale=0.1, v_scale=0.25)


@pytest.mark.parametrize(("heads", "query_len"), [(5, 1), (9, 2)])
def test_latent_keys_are_values_too_and_all_heads_share_them(heads, query_len, paged, draw, close):
    inputs = paged([query_len, 70], heads=heads, kv_heads=1, head_dim=80, query_len=query_len)
    cache = inputs.pop("k_cache")
    del inputs["v_cache"]
    options = {"latent_dim": 64, "scale": 0.17, "query_len": query_len}
    for stored, scale in ((cache, 1.0), ((cache * 8).to(torch.float8_e4m3fn), 0.125)):
        call = inputs | options | {"cache": stored, "kv_scale": scale}
        wide = {n: t.double() if getattr(t, "is_floating_point", bool)() else t
                for n, t in call.items()}  # fmt: skip
        expected = latent_attention_reference(**wide)
        close(latent_attention(**call, num_splits=query_len), expected)
    close(latent_attention(**call, backend="torch"), expected)


@pytest.mark.parametrize("block_size", [16, 20, 256])
def test_lengths_around_block_and_tile_boundaries_match(block_size, paged, close):
    lengths = [1, block_size, block_size + 1, max(block_size - 1, 1), 64, 129]
    shape = {"heads": 4, "kv_heads": 1, "head_dim": 64, "block_size": block_size}
    _check(paged(lengths, **shape), close)


@pytest.mark.parametrize("num_splits", [1, 3, 5])
def test_the_number_of_splits_does_not_change_the_answer(num_splits, paged, close):
    shape = {"heads": 8, "kv_heads": 2, "head_dim": 64}
    _check(paged([300, 17], **shape), close, num_splits=num_splits)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_padded_rows_are_zero(num_splits, paged, close):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    inputs = paged([0, 140, 0], **shape)
    out = _check(inputs, close, num_splits=num_splits)
    assert (out[0] == 0).all()
    assert (out[2] == 0).all()


@pytest.mark.parametrize(("query_len", "heads", "kv_heads"), [(3, 8, 2), (5, 16, 1)])
def test_several_query_tokens_each_see_their_own_past(query_len, heads, kv_heads, paged, close):
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": 64, "query_len": query_len}
    inputs = paged([query_len, 130], **shape)
    for num_splits in (1, 3):
        _check(inputs, close, num_splits=num_splits)


@pytest.mark.parametrize("window", [1, 30, 200])
@pytest.mark.parametrize("query_len", [1, 3])
def test_a_sliding_window_hides_older_keys(window, query_len, paged, close):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "query_len": query_len}
    inputs = paged([290, query_len], **shape)
    _check(inputs, close, window=window, num_splits=2)


def test_a_slice_of_the_packed_projection_is_read_in_place(draw, paged, close):
    inputs = paged([70, 5], heads=4, kv_heads=2, head_dim=64)
    packed = draw(2, 8 * 64)
    inputs["q"] = packed[:, : 4 * 64].unflatten(1, (4, 64))
    _check(inputs, close)


def test_torch_and_best_backends_agree_with_the_kernel(paged, close):
    inputs = paged([70, 5, 0], heads=4, kv_heads=2, head_dim=64)
    out = decode_attention(**inputs)
    for backend in ("torch", "best"):
        close(decode_attention(**inputs, backend=backend), out)


def test_splits_fill_the_gpu_and_stay_within_their_limit():
    assert choose_num_splits(8, 264, 64) >= 30
    assert choose_num_splits(8, 264, 8) <= 8
    assert choose_num_splits(264, 264, 64) == 1
    assert choose_num_splits(384, 264, 64) > 1
    assert choose_num_splits(2048, 264, 64) == 1


def test_wrong_arguments_are_refused_before_any_launch(paged):
    inputs = paged([20, 9], heads=6, kv_heads=2, head_dim=64)
    for name, wrong, message in (
        ("q", inputs["q"][:, :5].contiguous(), "5 heads do not divide into 2 KV heads"),
        ("q", inputs["q"].half().double(), "q: dtype must be one of"),
        ("q", inputs["q"][..., :60].contiguous(), "head_dim: must be one of 64, 80, .*, got 60"),
        ("query_len", 3, "no multiple of query_len 3"),
        ("block_tables", inputs["block_tables"].float(), "block_tables: dtype"),
        ("block_tables", inputs["block_tables"][:1], "block_tables: shape"),
        ("context_lens", inputs["context_lens"].to("meta"), "context_lens: must be on"),
        ("k_cache", inputs["k_cache"].transpose(1, 2), "k_cache: must be contiguous"),
        ("v_cache", inputs["v_cache"][:1], "v_cache: shape"),
        ("softcap", -1.0, "softcap: must not be negative"),
        ("sinks", inputs["q"][0, 0, :5], r"sinks: shape \[6\]"),
        ("window", -1, "window: must not be negative"),
        ("num_splits", 0, "num_splits: must be 1 to 128"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_attention(**(inputs | {name: wrong}))


@needs.cuda  # CUDA graphs
def test_a_captured_graph_serves_other_lengths(paged, device, close):
    inputs = paged([500, 300, 0, 0], heads=32, kv_heads=8, head_dim=128)
    decode_attention(**inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(**inputs)
    inputs["context_lens"].copy_(torch.tensor([3, 299, 0, 0]))
    out.fill_(float("nan"))
    graph.replay()
    close(out, decode_attention(**inputs, backend="torch"))


@pytest.mark.parametrize(("num_splits", "query_len"), [(1, 3), (3, 7)])
def test_a_tree_s_tokens_see_the_context_and_their_ancestors(num_splits, query_len, paged, close):
    """Each path of a tree, attended to as a chain of its own, gives its last token's output."""
    lengths = [query_len, 150, 64 + query_len]
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    inputs = paged(lengths, **shape, query_len=query_len)
    parents = [-1, 0, 0, 1, 1, 2, 4][:query_len]
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if node else []), node])
    words = [sum(1 << one for one in path) for path in paths]
    mask = torch.tensor(words * len(lengths), device=inputs["q"].device)
    out = _check({**inputs, "tree_mask": mask}, close, num_splits=num_splits)
    last = slice(query_len - 1, None, query_len)  # alone, the tree before it in the cache
    leaves = {**inputs, "q": inputs["q"][last], "query_len": 1}
    leaves["tree_mask"] = mask[last].contiguous()
    close(_check(leaves, close, num_splits=num_splits, tree_len=query_len), out[last].double())
    tables, block_size = inputs["block_tables"], inputs["k_cache"].shape[1]
    for sequence, length in enumerate(lengths):
        before = length - query_len
        for node, path in enumerate(paths):
            keys = torch.tensor([*range(before), *(before + one for one in path)])
            keys = keys.to(mask.device)
            blocks = tables[sequence].long()[keys // block_size]
            row = sequence * query_len + node
            k, v = (inputs[name][blocks, keys % block_size] for name in ("k_cache", "v_cache"))
            alone = standard_attention_reference(inputs["q"][row : row + 1], k, v)
            close(out[row : row + 1], alone.double())


def test_trees_too_wide_for_a_word_or_with_a_window_are_refused(paged):
    inputs = paged([80], heads=2, kv_heads=1, head_dim=64, query_len=65)
    with pytest.raises(ValueError, match="tree_mask: 65 to 64 tokens"):
        decode_attention(**inputs, tree_mask=torch.zeros_like(inputs["q"][:, 0, 0]).long())
