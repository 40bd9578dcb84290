"""The real engine serving random requests: what an iteration takes among others.

A part that is measured alone, over and over, finds its data and its code in the processor's caches.
An engine schedules, prepares inputs, samples and keeps its books between two passes; what that
costs shows only in service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.engine.engine import RealEngine
from calibrate.engine.executor import Outcome
from calibrate.engine.token_ids import TokenIds
from calibrate.engine.transformer_executor import TransformerExecutor
from calibrate.engine.wall_clock import Clock
from calibrate.engine.warm_up import warming_workload
from calibrate.measure.batches import features
from calibrate.measure.rig import Limits, Rig
from sim.batch import Batch
from sim.engine.policy import scheduler_class
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.workload.source import RequestSource
from sim.workload.workload import Workload

OUTPUTS = (8, 64)  # tokens of an answer
PROMPT_BATCHES = 16  # prompts of a run fill at most so many full batches


@dataclass(frozen=True, slots=True)
class Iteration:
    """What an iteration computed, and how long it took, the host's share included (µs).

    ``prefills`` are (new, cached) tokens; contexts of decodes count their new token.
    """

    decodes: int
    context_tokens: int
    longest_tokens: int
    prefills: tuple[tuple[int, int], ...]
    time_us: float

    @property
    def num_seqs(self) -> int:
        return self.decodes + len(self.prefills)

    def features(self, captured: Sequence[int] = ()) -> Batch:
        """As the latency model sees it; decodes alone are padded to a captured size."""
        batch = features(self.prefills, self.decodes, self.context_tokens, self.longest_tokens)
        if not self.prefills:
            larger = (size for size in captured if size >= self.decodes)
            batch.num_tokens = min(larger, default=self.decodes)
        return batch


class Service:
    """Runs of the real engine on a rig's model and cache, with one set of captured graphs.

    Raises torch.OutOfMemoryError where the graphs do not fit.
    """

    def __init__(self, rig: Rig, *, captured: Sequence[int] = ()) -> None:
        self._rig = rig
        longest = rig.limits.max_context
        self._executor = _Watched(
            TransformerExecutor(
                rig.model,
                num_blocks=rig.num_blocks,
                block_size=rig.block_size,
                max_num_seqs=rig.limits.max_seqs,
                max_blocks=min(-(-longest // rig.block_size), rig.num_blocks),
                capture_sizes=captured,
                kv_cache=rig.kv_cache,
            )
        )
        limits = rig.limits
        if not rig.timer.on_gpu:  # where nothing is compiled
            self.run(np.random.default_rng(0), num_requests=2)
            return
        longest = min(limits.max_tokens, limits.max_context - 2, limits.cache_tokens - 32)
        most = min(limits.max_seqs, rig.num_blocks // 2)
        self._serve(warming_workload(longest, most), limits.max_tokens)

    def run(self, rng: np.random.Generator, *, num_requests: int | None = None) -> list[Iteration]:
        """Serve requests that come all at once, in chunks beside decodes; empty when memory ends.

        Their number and lengths are log-uniform within the rig's limits, outputs uniform: batches
        grow as prompts end and shrink as answers do.
        """
        limits = self._rig.limits
        workload = random_workload(rng, limits, num_requests=num_requests)
        return self._serve(workload, limits.max_tokens // int(rng.choice([1, 2, 4])))

    def _serve(self, workload: Workload, max_num_batched_tokens: int) -> list[Iteration]:
        rig = self._rig
        config = EngineConfig(
            max_num_seqs=rig.limits.max_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            block_size=rig.block_size,
        )
        scheduler = scheduler_class("chunked", config)(
            RequestPool(config.block_size),
            BlockAllocator(rig.num_blocks, config.block_size),
            config,
        )
        self._executor.seen.clear()
        served = RealEngine(
            scheduler,
            self._executor,
            RequestSource(workload, block_size=config.block_size, prefix_caching=False),
            TokenIds(workload, rig.config.vocab_size),
            clock=Clock(skip_idle=True),
        ).run()
        if served.errors:
            return []
        durations_s = served.records.iterations["duration_s"].tolist()
        return [
            Iteration(*shape, duration_s * 1e6)
            for shape, duration_s in zip(self._executor.seen, durations_s, strict=True)
        ]


def random_workload(
    rng: np.random.Generator, limits: Limits, *, num_requests: int | None = None
) -> Workload:
    """Requests that all fit into the cache at once."""
    count = num_requests or _log_uniform(rng, 1, limits.max_seqs)
    # A block may be filled in part, so nobody gets the last token of its share.
    room = min(limits.max_context, limits.cache_tokens // count - 16)
    outputs = rng.integers(*OUTPUTS, count, endpoint=True)
    outputs = np.clip(outputs, 1, max(1, room // 2))
    most = room - int(outputs.max())
    typical = _log_uniform(
        rng, min(16, most), min(most, PROMPT_BATCHES * limits.max_tokens // count)
    )
    drawn = rng.lognormal(np.log(typical), 0.5, count)
    return Workload(
        arrival_s=np.zeros(count),
        prompt_tokens=np.clip(drawn, 1, most).astype(np.int64),
        output_tokens=outputs,
    )


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(np.exp(rng.uniform(np.log(low), np.log(max(low, high) + 1))))


class _Watched:
    """An executor whose batches are written down."""

    def __init__(self, inner: TransformerExecutor) -> None:
        self._inner = inner
        self.seen: list[tuple[int, int, int, tuple[tuple[int, int], ...]]] = []
        self.add, self.drop = inner.add, inner.drop

    def run(self, batch: Batch, decoding: Collection[Request]) -> Outcome:
        outcome = self._inner.run(batch, decoding)
        count = batch.num_decodes
        prefills = tuple((chunk.new_tokens, chunk.cached_tokens) for chunk in batch.prefills)
        longest = self._inner.longest_context(count)
        self.seen.append((count, batch.context_tokens, longest, prefills))
        return outcome
