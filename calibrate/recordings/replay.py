"""A real run's iterations once more, in the simulator.

Fed the durations of a real run, the simulator must come to the same batches: every admission,
chunk, preemption, block count and timestamp. No tolerance: equal or not. On the way a latency
model can be asked about every batch, which gives its error iteration by iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nextafter

import numpy as np

from sim.batch import Batch
from sim.engine.simulation import simulate
from sim.latency.protocol import LatencyModel
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload.workload import Workload

_NOT_SCHEDULE = ("extrapolated", "draft_s")


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it.

    differences: where the replay's schedule leaves the real one's, in words; empty when nowhere.
    predicted_s: [iterations] what the latency model says of each batch; None without a model.
    extrapolated: [iterations] whether it left its measured range to say so.
    gaps_s, gap_weights: inter-token latencies, which an engine that decides ahead does not note.
    """

    differences: list[str]
    predicted_s: np.ndarray | None
    extrapolated: np.ndarray
    gaps_s: np.ndarray
    gap_weights: np.ndarray


def replay(
    real: Records,
    workload: Workload,
    config: EngineConfig,
    *,
    scheduler: str,
    num_blocks: int,
    latency: LatencyModel | None = None,
) -> Replay:
    """Simulate `workload` under `scheduler` with the durations of `real`, a run of the same.

    No request of the real run may have failed half-way: the simulator knows no failures.
    """
    recorded = _Recorded(real.iterations["start_s"], real.iterations["duration_s"], latency)
    replayed = simulate(
        workload, config, recorded, scheduler=scheduler, num_blocks=num_blocks, leap=False
    )
    differences = [
        *_differences("iterations", real.iterations, replayed.iterations),
        *_differences("preemptions", real.preemptions, replayed.preemptions),
        *_differences("requests", real.requests, replayed.requests),
    ]
    predicted_s = None if latency is None else np.array(recorded.predicted_s)
    return Replay(
        differences,
        predicted_s,
        replayed.iterations["extrapolated"],
        replayed.gaps_s,
        replayed.gap_weights,
    )


class _Recorded:
    """Iterations take as long as they once took, one after the other."""

    measured = True
    label = "recorded durations"

    def __init__(
        self, start_s: np.ndarray, duration_s: np.ndarray, model: LatencyModel | None
    ) -> None:
        ends_s = start_s + duration_s
        self._durations_s = [
            _exact_difference(start, end)
            for start, end in zip(start_s.tolist(), ends_s.tolist(), strict=True)
        ]
        self._next = 0
        self._model = model
        self.uses_longest = model is not None and model.uses_longest
        self.predicted_s: list[float] = []

    def iteration_s(self, batch: Batch) -> float:
        if self._model is not None:
            self.predicted_s.append(self._model.iteration_s(batch))
        self._next += 1
        # A simulation that goes on for longer differs, which its records will show.
        return self._durations_s[min(self._next, len(self._durations_s)) - 1]

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        return [start_s + self.iteration_s(batch)]

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"recorded": iterations["duration_s"]}

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"fixed": iterations["duration_s"]}


def _differences(
    table: str, real: Mapping[str, np.ndarray], replayed: Mapping[str, np.ndarray]
) -> list[str]:
    rows = [len(next(iter(columns.values()))) for columns in (real, replayed)]
    if rows[0] != rows[1]:
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
