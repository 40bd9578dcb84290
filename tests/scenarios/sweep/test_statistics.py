"""Means, intervals, best settings and sensitivities, against figures worked out by hand."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scenarios.sweep.statistics import (
    as_good,
    best_setting,
    interval,
    intervals,
    sensitivity,
)
from scenarios.sweep.table import SweepTable, better, columns_of

A, B = "engine.max_num_seqs", "engine.block_size"


def table(
    figure: Callable[[Any, Any, int], float | None],
    *,
    a: Sequence[Any] = (1, 2, 4),
    b: Sequence[Any] = (10, 20),
    seeds: Sequence[int] = (1, 2, 3),
    settings: Sequence[tuple[Any, Any]] = (),
    sampling: str = "cartesian",
    name: str = "output_throughput",
) -> SweepTable:
    """A sweep over two axes with one figure by formula; None is a run that failed."""
    rows = []
    for number, (x, y) in enumerate(settings or list(product(a, b))):
        for seed in seeds:
            value = figure(x, y, seed)
            row = {"setting": number, A: x, B: y, "seed": seed, "point": "", "error": None}
            rows.append(row | ({"error": "failed"} if value is None else {name: value}))
    columns = columns_of(rows, ["setting", A, B, "seed", "point", "error", name])
    return SweepTable("own", "", ((A,), (B,)), sampling, 0.95, (name,), columns)


def test_an_interval_is_students() -> None:
    values = [4.1, 5.0, 4.4, 4.7]
    found = interval(values, 0.9)
    low, high = stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.half == pytest.approx((high - low) / 2)
    assert interval([3.0], 0.95).half is None
    # Two values: t with one degree of freedom is Cauchy's, 12.706 at 95 %.
    assert interval([0.0, 2.0], 0.95).half == pytest.approx(12.7062, rel=1e-5)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    found = [interval(rng.normal(7, 2, 4).tolist(), 0.8) for _ in range(4000)]
    held = np.mean([abs(one.mean - 7) <= (one.half or 0) for one in found])
    assert held == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 4000))


def test_an_additive_figure_is_shared_out_exactly() -> None:
    # Var(a) of (0, 1, 2) is 2/3, Var(b) of (0, 3) is 9/4, seeds (-1, 0, 1) 2/3.
    found = sensitivity(
        table(lambda a, b, seed: a.bit_length() + 0.3 * b + (seed - 2)), "output_throughput"
    )
    assert found is not None
    total = 2 / 3 + 9 / 4 + 2 / 3
    assert [effect.share for effect in found.effects] == pytest.approx(
        [2 / 3 / total, 9 / 4 / total]
    )
    assert found.noise == pytest.approx(2 / 3 / total)
    assert found.interaction == pytest.approx(0, abs=1e-12)


def test_what_axes_do_only_together_is_interaction() -> None:
    found = sensitivity(
        table(lambda a, b, _: float((a == 1) == (b == 10)), a=(1, 2)), "output_throughput"
    )
    assert found is not None
    assert [effect.share for effect in found.effects] == pytest.approx([0, 0], abs=1e-12)
    assert found.interaction == pytest.approx(1)


def test_the_elasticity_of_a_power_is_its_exponent() -> None:
    found = sensitivity(table(lambda a, b, _: 3 * a**0.7 / b**1.5), "output_throughput")
    assert found is not None
    assert [effect.elasticity for effect in found.effects] == pytest.approx([0.7, -1.5])


def test_names_and_zeros_have_no_elasticity() -> None:
    named = sensitivity(table(lambda a, b, _: len(a) + b, a=("paged", "orca")), "output_throughput")
    assert named is not None
    assert named.effects[0].elasticity is None
    zero = sensitivity(table(lambda a, b, _: float(a - 1)), "output_throughput")
    assert zero is not None
    assert zero.effects[0].elasticity is None


def test_a_drawn_sweep_finds_the_shares_of_its_axes() -> None:
    rng = np.random.default_rng(2)
    drawn = [(float(x), float(y)) for x, y in rng.random((4000, 2)) + 0.5]
    # Uniform on a unit interval: variances 1/12 and 4/12.
    found = sensitivity(
        table(lambda a, b, _: a + 2 * b, settings=drawn, seeds=(1,), sampling="latin_hypercube"),
        "output_throughput",
    )
    assert found is not None
    assert [effect.share for effect in found.effects] == pytest.approx([0.2, 0.8], abs=0.03)
    idle = sensitivity(
        table(lambda a, _, __: a, settings=drawn[:60], seeds=(1,), sampling="latin_hypercube"),
        "output_throughput",
    )
    assert idle is not None
    assert idle.effects[1].share < 0.1, "chance explains nothing"


def test_repeating_drawn_settings_tells_nothing_more_about_an_idle_axis() -> None:
    rng = np.random.default_rng(3)
    idle, whole = [], []
    for _ in range(20):
        steps = (np.column_stack([rng.permutation(20), rng.permutation(20)]) + 1.0).tolist()
        noise = rng.normal(0, 0.1, 8)
        found = sensitivity(
            table(
                lambda a, _, seed, noise=noise: min(a, 8.0) + noise[seed],
                settings=[(x, y) for x, y in steps],
                seeds=range(8),
                sampling="latin_hypercube",
            ),
            "output_throughput",
        )
        assert found is not None
        idle.append(found.effects[1].share)
        whole.append(sum(one.share for one in found.effects) + found.interaction + found.noise)
    assert np.mean(idle) < 0.03
    assert max(idle) < 0.15
    assert whole == pytest.approx([1.0] * 20)


def test_a_figure_that_never_changes_has_no_sensitivity() -> None:
    assert sensitivity(table(lambda *_: 5.0), "output_throughput") is None
    assert sensitivity(table(lambda *_: None), "output_throughput") is None


def test_the_best_is_the_highest_or_the_lowest_as_the_figure_goes() -> None:
    assert best_setting(table(lambda a, b, _: a * b), "output_throughput") == 5
    assert best_setting(table(lambda a, b, _: a * b, name="p99_ttft_ms"), "p99_ttft_ms") == 0
    assert best_setting(table(lambda a, b, _: a, name="iterations"), "iterations") is None
    assert (better("request_goodput"), better("preemptions"), better("num_gpu_blocks")) == (
        1,
        -1,
        0,
    )


def test_settings_are_told_apart_seed_by_seed() -> None:
    # Seeds differ by 100, settings by 1 in every seed: paired, that is a certain difference.
    paired = table(lambda a, b, seed: 100 * seed + a)
    best = best_setting(paired, "output_throughput")
    assert best == 4
    assert as_good(paired, "output_throughput", 4) == [4, 5]
    # The same difference, but of another sign in one seed.
    mixed = table(lambda a, b, seed: 100 * seed + (a if seed > 1 else -a))
    assert set(as_good(mixed, "output_throughput", 4)) == set(range(6))


def test_failed_runs_are_left_out() -> None:
    holes = table(lambda a, b, seed: None if (a == 2 or seed == 3) else a * b)
    found = intervals(holes, "output_throughput")
    assert [one is None for one in found] == [False, False, True, True, False, False]
    assert found[0] is not None
    assert found[0].seeds == 2
    assert len(holes.errors) == 10
    assert best_setting(holes, "output_throughput") == 5
    assert sensitivity(holes, "output_throughput") is not None


def test_columns_have_one_type_each() -> None:
    rows = [{"a": 1, "b": "x", "c": {"k": 1}, "d": True}, {"a": 2.5, "b": 5, "c": None, "d": None}]
    assert columns_of([*rows, {"e": 3}], ["a"]) == {
        "a": [1.0, 2.5, None],
        "b": ["x", "5", None],
        "c": ['{"k": 1}', None, None],
        "d": [True, None, None],
        "e": [None, None, 3],
    }
