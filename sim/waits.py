"""When requests of a run waited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Waits:
    """When requests began and ceased to wait, each in order of time.

    A request waits from its arrival until it is first in a batch, and while it is preempted. Taken
    from the requests, not the iterations, so that waiting between iterations counts too.
    """

    begin_s: Floats
    end_s: Floats

    @classmethod
    def of(cls, requests: Mapping[str, np.ndarray], preemptions: Mapping[str, np.ndarray]) -> Waits:
        accepted = ~np.asarray(requests["rejected"], dtype=bool)
        begin_s = np.asarray(requests["arrival_s"], dtype=np.float64)[accepted]
        end_s = np.asarray(requests["scheduled_s"], dtype=np.float64)[accepted]
        if preemptions:
            begin_s = np.append(begin_s, preemptions["preempted_s"])
            end_s = np.append(end_s, preemptions["resumed_s"])
        return cls(_in_order(begin_s), _in_order(end_s))

    def mean(self, edges_s: Floats) -> Floats:
        """Time-weighted mean number of waiting requests in each bin."""
        waited_s = _time_since(self.begin_s, edges_s) - _time_since(self.end_s, edges_s)
        return np.maximum(0.0, np.diff(waited_s) / np.diff(edges_s))

    def peak(self) -> int:
        """The most requests that waited at once, those that only passed through not counted."""
        ended = np.searchsorted(self.end_s, self.begin_s, side="right")
        return int(np.max(np.arange(1, self.begin_s.size + 1) - ended, initial=0))


def _in_order(times_s: Floats) -> Floats:
    times_s = times_s[np.isfinite(times_s)]
    return np.sort(times_s) if (np.diff(times_s) < 0).any() else times_s


def _time_since(events_s: Floats, edges_s: Floats) -> Floats:
    """The time passed at each edge since every event before it, summed over the events."""
    before = np.searchsorted(events_s, edges_s, side="right")
    passed: Floats = before * edges_s - np.concatenate([[0.0], np.cumsum(events_s)])[before]
    return passed
