"""Which policies serve requests of several sequences, and how."""

from __future__ import annotations

from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.paged import PagedScheduler
from sim.sharing.fanned_out import fanned_out
from sim.sharing.paged import SamplingPagedScheduler


def sampling(policy: type, *, beams: bool = False) -> type:
    """`policy` with requests of several sequences, which fork as they decode where they are beams.

    Raises ValueError where it cannot serve them.
    """
    if policy is PagedScheduler:
        return SamplingPagedScheduler
    by_tokens = issubclass(policy, ChunkedScheduler)
    if not by_tokens:
        raise ValueError(
            "several samples a request need a scheduler with paged blocks (paged, chunked): slots "
            "that are reserved for one sequence cannot be shared"
        )
    if beams:
        raise ValueError(
            "beam search needs scheduler paged: under chunked, as in vLLM V1, every sequence is a "
            "request of its own and none can fork"
        )
    return fanned_out(policy)
