"""What a cached block is worth: fetching it from a tier of memory against computing it again."""

from __future__ import annotations

from sim.batch import Batch, PrefillChunk
from sim.latency.protocol import LatencyModel
from sim.request import Request


class TimedRefetch:
    """`sim.kv.tiers.Refetch` by a latency model: prompts alone, each in one iteration."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency
        nothing = Batch()
        self._idle_s = latency.iteration_s(nothing)
        self.link_s = max(latency.iteration_s(Batch(swap_in_blocks=1)) - self._idle_s, 0.0)

    def prefill_s(self, new_tokens: int, cached_tokens: int) -> float:
        request = Request(0, 0.0, new_tokens + cached_tokens, 1, 1)
        chunk = PrefillChunk(request, new_tokens, cached_tokens)
        batch = Batch(prefills=[chunk], num_tokens=new_tokens, num_emitting=1, num_seqs=1)
        return self._latency.iteration_s(batch)
