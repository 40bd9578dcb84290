"""The same requests at any rate: what every candidate and every load is tried with.

Common random numbers: a replication is drawn once, for a mean rate of one request per second, and
only its clock is stretched. Two loads, or two deployments, then differ by nothing but themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import InputError
from scenarios.forecast.requests import draw_workload
from scenarios.schema.engine import Engine
from scenarios.schema.workload import LengthPair, Lengths
from scenarios.schema.workload import Workload as WorkloadSection
from sim.workload import Workload

FEWEST = 100  # requests; a percentile of fewer says nothing


@dataclass(frozen=True, slots=True)
class Replications:
    """Independent runs of a scenario's workload at a mean rate of one request per second."""

    workload: WorkloadSection
    engine: Engine
    origin: Path | None
    seeds: int

    def check(self) -> None:
        """InputError for a workload that has no rate to vary, or too few requests to split."""
        where = f"{self.origin or 'scenario'}: workload"
        arrivals = self.workload.arrivals
        if self.workload.max_concurrency is not None:
            raise InputError(
                f"{where}.max_concurrency: a closed loop has no arrival rate to plan for; "
                "set it to null"
            )
        if arrivals is not None and arrivals.process == "all_at_once":
            raise InputError(
                f"{where}.arrivals.process: all_at_once has no rate to plan for; "
                "use poisson, gamma or constant"
            )
        most = self.most_requests()
        if most is not None and most < FEWEST:
            raise InputError(
                f"{where}.trace: {self._trace_requests()} requests give {self.seeds} "
                f"runs fewer than {FEWEST} requests each; use fewer plan.seeds or a longer trace"
            )

    def most_requests(self) -> int | None:
        """How many requests a run can have: a trace is cut into one piece for every seed."""
        return None if self.workload.trace is None else self._trace_requests() // self.seeds

    @property
    def _recorded(self) -> WorkloadSection:
        """The trace as it was recorded, whichever arrivals the scenario puts in their place."""
        return self.workload.model_copy(update={"arrivals": None, "time_scale": 1.0})

    def _trace_requests(self) -> int:
        return len(_drawn(self._recorded, self.engine, self.origin))

    def _fresh_arrivals(self, seed: int, count: int) -> NDArray[np.float64]:
        """Times in s of `count` arrivals of the scenario's process, one per second in the mean."""
        process = self.workload.arrivals
        assert process is not None
        one = Lengths(distribution="fixed", tokens=1)
        drawn = WorkloadSection(
            arrivals=process.model_copy(update={"request_rate": 1.0}),
            lengths=LengthPair(prompt=one, output=one),
            num_requests=count,
            seed=self.workload.seed + seed,
        )
        return _drawn(drawn, self.engine, self.origin).arrival_s

    def at_unit_rate(self, seed: int, num_requests: int) -> Workload:
        """Run `seed` (counted from 0): `num_requests` requests, one per second in the mean.

        Another number of requests begins with the same ones.
        """
        given = self.workload
        if given.trace is None:
            assert given.arrivals and given.arrivals.request_rate
            update = {"seed": given.seed + seed, "num_requests": num_requests, "time_scale": 1.0}
            drawn = _drawn(given.model_copy(update=update), self.engine, self.origin)
            return drawn.scaled(given.arrivals.request_rate)
        whole = _drawn(self._recorded, self.engine, self.origin)
        each = len(whole) // self.seeds
        part = whole.slice(seed * each, seed * each + min(num_requests, each))
        if given.arrivals is not None:
            return replace(part, arrival_s=self._fresh_arrivals(seed, len(part)))
        span_s = float(part.arrival_s[-1])
        if span_s <= 0:
            raise InputError(
                f"{self.origin or 'scenario'}: workload.trace: all requests of a part arrive at "
                "the same time; give workload.arrivals"
            )
        return part.scaled((len(part) - 1) / span_s)

    def mean_tokens(self) -> tuple[float, float]:
        """Prompt and output tokens of the mean request, over all runs of a thousand requests."""
        parts = [self.at_unit_rate(seed, 1000) for seed in range(self.seeds)]
        prompts = np.concatenate([part.prompt_tokens for part in parts])
        outputs = np.concatenate([part.output_tokens for part in parts])
        return float(prompts.mean()), float(outputs.mean())


@lru_cache(maxsize=64)
def _cached(workload_json: str, engine_json: str, origin: Path | None) -> Workload:
    workload = WorkloadSection.model_validate_json(workload_json)
    engine = Engine.model_validate_json(engine_json)
    try:
        return draw_workload(workload, engine, beside=None if origin is None else origin.parent)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{origin or 'scenario'}: workload: {error}") from None


def _drawn(workload: WorkloadSection, engine: Engine, origin: Path | None) -> Workload:
    """Drawn once in this process; of the engine only its prefix caching matters."""
    plain = Engine(enable_prefix_caching=engine.enable_prefix_caching)
    return _cached(workload.model_dump_json(), plain.model_dump_json(), origin)
