"""Scaling laws as a method: the first law, laws that cross, the three ways to the best size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reports.size.law_report import law_report
from reports.size.law_rows import comparison_words, law_tables
from scenarios.errors import InputError
from scenarios.sizing.law_study import (
    crossing_of,
    envelope,
    iso_flop_minima,
    read_fit,
    slope,
    study,
)
from scenarios.sizing.scaling_fit import Runs, read_runs
from scenarios.sizing.scaling_law import JOINT_MIXTURE, AdditiveLaw
from tests.orcast.command_line import orcast

ROOT = Path(__file__).parents[3]
RUNS = ROOT / "docs" / "examples" / "laws"


def written(path: Path, law: AdditiveLaw, *, noise: float = 0.0) -> Path:
    """Training curves of six sizes that follow a law, at equal compute."""
    rng = np.random.default_rng(7)
    lines = ["run,parameters,tokens,loss"]
    for n in np.geomspace(3e6, 3e8, 7):
        for flops in np.geomspace(1e17, 1e19, 9):
            d = flops / 6 / n
            loss = float(law.loss(n, d)) * (1 + noise * rng.standard_normal())
            lines.append(f"{n:.0f},{n:.0f},{d:.6g},{loss:.6g}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


LAW = AdditiveLaw("known", "", a=400.0, alpha=0.34, b=400.0, beta=0.28, irreducible=1.7)
# Worse at first, and better from some budget on: a steeper law with more to begin with.
STEEP = AdditiveLaw("steep", "", a=2000.0, alpha=0.42, b=1600.0, beta=0.35, irreducible=1.7)


def test_the_mean_of_n_samples_is_the_first_scaling_law() -> None:
    """sigma is 2 there, so the squared error of the mean is 4 / n."""
    fit = read_fit(RUNS / "mean-of-samples.csv", bootstrap=6)
    assert fit.axis == "samples"
    assert fit.coefficients["alpha"] == pytest.approx(1, abs=0.03)
    assert fit.coefficients["a"] == pytest.approx(4, rel=0.05)
    low, high = fit.intervals["alpha"]
    assert low < 1 < high
    with pytest.raises(InputError, match="mean-of-samples by samples, mean-of-samples by flops"):
        study([fit, replace(fit, axis="flops")])


def test_two_laws_cross_where_they_do_and_the_interval_holds_it(tmp_path: Path) -> None:
    fits = [
        read_fit(written(tmp_path / f"{law.name}.csv", law, noise=0.001), bootstrap=6)
        for law in (LAW, STEEP)
    ]
    figures = study(fits, at=1e23)
    known = crossing_of(
        lambda x: LAW.optimum(x).loss, lambda x: STEEP.optimum(x).loss, np.geomspace(1e17, 1e23, 61)
    )
    assert known is not None
    one = figures["comparison"]
    assert one["crossing"] == pytest.approx(known, rel=0.2)
    low, high = one["interval"]
    assert known / 2 < low < high < 2 * known
    assert one["second_better_at"] == 1.0
    assert "steep has the lower loss in 100%" in comparison_words(figures)
    for law in figures["laws"]:
        band = law["band"]
        assert all(lo <= hi for lo, hi in zip(band["low"], band["high"], strict=True))
    assert len(list(law_tables(figures))) >= 3
    assert "steep: sizes at equal FLOPs" in law_report(figures)


def test_three_ways_to_the_best_size_agree_on_curves_that_follow_a_law(tmp_path: Path) -> None:
    runs = read_runs(written(tmp_path / "runs.csv", LAW))
    exponent = 0.28 / (0.34 + 0.28)
    minima = iso_flop_minima(runs)
    for one in minima:
        assert one["parameters"] == pytest.approx(LAW.optimum(one["flops"]).parameters, rel=0.1)
    assert slope(minima) == pytest.approx(exponent, abs=0.03)
    points = envelope(runs)
    assert slope(points) == pytest.approx(exponent, abs=0.12), "seven sizes are coarse"
    losses = [one["loss"] for one in points]
    assert losses == sorted(losses, reverse=True)
    for one in points:  # the lowest of all curves at that budget
        others = LAW.loss(np.unique(runs.parameters), one["flops"] / 6 / np.unique(runs.parameters))
        assert one["loss"] == pytest.approx(float(others.min()), rel=2e-3)


def test_whole_curves_are_drawn_when_resampling() -> None:
    ones = np.ones(6)
    runs = Runs.of(np.arange(1.0, 7.0), ones, ones, curves=(0, 0, 1, 1, 2, 2))
    sample = runs.resampled(np.random.default_rng(1))
    assert len(sample) == 6
    assert sample.curves == (0, 0, 1, 1, 2, 2), "a curve drawn twice is two"
    pairs = sample.parameters.reshape(3, 2)
    assert set(map(tuple, pairs)) <= {(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)}


@pytest.mark.parametrize(
    ("experts", "m", "mu", "n", "nu"),
    [  # Ludziejewski et al. 2025, table 4
        (1, 30.3640, 0.1817, 53.9838, 0.1965),
        (2, 27.7982, 0.1780, 66.8401, 0.2065),
        (4, 24.8462, 0.1731, 87.7022, 0.2192),
        (8, 21.8330, 0.1676, 119.9126, 0.2338),
        (16, 19.0159, 0.1617, 167.5073, 0.2494),
        (32, 16.5424, 0.1557, 234.6726, 0.2652),
    ],
)
def test_the_mixtures_law_is_the_published_one(
    experts: int, m: float, mu: float, n: float, nu: float
) -> None:
    law = JOINT_MIXTURE.of(experts)
    assert (law.a, law.b) == pytest.approx((m, n), rel=0.003)
    assert (law.alpha, law.beta) == pytest.approx((mu, nu), abs=1.5e-4)


def test_more_experts_reach_a_lower_loss_on_more_tokens_and_fewer_parameters() -> None:
    best = [JOINT_MIXTURE.of(experts).optimum(1e21) for experts in (1, 8, 32)]
    assert best[0].loss > best[1].loss > best[2].loss
    assert best[0].parameters > best[1].parameters > best[2].parameters


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("samples,loss\n1,2\n2,1\n", "2 runs cannot determine 3 coefficients"),
        ("samples,loss\n1,2\nx,1\n3,1\n4,1\n", "samples 'x' is not a positive number"),
        ("loss\n1\n", "needs the column loss and two of"),
    ],
)
def test_what_is_no_file_of_runs_is_refused_in_a_line(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    outcome = orcast("laws", str(path))
    assert outcome.status == 2
    assert words in outcome.stderr
    assert outcome.stderr.count("\n") == 1
