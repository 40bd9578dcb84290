"""A sweep in figures: JSON-ready, the same for `--json`, sweep.json and the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scenarios.sweep.statistics import (
    Interval,
    as_good,
    best_setting,
    intervals,
    sensitivity,
)
from scenarios.sweep.table import SweepTable


def sweep_summary(table: SweepTable, warnings: Iterable[str]) -> dict[str, Any]:
    """Counts, the best setting and the sensitivities of each metric, and every setting's means."""
    shown = {metric: intervals(table, metric) for metric in table.metrics}
    return {
        "name": table.name,
        "axes": [
            {"paths": list(paths), "levels": [list(level) for level in table.levels(axis)]}
            for axis, paths in enumerate(table.axes)
        ],
        "sampling": table.sampling,
        "settings": table.num_settings,
        "seeds": len(set(table.columns["seed"])),
        "runs": table.num_runs,
        "failed": len(table.errors),
        "confidence": table.confidence,
        "metrics": {metric: _metric(table, metric, shown[metric]) for metric in table.metrics},
        "by_setting": [
            {
                "values": setting_values(table, setting),
                **{metric: _interval(shown[metric][setting]) for metric in table.metrics},
            }
            for setting in range(table.num_settings)
        ],
        "warnings": list(warnings),
    }


def setting_values(table: SweepTable, setting: int) -> dict[str, Any]:
    """Path -> value of one setting."""
    return {
        path: value
        for axis, paths in enumerate(table.axes)
        for path, value in zip(paths, table.level(axis, setting), strict=True)
    }


def _metric(table: SweepTable, metric: str, means: list[Interval | None]) -> dict[str, Any]:
    best, parts = best_setting(table, metric), sensitivity(table, metric)
    found: dict[str, Any] = {"best": None, "sensitivity": None}
    if best is not None:
        equals = as_good(table, metric, best)
        found["best"] = {
            "values": setting_values(table, best),
            **(_interval(means[best]) or {}),
            "as_good": [setting_values(table, one) for one in equals if one != best],
        }
    if parts is not None:
        found["sensitivity"] = {
            "axes": {
                " + ".join(table.axes[effect.axis]): {
                    "variance_share": effect.share,
                    "elasticity": effect.elasticity,
                }
                for effect in parts.effects
            },
            "interaction": parts.interaction,
            "seeds": parts.noise,
        }
    return found


def _interval(found: Interval | None) -> dict[str, float | None] | None:
    return None if found is None else {"mean": found.mean, "half_width": found.half}
