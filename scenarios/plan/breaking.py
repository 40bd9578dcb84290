"""What holds requests up while they wait, and tokens while they are made, in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.schedulers.engine_config import EngineConfig

FRONT_END = "the processes of the front end are busy (frontend.api_server_count)"
KV_FULL = 0.05  # of the KV slots free, or fewer, with requests waiting: they wait for memory


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Shares of the time in the judged part of a run, and what its slow requests waited for.

    waiting: somebody waited, split into `for_memory` (the KV cache was full, or a sequence had
    been preempted), `for_slots` (max_num_seqs were running) and the rest: prompts ahead of them.
    prefilling: iterations that computed prompt tokens, which decodes have to sit through.
    queued, fronted: the parts of the slowest hundredth of TTFTs that passed in the engine before
    the first iteration, and in the front end. streamed: how much longer tokens took to reach their
    clients than to be made, of the time they took.
    """

    waiting: float
    for_memory: float
    for_slots: float
    prefilling: float
    queued: float
    fronted: float
    streamed: float
    kv_used: float
    running: float
    preemptions: float  # per request

    @classmethod
    def none(cls) -> Bottleneck:
        """Of a run in which nothing was served."""
        return cls(**dict.fromkeys(cls.__slots__, 0.0))

    @classmethod
    def mean(cls, each: list[Bottleneck]) -> Bottleneck:
        """The mean over runs."""
        names = cls.__slots__
        return cls(**{name: float(np.mean([getattr(one, name) for one in each])) for name in names})

    def why_queueing(self) -> str:
        """What new requests wait for, in words."""
        if self.fronted >= 0.5:
            return FRONT_END
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
        if self.streamed >= 0.2:
            return FRONT_END
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
    queued, fronted = _parts_of_ttft(requests, served)
    return Bottleneck(
        waiting=share(waiting),
        for_memory=share(by_memory),
        for_slots=share(by_slots),
        prefilling=share(part["prefill_tokens"] > 0),
        queued=queued,
        fronted=fronted,
        streamed=_streamed_part(requests, served),
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


def _parts_of_ttft(
    requests: Mapping[str, NDArray], served: NDArray[np.bool_]
) -> tuple[float, float]:
    """Of the slowest hundredth of first tokens: the shares of their time in the engine before any
    computing, and in the front end."""
    first_s, arrival_s = requests["first_token_s"][served], requests["arrival_s"][served]
    if not len(first_s):
        return 0.0, 0.0
    ttft_s = first_s - arrival_s
    received_s, made_s = (
        requests.get(f"engine_{name}", requests[name])[served]
        for name in ("arrival_s", "first_token_s")
    )
    slowest = np.argsort(ttft_s, kind="stable")[-max(1, len(ttft_s) // 100) :]
    total_s = float(ttft_s[slowest].sum())
    if total_s <= 0:
        return 0.0, 0.0
    queue_s = float((requests["scheduled_s"][served] - received_s)[slowest].sum())
    front_s = float((received_s - arrival_s + first_s - made_s)[slowest].sum())
    return queue_s / total_s, front_s / total_s


def _streamed_part(requests: Mapping[str, NDArray], served: NDArray[np.bool_]) -> float:
    """Of the time from the first token to the last: by how much it is longer than in the engine."""
    if "engine_last_token_s" not in requests:
        return 0.0
    seen_s, made_s = (
        float((requests[f"{side}last_token_s"] - requests[f"{side}first_token_s"])[served].sum())
        for side in ("", "engine_")
    )
    return (seen_s - made_s) / seen_s if seen_s > 0 else 0.0
