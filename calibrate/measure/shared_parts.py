"""Parts that another model's table already measured on this device, in the same shapes.

Llama-3.1-8B and Qwen3-8B have the same attention: one is measured, the other takes it over, scaled
by its number of layers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrate.device.environment import CalibrationError
from calibrate.measure.journal import Journal, Take
from calibrate.measure.parts import Bench
from sim.latency.table_data import EXTRA_TIMES, PART_COLUMNS

SAME = ("device", "torch", "triton", "cuda", "driver", "threads")  # of the environment


def take_over(
    journal: Journal,
    benches: Sequence[Bench],
    folder: Path,
    *,
    environment: Mapping[str, str],
    setting: Mapping[str, Any],
) -> list[str]:
    """Add points of fitting parts of the tables under ``folder``; says what came from where.

    `setting` are the entries of meta.yaml that have to be equal. Points beyond the part's limits
    are left. A part that has points of its own keeps them. Raises CalibrationError for a
    broken table.
    """
    import yaml

    told = []
    for path in sorted(folder.glob("*/meta.yaml")):
        try:
            meta = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            raise CalibrationError(f"{path}: not YAML; mend that table or take it away") from None
        if not isinstance(meta, dict) or meta.get("measured_by") != "orcast calibrate":
            continue
        theirs = meta.get("environment") or {}
        same = all(theirs.get(key) == environment.get(key) for key in SAME)
        if not same or any(meta.get(key) != value for key, value in setting.items()):
            continue
        for bench in benches:
            info = meta["parts"].get(bench.name)
            if info is None or journal.of(bench.name).takes:
                continue
            if not info.get("taken_over_from") and info["key"] == list(bench.key):
                count = _take(journal, bench, path.parent, float(info["scale"]))
                if count:
                    told.append(f"{bench.name}: {count} points of {path.parent.name}")
    return told


def _take(journal: Journal, bench: Bench, folder: Path, scale: float) -> int:
    columns = [column for column in PART_COLUMNS[bench.name] if column != "operation"]
    times = ("isolated_us", *EXTRA_TIMES.get(bench.name, ()))
    count = 0
    with (folder / f"{bench.name}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = tuple(int(row[column]) for column in columns)
            if not bench.fits(point):
                continue
            times_us = tuple(float(row[column]) / scale for column in times)
            spread = float(row["spread_us"]) / max(float(row["time_us"]), 1e-9)
            take = Take(times_us, spread, int(row["repeats"]), folder.name)
            journal.add(bench.name, point, take, spent_s=0.0)
            count += 1
    return count
