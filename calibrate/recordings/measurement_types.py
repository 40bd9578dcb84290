"""The requests of one run, recorded or simulated, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class MeasurementError(ValueError):
    """A recording that cannot be used; one line that names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The requests of one run in order of arrival; times in s, NaN where not known.

    The requests' columns are equally long. One that is not `completed` has no latencies. Clock
    times count from the first arrival; they are NaN throughout where the source has no arrivals.
    """

    label: str
    recorded: bool  # by a real engine, as opposed to simulated
    arrival_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    finished_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    completed: NDArray[np.bool_]
    request_id: NDArray[np.object_] | None = None
    duration_s: float | None = None  # of the whole run, as recorded where arrivals are not
    # When requests lost their place in the batch, and had one again: [preemptions].
    preempted_s: Floats = field(default_factory=lambda: np.zeros(0))
    resumed_s: Floats = field(default_factory=lambda: np.zeros(0))
    by_client: bool = False  # times are what a client saw, the way to the engine included
    samples: Mapping[str, Floats] | None = None  # t, running, waiting, … as the engine counted

    def __len__(self) -> int:
        return len(self.e2e_s)

    @property
    def tpot_s(self) -> Floats:
        """(E2E - TTFT) / (output tokens - 1); NaN for an answer of one token."""
        gaps = self.output_tokens - 1.0
        tpot_s = np.full(len(self), np.nan)
        np.divide(self.e2e_s - self.ttft_s, gaps, out=tpot_s, where=gaps > 0)
        return tpot_s

    @property
    def has_arrivals(self) -> bool:
        return bool(np.isfinite(self.arrival_s).any())

    def only(self, rows: NDArray[np.bool_]) -> Measurement:
        """Those of its requests; its clock stays as it is."""
        columns = {
            name: getattr(self, name)[rows]
            for name in (
                "arrival_s", "scheduled_s", "first_token_s", "finished_s", "ttft_s", "e2e_s",
                "prompt_tokens", "output_tokens", "completed",
            )
        }  # fmt: skip
        ids = None if self.request_id is None else self.request_id[rows]
        return replace(self, request_id=ids, **columns)

    def in_order_of_arrival(self) -> Measurement:
        """The same requests sorted, their clock set to zero at the first arrival."""
        if not self.has_arrivals:
            return self
        order = np.argsort(self.arrival_s, kind="stable")
        zero_s = self.arrival_s[order[0]]
        return replace(
            self,
            arrival_s=self.arrival_s[order] - zero_s,
            scheduled_s=self.scheduled_s[order] - zero_s,
            first_token_s=self.first_token_s[order] - zero_s,
            finished_s=self.finished_s[order] - zero_s,
            ttft_s=self.ttft_s[order],
            e2e_s=self.e2e_s[order],
            prompt_tokens=self.prompt_tokens[order],
            output_tokens=self.output_tokens[order],
            completed=self.completed[order],
            request_id=None if self.request_id is None else self.request_id[order],
            preempted_s=self.preempted_s - zero_s,
            resumed_s=self.resumed_s - zero_s,
        )
