"""Speculating sequences under every iteration-level policy."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.cluster import Failure, KvLink, ReplicaGroup, simulate_cluster
from sim.engine.policy import scheduler_class
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.speculating import speculating
from sim.speculation import DraftShape, Speculation
from sim.speculation.acceptance import RandomAcceptance, RecordedAcceptance
from sim.speculation.drafting import FixedDraft
from sim.speculation.latency import SpeculativeLatency
from sim.workload import Workload
from tests.sim.serving import assert_same_records, engines, workloads
from tests.sim.speculation.speculating import (
    SPECULATING,
    LinearQueries,
    requests,
    run,
    speculation,
)


@st.composite
def speculations(draw: st.DrawFn) -> Speculation:
    """Chains, trees and lookahead, with matches missed and slots ahead."""
    survival = sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=5)), reverse=True)
    depth = len(survival)
    shape = draw(
        st.sampled_from(
            [
                DraftShape.chain(depth),
                DraftShape.chain(depth, lookahead_slots=depth),
                DraftShape.tree((2,) * depth),
                DraftShape.lookahead(2, depth + 1, 3),
            ]
        )
    )
    match_rate = draw(st.sampled_from([1.0, 1.0, 0.6, 0.0]))
    acceptance = RandomAcceptance(
        np.array(survival), match_rate=match_rate, seed=draw(st.integers(0, 5))
    )
    return Speculation("any", shape, acceptance)


@pytest.mark.parametrize("scheduler", SPECULATING)
@settings(max_examples=120, deadline=None)
@given(workload=workloads(), engine=engines(), speculated=speculations())
def test_what_must_always_hold_does_while_speculating(
    scheduler: str,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    speculated: Speculation,
) -> None:
    config, num_blocks = engine
    records = run(workload, config, speculated, scheduler=scheduler, num_blocks=num_blocks)
    requests, iterations = records.requests, records.iterations
    served = ~requests["rejected"]
    assert len(served) == len(workload), "every request ends exactly once"
    assert iterations["emitted"].sum() == workload.output_tokens[served].sum()
    shape = speculated.shape
    seqs, accepted = iterations["decode_seqs"], iterations["accepted_tokens"]
    assert (iterations["decoded_tokens"] >= seqs).all(), "each verification yields a token"
    assert (iterations["decoded_tokens"] <= accepted + seqs).all()
    assert (accepted <= iterations["drafted_tokens"]).all()
    assert (iterations["verified_tokens"] <= seqs * shape.query_tokens).all()
    assert (iterations["verified_tokens"] >= seqs).all()
    computed = iterations["prefill_tokens"] + iterations["verified_tokens"]
    assert (iterations["num_tokens"] == computed).all()
    if scheduler == "chunked":
        assert iterations["num_tokens"].max(initial=0) <= config.max_num_batched_tokens
    kinds = [
        iterations[f"kv_{kind}_tokens"] for kind in ("used", "reserved", "fragmentation", "free")
    ]
    assert all((kind >= 0).all() for kind in kinds)
    assert (sum(kinds) == num_blocks * config.block_size).all()
    times = [
        requests[f"{name}_s"][served]
        for name in ("arrival", "scheduled", "first_token", "last_token", "finished")
    ]
    for earlier, later in pairwise(times):
        assert (earlier <= later).all()


@pytest.mark.parametrize("scheduler", SPECULATING)
@settings(max_examples=40, deadline=None)
@given(
    workload=workloads(),
    engine=engines(),
    speculated=speculations(),
    replicas=st.sampled_from([1, 1, 3]),
)
def test_leap_falls_back_to_stepping_with_the_same_answer(
    scheduler: str,
    workload: Workload,
    engine: tuple[EngineConfig, int],
    speculated: Speculation,
    replicas: int,
) -> None:
    config, num_blocks = engine
    both = [
        run(
            workload,
            config,
            speculated,
            scheduler=scheduler,
            num_blocks=num_blocks,
            leap=leap,
            replicas=replicas,
        )
        for leap in (True, False)
    ]
    assert_same_records(*both)


@pytest.mark.parametrize("scheduler", SPECULATING)
def test_nothing_accepted_is_plain_decoding(scheduler: str) -> None:
    # At rate 0 every verification yields the target's own token and no other.
    config = EngineConfig(max_num_seqs=8)
    workload = requests([30, 1, 7, 90, 45, 45, 2, 60, 33, 12], gap_s=0.05)
    speculated = run(workload, config, speculation(0.0, k=4), scheduler=scheduler)
    plain = run(workload, config, None, scheduler=scheduler)
    tokens = workload.output_tokens.sum()
    assert speculated.iterations["emitted"].sum() == tokens == plain.iterations["emitted"].sum()
    decodes = (workload.output_tokens - 1).sum()
    assert speculated.iterations["decode_seqs"].sum() == decodes, "one step a token"
    assert speculated.iterations["accepted_tokens"].sum() == 0
    assert speculated.gap_weights.sum() == decodes == plain.gap_weights.sum()


@pytest.mark.parametrize("scheduler", SPECULATING)
def test_nothing_accepted_has_the_very_schedule_of_plain_decoding(scheduler: str) -> None:
    # All there at once, so that longer iterations change nobody's place in the queue.
    config = EngineConfig(max_num_seqs=4)
    workload = requests([30, 1, 7, 90, 45, 45, 2, 60, 33, 12])
    speculated = run(workload, config, speculation(0.0, k=4), scheduler=scheduler).iterations
    plain = run(workload, config, None, scheduler=scheduler).iterations
    same = ["running", "waiting", "prefill_seqs", "prefill_tokens", "decode_seqs", "emitted"]
    for column in [*same, "finished", "kv_used_tokens"]:
        np.testing.assert_array_equal(speculated[column], plain[column], err_msg=column)


@pytest.mark.parametrize("scheduler", SPECULATING)
def test_everything_accepted_takes_one_step_for_k_plus_one_tokens(scheduler: str) -> None:
    records = run(
        requests([1 + 5 * 12]), EngineConfig(), speculation(1.0, k=4), scheduler=scheduler
    )
    assert records.iterations["decode_seqs"].sum() == 12
    assert records.iterations["emitted"].tolist() == [1] + [5] * 12


def test_an_answer_ends_where_it_ends_though_more_was_accepted() -> None:
    records = run(requests([8]), EngineConfig(), speculation(1.0, k=4), scheduler="chunked")
    assert records.iterations["emitted"].tolist() == [1, 5, 2]
    assert records.iterations["accepted_tokens"].tolist() == [0, 4, 4]


@pytest.mark.parametrize("scheduler", SPECULATING)
@pytest.mark.parametrize(("rate", "k"), [(0.3, 1), (0.6, 3), (0.8, 5), (0.95, 8)])
def test_tokens_per_step_match_the_closed_form(scheduler: str, rate: float, k: int) -> None:
    records = run(
        requests([400] * 60, gap_s=0.02),
        EngineConfig(max_num_seqs=32),
        speculation(rate, k),
        scheduler=scheduler,
    )
    steps = records.iterations["decode_seqs"].sum()
    measured = 1 + records.iterations["accepted_tokens"].sum() / steps
    expected = (1 - rate ** (k + 1)) / (1 - rate)
    survival = rate ** np.arange(1, k + 1)
    second_moment = (survival * (2 * np.arange(1, k + 1) - 1)).sum()
    deviation = np.sqrt((second_moment - survival.sum() ** 2) / steps)
    assert steps > 2500
    assert abs(measured - expected) < 4 * deviation


def test_a_trace_is_replayed_exactly() -> None:
    rows = (np.array([3, 0, 1]), np.array([2]))
    records = run(
        requests([12, 10, 9]),
        EngineConfig(max_num_seqs=1),
        speculation(k=3, acceptance=RecordedAcceptance(rows)),
        scheduler="chunked",
    )
    # Request 0: 1, then 4 + 1 + 2 + 4. Request 1: 1, then 3 + 3 + 3. Request 2 begins row 0 anew.
    decoded = records.iterations["decoded_tokens"].tolist()
    assert [tokens for tokens in decoded if tokens] == [4, 1, 2, 4, 3, 3, 3, 4, 1, 2, 1]
    accepted = records.iterations["accepted_tokens"][records.iterations["decode_seqs"] > 0]
    assert accepted.tolist() == [3, 0, 1, 3, 2, 2, 2, 3, 0, 1, 3]


def test_acceptance_does_not_depend_on_batch_policy_or_load() -> None:
    workload = requests([80, 120, 33, 64, 200], gap_s=0.3)
    steps = set()
    for scheduler in SPECULATING:
        for max_num_seqs in (1, 2, 8):
            config = EngineConfig(max_num_seqs=max_num_seqs)
            records = run(workload, config, speculation(0.7, 4), scheduler=scheduler)
            accepted = int(records.iterations["accepted_tokens"].sum())
            steps.add((int(records.iterations["decode_seqs"].sum()), accepted))
    assert len(steps) == 1
    other = run(workload, EngineConfig(), speculation(0.7, 4, seed=1), scheduler="chunked")
    assert (int(other.iterations["decode_seqs"].sum())) not in {step for step, _ in steps}


def test_tokens_of_one_step_share_their_time() -> None:
    # 1 + 5 + 5 tokens in three iterations: two gaps between portions, ten tokens over two steps.
    records = run(requests([11]), EngineConfig(), speculation(1.0, k=4), scheduler="chunked")
    durations = records.iterations["duration_s"]
    assert sorted(records.gaps_s.tolist()) == sorted(durations[1:].tolist())
    assert records.gap_weights.sum() == 2
    request = records.requests
    spoken_s = request["last_token_s"][0] - request["first_token_s"][0]
    assert spoken_s == pytest.approx(durations[1:].sum())


def test_blocks_are_allocated_ahead_and_slots_of_rejected_tokens_are_used_again() -> None:
    # Ten prompt tokens, four drafts that are never accepted, block size 4: the first verification
    # writes slots 10 to 14 (four blocks), each further one moves on by one slot.
    config = EngineConfig(block_size=4)
    speculated = run(requests([6]), config, speculation(0.0, k=4), scheduler="chunked").iterations
    held = 4000 - speculated["kv_free_tokens"]
    assert held.tolist() == [12, 16, 16, 20, 20, 20]
    ahead = speculation(0.0, k=4, lookahead_slots=4)
    held = (
        4000 - run(requests([6]), config, ahead, scheduler="chunked").iterations["kv_free_tokens"]
    )
    assert held.tolist() == [12, 20, 20, 24, 24, 24]
    assert speculated["kv_used_tokens"].tolist() == [10, 11, 12, 13, 14, 15]


def test_a_short_budget_cuts_the_last_drafts() -> None:
    # Three sequences of five query tokens and a budget of twelve: 5 + 5 + 2.
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=12)
    workload = requests([101] * 3, prompt=3)
    records = run(workload, config, speculation(1.0, k=4), scheduler="chunked").iterations
    full = records["decode_seqs"] == 3
    assert set(records["verified_tokens"][full]) == {12}
    assert set(records["accepted_tokens"][full]) == {9}
    assert set(records["decoded_tokens"][full]) == {12}
    # A tree cannot be cut: its sequence decodes plainly.
    tree = Speculation(
        "tree", DraftShape.tree((2, 1)), RandomAcceptance(np.array([1.0, 1.0]), seed=0)
    )
    records = run(workload, config, tree, scheduler="chunked").iterations
    full = records["decode_seqs"] == 3
    assert set(records["verified_tokens"][full]) == {11}
    assert set(records["accepted_tokens"][full]) == {4}


@pytest.mark.parametrize("scheduler", ["paged", "chunked"])
def test_a_preempted_sequence_goes_on_with_the_verifications_it_has_not_had(scheduler: str) -> None:
    rows = (np.array([0, 1, 2, 3]),)
    config = EngineConfig(block_size=4, max_num_seqs=8, max_num_batched_tokens=64)
    records = run(
        requests([60] * 6),
        config,
        speculation(k=3, acceptance=RecordedAcceptance(rows)),
        scheduler=scheduler,
        num_blocks=40,
    )
    assert records.requests["preemptions"].sum() > 0
    steps = records.iterations["decode_seqs"].sum()
    accepted = records.iterations["accepted_tokens"].sum()
    assert accepted / steps == pytest.approx(1.5, abs=0.1), "none is had twice or left out"


@pytest.mark.parametrize("scheduler", ["static", "dynamic"])
def test_batching_by_request_cannot_speculate(scheduler: str) -> None:
    with pytest.raises(ValueError, match="batches by iteration"):
        run(requests([5]), EngineConfig(), speculation(), scheduler=scheduler)


def test_without_speculation_the_policies_are_what_they_were() -> None:
    for name, policy in SCHEDULERS.items():
        assert scheduler_class(name, EngineConfig()) is policy
    assert speculating(SCHEDULERS["orca"]) is speculating(SCHEDULERS["orca"])


@pytest.mark.parametrize("scheduler", SPECULATING)
def test_who_comes_from_a_prefill_pool_has_no_drafts_to_verify_yet(scheduler: str) -> None:
    """The budget of 4 tokens lets four requests join at once, though each will verify 4 tokens."""
    config = EngineConfig(
        max_num_seqs=4, max_num_batched_tokens=4, block_size=4, speculation=speculation(k=3)
    )
    latency = SpeculativeLatency(LinearQueries(), FixedDraft(1.1e-3, 3))
    groups = [
        ReplicaGroup(1, config, latency, scheduler, 100, role=role)
        for role in ("prefill", "decode")
    ]
    records, _ = simulate_cluster(
        requests([12] * 4, prompt=4), groups, kv_link=KvLink(1e9), check=True
    )
    decoding = records.iterations["replica"] == 1
    first = {
        name: records.iterations[name][decoding][0] for name in ("decode_seqs", "verified_tokens")
    }
    assert first["verified_tokens"] == first["decode_seqs"]
    assert records.iterations["emitted"].sum() == 4 * 12


def test_speculating_replicas_of_a_cluster_fail_and_leap_as_they_step() -> None:
    config = replace(EngineConfig(max_num_seqs=8), speculation=speculation(0.6, 4))
    workload = requests([90, 40, 120, 77, 60, 33, 150, 20] * 3, gap_s=0.05)
    runs = []
    for leap in (True, False):
        latency = SpeculativeLatency(LinearQueries(), FixedDraft(1e-3, 4))
        group = ReplicaGroup(2, config, latency, "chunked", 200)
        failures = [Failure(0, 0.9, 0.4), Failure(1, 1.7, 0.2)]
        records, facts = simulate_cluster(
            workload, [group], failures=failures, leap=leap, check=True
        )
        assert facts.retries, "a failure met nobody"
        assert not records.requests["rejected"].any()
        runs.append(records)
    assert_same_records(*runs)
    first = runs[0].requests
    assert (first["last_token_s"] <= first["finished_s"]).all()
