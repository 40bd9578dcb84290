"""Whole iterations of the real engine against the sum of their parts.

The engine serves random requests (`calibrate/measure/service.py`). Half of the runs tell what parts
cost in company: an operation that was measured alone, over and over, finds its inputs and the
processor's caches in another state than one among others. A factor a part, close to one, and what
every iteration takes besides, are fitted to them. The other half is held out: it has no influence
on the table, and its error is the table's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.measure.batches import Lengths
from calibrate.measure.rig import Limits
from calibrate.measure.service import Iteration
from sim.batch import Batch
from sim.latency.protocol import HostOverhead
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.model.hardware import Interconnect
from sim.model.spec import ModelSpec

# Priors: how far from one a part's factor may be, and what an iteration may take besides in shares
# of a typical one. Then how noisy a whole iteration is.
FACTOR_DEVIATION = 0.05
BESIDES_DEVIATION = 0.2
NOISE_DEVIATION = 0.03
AS_MEASURED = ("host", "launch")  # parts without a factor


@dataclass(frozen=True, slots=True)
class Whole:
    """One whole iteration: what it computed, how long it took, what its parts say (µs)."""

    iteration: Iteration
    parts_us: Mapping[str, float]

    @property
    def measured_us(self) -> float:
        return self.iteration.time_us

    @property
    def predicted_us(self) -> float:
        return sum(self.parts_us.values())

    @property
    def error(self) -> float:
        """Predicted against measured, signed and relative."""
        return self.predicted_us / self.measured_us - 1.0


@dataclass(frozen=True, slots=True)
class Company:
    """What parts cost among others: a factor each, and µs that every iteration takes besides."""

    factors: Mapping[str, float]
    besides_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Errors:
    """Of relative errors: median and 95th percentile of their size, and their signed mean."""

    median: float
    p95: float
    bias: float
    count: int

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors | None:
        if not errors:
            return None
        sizes = np.abs(errors)
        return cls(
            float(np.median(sizes)),
            float(np.percentile(sizes, 95)),
            float(np.mean(errors)),
            len(sizes),
        )

    def as_dict(self) -> dict[str, float]:
        """Rounded, for meta.yaml."""
        return {
            "median": round(self.median, 5),
            "p95": round(self.p95, 5),
            "bias": round(self.bias, 5),
            "count": self.count,
        }


def latency_of(table: LatencyTable, model: ModelSpec, limits: Limits) -> TableLatency:
    """The simulator's own latency model on a table, of one GPU and without a host."""
    return TableLatency(
        table,
        model,
        interconnect=Interconnect(1.0, 0.0, 1.0, 0.0),
        host=HostOverhead(0.0, 0.0, "left out"),
        max_num_batched_tokens=16,  # look-ups beyond are computed, which is exact
        max_num_seqs=min(16, limits.max_seqs),
        skew=table.corrects_skew,
    )


def parts_us(latency: TableLatency, batch: Batch) -> dict[str, float]:
    """A batch's parts in µs."""
    return {name: time_s * 1e6 for name, time_s in latency.batch_parts_s(batch).items()}


def random_lengths(rng: np.random.Generator, limits: Limits, block_size: int) -> Iterator[Lengths]:
    """Batches of an engine's life: half decodes alone, a quarter prompts alone, a quarter both."""
    kinds = ("decodes", "both", "decodes", "prompts")
    turn = 0
    while True:
        kind = kinds[turn % len(kinds)]
        lengths = _one(rng, limits, kind)
        if lengths.num_seqs and limits.holds(lengths, block_size):
            turn += 1
            yield lengths


def _one(rng: np.random.Generator, limits: Limits, kind: str) -> Lengths:
    decodes: tuple[int, ...] = ()
    prefills: list[tuple[int, int]] = []
    if kind != "prompts":
        count = _log_uniform(rng, 1, limits.max_seqs)
        longest = max(2, min(limits.max_context, limits.cache_tokens // count))
        typical = _log_uniform(rng, min(32, longest), longest)
        drawn = rng.lognormal(np.log(typical), 0.5, count)
        decodes = tuple(int(x) for x in np.clip(drawn, 1, longest))
    if kind != "decodes":
        room = limits.max_tokens - len(decodes)
        most = min(room, limits.max_context)
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            if most < 16 or len(decodes) + len(prefills) >= limits.max_seqs:
                break
            new = _log_uniform(rng, 16, most)
            cached = 0
            if rng.random() < 0.4 and limits.max_context - new > 64:
                cached = _log_uniform(rng, 64, limits.max_context - new)
            prefills.append((new, cached))
            room -= new
            most = min(room, limits.max_context)
    return Lengths(decodes, tuple(prefills))


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))


def fitted(wholes: Sequence[Whole]) -> Company:
    """What company costs, so that sums of parts meet whole iterations, by least squares.

    Relative errors are minimised; factors are held near one as strongly as `FACTOR_DEVIATION`
    against `NOISE_DEVIATION` says, so that a part which hardly matters keeps the time it was
    measured with.
    """
    names = sorted({name for whole in wholes for name in whole.parts_us} - {*AS_MEASURED})
    if not wholes:
        return Company({})
    measured_us = np.array([whole.measured_us for whole in wholes])
    typical_us = float(np.median(measured_us))
    shares = np.array(
        [[whole.parts_us.get(name, 0.0) for name in names] + [typical_us] for whole in wholes]
    )
    shares /= measured_us[:, None]
    # What the factors' distances from one, and the rest, have to make up for.
    wanted = 1.0 - np.array([whole.predicted_us for whole in wholes]) / measured_us
    priors = np.diag([1 / FACTOR_DEVIATION] * len(names) + [1 / BESIDES_DEVIATION])
    weights = np.ones(len(wholes))
    found = np.zeros(len(names) + 1)
    for _ in range(10):  # reweighted: one disturbed iteration must not bend a table
        matrix = np.vstack([shares * weights[:, None] / NOISE_DEVIATION, priors])
        target = np.concatenate([wanted * weights / NOISE_DEVIATION, np.zeros(len(names) + 1)])
        found = np.linalg.lstsq(matrix, target, rcond=None)[0]
        left = np.abs(wanted - shares @ found)
        weights = np.sqrt(NOISE_DEVIATION / np.maximum(left, NOISE_DEVIATION))
    factors = {
        name: float(np.clip(1.0 + offset, 0.5, 2.0))
        for name, offset in zip(names, found, strict=False)
    }
    return Company(factors, float(found[-1]) * typical_us)
