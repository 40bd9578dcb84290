"""The records of a run, as the reports read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]


class RunRecords(Protocol):
    """What a run gives: three tables of equally long columns, times in seconds from its start."""

    @property
    def requests(self) -> Columns: ...

    @property
    def iterations(self) -> Columns: ...

    @property
    def preemptions(self) -> Columns: ...


@dataclass(frozen=True, slots=True)
class Latencies:
    """Per-request latencies of the completed requests, in seconds.

    `tpot_s` is shorter than the others: a request of one output token has none.
    """

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    queue_s: Floats

    def named(self, metric: str) -> Floats:
        """The latencies under vLLM's short name: ttft, tpot, e2el or queue."""
        return {
            "ttft": self.ttft_s,
            "tpot": self.tpot_s,
            "e2el": self.e2e_s,
            "queue": self.queue_s,
        }[metric]


def request_latencies(requests: Columns) -> Latencies:
    """Measure TTFT, TPOT = (E2E - TTFT) / (output tokens - 1), E2E and queue time."""
    arrival_s = np.asarray(requests["arrival_s"], dtype=np.float64)
    first_s = np.asarray(requests["first_token_s"], dtype=np.float64)
    finished_s = np.asarray(requests["finished_s"], dtype=np.float64)
    done = np.isfinite(finished_s) & np.isfinite(first_s)
    arrival_s, first_s, finished_s = arrival_s[done], first_s[done], finished_s[done]
    gaps = np.asarray(requests["output_tokens"], dtype=np.float64)[done] - 1
    several = gaps > 0
    return Latencies(
        ttft_s=first_s - arrival_s,
        tpot_s=(finished_s - first_s)[several] / gaps[several],
        e2e_s=finished_s - arrival_s,
        queue_s=np.asarray(requests["scheduled_s"], dtype=np.float64)[done] - arrival_s,
    )
