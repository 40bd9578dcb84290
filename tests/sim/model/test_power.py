"""What a board draws idle, reading and computing."""

import pytest

from scenarios import library
from sim.model.power import attainable_flops_per_s, board_watts

H200 = library.gpu("h200-sxm")


def test_a_board_draws_its_idle_power_its_limit_and_a_decode_in_between() -> None:
    assert H200.idle_watts is not None and H200.peak_watts is not None
    assert board_watts(H200, busy=0, computing=0) == H200.idle_watts
    assert board_watts(H200, busy=1, computing=1) == pytest.approx(H200.peak_watts)
    reading = board_watts(H200, busy=1, computing=0)
    assert reading is not None and 137 <= reading <= 300  # Ma et al. 2026: decodes of an H200
    half = board_watts(H200, busy=0.5, computing=0)
    assert half == pytest.approx((reading + H200.idle_watts) / 2)


def test_nobody_computes_for_longer_than_it_is_busy() -> None:
    assert board_watts(H200, busy=0.2, computing=0.9) == board_watts(H200, busy=0.2, computing=0.2)
    assert board_watts(H200, busy=2, computing=2) == H200.peak_watts


def test_power_that_nobody_published_is_unknown() -> None:
    assert board_watts(library.gpu("tpu-v6e"), busy=1, computing=1) is None
    assert attainable_flops_per_s(H200, "float8") < H200.peak_flops_per_s("float8")
