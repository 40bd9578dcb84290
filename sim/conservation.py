"""Laws that hold whatever happens: nothing is lost, nothing is counted twice."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.records import Records


class ConservationError(AssertionError):
    """A law was broken: a fault of the simulator's, never of what it was asked."""


def hold(law: bool, words: object = "a conservation law is broken") -> None:
    """Raise ConservationError unless `law` holds, under ``python -O`` too."""
    if not law:
        raise ConservationError(str(words))


def conserved(records: Records) -> dict[str, Any]:
    """The laws that a whole run's records show; raises ConservationError where one is broken.

    Every request ended once, with an answer or rejected; no fewer tokens were emitted than were
    returned; the KV slots of each replica are as many at every iteration, whatever kind they are.
    """
    requests, iterations = records.requests, records.iterations
    ended = np.isfinite(requests["finished_s"])
    rejected = np.asarray(requests["rejected"], dtype=bool)
    hold(bool((ended ^ rejected).all()), "a request neither ended nor was rejected, or both")
    hold(len(np.unique(requests["request"])) == len(ended), "a request ended twice")
    emitted = int(iterations["emitted"].sum())
    returned = int(requests["output_tokens"][ended].sum())
    hold(emitted >= returned, f"{returned} tokens were returned, {emitted} emitted")
    kinds = ("used", "reserved", "fragmentation", "free")
    slots = np.asarray(sum(iterations[f"kv_{kind}_tokens"] for kind in kinds))
    replica = iterations["replica"]
    of_replica = np.zeros(int(replica.max(initial=-1)) + 1, slots.dtype)
    of_replica[replica] = slots  # whichever iteration's: they are to be alike
    alike = bool((slots == of_replica[replica]).all())
    hold(alike, "KV slots of all kinds do not add up to the cache")
    return {
        "requests": len(ended),
        "answered": int(ended.sum()),
        "rejected": int(rejected.sum()),
        "tokens_returned": returned,
        "tokens_emitted": emitted,
    }
