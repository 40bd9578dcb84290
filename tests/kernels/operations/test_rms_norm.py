"""RMSNorm against its float64 reference."""

from __future__ import annotations

import pytest

from kernels.rms_norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize(
    ("num_rows", "hidden"), [(1, 4096), (7, 100), (33, 128), (5, 2880), (3, 64), (2, 8193)]
)
def test_rms_norm_matches_the_reference_on_odd_shapes(num_rows, hidden, draw, close):
    x, weight = draw(num_rows, hidden), draw(hidden)
    close(rms_norm(x, weight), rms_norm_reference(x.double(), weight.double()))


@pytest.mark.parametrize(("num_rows", "hidden"), [(1, 4096), (19, 96), (4, 1536)])
def test_the_residual_is_added_before_the_norm_and_updated_in_place(num_rows, hidden, draw, close):
    x, residual, weight = draw(num_rows, hidden), draw(num_rows, hidden), draw(hidden)
    wide_residual = residual.double()
    expected = rms_norm_reference(x.double(), weight.double(), residual=wide_residual)
    close(rms_norm(x, weight, residual=residual), expected)
    close(residual, wide_residual)


def test_a_row_of_zeros_stays_zero_and_no_rows_give_no_rows(draw):
    x, weight = draw(3, 256), draw(256)
    x[1] = 0
    assert (rms_norm(x, weight)[1] == 0).all()
    assert rms_norm(x[:0], weight).shape == (0, 256)


def test_torch_and_best_backends_agree_with_the_kernel(draw, close):
    x, residual, weight = draw(6, 192), draw(6, 192), draw(192)
    kernel = rms_norm(x, weight, residual=residual.clone())
    for backend in ("torch", "best"):
        close(rms_norm(x, weight, residual=residual.clone(), backend=backend), kernel)


def test_wrong_arguments_are_refused_before_any_launch(draw):
    x, weight = draw(4, 128), draw(128)
    with pytest.raises(ValueError, match=r"weight: shape \[128\] is needed, got \[64\]"):
        rms_norm(x, weight[:64])
    with pytest.raises(ValueError, match="contiguous"):
        rms_norm(x.t(), weight)
    with pytest.raises(ValueError, match="residual: dtype"):
        rms_norm(x, weight, residual=x.double())
    with pytest.raises(ValueError, match="x: dtype must be one of"):
        rms_norm(x.double(), weight.double())
    with pytest.raises(ValueError, match="backend: must be one of triton, torch, best"):
        rms_norm(x, weight, backend="cuda")
    with pytest.raises(ValueError, match="weight: must be on"):
        rms_norm(x, weight.to("meta"))
