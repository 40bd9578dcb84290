"""Parallel sampling and beam search served: two clocks, one answer; what must always hold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.schedulers.engine_config import EngineConfig
from tests.sim.serving import assert_same_records, engines, run
from tests.sim.sharing.sampling import sampled_workloads

# And whether it decides ahead.
SERVED = [(scheduler, ahead) for scheduler in ("paged", "chunked") for ahead in (False, True)]


@pytest.mark.parametrize(("scheduler", "ahead"), SERVED)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), engine=engines())
def test_leap_equals_step_with_samples(
    scheduler: str, ahead: bool, data: st.DataObject, engine: tuple[EngineConfig, int]
) -> None:
    workload = data.draw(sampled_workloads(beams=scheduler == "paged"))
    config, num_blocks = replace(engine[0], async_scheduling=ahead), engine[1]
    leapt = run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    stepped = run(workload, config, scheduler=scheduler, num_blocks=num_blocks, leap=False)
    assert_same_records(leapt, stepped)


@pytest.mark.parametrize(("scheduler", "ahead"), SERVED)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), engine=engines())
def test_what_must_always_hold_does_with_samples(
    scheduler: str, ahead: bool, data: st.DataObject, engine: tuple[EngineConfig, int]
) -> None:
    workload = data.draw(sampled_workloads(beams=scheduler == "paged"))
    config, num_blocks = replace(engine[0], async_scheduling=ahead), engine[1]
    records = run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    requests, iterations = records.requests, records.iterations
    served = ~requests["rejected"]
    assert len(served) == len(workload), "every request ends exactly once"
    assert iterations["emitted"].sum() == requests["sampled_tokens"][served].sum()
    gaps = (requests["sampled_tokens"] - requests["samples"])[served].sum()
    assert records.gap_weights.sum() == gaps, "one gap per further token of every sample"
    assert iterations["num_seqs"].max(initial=0) <= config.max_num_seqs
    kinds = [iterations[f"kv_{kind}_tokens"] for kind in ("used", "reserved", "fragmentation")]
    kinds.append(iterations["kv_free_tokens"])
    assert all((kind >= 0).all() for kind in kinds)
    assert (sum(kinds) == num_blocks * config.block_size).all()
    assert (iterations["waiting"] >= 0).all()
    assert (np.diff(requests["scheduled_s"][served]) >= 0).all(), "first come, first served"
    assert (requests["finished_s"] >= requests["last_token_s"])[served].all()
    if scheduler == "chunked":
        assert iterations["num_tokens"].max(initial=0) <= config.max_num_batched_tokens
