"""The materialising baseline against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.prefill_attention import prefill_attention
from kernels.standard_attention import standard_attention, standard_attention_reference

HEADS = [(2, 2), (6, 2), (5, 1)]  # queries' and keys'


@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "queries", "keys"),
    [
        *((d, *h, 3, 130) for d, h in zip((64, 80, 128), HEADS, strict=True)),
        (96, 8, 2, 1, 1),
        (256, 2, 1, 20, 70),
    ],
)
def test_standard_attention_matches_the_reference(
    queries, keys, heads, kv_heads, head_dim, draw, close
):
    q, k, v = draw(queries, heads, head_dim), *(draw(keys, kv_heads, head_dim) for _ in range(2))
    expected = standard_attention_reference(q.double(), k.double(), v.double())
    close(standard_attention(q, k, v), expected, slack=2)
    for backend in ("torch", "best"):
        close(standard_attention(q, k, v, backend=backend), expected, slack=2)


@pytest.mark.parametrize("window", [1, 33])
def test_a_window_hides_older_keys(window, draw, close):
    q, k, v = draw(40, 4, 64), draw(90, 2, 64), draw(90, 2, 64)
    expected = standard_attention_reference(q.double(), k.double(), v.double(), window=window)
    close(standard_attention(q, k, v, window=window), expected, slack=2)
    close(standard_attention(q, k, v, window=window, backend="best"), expected, slack=2)


def test_flash_and_standard_attention_agree(draw, close, device):
    q, k, v = draw(70, 4, 128), draw(70, 1, 128), draw(70, 1, 128)
    bounds = torch.tensor([0, 70], device=device)
    flash = prefill_attention(q, k, v, cu_seqlens=bounds)
    close(flash, standard_attention(q, k, v), slack=3)


def test_wrong_arguments_are_refused_before_any_launch(draw):
    q, k, v = draw(5, 4, 64), draw(9, 2, 64), draw(9, 2, 64)
    for arguments, message in (
        ((q, k[:4], v[:4]), "at least 5 keys"),
        ((q, k, v[:8]), r"v: shape \[9, 2, 64\]"),
        ((q[:, :3].contiguous(), k, v), "3 heads do not divide into 2"),
        ((q, k.double(), v), "k: dtype"),
        ((q.transpose(0, 1), k, v), "q: must be contiguous"),
        ((q, k.to("meta"), v), "k: must be on"),
    ):
        with pytest.raises(ValueError, match=message):
            standard_attention(*arguments)
