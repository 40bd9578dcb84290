"""What the tests of speculative decoding share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.engine.simulation import simulate
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.speculation import DraftShape, Speculation
from sim.speculation.acceptance import Acceptance, RandomAcceptance, chain
from sim.speculation.drafting import Drafting, FixedDraft
from sim.speculation.latency import SpeculativeLatency
from sim.workload import Workload
from tests.sim.serving import LinearLatency

SPECULATING = ("orca", "paged", "chunked")


class LinearQueries(LinearLatency):
    """`LinearLatency`, with a price for further query tokens."""

    def further_queries_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        return (query_tokens - num_decodes) * 2.3e-5


def speculation(
    rate: float = 0.7,
    k: int = 3,
    *,
    acceptance: Acceptance | None = None,
    lookahead_slots: int = 0,
    seed: int = 0,
) -> Speculation:
    """A chain of k drafts, each accepted with the same rate."""
    shape = DraftShape.chain(k, lookahead_slots=lookahead_slots)
    given = acceptance or RandomAcceptance(chain(rate, k), seed=seed)
    return Speculation("draft_model", shape, given)


def run(
    workload: Workload,
    config: EngineConfig,
    speculating: Speculation | None,
    *,
    scheduler: str,
    num_blocks: int = 1000,
    leap: bool = True,
    drafting: Drafting | None = None,
    replicas: int = 1,
) -> Records:
    """Simulate with every invariant checked."""
    latency: LinearLatency | SpeculativeLatency = LinearQueries()
    if speculating is not None:
        config = replace(config, speculation=speculating)
        latency = SpeculativeLatency(LinearQueries(), drafting or FixedDraft(1.1e-3, 3))
    return simulate(
        workload,
        config,
        latency,
        scheduler=scheduler,
        num_blocks=num_blocks,
        leap=leap,
        check=True,
        replicas=replicas,
    )


def requests(outputs: Sequence[int], *, prompt: int = 10, gap_s: float = 0.0) -> Workload:
    """Requests of these output lengths."""
    count = len(outputs)
    return Workload(
        arrival_s=np.arange(count) * gap_s,
        prompt_tokens=np.full(count, prompt),
        output_tokens=np.array(outputs),
        max_tokens=np.array(outputs),
    )
