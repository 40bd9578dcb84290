"""Under `chunked` the samples of a request are requests of their own, but for their client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.cluster.cluster import simulate_cluster
from sim.cluster.plan import ClusterFacts, Failure, KvLink, ReplicaGroup
from sim.engine.simulation import simulate
from sim.latency.protocol import FixedLatency
from sim.queues import QueueRules
from sim.records import Records
from sim.request import BeamSearch
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.sharing.schedulers import sampling
from sim.workload import PromptContent, Workload
from tests.sim.serving import LinearLatency, assert_same_records
from tests.sim.sharing.device_memory import DeviceMemory
from tests.sim.sharing.sampling import with_samples
from tests.sim.speculation import speculating

CONFIG = EngineConfig(block_size=4, max_num_batched_tokens=64)
AHEAD = pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "asynchronous"])


def asking(*samples: list[int], prompt: int = 10, at_s: float = 0.0, **columns: Any) -> Workload:
    """Requests that come one by one, `at_s` apart, for samples of these lengths."""
    count = len(samples)
    plain = Workload(np.arange(count) * at_s, np.full(count, prompt), np.ones(count, int))
    return replace(with_samples(plain, list(samples)), **columns)


def served(
    workload: Workload, config: EngineConfig = CONFIG, *, num_blocks: int = 100, leap: bool = True
) -> Records:
    """A second an iteration."""
    return simulate(
        workload, config, FixedLatency(1.0), scheduler="chunked", num_blocks=num_blocks, leap=leap,
        check=True,
    )  # fmt: skip


def clustered(
    workload: Workload, *groups: ReplicaGroup, **given: Any
) -> tuple[Records, ClusterFacts]:
    """Stepped and leapt, with the same records."""
    leapt, facts = simulate_cluster(workload, groups, check=True, **given)
    stepped, _ = simulate_cluster(workload, groups, check=True, leap=False, **given)
    assert_same_records(leapt, stepped)
    return leapt, facts


# -- seats and blocks -----------------------------------------------------------------------------


def test_each_sample_has_a_seat_of_its_own_and_those_without_one_wait() -> None:
    config = replace(CONFIG, max_num_seqs=2)
    records = served(asking([3, 3, 3]), config)
    assert records.iterations["num_seqs"].tolist() == [2, 2, 2, 1, 1, 1]
    assert records.iterations["running"].tolist() == [1] * 6, "one request, however many sequences"
    assert records.requests["finished_s"].tolist() == [6.0]


def test_a_request_ends_with_its_last_sample_and_is_one_row_of_the_records() -> None:
    records = served(asking([3, 12, 1, 7]))
    requests = {name: column.tolist() for name, column in records.requests.items()}
    assert requests["request"] == [0]
    assert (requests["samples"], requests["sampled_tokens"]) == ([4], [23])
    assert requests["output_tokens"] == [12], "the longest one's"
    assert (requests["scheduled_s"], requests["first_token_s"]) == ([0.0], [1.0])
    assert requests["last_token_s"] == requests["finished_s"] == [12.0]
    assert records.iterations["finished"].tolist() == [0] * 11 + [1]
    assert records.iterations["emitted"].tolist() == [4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("known", [False, True], ids=["any prompt", "known prompt"])
def test_later_samples_find_the_full_blocks_of_the_first(known: bool) -> None:
    content = PromptContent.from_lists([list(range(10))]) if known else None
    records = served(asking([5, 5, 5], content=content))
    # Ten tokens, of which two blocks of four are full: two are left for each of the others.
    assert records.iterations["prefill_tokens"].sum() == 10 + 2 + 2
    assert records.iterations["kv_shared_tokens"].tolist() == [2 * 8] * 5
    assert not records.iterations["copied_blocks"].any(), "nobody writes to a full block"
    assert records.requests["cached_tokens"].tolist() == [0], "the first one found nothing"


def test_without_the_prefix_cache_each_sample_computes_the_prompt() -> None:
    records = served(asking([5, 5, 5]), replace(CONFIG, enable_prefix_caching=False))
    assert records.iterations["prefill_tokens"].sum() == 3 * 10
    assert not records.iterations["kv_shared_tokens"].any()


def test_what_is_known_of_an_answer_is_the_first_samples() -> None:
    """A later turn repeats the first answer and finds its blocks, not those of the others."""
    first = list(range(18))  # a prompt of 10 tokens, an answer of 8
    content = PromptContent.from_lists([first, [*first, 90, 91]])
    plain = Workload(np.array([0.0, 50.0]), np.array([10, 20]), np.array([9, 2]), content=content)
    workload = with_samples(plain, [[9, 9, 9], [2]])
    assert served(workload).requests["cached_tokens"].tolist() == [0, 16]
    shorter = with_samples(plain, [[3, 9, 9], [2]])
    assert served(shorter).requests["cached_tokens"].tolist() == [0, 12]
    DeviceMemory(workload, CONFIG, scheduler="chunked", num_blocks=40).serve()


@AHEAD
def test_a_sample_is_preempted_alone(ahead: bool) -> None:
    config = replace(CONFIG, enable_prefix_caching=False, async_scheduling=ahead)
    records = served(asking([20, 20, 20], prompt=8), config, num_blocks=16)
    preempted = records.requests["preemptions"].tolist()[0]
    assert preempted == len(records.preemptions["request"]) > 0
    assert set(records.preemptions["request"]) == {0}, "the request as its client knows it"
    # While it waits the others go on.
    assert sorted(set(records.iterations["decode_seqs"].tolist())) == [0, 1, 2, 3]
    assert records.iterations["running"].tolist() == [1] * len(records.iterations["running"])
    assert records.iterations["emitted"].sum() == 60


def test_beams_fork_and_need_paged() -> None:
    with pytest.raises(ValueError, match="beam search needs scheduler paged"):
        sampling(SCHEDULERS["chunked"], beams=True)
    workload = with_samples(Workload(np.zeros(1), [8], [5]), [[5, 5]], BeamSearch())
    with pytest.raises(ValueError, match="beam search needs scheduler paged"):
        served(workload)


# -- clients --------------------------------------------------------------------------------------


@AHEAD
@pytest.mark.parametrize("leap", [True, False])
def test_a_client_is_free_when_all_samples_have_ended(leap: bool, ahead: bool) -> None:
    config = replace(CONFIG, async_scheduling=ahead)
    records = served(asking([2, 9, 4], [3, 3], max_concurrency=1), config, leap=leap)
    assert records.requests["arrival_s"].tolist() == [0.0, 9.0]


def test_a_full_queue_refuses_a_request_whole() -> None:
    rules = QueueRules(max_waiting=2)
    config = replace(CONFIG, max_num_seqs=1, queue=rules)
    # The second finds two of the first one's samples waiting; at 20 s all is over.
    arrivals = np.array([0.0, 0.5, 20.0])
    records = served(replace(asking([4, 4, 4], [2, 2], [2]), arrival_s=arrivals), config)
    assert records.requests["refused"].tolist() == [False, True, False]
    assert records.requests["finished_s"].tolist()[::2] == [12.0, 22.0]


def test_a_request_gives_up_whole_unless_one_of_its_samples_has_begun() -> None:
    config = replace(CONFIG, max_num_seqs=2, queue=QueueRules(max_wait_s=3.0))
    # Of the second request's samples one begins as the first request's shorter sample ends; the
    # other waits for longer than it would wait to begin. None of the third's ever begins.
    records = served(asking([2, 9], [12, 2], [3, 3], at_s=0.25), config)
    assert records.requests["gave_up"].tolist() == [False, False, True]
    assert records.requests["scheduled_s"].tolist()[1] == 2.0
    assert records.requests["finished_s"].tolist()[1] == 14.0
    assert len(records.requests["request"]) == 3


# -- clusters, speculation ------------------------------------------------------------------------


def many(seed: int = 5, requests: int = 40) -> Workload:
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(1, 40, rng.integers(1, 5)).tolist() for _ in range(requests)]
    plain = Workload(
        np.cumsum(rng.exponential(0.05, requests)),
        rng.integers(5, 60, requests),
        np.ones(requests, int),
    )
    return with_samples(plain, lengths)


@AHEAD
def test_samples_survive_the_failure_of_their_replica(ahead: bool) -> None:
    config = replace(CONFIG, max_num_seqs=12, async_scheduling=ahead)
    records, facts = clustered(
        many(), ReplicaGroup(3, config, LinearLatency(), "chunked", 150),
        router="least_kv", failures=[Failure(1, 0.9, 1.0), Failure(2, 1.5)],
    )  # fmt: skip
    assert facts.retries and not records.requests["rejected"].any()
    assert sorted(records.requests["request"].tolist()) == list(range(40))
    times = [records.requests[f"{name}_s"] for name in ("scheduled", "first_token", "last_token")]
    assert (times[0] < times[1]).all() and (times[1] <= times[2]).all()


def test_a_client_has_seen_what_was_lost_with_a_replica() -> None:
    config = replace(CONFIG, max_num_seqs=12)
    records, _ = clustered(
        asking([8, 8]), ReplicaGroup(2, config, FixedLatency(1.0), "chunked", 50),
        failures=[Failure(0, 4.5)],
    )  # fmt: skip
    assert records.requests["first_token_s"].tolist() == [1.0], "of the replica that failed"
    assert records.requests["finished_s"].tolist() == [12.5]
    assert records.requests["replica"].tolist() == [1]


@AHEAD
def test_one_cache_is_sent_for_all_samples(ahead: bool) -> None:
    config = replace(CONFIG, async_scheduling=ahead)
    workload = many()
    groups = [
        ReplicaGroup(2, config, LinearLatency(), "chunked", 150, role=role, kv_bytes_per_token=1e3)
        for role in ("prefill", "decode")
    ]
    records, facts = clustered(workload, *groups, kv_link=KvLink(1e6))
    assert workload.samples is not None
    assert facts.transfers == (workload.samples.longest > 1).sum()
    assert facts.transferred_bytes == 1e3 * workload.prompt_tokens[workload.output_tokens > 1].sum()
    assert not records.requests["rejected"].any()
    prefilled = records.iterations["replica"] < 2
    assert records.iterations["prefill_tokens"][prefilled].sum() == workload.prompt_tokens.sum()
    assert records.iterations["emitted"].sum() == records.requests["sampled_tokens"].sum()
    gaps = (records.requests["sampled_tokens"] - records.requests["samples"]).sum()
    assert records.gap_weights.sum() == gaps


def test_where_they_decode_samples_share_the_full_blocks_that_were_sent() -> None:
    groups = [
        ReplicaGroup(1, CONFIG, FixedLatency(1.0), "chunked", 60, role=role, kv_bytes_per_token=1.0)
        for role in ("prefill", "decode")
    ]
    records, _ = clustered(asking([5, 5, 1]), *groups, kv_link=KvLink(1e9))
    # Whatever their length, their first token comes from where they decode.
    assert records.iterations["replica"].tolist() == [0, 1, 1, 1, 1, 1]
    assert records.iterations["decode_seqs"].tolist() == [0, 0, 2, 2, 2, 2]
    assert records.iterations["emitted"].tolist() == [0, 3, 2, 2, 2, 2]
    assert records.iterations["kv_shared_tokens"].tolist() == [0, 16, 8, 8, 8, 8]


def test_a_failed_decode_replica_gives_its_samples_back_to_the_prefill_pool() -> None:
    groups = [
        ReplicaGroup(count, CONFIG, FixedLatency(1.0), "chunked", 60, role=role)
        for role, count in (("prefill", 1), ("decode", 2))
    ]
    records, facts = clustered(
        asking([6, 6, 6]), *groups, kv_link=KvLink(1e9), failures=[Failure(1, 3.5)]
    )
    assert facts.retries == {0: 1} and facts.transfers == 2
    # Each time the prompt, and where samples decode its last token for each of them.
    assert records.iterations["prefill_tokens"].sum() == 2 * (10 + 3)
    assert records.requests["finished_s"].tolist() == [3.5 + 1.0 + 6.0]


@pytest.mark.parametrize("leap", [True, False])
def test_samples_speculate_each_by_itself(leap: bool) -> None:
    def speculative(workload: Workload) -> Records:
        return speculating.run(
            workload, CONFIG, speculating.speculation(), scheduler="chunked", num_blocks=150,
            leap=leap,
        )  # fmt: skip

    records = speculative(many(requests=12))
    assert records.iterations["emitted"].sum() == records.requests["sampled_tokens"].sum()
    decodes = speculative(asking([30] * 4)).iterations["decode_seqs"]
    assert decodes.max() == 4 > decodes[-1], "equally long, they end at different times"
