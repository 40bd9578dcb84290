"""What a sweep's table says: means over seeds, the best setting, and how much each axis matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scenarios.sweep_table import SweepTable, better

MOST_BINS = 10  # of a drawn axis


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds; `half` is the half-width of its confidence interval, None for one seed."""

    mean: float
    half: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class AxisEffect:
    """How much one axis moves a figure.

    share: of the figure's variance over all runs that the axis explains by itself (its main
        effect, a first-order Sobol index).
    elasticity: per cent by which the figure changes for one per cent more on the axis, over the
        whole range (the slope in logarithms); None where one of the two is not above 0.
    """

    axis: int
    share: float
    elasticity: float | None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The variance of a figure, taken apart. All shares are of the variance over all runs.

    interaction: what axes do only together (for drawn axes: whatever no axis explains by itself).
    noise: what differs between seeds of the same setting.
    """

    metric: str
    effects: tuple[AxisEffect, ...]
    interaction: float
    noise: float


def interval(values: Sequence[float], confidence: float) -> Interval:
    """Mean and Student's confidence interval of independent values, at least one."""
    from scipy.special import stdtrit  # half of what scipy.stats takes to import

    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(mean, None, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    factor = float(stdtrit(count - 1, 0.5 + confidence / 2))
    return Interval(mean, factor * deviation / math.sqrt(count), count)


def intervals(table: SweepTable, metric: str) -> list[Interval | None]:
    """Of each setting; None where no run of it has the figure."""
    found = []
    for values in table.by_setting(metric):
        known = [value for value in values if value is not None]
        found.append(interval(known, table.confidence) if known else None)
    return found


def best_setting(table: SweepTable, metric: str) -> int | None:
    """The setting with the best mean; None where no direction is better, or there is no figure."""
    sign = better(metric)
    means = {
        setting: sign * found.mean
        for setting, found in enumerate(intervals(table, metric))
        if found is not None
    }
    return max(means, key=means.__getitem__) if sign and means else None


def as_good(table: SweepTable, metric: str, best: int) -> list[int]:
    """Settings that cannot be told from `best`, itself included.

    Runs of one seed serve the same requests, so differences are taken seed by seed: a setting is
    as good when the confidence interval of the mean difference holds 0.
    """
    values = table.by_setting(metric)
    found = []
    for setting, theirs in enumerate(values):
        pairs = zip(theirs, values[best], strict=True) if len(theirs) == len(values[best]) else ()
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        if gaps:
            gap = interval(gaps, table.confidence)
            if abs(gap.mean) <= (gap.half or 0.0) + 1e-9 * abs(values[best][0] or 0.0):
                found.append(setting)
    return found


def sensitivity(table: SweepTable, metric: str) -> Sensitivity | None:
    """Take the variance of a figure apart; None where it does not vary."""
    runs = [
        (setting, value)
        for setting, values in enumerate(table.by_setting(metric))
        for value in values
        if value is not None
    ]
    settings = np.array([setting for setting, _ in runs], dtype=np.int64)
    values = np.array([value for _, value in runs])
    if len(np.unique(settings)) < 2:
        return None
    total = float(((values - values.mean()) ** 2).sum())
    if total <= 1e-18 * float((values**2).sum()):
        return None
    drawn = table.sampling == "latin_hypercube"
    noise = 1.0 - _explained(settings, values, total)
    effects = []
    for axis in range(len(table.axes)):
        groups = _groups(table, axis, settings, drawn)
        share = _explained(groups, values, total)
        if drawn:  # chance alone explains something where there are as many groups
            spare, number = len(values) - groups.max() - 1, groups.max()
            share -= (1 - share) * number / spare if spare > 0 else 0.0
        effects.append(
            AxisEffect(axis, max(0.0, share), _elasticity(table, axis, settings, values))
        )
    rest = 1.0 - noise - sum(effect.share for effect in effects)
    return Sensitivity(metric, tuple(effects), max(0.0, rest), max(0.0, noise))


def _groups(table: SweepTable, axis: int, settings: np.ndarray, drawn: bool) -> np.ndarray:
    """The number of the level, or of the bin of levels, of each run."""
    levels = table.levels(axis)
    number = {level: at for at, level in enumerate(levels)}
    by_setting = {setting: number[table.level(axis, setting)] for setting in set(settings.tolist())}
    ranks = np.array([by_setting[setting] for setting in settings.tolist()])
    bins = max(2, min(MOST_BINS, round(math.sqrt(len(by_setting)))))
    if drawn and len(levels) > bins:
        order = np.argsort(np.argsort(ranks, kind="stable"), kind="stable")
        return order * bins // len(order)
    return np.unique(ranks, return_inverse=True)[1]


def _explained(groups: np.ndarray, values: np.ndarray, total: float) -> float:
    """The share of the squared deviations that lies between groups."""
    _, at = np.unique(groups, return_inverse=True)
    counts = np.bincount(at)
    means = np.bincount(at, weights=values) / counts
    return float((counts * (means - values.mean()) ** 2).sum()) / total


def _elasticity(
    table: SweepTable, axis: int, settings: np.ndarray, values: np.ndarray
) -> float | None:
    if not table.is_numeric(axis) or values.min() <= 0:
        return None
    by_setting = {setting: table.level(axis, setting)[0] for setting in set(settings.tolist())}
    x = np.array([by_setting[setting] for setting in settings.tolist()], dtype=np.float64)
    if x.min() <= 0 or x.min() == x.max():
        return None
    log_x, log_y = np.log(x), np.log(values)
    centred = log_x - log_x.mean()
    return float((centred @ log_y) / (centred @ centred))
