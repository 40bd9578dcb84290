"""Two clocks, one answer: leaping gives the very records that stepping gives."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import POLICIES, assert_same_records, engines, run, workloads


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=120, deadline=None)
@given(workload=workloads(), engine=engines())
def test_leap_equals_step(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    leapt = run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    stepped = run(workload, config, scheduler=scheduler, num_blocks=num_blocks, leap=False)
    assert_same_records(leapt, stepped)


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=60, deadline=None)
@given(workload=workloads(), engine=engines())
def test_what_must_always_hold_does(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    records = run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    requests, iterations = records.requests, records.iterations
    served = ~requests["rejected"]
    assert len(served) == len(workload), "every request ends exactly once"
    assert iterations["emitted"].sum() == workload.output_tokens[served].sum()
    gap_count = records.gap_weights.sum()
    assert gap_count == (workload.output_tokens[served] - 1).sum(), "one gap per further token"
    assert iterations["running"].max(initial=0) <= config.max_num_seqs
    if scheduler in ("paged", "chunked"):
        assert iterations["num_tokens"].max(initial=0) <= max(
            config.max_num_batched_tokens, config.max_num_seqs
        )
    kinds = [iterations[f"kv_{kind}_tokens"] for kind in ("used", "reserved", "fragmentation")]
    kinds.append(iterations["kv_free_tokens"])
    assert all((kind >= 0).all() for kind in kinds)
    assert (sum(kinds) == num_blocks * config.block_size).all()
    assert (iterations["waiting"] >= 0).all()
    first = requests["scheduled_s"][served]
    assert (np.diff(first) >= 0).all(), "first come, first served"
    times = [requests[f"{name}_s"][served] for name in ("arrival", "scheduled", "first_token")]
    times += [requests["last_token_s"][served], requests["finished_s"][served]]
    for earlier, later in pairwise(times):
        assert (earlier <= later).all()
    assert (np.isnan(requests["finished_s"]) == requests["rejected"]).all()
    if scheduler in ("static", "dynamic", "orca"):
        assert requests["preemptions"].sum() == 0
    resumed = records.preemptions["resumed_s"]
    assert (resumed >= records.preemptions["preempted_s"]).all()


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=15, deadline=None)
@given(workload=workloads(), engine=engines(), replicas=st.integers(2, 4))
def test_replicas_leap_together(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int], replicas: int
) -> None:
    from sim.engine.simulation import simulate
    from tests.sim.serving import LinearLatency

    config, num_blocks = engine
    both = [
        simulate(
            workload,
            config,
            LinearLatency(),
            scheduler=scheduler,
            num_blocks=num_blocks,
            replicas=replicas,
            leap=leap,
            check=True,
        )
        for leap in (True, False)
    ]
    assert_same_records(*both)
    assert set(both[0].requests["request"]) == set(range(len(workload)))
