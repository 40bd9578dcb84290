"""Orders and limits of the waiting queue: what each promises, leaping as stepping."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.queues import ORDERS, FairQueue, QueueRules
from sim.records import Records
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.cluster.test_cluster import group, serve
from tests.sim.serving import POLICIES, assert_same_records, engines, run, workloads

CLASSES = ("chat", "batch", "eval")
GIVEN = {
    "priority": {"chat": 0, "batch": 2, "eval": 1},
    "deadline_s": {"chat": 0.2, "batch": 9.0, "eval": 1.0},
}


@st.composite
def rules(draw: st.DrawFn) -> QueueRules:
    return QueueRules(
        draw(st.sampled_from(ORDERS)),
        max_waiting=draw(st.sampled_from([None, None, 1, 3])),
        max_wait_s=draw(st.sampled_from([inf, inf, 0.05, 0.9])),
        **GIVEN,
    )


def labelled(workload: Workload) -> Workload:
    return replace(workload, labels=[CLASSES[i * 7 % 3] for i in range(len(workload))])


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=120, deadline=None)
@given(workload=workloads(), engine=engines(), rules=rules())
def test_leap_equals_step_in_every_order_and_within_every_limit(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int], rules: QueueRules
) -> None:
    if rules.order == "fair" and scheduler in ("static", "dynamic"):
        rules = replace(rules, order="priority")
    config, num_blocks = replace(engine[0], queue=rules), engine[1]
    workload = labelled(workload)
    both = [
        run(workload, config, scheduler=scheduler, num_blocks=num_blocks, leap=leap)
        for leap in (True, False)
    ]
    assert_same_records(*both)
    requests = both[0].requests
    assert len(requests["request"]) == len(workload), "every request ends exactly once"
    if rules.limits:
        turned_away = requests["refused"] | requests["gave_up"]
        assert not (turned_away & ~requests["rejected"]).any()
        assert not (requests["refused"] & requests["gave_up"]).any()
        assert np.isnan(requests["scheduled_s"][turned_away]).all()


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding"])
@settings(max_examples=40, deadline=None)
@given(workload=workloads(), engine=engines(), rules=rules())
def test_clusters_leap_as_they_step(
    router: str, workload: Workload, engine: tuple[EngineConfig, int], rules: QueueRules
) -> None:
    limited = replace(engine[0], queue=rules), engine[1]
    workload = labelled(workload)
    both = [
        serve(workload, [group(limited, "chunked", 2)], leap=leap, router=router)[0]
        for leap in (True, False)
    ]
    assert_same_records(*both)


def crowd(count: int = 60, **columns: object) -> Workload:
    """All at once, of unlike lengths."""
    rng = np.random.default_rng(5)
    return replace(
        Workload(
            np.zeros(count),
            rng.integers(5, 40, count),
            rng.integers(2, 60, count),
            labels=[CLASSES[i % 3] for i in range(count)],
        ),
        **columns,  # type: ignore[arg-type]
    )


def served(workload: Workload, rules: QueueRules | None, *, seats: int = 4) -> Records:
    config = EngineConfig(max_num_seqs=seats, max_num_batched_tokens=64, queue=rules)
    return run(workload, config, scheduler="chunked")


def test_the_order_is_that_of_its_key() -> None:
    workload = crowd()
    labels = np.array(workload.labels)
    keys = {
        "priority": np.array([GIVEN["priority"][name] for name in labels]),
        "earliest_deadline": np.array([GIVEN["deadline_s"][name] for name in labels]),
        "shortest_prompt": workload.prompt_tokens,
        "shortest_job": workload.output_tokens,
    }
    for order, key in keys.items():
        began_s = served(workload, QueueRules(order, **GIVEN)).requests["scheduled_s"]
        found = key[np.lexsort((key, began_s))]  # some begin together
        assert (np.diff(found) >= 0).all(), order


def test_the_shortest_job_first_waits_least_on_average() -> None:
    # With one seat and all work there, no order has a lower mean time in the system.
    workload = crowd()
    mean_s = {
        order: served(workload, QueueRules(order, **GIVEN), seats=1).requests["finished_s"].mean()
        for order in ORDERS
    }
    assert min(mean_s, key=lambda order: mean_s[order]) == "shortest_job"
    assert mean_s["shortest_job"] < 0.75 * mean_s["fcfs"]


def test_plain_order_without_limits_is_no_rule_at_all() -> None:
    assert_same_records(served(crowd(), None), served(crowd(), QueueRules()))


def test_a_preempted_request_of_low_priority_lets_others_pass() -> None:
    config = EngineConfig(
        max_num_seqs=8, max_num_batched_tokens=64, block_size=4, enable_prefix_caching=False
    )
    priority = QueueRules("priority", **GIVEN)
    workload = crowd(30)
    records = run(workload, replace(config, queue=priority), scheduler="chunked", num_blocks=40)
    assert records.requests["preemptions"].sum() > 0
    assert not records.requests["rejected"].any()


def test_who_finds_the_queue_full_is_refused() -> None:
    records = served(crowd(), QueueRules(max_waiting=10))
    requests = records.requests
    assert requests["refused"].tolist() == [False] * 10 + [True] * 50
    assert (requests["rejected"] == requests["refused"]).all()
    assert records.iterations["waiting"].max() <= 10


def test_who_has_waited_for_too_long_gives_up() -> None:
    limit_s = 1.0
    records = served(crowd(), QueueRules(max_wait_s=limit_s))
    requests = records.requests
    waited_s = requests["scheduled_s"] - requests["arrival_s"]
    assert requests["gave_up"].any() and not requests["refused"].any()
    assert np.nanmax(waited_s) < limit_s
    patient = served(crowd(), None).requests
    late = patient["scheduled_s"] - patient["arrival_s"] >= limit_s
    assert (requests["gave_up"] == late).all(), "nobody else leaves, and nobody gains by it here"


def test_a_client_hears_of_a_refusal_and_comes_again() -> None:
    workload = crowd(max_concurrency=6)
    records = served(workload, QueueRules(max_wait_s=0.3), seats=2)
    assert records.requests["gave_up"].any()
    assert len(records.requests["request"]) == len(workload)


def request(index: int, client: str, prompt: int = 10, output: int = 5) -> Request:
    return Request(index, 0.0, prompt, output, output, label=client)


def test_a_fair_queue_serves_who_got_least() -> None:
    queue = FairQueue()
    for index in range(40):  # a sends four times as much as b
        queue.append(request(index, "b" if index % 5 == 0 else "a"))
    first = Counter(queue.popleft().label for _ in range(16))
    assert first == {"a": 8, "b": 8}, "as long as both wait they are served alike"
    assert Counter(queue.popleft().label for _ in range(24)) == {"a": 24}
    assert len(queue) == 0


def test_fair_shares_are_of_tokens_not_of_requests() -> None:
    queue = FairQueue()
    for index in range(60):
        heavy = index % 2 == 0
        queue.append(request(index, "heavy" if heavy else "light", 90 if heavy else 20))
    charged = {"heavy": 0.0, "light": 0.0}
    for _ in range(40):
        one = queue.popleft()
        charged[one.label] += one.prompt_tokens + 2 * one.output_tokens
        # Theorem 4.4: never further apart than the largest request.
        assert abs(charged["heavy"] - charged["light"]) <= 100


def test_no_credit_is_saved_up_by_staying_away() -> None:
    queue = FairQueue()
    for index in range(20):
        queue.append(request(index, "a"))
    for _ in range(10):
        queue.popleft()
    for index in range(20, 40):
        queue.append(request(index, "b"))
    assert Counter(queue.popleft().label for _ in range(10)) == {"a": 5, "b": 5}


def test_a_preempted_request_is_not_charged_twice() -> None:
    queue = FairQueue()
    queue.append(request(0, "a"))
    queue.append(request(1, "b"))
    first = queue.popleft()
    queue.appendleft(first)
    assert queue.popleft().label == "b", "a has been charged"
    assert queue.popleft() is first
    queue.append(request(2, "a"))
    queue.append(request(3, "b"))
    assert queue.popleft().label == "a", "both were charged once"
