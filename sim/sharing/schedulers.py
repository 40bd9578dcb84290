"""Which policies serve requests of several sequences."""

from __future__ import annotations

from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.paged import PagedScheduler
from sim.sharing.fanned_out import FannedOutChunkedScheduler
from sim.sharing.paged import SamplingPagedScheduler

_POLICIES: dict[type, type] = {
    ChunkedScheduler: FannedOutChunkedScheduler,
    PagedScheduler: SamplingPagedScheduler,
}


def sampling(policy: type) -> type:
    """`policy` with requests of several sequences. Raises ValueError where it cannot share."""
    if policy not in _POLICIES:
        raise ValueError(
            "several samples a request need a scheduler with paged blocks (paged, chunked): slots "
            "that are reserved for one sequence cannot be shared"
        )
    return _POLICIES[policy]
