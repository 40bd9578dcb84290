"""Clusters: every router and pool layout leaps as it steps, and nothing is ever lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.cluster import (
    Autoscaling,
    ClusterFacts,
    Failure,
    KvLink,
    ReplicaGroup,
    simulate_cluster,
)
from sim.cluster.routers import ROUTERS
from sim.latency.protocol import FixedLatency
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.serving import (
    POLICIES,
    LinearLatency,
    assert_same_records,
    engines,
    run,
    workloads,
)

CONTINUOUS = ("orca", "paged", "chunked")


def group(
    engine: tuple[EngineConfig, int], scheduler: str, replicas: int, **more: object
) -> ReplicaGroup:
    config, num_blocks = engine
    return ReplicaGroup(
        replicas,
        config,
        LinearLatency(),
        scheduler,
        num_blocks,
        **more,  # type: ignore[arg-type]
    )


def serve(
    workload: Workload, groups: Sequence[ReplicaGroup], *, leap: bool = True, **how: object
) -> tuple[Records, ClusterFacts]:
    return simulate_cluster(workload, groups, leap=leap, check=True, **how)  # type: ignore[arg-type]


def assert_everything_is_served(records: Records, workload: Workload) -> None:
    requests = records.requests
    assert requests["request"].tolist() == list(range(len(workload)))
    served = ~requests["rejected"]
    assert np.isfinite(requests["finished_s"][served]).all()
    assert (requests["output_tokens"] == workload.output_tokens).all()
    assert (records.iterations["waiting"] >= 0).all()
    times = [requests[f"{name}_s"][served] for name in ("arrival", "scheduled", "first_token")]
    times.append(requests["finished_s"][served])
    for earlier, later in pairwise(times):
        assert (earlier <= later).all()


@pytest.mark.parametrize("scheduler", POLICIES)
@pytest.mark.parametrize("router", ["round_robin", "least_kv"])
@settings(max_examples=15, deadline=None)
@given(workload=workloads(), engine=engines())
def test_a_cluster_of_one_is_a_replica(
    scheduler: str, router: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    alone = run(workload, config, scheduler=scheduler, num_blocks=num_blocks)
    records, _ = serve(workload, [group(engine, scheduler, 1)], router=router)
    assert (records.requests.pop("retries") == 0).all()
    assert_same_records(alone, records)


@pytest.mark.parametrize("router", ROUTERS)
@settings(max_examples=15, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    scheduler=st.sampled_from(POLICIES),
    replicas=st.integers(2, 4),
)
def test_every_router_leaps_as_it_steps(
    router: str,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    scheduler: str,
    replicas: int,
) -> None:
    groups = [group(engine, scheduler, replicas)]
    leapt, _ = serve(workload, groups, router=router)
    stepped, _ = serve(workload, groups, router=router, leap=False)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)


@settings(max_examples=25, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    scheduler=st.sampled_from(POLICIES),
    router=st.sampled_from(sorted(ROUTERS)),
    failures=st.lists(
        st.builds(
            Failure,
            st.integers(0, 2),
            st.floats(0.0, 6.0),
            st.one_of(st.floats(0.0, 4.0), st.just(float("inf"))),
        ),
        max_size=3,
    ),
)
def test_failures_lose_nothing_and_leap_as_they_step(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    scheduler: str,
    router: str,
    failures: list[Failure],
) -> None:
    groups = [group(engine, scheduler, 4)]  # the last one never fails
    how = {"router": router, "failures": failures}
    leapt, facts = serve(workload, groups, **how)
    stepped, _ = serve(workload, groups, leap=False, **how)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)
    assert leapt.requests["retries"].sum() == sum(facts.retries.values())
    # Tokens that a failed replica had generated are generated again.
    served = ~leapt.requests["rejected"]
    assert leapt.iterations["emitted"].sum() >= workload.output_tokens[served].sum()


@settings(max_examples=25, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    prefill=st.sampled_from(CONTINUOUS),
    decode=st.sampled_from(CONTINUOUS),
    router=st.sampled_from(sorted(ROUTERS)),
)
def test_pools_leap_as_they_step_and_do_the_same_work(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    prefill: str,
    decode: str,
    router: str,
) -> None:
    pools = [
        group(engine, prefill, 2, role="prefill", kv_bytes_per_token=1000.0),
        group(engine, decode, 2, role="decode"),
    ]
    how = {"router": router, "kv_link": KvLink(2e5, 0.003)}
    leapt, facts = serve(workload, pools, **how)
    stepped, _ = serve(workload, pools, leap=False, **how)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)
    served = ~leapt.requests["rejected"]
    assert leapt.iterations["emitted"].sum() == workload.output_tokens[served].sum()
    assert facts.transfers == served.sum()
    assert facts.transferred_bytes == 1000.0 * workload.prompt_tokens[served].sum()
    # The first token comes after the cache, which takes as long as its prompt is.
    arrived_s = leapt.requests["prefilled_s"] + 0.003 + 1000.0 * workload.prompt_tokens / 2e5
    assert (leapt.requests["first_token_s"][served] > arrived_s[served]).all()
    assert leapt.gap_weights.sum() == (workload.output_tokens[served] - 1).sum()


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    schedulers=st.tuples(st.sampled_from(CONTINUOUS), st.sampled_from(CONTINUOUS)),
    router=st.sampled_from(sorted(ROUTERS)),
    link=st.sampled_from([KvLink(2e5, 0.003), KvLink(2e4), KvLink(1e12)]),
    failures=st.lists(
        st.builds(Failure, st.sampled_from([0, 2]), st.floats(0.0, 6.0), st.floats(0.0, 4.0)),
        max_size=4,
    ),
)
def test_pools_that_fail_lose_nothing_and_leap_as_they_step(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    schedulers: tuple[str, str],
    router: str,
    link: KvLink,
    failures: list[Failure],
) -> None:
    """Blocks are held until a cache is elsewhere, and lost with it: `check` counts them all."""
    prefill, decode = schedulers
    pools = [
        group(engine, prefill, 2, role="prefill", kv_bytes_per_token=1000.0),
        group(engine, decode, 2, role="decode"),
    ]
    how = {"router": router, "kv_link": link, "failures": failures}
    leapt, facts = serve(workload, pools, **how)
    stepped, _ = serve(workload, pools, leap=False, **how)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)
    served = ~leapt.requests["rejected"]
    assert facts.transfers >= served.sum()
    assert facts.transfers <= served.sum() + sum(facts.retries.values())


@pytest.mark.parametrize("router", ROUTERS)
@settings(max_examples=15, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    scheduler=st.sampled_from(POLICIES),
    clients=st.integers(1, 9),
)
def test_replicas_that_share_clients_leap_as_they_step_in_lockstep(
    router: str,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    scheduler: str,
    clients: int,
) -> None:
    """Every iteration takes as long: all replicas end and decide at the very same times."""
    workload = replace(workload, arrival_s=np.zeros(len(workload)), max_concurrency=clients)
    groups = [replace(group(engine, scheduler, 3), latency=FixedLatency(0.25))]
    leapt, _ = serve(workload, groups, router=router)
    stepped, _ = serve(workload, groups, router=router, leap=False)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)


@settings(max_examples=20, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    scheduler=st.sampled_from(POLICIES),
    router=st.sampled_from(sorted(ROUTERS)),
    scaling=st.builds(
        Autoscaling,
        st.integers(1, 2),
        st.floats(0.5, 5.0),
        st.floats(0.05, 1.0),
        st.floats(0.0, 2.0),
        st.floats(0.0, 2.0),
    ),
)
def test_autoscaling_leaps_as_it_steps(
    workload: Workload,
    engine: tuple[EngineConfig, int],
    scheduler: str,
    router: str,
    scaling: Autoscaling,
) -> None:
    groups = [group(engine, scheduler, 4)]
    leapt, facts = serve(workload, groups, router=router, autoscaling=scaling)
    stepped, _ = serve(workload, groups, leap=False, router=router, autoscaling=scaling)
    assert_same_records(leapt, stepped)
    assert_everything_is_served(leapt, workload)
    counts = [count for _, count in facts.replicas_over_time]
    assert max(counts) <= 4
    assert min(counts) >= scaling.min_replicas


def steady(count: int, rate: float, *, prompt: int = 40, output: int = 30) -> Workload:
    rng = np.random.default_rng(3)
    return Workload(
        np.cumsum(rng.exponential(1 / rate, count)), np.full(count, prompt), np.full(count, output)
    )


ENGINE = (EngineConfig(max_num_seqs=8, max_num_batched_tokens=256), 400)


def test_colocated_and_disaggregated_do_the_same_total_work() -> None:
    workload = steady(200, 8.0)
    together, _ = serve(workload, [group(ENGINE, "chunked", 4)], router="least_outstanding")
    apart, _ = serve(
        workload,
        [group(ENGINE, "chunked", 2, role="prefill"), group(ENGINE, "chunked", 2, role="decode")],
        router="least_outstanding",
        kv_link=KvLink(1e9),
    )
    tokens = [
        (int(records.iterations["emitted"].sum()), int(records.iterations["prefill_tokens"].sum()))
        for records in (together, apart)
    ]
    assert tokens[0] == (200 * 30, 200 * 40)
    assert tokens[1] == (200 * 30, 200 * (40 + 1)), "each prompt's last token twice"
    assert together.preemptions["request"].size == apart.preemptions["request"].size == 0


def test_the_least_busy_router_evens_out_what_chance_does_not() -> None:
    lengths = np.random.default_rng(1).integers(1, 150, 600)
    workload = replace(steady(600, 19.0), output_tokens=lengths, max_tokens=None)
    waits = {}
    for router in ("random", "round_robin", "least_outstanding"):
        records, _ = serve(workload, [group(ENGINE, "chunked", 4)], router=router)
        waits[router] = (records.requests["scheduled_s"] - records.requests["arrival_s"]).mean()
    assert waits["least_outstanding"] < waits["round_robin"] < waits["random"]


def test_prefix_aware_routing_finds_what_others_have_computed() -> None:
    rng = np.random.default_rng(5)
    heads = rng.integers(0, 12, 400)
    ids = [[1000 + int(head)] * 64 + [int(i)] * 8 for i, head in enumerate(heads)]
    workload = replace(steady(400, 12.0, prompt=72), content=PromptContent.from_lists(ids))
    engine = (replace(ENGINE[0], enable_prefix_caching=True), 60)
    cached = {}
    for router in ("round_robin", "prefix_aware", "session_sticky"):
        records, _ = serve(workload, [group(engine, "chunked", 4)], router=router)
        cached[router] = records.requests["cached_tokens"].sum()
    assert cached["prefix_aware"] > 1.2 * cached["round_robin"]
    assert cached["session_sticky"] > 1.2 * cached["round_robin"]


def test_a_sticky_session_stays_where_it_began() -> None:
    ids = [[100 + i % 5] * 16 for i in range(60)]
    workload = replace(steady(60, 5.0, prompt=16), content=PromptContent.from_lists(ids))
    engine = (replace(ENGINE[0], enable_prefix_caching=True), 400)
    records, _ = serve(workload, [group(engine, "chunked", 3)], router="session_sticky")
    for session in range(5):
        assert len(set(records.requests["replica"][session::5].tolist())) == 1


def test_the_first_token_is_counted_once_however_often_a_request_begins() -> None:
    workload = steady(30, 20.0, output=60)
    failures = [Failure(0, 1.5, 1.0), Failure(1, 1.7, 1.0)]
    records, facts = serve(workload, [group(ENGINE, "chunked", 2)], failures=failures)
    retried = np.array(sorted(facts.retries))
    assert retried.size > 5
    before = records.requests["first_token_s"][retried] < 1.5
    assert before.any(), "some had their first token before the failure, and keep its time"


def test_what_nobody_comes_back_for_is_rejected() -> None:
    workload = steady(20, 20.0)
    records, _ = serve(workload, [group(ENGINE, "chunked", 1)], failures=[Failure(0, 0.5)])
    assert records.requests["rejected"].sum() > 0
    assert len(records.requests["request"]) == 20


@pytest.mark.parametrize("clients", [None, 6])
def test_nobody_is_forgotten_when_all_replicas_are_gone(clients: int | None) -> None:
    workload = replace(steady(40, 20.0), max_concurrency=clients)
    failures = [Failure(0, 0.5), Failure(1, 0.7)]
    records, _ = serve(workload, [group(ENGINE, "chunked", 2)], failures=failures)
    assert records.requests["request"].tolist() == list(range(40))
    stranded = records.requests["stranded"]
    assert 0 < stranded.sum() < 40
    assert (stranded == records.requests["rejected"]).all()


def test_a_prefill_pool_without_decoders_strands_what_it_has_computed() -> None:
    pools = [
        group(ENGINE, "chunked", 1, role="prefill", kv_bytes_per_token=1.0),
        group(ENGINE, "chunked", 1, role="decode"),
    ]
    workload = steady(300, 20.0)
    records, _ = serve(workload, pools, kv_link=KvLink(1e9), failures=[Failure(1, 0.7)])
    assert records.requests["request"].tolist() == list(range(300))
    assert (records.requests["output_tokens"] == 30).all()
    assert records.requests["stranded"].sum() > 250


def test_a_slow_link_holds_the_prefill_pool_up() -> None:
    """Caches that have not left yet fill its blocks: prompts wait, and none is in two places."""
    engine = (ENGINE[0], 12)
    pools = [
        group(engine, "chunked", 1, role="prefill", kv_bytes_per_token=1000.0),
        group(ENGINE, "chunked", 1, role="decode"),
    ]
    workload = replace(steady(40, 1e6), arrival_s=np.zeros(40))
    slow, _ = serve(workload, pools, kv_link=KvLink(1e5))
    fast, _ = serve(workload, pools, kv_link=KvLink(1e9))
    wait_s = {
        name: records.requests["scheduled_s"].max()
        for name, records in {"slow": slow, "fast": fast}.items()
    }
    # Three blocks a prompt, so four are held; the others wait for transfers of 0.4 s each.
    assert wait_s["slow"] == pytest.approx(0.4 * (40 - 4), rel=0.05)
    assert wait_s["fast"] < 0.3 * wait_s["slow"]


def test_caches_on_their_way_are_lost_with_their_sender() -> None:
    pools = [
        group(ENGINE, "chunked", 2, role="prefill", kv_bytes_per_token=1000.0),
        group(ENGINE, "chunked", 2, role="decode"),
    ]
    workload = replace(steady(40, 1e6), arrival_s=np.zeros(40))
    link, failure = KvLink(1e5), Failure(0, 3.0)
    records, facts = serve(workload, pools, kv_link=link, failures=[failure])
    arrived_before = int(3.0 / 0.4)
    assert len(facts.retries) == 20 - arrived_before
    assert not records.requests["rejected"].any()
    assert facts.transfers == 40


def test_of_two_failures_the_longer_one_counts() -> None:
    workload = steady(100, 20.0)
    failures = [Failure(1, 0.5, 1.0), Failure(1, 1.0, 2.0)]
    _, facts = serve(workload, [group(ENGINE, "chunked", 2)], failures=failures)
    assert [at_s for at_s, count in facts.replicas_over_time if count == 2] == [0.0, 3.0]
    _, facts = serve(
        workload, [group(ENGINE, "chunked", 2)], failures=[Failure(1, 0.5, 1.0), Failure(1, 1.0)]
    )
    assert [at_s for at_s, count in facts.replicas_over_time if count == 2] == [0.0]


def test_a_replica_that_fails_before_it_was_needed_stays_unused() -> None:
    scaling = Autoscaling(1, 100.0, check_every_s=0.5, startup_s=1.0, cooldown_s=2.0)
    workload = steady(60, 5.0)
    _, facts = serve(
        workload,
        [group(ENGINE, "chunked", 3)],
        autoscaling=scaling,
        failures=[Failure(2, 0.5, 0.5)],
    )
    assert facts.up_s[2] == 0.0
    assert max(count for _, count in facts.replicas_over_time) == 1


def test_a_request_goes_where_it_fits() -> None:
    small, large = (ENGINE[0], 4), ENGINE
    workload = steady(40, 5.0, prompt=50)
    for router in ROUTERS:
        groups = [group(small, "chunked", 2), group(large, "chunked", 1)]
        records, _ = serve(workload, groups, router=router)
        assert (records.requests["replica"] == 2).all(), router
        assert not records.requests["rejected"].any(), router


def test_least_kv_spreads_a_burst_that_no_scheduler_has_seen_yet() -> None:
    workload = replace(steady(12, 1.0), arrival_s=np.zeros(12))
    records, _ = serve(workload, [group(ENGINE, "chunked", 4)], router="least_kv")
    assert np.bincount(records.requests["replica"]).tolist() == [3, 3, 3, 3]


def test_an_autoscaler_pays_for_less_and_serves_all() -> None:
    busy = steady(300, 25.0)
    calm = replace(steady(60, 1.0), arrival_s=steady(60, 1.0).arrival_s + busy.arrival_s[-1])
    workload = Workload(
        np.concatenate([busy.arrival_s, calm.arrival_s]),
        np.concatenate([busy.prompt_tokens, calm.prompt_tokens]),
        np.concatenate([busy.output_tokens, calm.output_tokens]),
    )
    groups = [group(ENGINE, "chunked", 6)]
    fixed, fixed_facts = serve(workload, groups, router="least_outstanding")
    scaling = Autoscaling(1, 6.0, check_every_s=0.5, startup_s=1.0, cooldown_s=2.0)
    scaled, facts = serve(workload, groups, router="least_outstanding", autoscaling=scaling)
    assert sum(facts.up_s) < 0.6 * sum(fixed_facts.up_s)
    counts = [count for _, count in facts.replicas_over_time]
    assert counts[0] == 1 and max(counts) >= 4 and counts[-1] <= 2
    assert np.isfinite(scaled.requests["finished_s"]).all()
    assert fixed.requests["finished_s"].max() <= scaled.requests["finished_s"].max()


def test_an_autoscaler_may_look_as_often_as_it_likes() -> None:
    """It looks again only when something has changed, or when it has waited for long enough."""
    workload = steady(30, 25.0)
    groups = [group(ENGINE, "chunked", 4)]
    often, rarely = (
        Autoscaling(1, 3.0, check_every_s=1e-9, startup_s=0.1, cooldown_s=0.5),
        Autoscaling(1, 3.0, check_every_s=1e-3, startup_s=0.1, cooldown_s=0.5),
    )
    finely, fine_facts = serve(workload, groups, autoscaling=often)
    coarsely, coarse_facts = serve(workload, groups, autoscaling=rarely)
    for name in ("scheduled_s", "finished_s"):
        np.testing.assert_allclose(finely.requests[name], coarsely.requests[name], atol=0.05)
    assert sum(fine_facts.up_s) == pytest.approx(sum(coarse_facts.up_s), rel=0.05)


def test_a_replica_that_is_started_again_takes_as_long_as_the_first_time() -> None:
    """Its first start was cut short: it failed, came back, and was not needed any more."""
    workload = Workload(np.array([0.0, 0.0, 7.0, 7.0]), np.full(4, 8), np.array([5, 5, 20, 20]))
    one = ReplicaGroup(2, EngineConfig(max_num_seqs=1), FixedLatency(1.0), "chunked", 50)
    scaling = Autoscaling(1, 1.0, check_every_s=1.0, startup_s=10.0, cooldown_s=0.0)
    _, facts = serve(
        workload, [one], router="least_outstanding", autoscaling=scaling,
        failures=[Failure(1, 2.0, 1.0)],
    )  # fmt: skip
    opened_s = [at_s for at_s, count in facts.replicas_over_time if count == 2]
    assert opened_s == [3.0, 17.0], "as it recovers, and ten seconds after it was needed again"


def test_a_closed_loop_spans_the_cluster() -> None:
    workload = replace(steady(80, 1e6), max_concurrency=10)
    records, _ = serve(workload, [group(ENGINE, "chunked", 3)], router="least_outstanding")
    requests = records.requests
    events = np.concatenate([requests["arrival_s"], requests["finished_s"]])
    steps = np.concatenate([np.ones(80), -np.ones(80)])
    # An ending frees its client before the arrival that it lets in.
    order = np.lexsort((steps, events))
    assert np.cumsum(steps[order]).max() == 10
