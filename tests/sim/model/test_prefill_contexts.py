"""What prefills attended to, told from records alone, is what the batches had."""

import numpy as np
import pytest
from hypothesis import given, settings

from sim.batch import Batch
from sim.engine.simulation import simulate
from sim.model.prefill_contexts import prefill_contexts
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import LinearLatency, engines, workloads


class Noting(LinearLatency):
    """Keeps the contexts of every batch, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[float] = []
        self.cached: list[int] = []

    def iteration_s(self, batch: Batch) -> float:
        chunks = batch.prefills
        self.pairs.append(
            sum(c.new_tokens * (c.cached_tokens + (c.new_tokens + 1) / 2) for c in chunks)
        )
        self.cached.append(sum(chunk.cached_tokens for chunk in chunks))
        return super().iteration_s(batch)


def served(
    workload: Workload, config: EngineConfig, num_blocks: int, scheduler: str = "chunked"
) -> tuple[Records, Noting]:
    latency = Noting()
    records = simulate(
        workload, config, latency, scheduler=scheduler, num_blocks=num_blocks, leap=False
    )
    return records, latency


@pytest.mark.parametrize("scheduler", ["orca", "paged", "chunked"])
@settings(max_examples=80, deadline=None)
@given(workload=workloads(), engine=engines())
def test_without_preemption_contexts_are_exact(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    records, truth = served(workload, config, 60 + 20 * num_blocks, scheduler)
    if records.requests["preemptions"].any() or config.long_prefill_token_threshold:
        return
    found = prefill_contexts(records.requests, records.iterations)
    np.testing.assert_allclose(found.pairs, truth.pairs)
    if not config.enable_prefix_caching:
        np.testing.assert_allclose(found.cached_tokens, truth.cached)


@settings(max_examples=60, deadline=None)
@given(workload=workloads(), engine=engines())
def test_every_prompt_token_meets_a_key_whatever_happened(
    workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    records, _ = served(workload, config, num_blocks)
    found = prefill_contexts(records.requests, records.iterations)
    tokens = records.iterations["prefill_tokens"]
    assert (found.pairs >= tokens).all()
    assert (found.pairs[tokens == 0] == 0).all()


def test_a_long_prompt_in_pieces_attends_to_the_pieces_before() -> None:
    workload = Workload(
        arrival_s=np.zeros(2), prompt_tokens=np.array([25, 4]), output_tokens=np.array([2, 2]),
        max_tokens=np.array([2, 2]),
    )  # fmt: skip
    config = EngineConfig(max_num_seqs=2, max_num_batched_tokens=10, block_size=4)
    records, _ = served(workload, config, 50)
    found = prefill_contexts(records.requests, records.iterations)
    assert found.pairs[:3].tolist() == [55.0, 155.0, 5 * 20 + 15 + 10.0]
    assert found.cached_tokens[:3].tolist() == [0.0, 10.0, 20.0]
    some = prefill_contexts(records.requests, records.iterations, wanted=np.array([1]))
    assert some.pairs[1] == 155.0
