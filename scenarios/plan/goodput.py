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
from dataclasses import dataclass, replace
from math import ceil, exp, log

import numpy as np
from scipy.special import stdtrit

from scenarios.plan.objectives import Objective
from scenarios.plan.probe import (
    COOL_DOWN,
    QUEUED_PER_ROW,
    WARM_UP,
    Probe,
    Sample,
    Saturation,
    pooled,
)

# Serve run `seed` of so many requests at so many per second, so many of them there at the start.
Trial = Callable[[float, int, int, int], Sample]
# Serve run `seed` of so many requests that all wait.
Fill = Callable[[int, int], Saturation]

RESIDENTS_PER_RUN = 8  # judged requests of a run for each in the system at once
WAITS_PER_RUN = 5  # times the longest TTFT allowed that a run's judged part lasts …
MOST_PATIENT = 5  # … at most in as many times the requests asked for
CLEAR_MISS = 3.0  # a first run this far off its limits needs no second one
FIRST_TRIED = 0.85  # of the saturated rate
FIRST_STEP = 1.3
LOWEST = 1e-4  # of the saturated rate: below it, no load is low enough
MOST_LONGER = 64  # times the requests of a run that is as long as was asked for
MOST_EASE = 4.0  # limit over latency, above which a load is only known to be far too low
MOST_LOAD = 0.99  # of a full engine; nearer, runs as short as these cannot tell
OWN_STEP, OWN_TRIES = 1.1, 4  # how far a run's own goodput is looked for beyond the loads tried


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests per second, with the interval that holds the truth with the stated confidence.

    Zero where even the lowest load tried breaks an objective. `kept` is the highest load that was
    sustained; `broken` the lowest that broke an objective, None where the engine is full before.
    """

    rate_per_s: float
    low_per_s: float
    high_per_s: float
    by_seed_per_s: tuple[float, ...]
    kept: Probe | None
    broken: Probe | None
    probes: tuple[Probe, ...]  # by ascending rate
    saturated: tuple[Saturation, ...]  # by seed
    requests: int  # of the longest runs
    settled: bool  # whether runs could be long enough for what is in the system at once

    @property
    def saturated_per_s(self) -> float:
        """Requests per second that leave an engine whose queue is never empty."""
        return float(np.mean([one.rate_per_s for one in self.saturated]))


def find_goodput(
    trial: Trial,
    fill: Fill,
    objectives: Sequence[Objective],
    *,
    seeds: int,
    requests: int,
    confidence: float,
    tolerance: float,
    most_requests: int | None = None,
    enough: Callable[[float], bool] | None = None,
) -> Goodput | TooLow:
    """Narrow the bracket around the goodput to `tolerance` (relative), at best.

    A run has `requests` requests, and more where many are in the system at once, up to
    `most_requests`. `enough` says of requests per second whether they would do; the search ends as
    soon as the lower end of the interval is known to come out at no more than would not.
    """
    most = min(requests * MOST_LONGER, most_requests or requests * MOST_LONGER)
    search = _Search(trial, fill, objectives, seeds=seeds, requests=requests, most=most)
    search.enough = enough
    try:
        search.check_enough(search.full_per_s)
        bracket = search.bracket()
        if bracket is None:
            return search.nothing()
        return search.answer(*search.narrow(*bracket, log(1 + tolerance)), confidence)
    except _NotEnough as known:
        return TooLow(known.most_per_s, search.nothing())


@dataclass(frozen=True, slots=True)
class TooLow:
    """A search that was given up: the lower end of its interval is at most `most_per_s`."""

    most_per_s: float
    known: Goodput


class _NotEnough(Exception):
    def __init__(self, most_per_s: float) -> None:
        super().__init__()
        self.most_per_s = most_per_s


class _Search:
    """The loads tried on one deployment, and the bracket around its goodput."""

    def __init__(
        self,
        trial: Trial,
        fill: Fill,
        objectives: Sequence[Objective],
        *,
        seeds: int,
        requests: int,
        most: int,
    ) -> None:
        self.trial = trial
        self.objectives = objectives
        self.seeds = seeds
        self.asked, self.requests, self.most = requests, min(requests, most), most
        self.probes: list[Probe] = []
        self.settled = True
        self.enough: Callable[[float], bool] | None = None
        self.saturated = [self._saturated(fill, seed) for seed in range(seeds)]
        self.full_per_s = float(np.mean([one.rate_per_s for one in self.saturated]))

    def _saturated(self, fill: Fill, seed: int) -> Saturation:
        requests = self.requests
        while True:
            found = fill(seed, requests)
            if found.full or requests >= self.most:
                self.settled &= found.full
                return found
            requests = min(max(requests + 1, QUEUED_PER_ROW * found.peak), self.most)

    def probe(self, rate_per_s: float) -> Probe:
        """Try one load, with runs long enough for what it keeps in the system."""
        while True:
            samples: list[Sample] = []
            ahead = self._resident_below(rate_per_s)
            for seed in range(self.seeds):
                samples.append(self.trial(rate_per_s, seed, self.requests, ahead))
                if seed == 0 and samples[0].stress(self.objectives) > CLEAR_MISS:
                    break
            whole = len(samples) == self.seeds
            found = pooled(rate_per_s, samples, self.objectives, whole=whole)
            judged = (1 - WARM_UP - COOL_DOWN) * self.requests
            needed = max(found.resident * RESIDENTS_PER_RUN, self._patience(rate_per_s))
            short = found.kept and needed > judged
            if not short or self.requests >= self.most:
                self.settled &= not short
                self.probes.append(found)
                if not found.kept:
                    self.check_enough(rate_per_s)
                return found
            # A little more than that: the next higher load keeps more in the system.
            self.requests = min(ceil(1.2 * self.requests * needed / judged), self.most)

    def check_enough(self, most_per_s: float) -> None:
        """What is promised stays below any load that broke, and below a full engine's rate."""
        if self.enough is not None and not self.enough(most_per_s):
            raise _NotEnough(most_per_s)

    def _patience(self, rate_per_s: float) -> float:
        """Requests in which a wait as long as is allowed can come about, a few times over."""
        waits_s = [one.limit_s for one in self.objectives if one.metric == "ttft"]
        needed = WAITS_PER_RUN * rate_per_s * max(waits_s, default=0.0)
        return min(needed, MOST_PATIENT * self.asked)

    def _resident_below(self, rate_per_s: float) -> int:
        """What the next lower load is known to keep in the system: no less will be."""
        lower = [one for one in self.probes if one.rate_per_s < rate_per_s and one.kept]
        return round(max((one.resident for one in lower), default=0.0))

    def bracket(self) -> tuple[Probe, Probe | None] | None:
        """A load that is sustained and a higher one that is not; None where none is sustained.

        The higher one is None if it is the rate at which the engine is full.
        """
        rate_per_s, step, broken = FIRST_TRIED * self.full_per_s, FIRST_STEP, None
        while rate_per_s > LOWEST * self.full_per_s:
            found = self.probe(rate_per_s)
            if found.kept:
                return found, broken
            broken, rate_per_s = found, rate_per_s / step
            step *= FIRST_STEP
        return None

    def narrow(self, kept: Probe, broken: Probe | None, width: float) -> tuple[Probe, Probe | None]:
        """Shrink the bracket to `width` (in logarithms of the rate)."""
        halve = False
        while (span := self._span(kept, broken)) > width:
            if broken is None:
                position = 1 - width / (2 * span)  # most likely the engine is full before
            else:
                position = 0.5 if halve else _crossing(kept, broken)
                # Aim just beyond the estimate, on the side that is farther away: a good estimate
                # is caught between two probes.
                if not halve:
                    position += (-1 if position > 0.5 else 1) * width / (3 * span)
                position = min(max(position, 0.1), 0.9)
            found = self.probe(kept.rate_per_s * exp(span * position))
            if found.kept:
                kept = found
            else:
                broken = found
            halve = self._span(kept, broken) > 0.5 * span
        return kept, broken

    def _span(self, kept: Probe, broken: Probe | None) -> float:
        return log((self.full_per_s if broken is None else broken.rate_per_s) / kept.rate_per_s)

    def answer(self, kept: Probe, broken: Probe | None, confidence: float) -> Goodput:
        span = self._span(kept, broken)
        part = 1.0 if broken is None else _crossing(kept, broken)
        rate_per_s = kept.rate_per_s * exp(span * part)
        own = self._by_seed()
        bias = 0.0
        if broken is not None:
            # What is left of a bias that shrinks as runs are put together: from one run to all.
            bias = (float(np.mean(own)) - rate_per_s) / (self.seeds - 1)
        rate_per_s = min(rate_per_s - bias, self.full_per_s)
        low_per_s, high_per_s = self._interval(rate_per_s, own, bias, confidence)
        top_per_s = self.full_per_s if broken is None else broken.rate_per_s
        return replace(
            self.nothing(),
            rate_per_s=rate_per_s,
            low_per_s=min(low_per_s, kept.rate_per_s),
            high_per_s=max(high_per_s, min(top_per_s, self.full_per_s)),
            by_seed_per_s=tuple(own),
            kept=kept,
            broken=broken,
        )

    def _interval(
        self, rate_per_s: float, own: list[float], bias: float, confidence: float
    ) -> tuple[float, float]:
        """Student's interval for the goodput, on the scale of log(load / (1 - load)).

        Towards a full engine goodputs crowd together; on that scale their spread is even.
        """
        loads = np.clip(np.array([rate_per_s, *own]) / self.full_per_s, 1e-6, MOST_LOAD)
        scaled = np.log(loads / (1 - loads))
        slope = 1 / (loads[0] * (1 - loads[0]))
        error = np.hypot(
            np.std(scaled[1:], ddof=1) / self.seeds**0.5, slope * bias / self.full_per_s
        )
        half = error * float(stdtrit(self.seeds - 1, 0.5 + confidence / 2))
        low, high = (1 / (1 + np.exp(-(scaled[0] + side * half))) for side in (-1, 1))
        return float(low) * self.full_per_s, float(high) * self.full_per_s

    def nothing(self) -> Goodput:
        """What is known where no load keeps the objectives."""
        probes = tuple(sorted(self.probes, key=lambda one: one.rate_per_s))
        return Goodput(
            rate_per_s=0.0,
            low_per_s=0.0,
            high_per_s=0.0,
            by_seed_per_s=(),
            kept=None,
            broken=probes[0] if probes else None,
            probes=probes,
            saturated=tuple(self.saturated),
            requests=self.requests,
            settled=self.settled,
        )

    def _by_seed(self) -> list[float]:
        """Where each run by itself would just keep the objectives."""
        return [self._of_seed(seed, full) for seed, full in enumerate(self.saturated)]

    def _of_seed(self, seed: int, full: Saturation) -> float:
        tried = {
            one.rate_per_s: one.samples[seed].stress(self.objectives)
            for one in self.probes
            if seed < len(one.samples)
        }
        # The loads tried lie about the goodput of all runs: go on until this one breaks, or keeps.
        for step in (OWN_STEP, 1 / OWN_STEP):
            for _ in range(OWN_TRIES):
                end_per_s = max(tried) if step > 1 else min(tried)
                if (tried[end_per_s] > 1) == (step > 1) or end_per_s >= MOST_LOAD * full.rate_per_s:
                    break
                next_per_s = min(end_per_s * step, full.rate_per_s)
                ahead = self._resident_below(next_per_s)
                sample = self.trial(next_per_s, seed, self.requests, ahead)
                tried[next_per_s] = sample.stress(self.objectives)
        rates = sorted(tried)
        # Random numbers in common make it all but monotone; make it wholly so.
        ease = np.minimum.accumulate([_ease(tried[rate]) for rate in rates])
        above = int(np.argmax(ease < 1)) if (ease < 1).any() else len(rates)
        if above == 0:
            return rates[0]
        if above == len(rates):
            return min(rates[-1], full.rate_per_s)
        part = (ease[above - 1] - 1) / (ease[above - 1] - ease[above])
        own_per_s = rates[above - 1] + part * (rates[above] - rates[above - 1])
        return min(float(own_per_s), full.rate_per_s)


def _ease(stress: float) -> float:
    """One over the stress, which falls all but linearly with the load: waits and shares of a
    server grow as 1 / (1 - load). Far below the limit it is capped, where nothing is to be told."""
    return 1.0 / max(stress, 1 / MOST_EASE)


def _crossing(kept: Probe, broken: Probe) -> float:
    """Where between two loads the stress is 1, as a part of the logarithm of their rates."""
    high, low = _ease(kept.stress), _ease(broken.stress)
    rate = kept.rate_per_s + (high - 1) / (high - low) * (broken.rate_per_s - kept.rate_per_s)
    return log(rate / kept.rate_per_s) / log(broken.rate_per_s / kept.rate_per_s)
