"""What a sweep's table says: means over seeds, the best setting, and how much each axis matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scenarios.sweep.table import SweepTable, better

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
    """Take the variance of a figure apart; None where it does not vary.

    What is independent is a setting, not a run: seeds of one setting share its place on every axis.
    """
    known = {
        setting: [value for value in values if value is not None]
        for setting, values in enumerate(table.by_setting(metric))
    }
    known = {setting: values for setting, values in known.items() if values}
    if len(known) < 2:
        return None
    settings = np.array(list(known), dtype=np.int64)
    runs = np.concatenate([np.array(values) for values in known.values()])
    counts = np.array([len(values) for values in known.values()])
    means = np.array([math.fsum(values) / len(values) for values in known.values()])
    total = float(((runs - runs.mean()) ** 2).sum())
    if total <= 1e-18 * float((runs**2).sum()):
        return None
    between = min(1.0, float((counts * (means - runs.mean()) ** 2).sum()) / total)
    drawn = table.sampling == "latin_hypercube"
    groups = [_groups(table, axis, settings, drawn) for axis in range(len(table.axes))]
    if drawn:
        shares = _drawn_shares(groups, means, counts)
    else:
        shares = np.array([_explained([one], means, counts) for one in groups])
    # Where settings failed or were drawn, axes are not quite independent: none counts twice.
    shares *= between / max(1.0, float(shares.sum()))
    effects = tuple(
        AxisEffect(axis, float(share), _elasticity(table, axis, settings, means))
        for axis, share in enumerate(shares)
    )
    rest = between - float(shares.sum())
    return Sensitivity(metric, effects, max(0.0, rest), 1.0 - between)


def _groups(table: SweepTable, axis: int, settings: np.ndarray, drawn: bool) -> np.ndarray:
    """The number of the level, or of the bin of levels, of each setting."""
    levels = table.levels(axis)
    number = {level: at for at, level in enumerate(levels)}
    ranks = np.array([number[table.level(axis, setting)] for setting in settings.tolist()])
    spare_half = 1 + (len(settings) - 1) // (2 * len(table.axes))
    bins = max(2, min(MOST_BINS, round(math.sqrt(len(settings))), spare_half))
    if drawn and len(levels) > bins:
        order = np.argsort(np.argsort(ranks, kind="stable"), kind="stable")
        return order * bins // len(order)
    return np.unique(ranks, return_inverse=True)[1]


def _drawn_shares(groups: list[np.ndarray], means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Shares of the variance between drawn settings, less what chance alone would explain.

    What an axis explains is what all axes together explain beyond the others: a few drawn settings
    never balance one axis over another. With too few settings for that, each axis is alone.
    """
    together = len(means) > 1 + sum(int(one.max()) for one in groups)
    shares = []
    for axis, own in enumerate(groups):
        others = groups[:axis] + groups[axis + 1 :] if together else []
        all_of_them = _explained([own, *others], means, counts)
        share = all_of_them - _explained(others, means, counts)
        number = int(own.max())  # groups less one: as many degrees of freedom
        spare = len(means) - 1 - number - sum(int(one.max()) for one in others)
        share -= (1 - all_of_them) * number / spare if spare > 0 else share
        shares.append(max(0.0, share))
    return np.array(shares)


def _explained(groups: Sequence[np.ndarray], means: np.ndarray, counts: np.ndarray) -> float:
    """The share of the squared deviations of `means` that a sum of an effect of each explains."""
    weights = np.sqrt(counts)
    weighted = means * weights
    if len(groups) == 1:  # each level's own mean is the best that it can be told by
        (own,) = groups
        with_level = np.bincount(own, means * counts) / np.bincount(own, counts)
        fitted = with_level[own] * weights
    else:
        columns = [np.ones(len(means))]
        columns += [(one == at).astype(float) for one in groups for at in range(1, one.max() + 1)]
        design = np.stack(columns, axis=1) * weights[:, None]
        fitted = design @ np.linalg.lstsq(design, weighted)[0]
    centre = np.average(means, weights=counts)
    around = float((counts * (means - centre) ** 2).sum())
    return 1.0 - float(((weighted - fitted) ** 2).sum()) / around if around else 0.0


def _elasticity(
    table: SweepTable, axis: int, settings: np.ndarray, means: np.ndarray
) -> float | None:
    if not table.is_numeric(axis) or means.min() <= 0:
        return None
    levels = [table.level(axis, setting)[0] for setting in settings.tolist()]
    x = np.array(levels, dtype=np.float64)
    if x.min() <= 0 or x.min() == x.max():
        return None
    log_x, log_y = np.log(x), np.log(means)
    centred = log_x - log_x.mean()
    return float((centred @ log_y) / (centred @ centred))
