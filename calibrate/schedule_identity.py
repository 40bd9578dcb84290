"""The check that simulator and engine are the same thing but for the durations.

Fed the iterations' durations of a real run, the simulator must come to the same batches: every
admission, chunk, preemption, block count and timestamp. No tolerance: equal or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nextafter

import numpy as np

from sim.batch import Batch
from sim.engine_config import EngineConfig
from sim.records import Columns, Records
from sim.simulation import simulate
from sim.workload.workload import Workload

_NOT_SCHEDULE = ("extrapolated",)


class ReplayedLatency:
    """Iterations take as long as they once took, one after the other."""

    measured = True
    uses_longest = False
    label = "replayed durations"

    def __init__(self, start_s: np.ndarray, duration_s: np.ndarray) -> None:
        ends_s = start_s + duration_s
        self._durations_s = [
            _exact_difference(start, end)
            for start, end in zip(start_s.tolist(), ends_s.tolist(), strict=True)
        ]
        self._next = 0

    def iteration_s(self, batch: Batch) -> float:
        self._next += 1
        # A simulation that goes on for longer differs, which its records will show.
        return self._durations_s[min(self._next, len(self._durations_s)) - 1]

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        return [start_s + self.iteration_s(batch)]

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"replayed": iterations["duration_s"]}


def schedule_differences(
    real: Records,
    workload: Workload,
    config: EngineConfig,
    *,
    scheduler: str,
    num_blocks: int,
) -> list[str]:
    """Where a real run and its replay in the simulator part; empty when nowhere.

    `real` is a run of `workload` under `scheduler` in which no request failed half-way.
    """
    latency = ReplayedLatency(real.iterations["start_s"], real.iterations["duration_s"])
    replayed = simulate(
        workload, config, latency, scheduler=scheduler, num_blocks=num_blocks, leap=False
    )
    return [
        *_differences("iterations", real.iterations, replayed.iterations),
        *_differences("preemptions", real.preemptions, replayed.preemptions),
        *_differences("requests", real.requests, replayed.requests),
    ]


def _differences(table: str, real: Columns, replayed: Columns) -> list[str]:
    lengths = {len(next(iter(columns.values()))) for columns in (real, replayed)}
    if len(lengths) > 1:
        rows = [len(next(iter(columns.values()))) for columns in (real, replayed)]
        return [f"{table}: {rows[0]} in the real run, {rows[1]} in its replay"]
    found = []
    for name, expected in replayed.items():
        if name in _NOT_SCHEDULE:
            continue
        given = real[name]
        same = given == expected
        if given.dtype.kind == "f":
            same |= np.isnan(given) & np.isnan(expected)
        if not same.all():
            row = int(np.argmin(same))
            found.append(
                f"{table}: {name} differs in {int((~same).sum())} rows, first in row {row}: "
                f"{given[row]} in the real run, {expected[row]} in its replay"
            )
    return found


def _exact_difference(start: float, end: float) -> float:
    """A float that, added to `start`, gives `end` to the last bit."""
    difference = end - start
    while start + difference < end:
        difference = nextafter(difference, inf)
    while start + difference > end:
        difference = nextafter(difference, -inf)
    return difference
