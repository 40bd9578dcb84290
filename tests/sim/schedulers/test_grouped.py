"""Caches of several groups of layers: leaping gives the very records that stepping gives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.plan import Failure, KvLink
from sim.engine.policy import scheduler_class
from sim.engine.simulation import simulate
from sim.kv.tables import TableRule
from sim.schedulers.engine_config import EngineConfig
from sim.speculation import DraftShape, Speculation
from sim.speculation.acceptance import RandomAcceptance, chain
from sim.workload import Workload
from tests.sim.cluster.test_cluster import assert_everything_is_served, group, serve
from tests.sim.engine.test_pipeline import linear_stages
from tests.sim.serving import assert_same_records, engines, run, workloads
from tests.sim.speculation.speculating import run as run_speculating


@st.composite
def hybrid_engines(draw: st.DrawFn, *, states: bool = True) -> tuple[EngineConfig, int]:
    """An engine's limits, one to three kinds of tables, and KV blocks, often few."""
    config, _ = draw(engines())
    size = config.block_size
    window = st.integers(2, 40)
    chunk = st.integers(1, 8).map(lambda blocks: blocks * size)
    kinds = draw(st.lists(st.sampled_from(["full", "sliding", "chunked"]), min_size=1, max_size=3))
    rules = []
    for kind in dict.fromkeys(kinds):
        limit = {"full": st.just(0), "sliding": window, "chunked": chunk}[kind]
        rules.append(TableRule(kind, draw(limit), draw(st.integers(1, 3))))
    if states and draw(st.booleans()):
        # Where prefixes are cached states are kept at the ends of blocks.
        kind = "checkpoint" if config.enable_prefix_caching else "state"
        rules.append(TableRule(kind, tables=draw(st.integers(1, 3))))
    config = replace(
        config,
        table_rules=tuple(rules),
        async_scheduling=draw(st.booleans()),
        scheduler_reserve_full_isl=draw(st.sampled_from([True, True, False])),
    )
    return config, draw(st.integers(1, 150))


@settings(max_examples=300, deadline=None)
@given(workload=workloads(), engine=hybrid_engines())
def test_leap_equals_step_and_nothing_is_lost(
    workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    leapt, stepped = (
        run(workload, config, scheduler="chunked", num_blocks=num_blocks, leap=leap)
        for leap in (True, False)
    )
    assert_same_records(leapt, stepped)
    assert leapt.tables is not None and stepped.tables is not None
    assert leapt.tables["most_blocks"].tolist() == stepped.tables["most_blocks"].tolist()
    requests, iterations = leapt.requests, leapt.iterations
    served = ~requests["rejected"]
    assert len(served) == len(workload)
    assert iterations["emitted"].sum() == workload.output_tokens[served].sum()
    kinds = [
        iterations[f"kv_{kind}_tokens"] for kind in ("used", "reserved", "fragmentation", "free")
    ]
    assert all((kind >= 0).all() for kind in kinds)
    assert (sum(kinds) == num_blocks * config.block_size).all()


@settings(max_examples=80, deadline=None)
@given(workload=workloads(), engine=engines())
def test_one_group_that_keeps_all_is_the_cache_without_groups(
    workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    plain = run(workload, config, scheduler="chunked", num_blocks=num_blocks)
    config = replace(config, table_rules=(TableRule("full"),))
    groups = run(workload, config, scheduler="chunked", num_blocks=num_blocks)
    assert_same_records(plain, groups)


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    engine=hybrid_engines(states=False),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    k=st.integers(1, 4),
    drops=st.booleans(),
)
def test_speculating_sequences_lose_nothing(
    workload: Workload, engine: tuple[EngineConfig, int], rate: float, k: int, drops: bool
) -> None:
    config, num_blocks = engine
    drops &= all(rule.kind != "chunked" for rule in config.table_rules)
    speculated = Speculation(
        "eagle" if drops else "any", DraftShape.chain(k), RandomAcceptance(chain(rate, k), seed=1)
    )
    leapt, stepped = (
        run_speculating(
            workload, config, speculated, scheduler="chunked", num_blocks=num_blocks, leap=leap
        )
        for leap in (True, False)
    )
    assert_same_records(leapt, stepped)
    served = ~leapt.requests["rejected"]
    assert leapt.iterations["emitted"].sum() == workload.output_tokens[served].sum()
    assert (leapt.iterations["kv_fragmentation_tokens"] >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    engine=hybrid_engines(),
    router=st.sampled_from(["round_robin", "least_kv", "prefix_aware"]),
)
def test_pools_leap_as_they_step(
    workload: Workload, engine: tuple[EngineConfig, int], router: str
) -> None:
    pools = [
        group(engine, "chunked", 2, role="prefill", kv_bytes_per_token=1000.0),
        group(engine, "chunked", 2, role="decode"),
    ]
    how = {"router": router, "kv_link": KvLink(2e5, 0.003)}
    leapt, _ = serve(workload, pools, **how)
    stepped, _ = serve(workload, pools, leap=False, **how)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)


def test_a_router_that_counts_blocks_sees_those_that_windows_give_back() -> None:
    rules = (TableRule("full", 0, 1), TableRule("sliding", 2, 1))
    config = EngineConfig(
        max_num_seqs=1, max_num_batched_tokens=2, block_size=4, enable_prefix_caching=False,
        async_scheduling=True, table_rules=rules,
    )  # fmt: skip
    workload = Workload(
        arrival_s=np.zeros(11),
        prompt_tokens=np.array([1] * 8 + [51, 53, 8]),
        output_tokens=np.array([1] * 8 + [5, 2, 1]),
        max_tokens=np.array([2] * 8 + [6, 3, 2]),
    )
    pools = [
        group((config, 19), "chunked", 2, role="prefill", kv_bytes_per_token=1000.0),
        group((config, 19), "chunked", 2, role="decode"),
    ]
    how = {"router": "least_kv", "kv_link": KvLink(2e5, 0.003)}
    leapt, _ = serve(workload, pools, **how)
    assert_same_records(leapt, serve(workload, pools, leap=False, **how)[0])


@settings(max_examples=60, deadline=None)
@given(workload=workloads(), engine=hybrid_engines(), stages=st.integers(2, 4))
def test_a_pipeline_serves_all(
    workload: Workload, engine: tuple[EngineConfig, int], stages: int
) -> None:
    config, num_blocks = engine
    records = simulate(
        workload,
        replace(config, async_scheduling=False),
        linear_stages(stages),
        scheduler="chunked",
        num_blocks=num_blocks,
        check=True,
    )
    served = ~records.requests["rejected"]
    assert records.iterations["emitted"].sum() == workload.output_tokens[served].sum()
    assert (records.iterations["kv_fragmentation_tokens"] >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    engine=hybrid_engines(),
    failures=st.lists(
        st.builds(Failure, st.integers(0, 1), st.floats(0.0, 6.0), st.floats(0.0, 4.0)), max_size=3
    ),
)
def test_failures_lose_nothing(
    workload: Workload, engine: tuple[EngineConfig, int], failures: list[Failure]
) -> None:
    groups = [group(engine, "chunked", 3)]
    leapt, _ = serve(workload, groups, router="least_kv", failures=failures)
    stepped, _ = serve(workload, groups, router="least_kv", failures=failures, leap=False)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)


def test_a_window_holds_no_more_than_it_looks_back_on_and_what_is_computed() -> None:
    """Mistral-7B v0.1: a window of 4,096, prompts of 24,000 in chunks of 8,192, blocks of 16."""
    window = TableRule("sliding", 4096)
    assert window.most_blocks(24_000, 16, 8192) == 769
    config = EngineConfig(max_num_batched_tokens=8192, max_model_len=32_768, table_rules=(window,))
    workload = Workload(
        arrival_s=np.zeros(1),
        prompt_tokens=np.array([24_000]),
        output_tokens=np.array([200]),
        max_tokens=np.array([200]),
    )
    records = run(workload, config, scheduler="chunked", num_blocks=769)
    held = 769 * 16 - records.iterations["kv_free_tokens"]
    assert held[:3].tolist() == [512 * 16, 768 * 16, 732 * 16]
    assert held[3:].min() == 256 * 16 and held[3:].max() == 257 * 16
    fewer = run(workload, config, scheduler="chunked", num_blocks=768)
    assert fewer.requests["rejected"].all(), "vLLM admits what fits by that figure"


def test_other_policies_have_no_groups() -> None:
    config = EngineConfig(table_rules=(TableRule("sliding", 64),))
    with pytest.raises(ValueError, match="need scheduler chunked"):
        scheduler_class("orca", config)
