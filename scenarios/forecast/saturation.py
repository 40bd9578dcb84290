"""Whether a run was asked for more than it can serve: then latencies grow with its length."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scenarios.quantity import count, percent
from sim.waits import Waits

LEAST_WAITING = 10  # requests; fewer are a burst, not a backlog
LEAST_SHARE = 0.02  # of all requests


def saturation_warning(
    requests: Mapping[str, np.ndarray],
    preemptions: Mapping[str, np.ndarray],
    *,
    closed_loop: bool = False,
) -> str | None:
    """A warning where the queue grew for as long as requests came; None otherwise.

    Judged over the time in which requests arrive: the mean number waiting must rise from quarter
    to quarter, and what waits at its end must be a notable share of all. Clients that wait for
    their answers (a closed loop) cannot overrun an engine.
    """
    arrival_s = np.asarray(requests["arrival_s"], dtype=np.float64)
    accepted = ~np.asarray(requests["rejected"], dtype=bool)
    if closed_loop or accepted.sum() < LEAST_WAITING:
        return None
    last_s = float(arrival_s[accepted].max())
    if last_s <= 0:
        return None
    waits = Waits.of(requests, preemptions)
    quarters = waits.mean(np.linspace(0.0, last_s, 5))
    waiting = int(
        np.searchsorted(waits.begin_s, last_s, side="right")
        - np.searchsorted(waits.end_s, last_s, side="right")
    )
    share = waiting / int(accepted.sum())
    if waiting < LEAST_WAITING or share < LEAST_SHARE or (np.diff(quarters) <= 0).any():
        return None
    return (
        f"Saturated: the queue grew for as long as requests came, and {count(waiting)} of them "
        f"({percent(share)}) were waiting when the last one arrived. This load is more than the "
        "deployment serves; waiting times say how long the run was, not how good it is."
    )
