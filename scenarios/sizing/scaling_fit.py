"""Fit a scaling law to training runs of one's own, with bootstrap intervals.

As Hoffmann et al. 2022 (appendix D.3): the Huber loss (delta 1e-3) of predicted against observed
*log* loss, minimised by L-BFGS from a grid of starts, because it has many local minima and one bad
run must not bend the law. All starts of the grid are evaluated, the best of them are descended
from. Intervals: the same fit to resampled runs (Efron's percentile bootstrap), each from the
solution of all runs; where points belong to training curves, whole curves are drawn, since points
of one curve say the same thing over and over.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scenarios.errors import InputError, did_you_mean
from scenarios.sizing.scaling_law import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    AdditiveLaw,
    Floats,
    KaplanLaw,
    PowerLaw,
    RosenfeldLaw,
    ScalingLaw,
)
from sim import plain_file

HUBER_DELTA = 1e-3
STARTS = 10  # descents, from the best points of the grid
COLUMNS = ("parameters", "tokens", "flops", "loss")
RUN = "run"  # the column that says which training curve a point is of


@dataclass(frozen=True, slots=True)
class Runs:
    """Finished training runs: parameters, tokens and final loss (nats per token) of each.

    ``centre`` are the logarithms of N and D that the search takes as its origin; ``curves`` numbers
    the training curve of each point, or is empty where every point is a run of its own.
    """

    parameters: Floats
    tokens: Floats
    loss: Floats
    centre: tuple[float, float]
    curves: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, parameters: Floats, tokens: Floats, loss: Floats, curves: tuple[int, ...] = ()
    ) -> Runs:
        centre = (float(np.log(parameters).mean()), float(np.log(tokens).mean()))
        return cls(parameters, tokens, loss, centre, curves)

    @property
    def flops(self) -> Floats:
        return np.asarray(FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters * self.tokens)

    def __len__(self) -> int:
        return len(self.loss)

    def logs(self) -> tuple[Floats, Floats, Floats]:
        """Logarithms of N and D, from the centre, and of the loss."""
        log_n, log_d = self.centre
        return np.log(self.parameters) - log_n, np.log(self.tokens) - log_d, np.log(self.loss)

    def take(self, rows: np.ndarray) -> Runs:
        curves = tuple(self.curves[row] for row in rows) if self.curves else ()
        return Runs(self.parameters[rows], self.tokens[rows], self.loss[rows], self.centre, curves)

    def resampled(self, rng: np.random.Generator) -> Runs:
        """As many runs, or training curves, drawn with replacement."""
        if not self.curves:
            return self.take(rng.integers(len(self), size=len(self)))
        which = np.array(self.curves)
        names = np.unique(which)
        drawn = names[rng.integers(len(names), size=len(names))]
        rows = [np.flatnonzero(which == name) for name in drawn]
        found = self.take(np.concatenate(rows))
        # A curve drawn twice is two curves.
        numbers = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
        return replace(found, curves=tuple(int(number) for number in numbers))


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """A law fitted to runs, and the laws fitted to resampled runs."""

    law: ScalingLaw
    resampled: tuple[ScalingLaw, ...]
    confidence: float
    num_runs: int
    mean_error: float  # mean |predicted / observed loss - 1| over the runs

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Each coefficient's interval at ``confidence``."""
        drawn = [law.coefficients() for law in self.resampled]
        return {key: self._interval([one[key] for one in drawn]) for key in drawn[0]}

    def optimum_intervals(self, flops: float) -> dict[str, tuple[float, float]]:
        """Intervals of the optimal parameters and tokens, and of the loss, at a budget."""
        drawn = [law.optimum(flops) for law in self.resampled]
        keys = ("parameters", "tokens", "loss")
        return {key: self._interval([getattr(one, key) for one in drawn]) for key in keys}

    def _interval(self, values: list[float]) -> tuple[float, float]:
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(values, [outside, 1 - outside])
        return float(low), float(high)


def read_one_column(path: Path) -> tuple[str, Runs] | None:
    """Losses over one quantity, whatever its name, which the runs have as their parameters; None
    for a file with more columns. Raises InputError naming file, line and column."""
    lines = _lines(path)
    names = [name for name in (lines[0] if lines else {}) if name not in (None, RUN, "loss")]
    if len(names) != 1 or "loss" not in lines[0]:
        return None
    x = _column(path, lines, names[0])
    curves = _curves(lines) if RUN in lines[0] else ()
    return names[0], Runs.of(x, x, _column(path, lines, "loss"), curves)


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        with plain_file.lines_of(path) as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a CSV file of runs: {reason}") from None


def read_runs(path: Path) -> Runs:
    """Runs from a CSV file: columns loss and two of parameters, tokens, flops (= 6 N D).

    A column ``run`` names the training curve that a line is a point of.

    Raises InputError naming file, line and column.
    """
    lines = _lines(path)
    names = [name for name in (lines[0] if lines else {}) if name is not None]
    curves = _curves(lines) if RUN in names else ()
    names = [name for name in names if name != RUN]
    for name in names:
        if name not in COLUMNS:
            raise InputError(f"{path}: unknown column {name!r}; {did_you_mean(name, COLUMNS)}")
    if "loss" not in names or len(names) < 3:
        raise InputError(f"{path}: needs the column loss and two of parameters, tokens, flops")
    columns = {name: _column(path, lines, name) for name in names}
    if "parameters" not in columns:
        columns["parameters"] = columns["flops"] / (6 * columns["tokens"])
    if "tokens" not in columns:
        columns["tokens"] = columns["flops"] / (6 * columns["parameters"])
    return Runs.of(columns["parameters"], columns["tokens"], columns["loss"], curves)


def _curves(lines: list[dict[str, str]]) -> tuple[int, ...]:
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(line[RUN], len(numbers)) for line in lines)


def _column(path: Path, lines: list[dict[str, str]], name: str) -> Floats:
    values = np.empty(len(lines))
    for row, line in enumerate(lines):
        try:
            values[row] = float(line[name])
        except (TypeError, ValueError):
            values[row] = math.nan
        if not (math.isfinite(values[row]) and values[row] > 0):
            given = line[name]
            raise InputError(f"{path}:{row + 2}: {name} {given!r} is not a positive number")
    return values


def fit_law(
    runs: Runs,
    *,
    form: str = "chinchilla",
    initial_loss: float | None = None,
    bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    name: str = "fitted",
) -> FittedLaw:
    """Fit `form` (chinchilla, rosenfeld or kaplan) to `runs`.

    `initial_loss` is the loss of an untrained model, ln(vocabulary), which the form rosenfeld
    needs. Raises ``ValueError`` where the runs cannot tell the coefficients apart.
    """
    chosen = _form(form, initial_loss)
    assert chosen.law is not None
    source = f"fitted to {len(runs)} runs (form {form})"
    _check(runs, len(chosen.bounds))
    make = chosen.law
    law, *resampled = (make(theta, name, source) for theta in _fits(chosen, runs, bootstrap, seed))
    error = np.abs(law.loss(runs.parameters, runs.tokens) / runs.loss - 1).mean()
    return FittedLaw(law, tuple(resampled), confidence, len(runs), float(error))


def fit_power(
    runs: Runs, *, bootstrap: int = 200, seed: int = 0, name: str = "fitted"
) -> list[PowerLaw]:
    """Fit ``a / x^alpha + c`` to losses over one quantity, which `runs` have as their parameters:
    the law of all runs, then those of resampled ones. Raises ``ValueError`` as `fit_law` does."""
    _check(runs, 3)
    return [
        PowerLaw(name, math.exp(theta[0]), float(theta[1]), math.exp(theta[2]))
        for theta in _fits(_power_form(), runs, bootstrap, seed)
    ]


def _fits(chosen: _Form, runs: Runs, bootstrap: int, seed: int) -> Iterator[Floats]:
    """Coefficients of all runs, then of each resampling."""
    found = [_descend(chosen, runs, start) for start in _best_starts(chosen, runs)]
    best = min(found, key=lambda theta: _objective(theta, chosen, *runs.logs())[0])
    best = _descend(chosen, runs, best)  # a restart forgets a poor estimate of the curvature
    yield chosen.uncentred(best, runs)
    rng = np.random.default_rng(seed)
    for _ in range(bootstrap):
        yield chosen.uncentred(_descend(chosen, runs.resampled(rng), best), runs)


@dataclass(frozen=True, slots=True)
class _Form:
    """log loss and its gradient by the coefficients, where to look for them, and the law."""

    predict: Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]
    grid: Mapping[str, tuple[float, ...]]
    bounds: tuple[tuple[float, float], ...]
    law: Callable[[Floats, str, str], ScalingLaw] | None = None
    additive: bool = True

    def uncentred(self, theta: Floats, runs: Runs) -> Floats:
        """theta for N and D as counts: a scale takes its exponent's share of the centre."""
        log_n, log_d = runs.centre
        moved = theta.copy()
        moved[0] += log_n * (theta[1] if self.additive else 1.0)
        if len(theta) > 3:
            moved[2] += log_d * (theta[3] if self.additive else 1.0)
        return moved


def _power_form() -> _Form:
    grid = {
        "a": (-6.0, -4.0, -2.0, 0.0, 1.0),
        "alpha": (0.05, 0.1, 0.3, 0.5, 1.0, 1.5),
        "c": (-20.0, -6.0, -3.0, -1.0, 0.0, 1.0),
    }

    def predict(theta: Floats, log_x: Floats, _: Floats) -> tuple[Floats, Floats]:
        a, alpha, c = (theta[..., i, None] for i in range(3))
        log_sum = np.logaddexp(a - alpha * log_x, c)
        share = np.exp(a - alpha * log_x - log_sum)
        return log_sum, np.stack([share, -log_x * share, 1 - share], axis=-1)

    return _Form(predict, grid, ((-60.0, 60.0), (1e-3, 4.0), (-30.0, 5.0)))


def _form(form: str, initial_loss: float | None) -> _Form:
    exponents = (0.1, 0.3, 0.5, 1.0, 1.5)
    scales = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0)  # logarithm of a term at the centre
    logs, exponent = (-30.0, 60.0), (1e-3, 4.0)
    grid = {"a": scales, "alpha": exponents, "b": scales, "beta": exponents}
    bounds = (logs, exponent, logs, exponent)
    if form == "chinchilla":
        floor = {"irreducible": (-1.0, -0.5, 0.0, 0.5, 1.0)}
        return _Form(_additive, grid | floor, (*bounds, (-20.0, 5.0)), _additive_law)
    if form == "rosenfeld":
        if initial_loss is None:
            raise ValueError("form rosenfeld needs initial_loss, ln(vocabulary) of the runs")

        def predict(theta: Floats, log_n: Floats, log_d: Floats) -> tuple[Floats, Floats]:
            log_e, gradient = _additive(theta, log_n, log_d)
            squared = np.exp(2 * log_e)  # with eta = 1: only ratios to it matter
            loss = math.log(initial_loss) + log_e - 0.5 * np.log1p(squared)
            return loss, gradient / (1 + squared)[..., None]

        def law(theta: Floats, name: str, source: str) -> ScalingLaw:
            a, alpha, b, beta, c = _plain(theta)
            return RosenfeldLaw(name, source, a, alpha, b, beta, c, 1.0, initial_loss)

        floor = {"c": (-4.0, -3.0, -2.0, -1.0, 0.0)}
        return _Form(predict, grid | floor, (*bounds, (-20.0, 5.0)), law)
    if form == "kaplan":
        decades = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
        slopes = (0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)
        return _Form(
            _kaplan,
            {"n_c": decades, "alpha_n": slopes, "d_c": decades, "alpha_d": slopes},
            (logs, exponent, logs, exponent),
            lambda theta, name, source: KaplanLaw(
                name, source, *map(float, (np.exp(theta[0]), theta[1], np.exp(theta[2]), theta[3]))
            ),
            additive=False,
        )
    forms = ("chinchilla", "rosenfeld", "kaplan")
    raise ValueError(f"unknown form {form!r}; {did_you_mean(form, forms)}")


def _additive(theta: Floats, log_n: Floats, log_d: Floats) -> tuple[Floats, Floats]:
    """theta: [..., 5]; log of the sum [..., runs] and its gradient [..., runs, 5]."""
    a, alpha, b, beta, e = (theta[..., i, None] for i in range(5))
    log_sum = np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)
    gradient = np.empty((*log_sum.shape, 5))
    np.exp(a - alpha * log_n - log_sum, out=gradient[..., 0])
    np.exp(b - beta * log_d - log_sum, out=gradient[..., 2])
    np.exp(e - log_sum, out=gradient[..., 4])
    np.multiply(gradient[..., 0], -log_n, out=gradient[..., 1])
    np.multiply(gradient[..., 2], -log_d, out=gradient[..., 3])
    return log_sum, gradient


def _kaplan(theta: Floats, log_n: Floats, log_d: Floats) -> tuple[Floats, Floats]:
    """theta: [..., 4], log n_c, alpha_n, log d_c, alpha_d; otherwise as `_additive`."""
    n_c, alpha_n, d_c, alpha_d = (theta[..., i, None] for i in range(4))
    size, data = alpha_n / alpha_d * (n_c - log_n), d_c - log_d
    log_sum = np.logaddexp(size, data)
    share = np.exp(size - log_sum)
    gradient = np.stack(
        [
            alpha_n * share,
            share * (n_c - log_n),
            alpha_d * (1 - share),
            log_sum - share * size,
        ],
        axis=-1,
    )
    return alpha_d * log_sum, gradient


def _plain(theta: Floats) -> tuple[float, float, float, float, float]:
    a, alpha, b, beta, e = map(float, theta)
    return math.exp(a), alpha, math.exp(b), beta, math.exp(e)


def _additive_law(theta: Floats, name: str, source: str) -> ScalingLaw:
    return AdditiveLaw(name, source, *_plain(theta))


def _objective(
    theta: Floats, form: _Form, log_n: Floats, log_d: Floats, log_loss: Floats
) -> tuple[Floats, Floats]:
    """Mean Huber loss of the residuals, in units of delta, and its gradient."""
    predicted, gradient = form.predict(theta, log_n, log_d)
    residual = (predicted - log_loss) / HUBER_DELTA
    slope = np.clip(residual, -1, 1)  # of the Huber loss, which is slope (residual - slope / 2)
    huber = (slope * (residual - 0.5 * slope)).mean(axis=-1)
    each = slope / (HUBER_DELTA * residual.shape[-1])
    return huber, (each[..., None, :] @ gradient)[..., 0, :]


def _best_starts(form: _Form, runs: Runs) -> list[Floats]:
    grid = np.array(list(itertools.product(*form.grid.values())))
    values = np.concatenate(
        [_objective(part, form, *runs.logs())[0] for part in np.array_split(grid, 16)]
    )
    return list(grid[np.argsort(values, kind="stable")[:STARTS]])


def _descend(form: _Form, runs: Runs, start: Floats) -> Floats:
    """Gauss-Newton steps go most of the way in a tenth of the evaluations, L-BFGS the rest."""
    from scipy.optimize import least_squares, minimize

    log_n, log_d, log_loss = runs.logs()
    low, high = np.array(form.bounds).T
    near = least_squares(
        lambda theta: form.predict(theta, log_n, log_d)[0] - log_loss,
        np.clip(start, low, high),
        jac=lambda theta: form.predict(theta, log_n, log_d)[1],
        bounds=(low, high),
        loss="huber",
        f_scale=HUBER_DELTA,
        x_scale="jac",
        max_nfev=100,
    )
    found = minimize(
        _objective,
        near.x,
        args=(form, log_n, log_d, log_loss),
        jac=True,
        method="L-BFGS-B",
        bounds=form.bounds,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-9},
    )
    return np.asarray(found.x)


def _check(runs: Runs, num_coefficients: int) -> None:
    if len(runs) <= num_coefficients:
        raise ValueError(
            f"{len(runs)} runs cannot determine {num_coefficients} coefficients: "
            f"at least {num_coefficients + 1} are needed, of several sizes and token counts"
        )
    for what, values in (("parameters", runs.parameters), ("tokens", runs.tokens)):
        if len(np.unique(values)) < 3:
            raise ValueError(f"all runs have one or two values of {what}: at least 3 are needed")
