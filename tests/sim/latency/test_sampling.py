"""What choosing tokens takes: by how they are chosen, by rows and vocabulary, by bandwidth."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from scenarios import library
from sim.latency.roofline import RooflineLatency
from sim.latency.sampling import sampling_s
from sim.model.spec import Sampling
from tests.sim.latency.test_roofline import decodes, records

ROWS = np.array([1, 8, 64, 256])


def test_each_way_takes_longer_than_the_one_before() -> None:
    times_s = [sampling_s(how, ROWS, 128_256, 2.7e12) for how in get_args(Sampling)]
    for less, more in pairwise(times_s):
        assert (less < more).all()
    assert (np.diff(times_s, axis=1) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "vocab", "published_ms"),
    [(56, 32768, 0.393), (512, 32768, 2.252), (1024, 131072, 16.312), (512, 131072, 8.787)],
)
def test_sorting_takes_what_was_published(rows: int, vocab: int, published_ms: float) -> None:
    plain, filtered = (
        float(sampling_s(how, np.array(rows), vocab, 2.7e12)) for how in ("random", "sorted")
    )
    assert (filtered - plain) * 1e3 == pytest.approx(published_ms, rel=0.12)


def test_without_launches_nothing_is_left_of_no_rows() -> None:
    assert sampling_s("sorted", np.array(0.0), 32000, 1e12, launched=False) == 0.0


def test_a_roofline_samples_as_its_model_asks() -> None:
    gpu = library.gpu("h100-sxm")
    llama = library.model("llama-3.1-8b")
    assert llama.sampling == "truncated"
    sampled = []
    for how in ("greedy", "sorted"):
        latency = RooflineLatency(replace(llama, sampling=how), gpu)
        sampled.append(latency.operators_s(records(latency, [decodes(4, 100)]))["sampling"][0])
    assert sampled[1] - sampled[0] > 0.17e-3
