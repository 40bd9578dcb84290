"""A forecast's few constants from a recording: bounded least squares, the simulator in between.

What is known of each request, how long until its first and until its last token, depends on the
constants almost linearly, but in steps: a request that comes a moment later waits for another
iteration. So each residual is taken as the straight line through all simulations near by, first of
a wide and then of a narrow neighbourhood; times to the first token are averaged over requests of
like prompts; and each kind of residual counts as little as it scatters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from calibrate.recordings.measurement import Floats, Measurement

_REACHES = (4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0)  # in steps, round by round: from wide to near
_GROUPS = 12  # of requests whose prompts are about equally long
PAUSE = 20.0  # times the usual residual of an iteration
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
    fewer than three times as many completed requests as there are constants. Without any there is
    nothing to find.
    """
    rows = rows[measured.completed[rows] & (measured.output_tokens[rows] > 1)]
    if len(rows) < 3 * len(constants):
        raise ValueError(
            f"{len(rows)} completed requests are too few for {len(constants)} constants; "
            "record for longer, or raise --until"
        )
    if not constants:
        plain = forecast({})
        off = float(np.mean(np.abs(plain.e2e_s[rows] / measured.e2e_s[rows] - 1)))
        return Fit({}, {}, off, 1)
    names = [one.name for one in constants]
    steps = np.array([one.step for one in constants])
    lowest, highest = (
        np.array([getattr(one, end) for one in constants]) for end in ("lowest", "highest")
    )
    asked: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray]] = {}

    by_prompt, by_output = (
        np.array_split(rows[np.argsort(tokens[rows], kind="stable")], min(_GROUPS, len(rows)))
        for tokens in (measured.prompt_tokens, measured.output_tokens)
    )

    # Over what answers as long usually take: over each one's own time, means would come out low.
    usual_s = np.empty(len(measured.e2e_s))
    for group in by_output:
        usual_s[group] = measured.e2e_s[group].mean()

    def errors(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative errors: of each request's E2E, and of mean TTFTs of requests of like prompts."""
        key = tuple(at.tolist())
        if key not in asked:
            found = forecast(dict(zip(names, key, strict=True)))
            e2e = (found.e2e_s[rows] - measured.e2e_s[rows]) / usual_s[rows]
            ttft = np.array(
                [
                    found.ttft_s[group].mean() / measured.ttft_s[group].mean() - 1.0
                    for group in by_prompt
                ]
            )
            asked[key] = e2e, ttft
        return asked[key]

    here = np.clip(np.array([one.start for one in constants]), lowest, highest)
    seen: list[np.ndarray] = []
    centres: list[tuple[float, np.ndarray, np.ndarray]] = []
    for reach in _REACHES:
        around = [
            here + sign * reach * steps * unit for unit in np.eye(len(names)) for sign in (1, -1)
        ]
        seen += [np.clip(point, lowest, highest) for point in (here, *around)]
        near = [point for point in seen if (np.abs(point - here) <= 2.01 * reach * steps).all()]
        told = np.stack([np.concatenate(errors(point)) for point in near])
        design = np.stack([np.append((point - here) / steps, 1.0) for point in near])
        # Residuals as straight lines in the constants, through all that was simulated near by.
        lines: np.ndarray = np.linalg.pinv(design) @ told
        left = errors(here)
        weight = np.concatenate([_weights(of) for of in left])
        slopes, target = lines[:-1].T * weight[:, None], lines[-1] * weight
        centres.append((float(np.mean(np.abs(left[0]))), here, _spread(slopes, target) * steps))
        bounds = ((lowest - here) / steps - 1e-12, (highest - here) / steps + 1e-12)
        moved = np.clip(lsq_linear(slopes, -target, bounds=bounds).x, -4 * reach, 4 * reach)
        here = np.clip(here + moved * steps, lowest, highest)
    residual, at, spread = min(centres[-3:], key=lambda one: one[0])
    return Fit(
        dict(zip(names, at.tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
        residual,
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
    for _ in range(5):  # weighed by what is forecast: by what was measured, means would be too low
        solved = lsq_linear(
            columns * weight[:, None], (durations_s - kernels_s) * weight, (0, np.inf)
        )
        told_s = np.maximum(kernels_s + columns @ solved.x, 0.1 * durations_s)
        left = np.abs(told_s - durations_s) / told_s
        most = PAUSE * max(float(np.median(left)), 1e-6)  # beyond, it is no iteration's own time
        weight = most / np.maximum(left, most) / told_s
    target = (durations_s - kernels_s - columns @ solved.x) * weight
    spread = _spread(columns * weight[:, None], target)
    names = list(effects)
    return (
        dict(zip(names, solved.x.tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
    )


def _weights(left: np.ndarray) -> np.ndarray:
    """One over the scatter of these residuals; less for those that are far from all others."""
    apart = np.abs(left - np.median(left))
    scatter = max(1.4826 * float(np.median(apart)), _LEAST_SCATTER)
    weight: np.ndarray = np.minimum(1.0, np.sqrt(3.0 * scatter / np.maximum(apart, scatter)))
    return weight / scatter


def _spread(slopes: np.ndarray, left: np.ndarray) -> np.ndarray:
    """One standard deviation of each constant, from what scatters about the fit."""
    free = max(len(left) - slopes.shape[1], 1)
    scatter = float((left - left.mean()) @ (left - left.mean())) / free
    covariance = np.linalg.pinv(slopes.T @ slopes) * scatter
    spread: np.ndarray = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    spread[~slopes.any(axis=0)] = np.inf  # what has no effect is not known at all
    return spread
