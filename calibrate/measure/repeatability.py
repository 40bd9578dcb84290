"""How far two calibrations of the same model on the same device lie apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibrate.measure.rig import Limits
from calibrate.measure.whole_iterations import Errors, latency_of, parts_us, random_lengths
from sim.latency.table_data import LatencyTable, Part
from sim.model.spec import ModelSpec

ITERATIONS = 200


def differences(
    first: LatencyTable, second: LatencyTable, model: ModelSpec, limits: Limits, *, seed: int = 7
) -> dict[str, Any]:
    """Second against first: points that both measured, by part, and the same random iterations.

    Median and p95 of relative differences, and their signed mean. Raises ValueError where one of
    them is of another model.
    """
    found: dict[str, Any] = {}
    for name, part in first.parts.items():
        if name in second.parts:
            errors = Errors.of(_differences(part, second.parts[name]))
            found[name] = None if errors is None else errors.as_dict()
    rng = np.random.default_rng(seed)
    block_size = first.block_size or 16
    drawn = random_lengths(rng, limits, block_size)
    latencies = [latency_of(table, model, limits) for table in (first, second)]
    wholes = []
    for _ in range(ITERATIONS):
        features = next(drawn).features()
        one, other = (sum(parts_us(latency, features).values()) for latency in latencies)
        wholes.append(other / one - 1.0)
    errors = Errors.of(wholes)
    assert errors is not None
    found["iterations"] = errors.as_dict()
    return found


def _differences(first: Part, second: Part) -> list[float]:
    times = []
    for part in (first, second):
        columns = [column.tolist() for column in part.coordinates.values()]
        times.append(dict(zip(zip(*columns, strict=True), part.time_s.tolist(), strict=True)))
    return [
        times[1][point] / time_s - 1.0
        for point, time_s in times[0].items()
        if point in times[1] and time_s > 0  # a host that the device hides takes none
    ]
