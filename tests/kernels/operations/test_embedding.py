"""Token embedding against plain indexing."""

from __future__ import annotations

import pytest
import torch

from kernels.embedding import embedding


@pytest.mark.parametrize("hidden", [8, 100, 5120])
def test_rows_are_gathered_and_unknown_ids_give_zeros(hidden, draw, device):
    weight = draw(33, hidden)
    ids = torch.tensor([0, 32, -1, 7, 7, 33], device=device)
    y = embedding(ids, weight)
    assert torch.equal(y[[0, 1, 3, 4]], weight[[0, 32, 7, 7]])
    assert (y[[2, 5]] == 0).all()
    assert torch.equal(embedding(ids, weight, backend="torch"), y)
    assert torch.equal(embedding(ids[:2].int(), weight, backend="best"), y[:2])


def test_no_tokens_give_no_rows(draw, device):
    assert embedding(torch.tensor([], dtype=torch.int64, device=device), draw(3, 8)).shape == (0, 8)


def test_wrong_arguments_are_refused_before_any_launch(draw, device):
    ids, weight = torch.tensor([1, 2], device=device), draw(5, 16)
    for arguments, message in (
        ((ids.float(), weight), "ids: dtype"),
        ((ids[None], weight), "ids: shape"),
        ((ids, weight.t()), "weight: must be contiguous"),
        ((ids.to("meta"), weight), "ids: must be on"),
        ((ids, weight[:0]), "weight: must not be empty"),
    ):
        with pytest.raises(ValueError, match=message):
            embedding(*arguments)
