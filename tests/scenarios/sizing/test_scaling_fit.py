"""Fits give back the law that made the runs, with intervals that mean what they say."""

from pathlib import Path

import numpy as np
import pytest

from scenarios.errors import InputError
from scenarios.sizing.scaling_fit import Runs, fit_law, read_runs
from scenarios.sizing.scaling_law import LAWS, RosenfeldLaw, ScalingLaw

ROSENFELD = RosenfeldLaw("own", "", 40.0, 0.34, 41.0, 0.29, 0.17, 1.0, 11.0)


def runs_of(law: ScalingLaw, *, noise: float = 0.0, points: int = 7, seed: int = 0) -> Runs:
    """A grid of sizes and token counts, with noise on the log loss."""
    n = np.repeat(np.geomspace(5e7, 1e10, points), points)
    d = np.tile(np.geomspace(1e9, 3e11, points), points)
    noises = noise * np.random.default_rng(seed).normal(size=n.size)
    return Runs.of(n, d, law.loss(n, d) * np.exp(noises))


@pytest.mark.parametrize(
    ("form", "law"),
    [
        ("chinchilla", LAWS["chinchilla"]),
        ("chinchilla", LAWS["besiroglu"]),
        ("kaplan", LAWS["kaplan"]),
        ("rosenfeld", ROSENFELD),
    ],
)
def test_runs_without_noise_give_back_the_law_that_made_them(form: str, law: ScalingLaw) -> None:
    start = 11.0 if form == "rosenfeld" else None
    fitted = fit_law(runs_of(law), form=form, initial_loss=start, bootstrap=2)
    assert fitted.law.coefficients() == pytest.approx(law.coefficients(), rel=1e-3)
    assert fitted.law.optimum(1e22).parameters == pytest.approx(
        law.optimum(1e22).parameters, rel=1e-3
    )
    assert fitted.mean_error < 1e-6


def test_one_bad_run_does_not_bend_the_law() -> None:
    runs = runs_of(LAWS["chinchilla"])
    runs.loss[17] *= 2.0
    fitted = fit_law(runs, bootstrap=2)
    assert fitted.law.optimum(1e22).parameters == pytest.approx(7.43e9, rel=0.01)


def test_intervals_hold_the_truth_and_widen_with_noise() -> None:
    truth = LAWS["chinchilla"]
    widths = []
    for noise in (0.001, 0.02):
        fitted = fit_law(runs_of(truth, noise=noise), bootstrap=40, seed=1)
        for key, value in truth.coefficients().items():
            low, high = fitted.intervals()[key]
            assert low < high, key
            assert low / 2 < value < 2 * high, key
        low, high = fitted.optimum_intervals(1e22)["parameters"]
        assert low < fitted.law.optimum(1e22).parameters < high
        assert low < truth.optimum(1e22).parameters < high
        widths.append(np.log(high / low))
    assert widths[1] > 5 * widths[0]


def test_the_same_seed_gives_the_same_intervals() -> None:
    runs = runs_of(LAWS["chinchilla"], noise=0.01, points=4)
    first, second, other = (fit_law(runs, bootstrap=4, seed=seed) for seed in (3, 3, 4))
    assert first.intervals() == second.intervals()
    assert first.intervals() != other.intervals()


def test_runs_that_determine_nothing_are_refused() -> None:
    runs = runs_of(LAWS["chinchilla"], points=4)
    with pytest.raises(ValueError, match="5 runs cannot determine 5 coefficients: at least 6"):
        fit_law(runs.take(np.arange(5)))
    with pytest.raises(ValueError, match="one or two values of parameters"):
        fit_law(runs.take(np.tile(np.arange(4), 3)))
    with pytest.raises(ValueError, match="needs initial_loss"):
        fit_law(runs, form="rosenfeld")
    with pytest.raises(ValueError, match="did you mean 'kaplan'"):
        fit_law(runs, form="caplan")


def csv(folder: Path, text: str) -> Path:
    file = folder / "runs.csv"
    file.write_text(text)
    return file


def test_the_missing_one_of_parameters_tokens_and_flops_follows_from_the_others(
    tmp_path: Path,
) -> None:
    whole = read_runs(csv(tmp_path, "parameters,tokens,loss\n1e9,2e10,2.5\n"))
    by_flops = read_runs(csv(tmp_path, "loss,flops,parameters\n2.5,1.2e20,1e9\n"))
    by_size = read_runs(csv(tmp_path, "flops,tokens,loss\n1.2e20,2e10,2.5\n"))
    for runs in (by_flops, by_size):
        assert runs.parameters == pytest.approx(whole.parameters)
        assert runs.tokens == pytest.approx(whole.tokens)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters,tokens,los\n1,1,1\n", "unknown column 'los'; did you mean 'loss'?"),
        ("parameters,loss\n1,1\n", "needs the column loss and two of parameters, tokens, flops"),
        ("", "needs the column loss"),
        ("parameters,tokens,loss\n1e9,2e10,2.5\n1e9,-5,2.5\n", ":3: tokens '-5' is not a positive"),
        ("parameters,tokens,loss\n1e9,2e10\n", ":2: loss None is not a positive number"),
        ("parameters,tokens,loss\n1e9,2e10,nan\n", "loss 'nan' is not a positive number"),
    ],
)
def test_a_file_that_holds_no_runs_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(InputError) as error:
        read_runs(csv(tmp_path, text))
    assert said in str(error.value)
    assert "runs.csv" in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_runs(tmp_path / "none.csv")
