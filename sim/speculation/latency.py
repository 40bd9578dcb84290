"""The duration of an iteration that speculates: the target's pass and the drafting for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.batch import Batch, Verification
from sim.latency.overlapped import host_of
from sim.latency.protocol import HostOverhead
from sim.speculation.drafting import Drafting, VerifyingLatency


class SpeculativeLatency:
    """Drafting, then a verification in which every sequence brings several query tokens."""

    def __init__(self, target: VerifyingLatency, drafting: Drafting) -> None:
        self.label = f"{target.label}; drafts: {drafting.label}"
        self.measured = target.measured and drafting.measured
        self.uses_longest = target.uses_longest
        self.target = target
        self.drafting = drafting
        self.host_s = host_of(target)  # of an iteration of so many sequences

    @property
    def host(self) -> HostOverhead | None:
        """The target's."""
        return getattr(self.target, "host", None)

    def iteration_s(self, batch: Batch) -> float:
        """Seconds; how many of them went to drafting is noted in `batch.verification`."""
        target, verified, decodes = self.target, batch.verification, batch.num_decodes
        duration_s = target.iteration_s(batch)
        if verified is None:
            verified = batch.verification = Verification()
        elif verified.query_tokens > decodes:
            duration_s += target.further_queries_s(
                decodes, batch.context_tokens, verified.query_tokens
            )
        verified.draft_s = self.drafting.draft_s(batch)
        return duration_s + verified.draft_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """One iteration: speculating sequences advance unevenly, so that no run is foreseeable."""
        return [start_s + self.iteration_s(batch)]

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The target's parts (further queries belong to attention), and the part ``draft``."""
        draft_s = iterations["draft_s"]
        own = {**iterations, "duration_s": iterations["duration_s"] - draft_s}
        return self.target.parts_s(own) | {"draft": draft_s}

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The target's classes of operation, and ``draft``."""
        draft_s = iterations["draft_s"]
        own = {**iterations, "duration_s": iterations["duration_s"] - draft_s}
        return self.target.operators_s(own) | {"draft": draft_s}
