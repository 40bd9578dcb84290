"""A forecast's few constants from a recording: bounded least squares, the simulator in between.

What is known of each request, how long until its first and until its last token, depends on the
constants almost linearly, but in steps: a request that comes a moment later waits for another
iteration. So derivatives are taken over wide differences, and each kind of residual counts as much
as it scatters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from calibrate.recordings.measurement import Floats, Measurement

_ROUNDS = 6
_DONE = 0.05  # of a step: nothing moves any further
_LEAST_SCATTER = 0.002  # two runs of the same requests do not agree better than that


@dataclass(frozen=True, slots=True)
class Constant:
    """One unknown: where the search begins, over which difference its effect is taken, and what it
    may be. The name says its unit."""

    name: str
    start: float
    step: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Values by name, and one standard deviation each; how large residuals were left.

    residual: the mean of |relative error| of the fitted requests' E2E. forecasts: how many were
    simulated to find it.
    """

    values: Mapping[str, float]
    uncertainty: Mapping[str, float]
    residual: float
    forecasts: int

    def determined(self, name: str) -> bool:
        """Whether the recording says that this is not nothing."""
        return abs(self.values[name]) > 2 * self.uncertainty[name]


Forecaster = Callable[[Mapping[str, float]], Measurement]


def fit(
    forecast: Forecaster,
    measured: Measurement,
    constants: Sequence[Constant],
    rows: np.ndarray,
) -> Fit:
    """The constants with which `forecast` comes nearest to `measured`, by its requests `rows`.

    `forecast` gives the same requests in the same order. Raises ValueError where the rows have
    fewer than three times as many completed requests as there are constants.
    """
    rows = rows[measured.completed[rows] & (measured.output_tokens[rows] > 1)]
    if len(rows) < 3 * len(constants):
        raise ValueError(
            f"{len(rows)} completed requests are too few for {len(constants)} constants; "
            "record for longer, or raise --until"
        )
    names = [one.name for one in constants]
    steps = np.array([one.step for one in constants])
    lowest, highest = (
        np.array([getattr(one, end) for one in constants]) for end in ("lowest", "highest")
    )
    asked: dict[tuple[float, ...], np.ndarray] = {}

    def errors(at: np.ndarray) -> np.ndarray:
        """Relative errors [2, requests]: of the time after the first token, and of that before."""
        key = tuple(at.tolist())
        if key not in asked:
            found = forecast(dict(zip(names, key, strict=True)))
            pairs = []
            for metric in ("e2e_s", "ttft_s"):
                ours, theirs = getattr(found, metric)[rows], getattr(measured, metric)[rows]
                pairs.append((ours - theirs) / (theirs + 1e-9))
            asked[key] = np.array(pairs)
        return asked[key]

    def weights(left: np.ndarray) -> np.ndarray:
        centre = np.median(left, axis=1, keepdims=True)
        scatter = 1.4826 * np.median(np.abs(left - centre), axis=1, keepdims=True)
        one = 1.0 / np.maximum(scatter, _LEAST_SCATTER)
        reach = np.abs(left) * one
        return np.asarray(one * np.where(reach > 3.0, np.sqrt(3.0 / np.maximum(reach, 3.0)), 1.0))

    here = np.clip(np.array([one.start for one in constants]), lowest, highest)
    best: tuple[float, np.ndarray] | None = None
    spread = np.full(len(names), np.inf)
    for _ in range(_ROUNDS):
        left = errors(here)
        weight = weights(left)
        slopes = np.stack(
            [
                ((errors(here + step * unit) - left) / step * weight).ravel()
                for step, unit in zip(steps, np.eye(len(names)), strict=True)
            ],
            axis=1,
        )
        target = (left * weight).ravel()
        off = float(np.mean(np.abs(left[0])))
        if best is None or off < best[0]:
            best = off, here
            spread = _spread(slopes, target)
        bounds = (lowest - here - 1e-12, highest - here + 1e-12)
        moved = lsq_linear(slopes, -target, bounds=bounds).x
        moved = np.clip(moved, -8 * steps, 8 * steps)
        here = np.clip(here + moved, lowest, highest)
        if np.all(np.abs(moved) < _DONE * steps):
            break
    left = errors(here)
    assert best is not None
    off = float(np.mean(np.abs(left[0])))
    at = here if off < best[0] else best[1]
    return Fit(
        dict(zip(names, at.tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
        min(off, best[0]),
        len(asked),
    )


def fit_iterations(
    kernels_s: Floats, durations_s: Floats, effects: Mapping[str, Floats]
) -> tuple[dict[str, float], dict[str, float]]:
    """The same from an engine's own log of iterations: durations less kernels, by what they had.

    `effects`: for each constant what one unit of it adds to each iteration, in seconds. Gives
    values, none below zero, and their standard deviations.
    """
    columns = np.stack(list(effects.values()), axis=1)
    weight = 1.0 / durations_s
    for _ in range(3):  # pauses of the machine do not count
        solved = lsq_linear(
            columns * weight[:, None], (durations_s - kernels_s) * weight, (0, np.inf)
        )
        left = np.abs(kernels_s + columns @ solved.x - durations_s) / durations_s
        usual = max(float(np.median(left)), 1e-6)
        weight = np.where(left > 5 * usual, 5 * usual / left, 1.0) / durations_s
    target = (durations_s - kernels_s - columns @ solved.x) * weight
    spread = _spread(columns * weight[:, None], target)
    names = list(effects)
    return (
        dict(zip(names, solved.x.tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
    )


def _spread(slopes: np.ndarray, left: np.ndarray) -> np.ndarray:
    """One standard deviation of each constant, from what scatters about the fit."""
    free = max(len(left) - slopes.shape[1], 1)
    scatter = float((left - left.mean()) @ (left - left.mean())) / free
    covariance = np.linalg.pinv(slopes.T @ slopes) * scatter
    spread: np.ndarray = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return spread
