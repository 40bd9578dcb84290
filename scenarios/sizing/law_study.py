"""Scaling laws as a method: laws fitted to small runs, what they foretell, and where two cross.

The scaling-law way to choose between two designs (a recurrent net or a transformer, one layer or
two, one optimizer or another): train a few small models of each, fit a law to each, and let the
laws say which is better at the size that is meant (Kaplan et al. 2020, figure 7). A law is only as
good as its runs, so everything comes with the interval that resampled runs give.

Files with two of parameters, tokens and flops (= 6 N D) are fitted by parameters *and* tokens and
compared at the best use of a budget; files with one column beside the loss by that one.

How the best size grows with the budget, N ~ C^a, is found in the three ways of Hoffmann et al. 2022
(sections 3.1 to 3.3): the envelope of the training curves, the minima of parabolas through runs of
equal compute, and the law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import InputError
from scenarios.sizing.scaling_fit import Runs, fit_law, fit_power, read_one_column, read_runs
from scenarios.sizing.scaling_law import Floats

POINTS = 61  # of a curve
FURTHER = 1e3  # how far beyond the runs a comparison is drawn
SAME_BUDGET = 0.06  # of log10: runs that count as of equal compute
FEWEST_SIZES = 4  # for a parabola

Best = Callable[[float], float]  # the lowest loss for so much of what the axis is


@dataclass(frozen=True, slots=True)
class Fit:
    """One file's law: ``best`` of all runs and of each resampling, over ``axis``."""

    name: str
    axis: str
    runs: Runs
    form: str
    coefficients: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    mean_error: float
    best: Best
    drawn: tuple[Best, ...]
    confidence: float

    @property
    def x(self) -> Floats:
        """Where its runs are on the axis."""
        return self.runs.flops if self.axis == "flops" else self.runs.parameters

    def band(self, x: float) -> tuple[float, float, float]:
        """The loss there, and its interval."""
        values = [best(x) for best in self.drawn]
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(values, [outside, 1 - outside])
        return self.best(x), float(low), float(high)


def read_fit(
    path: Path,
    *,
    form: str = "chinchilla",
    initial_loss: float | None = None,
    bootstrap: int = 50,
    confidence: float = 0.95,
    seed: int = 0,
) -> Fit:
    """Fit the law of one file. Raises InputError naming file and what is wrong."""
    one = read_one_column(path)
    try:
        if one is not None:
            axis, runs = one
            powers = fit_power(runs, bootstrap=bootstrap, seed=seed, name=path.stem)
            coefficients = [law.coefficients() for law in powers]
            error = np.abs(powers[0].loss(runs.parameters) / runs.loss - 1).mean()
            bests: list[Best] = [lambda x, law=law: float(law.loss(x)) for law in powers]  # type: ignore[misc]
            form = "power"
        else:
            axis, runs = "flops", read_runs(path)
            fitted = fit_law(
                runs, form=form, initial_loss=initial_loss, bootstrap=bootstrap, seed=seed,
                name=path.stem,
            )  # fmt: skip
            laws = [fitted.law, *fitted.resampled]
            coefficients = [law.coefficients() for law in laws]
            error = np.float64(fitted.mean_error)
            bests = [lambda x, law=law: law.optimum(x).loss for law in laws]  # type: ignore[misc]
    except ValueError as error_:
        raise InputError(f"{path}: {error_}") from None
    outside = (1 - confidence) / 2
    intervals = {}
    for key in coefficients[0]:
        low, high = np.quantile([one[key] for one in coefficients[1:]], [outside, 1 - outside])
        intervals[key] = (float(low), float(high))
    return Fit(
        path.stem, axis, runs, form, coefficients[0], intervals, float(error), bests[0],
        tuple(bests[1:]), confidence,
    )  # fmt: skip


def study(fits: Sequence[Fit], *, at: float | None = None) -> dict[str, Any]:
    """Laws, their bands, and for two of them where they cross: all JSON can say.

    `at`: where on the axis the laws are asked; a thousand times as far as the runs, without it.
    Raises InputError where two files do not have the same axis.
    """
    if len({fit.axis for fit in fits}) > 1:
        axes = ", ".join(f"{fit.name} by {fit.axis}" for fit in fits)
        raise InputError(f"laws over different quantities cannot be compared: {axes}")
    low = min(float(fit.x.min()) for fit in fits)
    reach = max(float(fit.x.max()) for fit in fits)
    far = reach * FURTHER if at is None else at
    grid = np.geomspace(low, max(far, reach), POINTS)
    figures: dict[str, Any] = {"axis": fits[0].axis, "reach": reach, "at": far, "laws": []}
    for fit in fits:
        bands = [fit.band(float(x)) for x in grid]
        loss, lower, upper = fit.band(far)
        figures["laws"].append(
            {
                "name": fit.name,
                "form": fit.form,
                "num_runs": len(set(fit.runs.curves)) or len(fit.runs),
                "num_points": len(fit.runs),
                "coefficients": fit.coefficients,
                "intervals": fit.intervals,
                "confidence": fit.confidence,
                "mean_error": fit.mean_error,
                "points": {"x": fit.x.tolist(), "loss": fit.runs.loss.tolist()},
                "band": {
                    "x": grid.tolist(),
                    "loss": [one[0] for one in bands],
                    "low": [one[1] for one in bands],
                    "high": [one[2] for one in bands],
                },
                "at": {"loss": loss, "low": lower, "high": upper},
                **({} if fit.axis != "flops" else {"growth": growth(fit)}),
            }
        )
    if len(fits) == 2:
        figures["comparison"] = compare(fits[0], fits[1], grid, far)
    return figures


def compare(one: Fit, other: Fit, grid: Floats, far: float) -> dict[str, Any]:
    """Where the second law comes below the first, or the first below the second, and how surely.

    ``better_at``: the share of resampled pairs in which the second has the lower loss at `far`.
    """
    crossing = crossing_of(one.best, other.best, grid)
    pairs = list(zip(one.drawn, other.drawn, strict=True))
    drawn = [crossing_of(a, b, grid) for a, b in pairs]
    found = [value for value in drawn if value is not None]
    interval = None
    if len(found) > len(drawn) / 2:
        outside = (1 - one.confidence) / 2
        interval = [float(value) for value in np.quantile(found, [outside, 1 - outside])]
    return {
        "first": one.name,
        "second": other.name,
        "crossing": crossing,
        "interval": interval,
        "share_that_cross": len(found) / len(drawn),
        "second_better_at": float(np.mean([b(far) < a(far) for a, b in pairs])),
    }


def crossing_of(one: Best, other: Best, grid: Floats) -> float | None:
    """The last place on the grid where the sign of the difference changes, interpolated by its
    logarithm; None where one law is below the other all along."""
    gap = np.array([one(float(x)) - other(float(x)) for x in grid])
    turns = np.flatnonzero(np.sign(gap[1:]) * np.sign(gap[:-1]) < 0)
    if not len(turns):
        return None
    at = turns[-1]
    share = gap[at] / (gap[at] - gap[at + 1])
    log = np.log(grid)
    return float(np.exp(log[at] + share * (log[at + 1] - log[at])))


def growth(fit: Fit) -> dict[str, Any]:
    """The exponent a of N ~ C^a by envelope, by parabolas and by the law, where runs allow it."""
    found: dict[str, Any] = {}
    if fit.runs.curves:
        points = envelope(fit.runs)
        found["envelope"] = {"points": points, "exponent": slope(points)}
    minima = iso_flop_minima(fit.runs)
    if minima:
        found["iso_flops"] = {"points": minima, "exponent": slope(minima)}
    if fit.form in ("chinchilla", "rosenfeld"):
        alpha, beta = fit.coefficients["alpha"], fit.coefficients["beta"]
        found["law"] = {"exponent": beta / (alpha + beta)}
    return found


def envelope(runs: Runs) -> list[dict[str, float]]:
    """The training curve that is lowest at each budget, and how far it had come there.

    Hoffmann et al. 2022, section 3.1. Budgets are those of the runs' own points, as long as most
    curves have come so far; a curve's loss between its points is interpolated by log FLOPs.
    """
    which = np.array(runs.curves)
    names = np.unique(which)
    curves = []
    for name in names:
        rows = np.flatnonzero(which == name)
        rows = rows[np.argsort(runs.flops[rows])]
        curves.append((runs.parameters[rows[0]], np.log(runs.flops[rows]), runs.loss[rows]))
    start = max(float(flops[0]) for _, flops, _ in curves)
    end = min(float(flops[-1]) for _, flops, _ in curves)
    found = []
    for log in np.linspace(start, end, 13):
        losses = [float(np.interp(log, flops, loss)) for _, flops, loss in curves]
        best = int(np.argmin(losses))
        parameters = float(curves[best][0])
        flops = float(np.exp(log))
        found.append(
            {
                "flops": flops,
                "parameters": parameters,
                "tokens": flops / (6 * parameters),
                "loss": losses[best],
            }
        )
    return found


def iso_flop_minima(runs: Runs) -> list[dict[str, Any]]:
    """For each budget that runs of several sizes share: the minimum of a parabola of the loss over
    log N (Hoffmann et al. 2022, section 3.2). Budgets whose lowest run is at an end have none."""
    logs = np.log10(runs.flops)
    found, left = [], np.ones(len(runs), dtype=bool)
    while left.any():
        budget = logs[left].max()
        near = left & (np.abs(logs - budget) < SAME_BUDGET)
        left &= ~near
        log_n, loss = np.log10(runs.parameters[near]), runs.loss[near]
        if len(np.unique(log_n)) < FEWEST_SIZES:
            continue
        # The parabola is of the valley: sizes around the lowest run.
        order = np.argsort(log_n)
        lowest = int(np.argmin(loss[order]))
        around = order[max(0, lowest - 2) : lowest + 3]
        if len(around) < FEWEST_SIZES:
            continue
        a, b, c = np.polyfit(log_n[around], loss[around], 2)
        at = -b / (2 * a) if a > 0 else np.inf
        if not log_n.min() < at < log_n.max():
            continue
        flops = float(10 ** logs[near].mean())
        found.append(
            {
                "flops": flops,
                "parameters": float(10**at),
                "tokens": flops / (6 * float(10**at)),
                "loss": float(c - b * b / (4 * a)),
                "sizes": runs.parameters[near][order].tolist(),
                "losses": loss[order].tolist(),
            }
        )
    return found[::-1]


def slope(points: Sequence[dict[str, Any]]) -> float | None:
    """The exponent of the parameters over FLOPs; None for fewer than three budgets."""
    if len(points) < 3:
        return None
    flops = np.log([one["flops"] for one in points])
    return float(np.polyfit(flops, np.log([one["parameters"] for one in points]), 1)[0])
