"""Goodput: the highest load that keeps the objectives, and how surely.

The load is bracketed and the bracket narrowed, every load with the same few random streams (common
random numbers), so that a load differs from the next by nothing but its rate. The estimate is
where all runs *together* just keep the objectives: taking a goodput from each run and averaging
those is biased upwards at high percentiles, where a short run often misses the rare bad moment.
The spread of the runs' own goodputs is what the confidence interval is made of (Student's t on
their logarithms); it is never narrower than the bracket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log

import numpy as np
from scipy import stats

from scenarios.objectives import Objective
from scenarios.probe import (
    COOL_DOWN,
    RESIDENTS_PER_RUN,
    WARM_UP,
    Probe,
    Sample,
    log_stress,
    pooled,
)

# Serve run `seed` of so many requests at so many per second.
Trial = Callable[[float, int, int], Sample]

CLEAR_MISS = 3.0  # a first run this far off its limits needs no second one
FIRST_STEP = 1.5
LOWEST = 1e-4  # of the first load tried: below it, no load is low enough
MOST_DOUBLINGS = 6  # of a run's requests
BEYOND = 1.25  # how far past the loads tried a run's own goodput is looked for


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests per second, with the interval that holds the truth with the stated confidence.

    Zero where even the lowest load tried breaks an objective. `kept` is the highest load that was
    sustained, `broken` the lowest that was not, each None where there is none.
    """

    rate_per_s: float
    low_per_s: float
    high_per_s: float
    by_seed_per_s: tuple[float, ...]
    probes: tuple[Probe, ...]  # by ascending rate
    requests: int  # of the longest runs
    settled: bool  # whether runs could be long enough for what is in the system at once

    @property
    def kept(self) -> Probe | None:
        return max(
            (one for one in self.probes if one.sustained and one.rate_per_s <= self.high_per_s),
            key=lambda one: one.rate_per_s,
            default=None,
        )

    @property
    def broken(self) -> Probe | None:
        kept = self.kept
        floor = 0.0 if kept is None else kept.rate_per_s
        return min(
            (one for one in self.probes if not one.sustained and one.rate_per_s > floor),
            key=lambda one: one.rate_per_s,
            default=None,
        )


def find_goodput(
    trial: Trial,
    objectives: Sequence[Objective],
    *,
    start_per_s: float,
    seeds: int,
    requests: int,
    confidence: float,
    tolerance: float,
    most_requests: int | None = None,
) -> Goodput:
    """Search from `start_per_s` until the bracket is narrower than `tolerance` (relative).

    A run has `requests` requests, and more where many are in the system at once, up to
    `most_requests`.
    """
    search = _Search(trial, objectives, seeds=seeds, requests=requests, confidence=confidence)
    search.most_requests = min(requests << MOST_DOUBLINGS, most_requests or requests << MOST_DOUBLINGS)
    search.requests = min(requests, search.most_requests)
    bracket = search.bracket(start_per_s)
    if bracket is None:
        return search.nothing()
    return search.answer(*search.narrow(*bracket, log(1 + tolerance)))


class _Search:
    """The loads tried on one deployment, and the bracket around its goodput."""

    def __init__(
        self,
        trial: Trial,
        objectives: Sequence[Objective],
        *,
        seeds: int,
        requests: int,
        confidence: float,
    ) -> None:
        self.trial = trial
        self.objectives = objectives
        self.seeds = seeds
        self.confidence = confidence
        self.requests = self.most_requests = requests
        self.probes: list[Probe] = []
        self.settled = True

    def probe(self, rate_per_s: float) -> Probe:
        """Try one load, with runs long enough for what it keeps in the system."""
        while True:
            samples = []
            for seed in range(self.seeds):
                samples.append(self.trial(rate_per_s, seed, self.requests))
                if seed == 0 and samples[0].stress(self.objectives) > CLEAR_MISS:
                    break
            whole = len(samples) == self.seeds
            found = pooled(
                rate_per_s, samples, self.objectives, confidence=self.confidence, whole=whole
            )
            judged = (1 - WARM_UP - COOL_DOWN) * self.requests
            short = found.sustained and found.resident * RESIDENTS_PER_RUN > judged
            if not short or self.requests >= self.most_requests:
                self.settled &= not short
                self.probes.append(found)
                return found
            doublings = max(1, int(np.ceil(np.log2(found.resident * RESIDENTS_PER_RUN / judged))))
            self.requests = min(self.requests << doublings, self.most_requests)

    def bracket(self, start_per_s: float) -> tuple[Probe, Probe] | None:
        """A load that is sustained and a higher one that is not; None where none is sustained."""
        rate_per_s, step = start_per_s, FIRST_STEP
        kept = broken = None
        while kept is None or broken is None:
            found = self.probe(rate_per_s)
            if found.sustained:
                kept, rate_per_s = found, rate_per_s * step
            else:
                broken, rate_per_s = found, rate_per_s / step
            if (kept is None) or (broken is None):
                step *= FIRST_STEP if len(self.probes) > 1 else 1.0
            if kept is None and rate_per_s < LOWEST * start_per_s:
                return None
        return kept, broken

    def narrow(self, kept: Probe, broken: Probe, width: float) -> tuple[Probe, Probe]:
        """Shrink the bracket to `width` (in logarithms of the rate)."""
        halve = False
        while (span := log(broken.rate_per_s / kept.rate_per_s)) > width:
            position = 0.5 if halve else _crossing(kept, broken)
            # Aim just beyond the estimate, on the side that is farther away: a good estimate is
            # caught between two probes.
            if not halve:
                position += (-1 if position > 0.5 else 1) * width / (3 * span)
            found = self.probe(kept.rate_per_s * exp(span * min(max(position, 0.1), 0.9)))
            if found.sustained:
                kept = found
            else:
                broken = found
            halve = log(broken.rate_per_s / kept.rate_per_s) > 0.5 * span
        return kept, broken

    def answer(self, kept: Probe, broken: Probe) -> Goodput:
        span = log(broken.rate_per_s / kept.rate_per_s)
        own = [self._of_seed(seed) for seed in range(self.seeds)]
        rate_per_s = kept.rate_per_s * exp(span * _crossing(kept, broken))
        if broken.stress <= 1.0:
            # Queues grow though every limit is kept: what leaves an overfull engine is its rate.
            left = [sample.completed_per_s for sample in broken.samples]
            own = [min(mine, rate) for mine, rate in zip(own, left, strict=True)]
            rate_per_s = min(max(float(np.mean(left)), kept.rate_per_s), broken.rate_per_s)
        spread = float(np.std(np.log(own), ddof=1)) / self.seeds**0.5
        half = spread * float(stats.t.ppf(0.5 + self.confidence / 2, self.seeds - 1))
        return Goodput(
            rate_per_s=rate_per_s,
            low_per_s=min(rate_per_s * exp(-half), kept.rate_per_s),
            high_per_s=max(rate_per_s * exp(half), broken.rate_per_s),
            by_seed_per_s=tuple(own),
            probes=self._sorted(),
            requests=self.requests,
            settled=self.settled,
        )

    def nothing(self) -> Goodput:
        return Goodput(0.0, 0.0, 0.0, (), self._sorted(), self.requests, self.settled)

    def _sorted(self) -> tuple[Probe, ...]:
        return tuple(sorted(self.probes, key=lambda one: one.rate_per_s))

    def _of_seed(self, seed: int) -> float:
        """Where one run by itself would just keep the objectives, between the loads tried."""
        tried = [one for one in self._sorted() if one.whole]
        rates = np.log([one.rate_per_s for one in tried])
        stress = [log_stress(one.samples[seed].stress(self.objectives)) for one in tried]
        # Random numbers in common make it all but monotone; make it wholly so.
        rising = np.maximum.accumulate(stress)
        if rising[0] > 0:
            return exp(rates[0]) / BEYOND
        if rising[-1] <= 0:
            return exp(rates[-1]) * BEYOND
        above = int(np.argmax(rising > 0))
        low, high = max(rising[above - 1], -1.0), min(rising[above], 1.0)
        part = -low / (high - low)
        return exp(rates[above - 1] + part * (rates[above] - rates[above - 1]))


def _crossing(kept: Probe, broken: Probe) -> float:
    """Where between two loads the stress is 1, by the logarithms of both; from 0 to 1.

    The ends are taken no farther off than e: beyond, stress rises far more steeply.
    """
    low = max(log_stress(kept.stress), -1.0)
    high = log_stress(broken.stress) if broken.stress > 1 else inf
    high = min(max(high, 1e-3), 1.0)
    return float(-low / (high - low)) if high > low else 0.5
