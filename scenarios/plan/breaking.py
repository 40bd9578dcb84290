"""What holds requests up while they wait, and tokens while they are made, in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.schedulers.engine_config import EngineConfig

KV_FULL = 0.05  # of the KV slots free, or fewer, with requests waiting: they wait for memory


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Shares of the time in the judged part of a run, and what its slow requests waited for.

    waiting: somebody waited, split into `for_memory` (the KV cache was full, or a sequence had
    been preempted), `for_slots` (max_num_seqs were running) and the rest: prompts ahead of them.
    prefilling: iterations that computed prompt tokens, which decodes have to sit through.
    queued: the part of the slowest hundredth of TTFTs that passed before the first iteration.
    """

    waiting: float
    for_memory: float
    for_slots: float
    prefilling: float
    queued: float
    kv_used: float
    running: float
    preemptions: float  # per request

    @classmethod
    def mean(cls, each: list[Bottleneck]) -> Bottleneck:
        """The mean over runs."""
        names = cls.__slots__
        return cls(**{name: float(np.mean([getattr(one, name) for one in each])) for name in names})

    def why_queueing(self) -> str:
        """What new requests wait for, in words."""
        ahead = self.waiting - self.for_memory - self.for_slots
        if self.waiting < 0.02 or self.queued < 0.5:
            return "prefill itself, in iterations shared with others, takes that long"
        reasons = {
            f"requests wait for KV memory ({self.preemptions:.2g} preemptions per request)"
            if self.preemptions > 0
            else "requests wait for KV memory": self.for_memory,
            "requests wait for a place in the batch (max_num_seqs)": self.for_slots,
            "requests wait for the prompts ahead of them (compute)": ahead,
        }
        return max(reasons, key=lambda words: reasons[words])

    def why_slow_tokens(self) -> str:
        """What makes time between tokens long, in words."""
        if self.preemptions >= 0.05:
            return f"KV memory runs out: {self.preemptions:.2g} preemptions per request"
        if self.prefilling >= 0.5:
            return "other requests' prefills come between the tokens"
        return f"batches of {self.running:.0f} sequences take that long to decode"


def bottleneck(
    iterations: Mapping[str, NDArray],
    requests: Mapping[str, NDArray],
    *,
    between_s: tuple[float, float],
    config: EngineConfig,
) -> Bottleneck:
    """Read a run's bottlenecks off its iterations between two times, and its judged requests."""
    start_s, end_s = between_s
    inside = (iterations["start_s"] >= start_s) & (iterations["start_s"] <= end_s)
    part = {name: column[inside] for name, column in iterations.items()}
    weight = part["duration_s"]
    busy_s = float(weight.sum())

    def share(where: NDArray[Any]) -> float:
        return float((weight * where).sum()) / busy_s if busy_s > 0 else 0.0

    kinds = ("used", "reserved", "fragmentation", "free")
    slots = sum(part[f"kv_{kind}_tokens"] for kind in kinds)
    # Decided ahead, whoever ended with the iteration before still had a seat, and about as many
    # slots as the others.
    ended = _just_finished(part) if config.async_scheduling else np.zeros_like(part["running"])
    held = ended * part["kv_used_tokens"] / np.maximum(part["running"], 1)
    free = part["kv_free_tokens"] - held <= KV_FULL * slots
    waiting = part["waiting"] > 0
    by_slots = waiting & (part["running"] + ended >= config.max_num_seqs)
    by_memory = waiting & ~by_slots & (free | (part["preempted"] > 0))
    served = ~requests["rejected"]
    count = max(1, int(served.sum()))
    return Bottleneck(
        waiting=share(waiting),
        for_memory=share(by_memory),
        for_slots=share(by_slots),
        prefilling=share(part["prefill_tokens"] > 0),
        queued=_queued_part(requests, served),
        kv_used=share(1 - part["kv_free_tokens"] / slots) if busy_s > 0 else 0.0,
        running=share(part["running"]),
        preemptions=float(requests["preemptions"][served].sum()) / count,
    )


def _just_finished(part: Mapping[str, NDArray]) -> NDArray[np.int64]:
    """Requests that ended with each replica's iteration before."""
    finished = np.zeros(len(part["replica"]), dtype=np.int64)
    for replica in np.unique(part["replica"]):
        rows = np.flatnonzero(part["replica"] == replica)
        finished[rows[1:]] = part["finished"][rows[:-1]]
    return finished


def _queued_part(requests: Mapping[str, NDArray], served: NDArray[np.bool_]) -> float:
    """Of the slowest hundredth of first tokens: the share of their time before any computing."""
    ttft_s = (requests["first_token_s"] - requests["arrival_s"])[served]
    queue_s = (requests["scheduled_s"] - requests["arrival_s"])[served]
    if not len(ttft_s):
        return 0.0
    slowest = np.argsort(ttft_s, kind="stable")[-max(1, len(ttft_s) // 100) :]
    total_s = float(ttft_s[slowest].sum())
    return float(queue_s[slowest].sum()) / total_s if total_s > 0 else 0.0
