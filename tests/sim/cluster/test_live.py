"""Requests that nobody knows before they come, clients that leave: one schedule, however told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf

import numpy as np
import pytest

from sim.batch import Batch
from sim.cluster.cluster import Cluster, simulate_cluster
from sim.cluster.plan import Failure, KvLink, ReplicaGroup
from sim.engine.engine import Engine, Tokens
from sim.engine.front_end import FrontEnd
from sim.engine.simulation import simulate
from sim.records import Records
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from sim.workload.live import LiveSource
from sim.workload.samples import Samples
from tests.sim.serving import LinearLatency, assert_same_records


class Heard:
    """Counts and times of all tokens, and who has ended."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.times_s: dict[int, list[float]] = {}
        self.over: list[Request] = []

    def iteration(self, engine: Engine, batch: Batch, tokens: Tokens) -> None:
        for request, count in tokens:
            if count > self.counts.get(request.index, 0):
                self.counts[request.index] = count
                self.times_s.setdefault(request.index, []).append(batch.emission.seen_s)

    def ended(self, requests: Sequence[Request], now_s: float) -> None:
        self.over += requests

    def lost(self, requests: Sequence[Request], now_s: float) -> None:
        pass


def load(seed: int, count: int = 60, *, several: bool = False) -> Workload:
    """Requests with prompts that repeat each other; more than one in three clients leave."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(0.05, count))
    prompts, outputs = rng.integers(1, 70, count), rng.integers(1, 40, count)
    ids = [[int(rng.integers(2))] * 9 for _ in range(count)]
    samples = None
    if several:
        counts = rng.integers(1, 4, count)
        samples = Samples(counts, rng.integers(1, 40, counts.sum()))
        outputs = samples.longest
    return Workload(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=prompts,
        output_tokens=outputs,
        max_tokens=outputs + rng.integers(0, 9, count),
        content=PromptContent.from_lists(ids, unit_tokens=8, known_tokens=prompts),
        samples=samples,
        leaves_s=np.where(
            rng.random(count) < 0.4, arrival_s + rng.exponential(1.0, count), inf
        ),
    )  # fmt: skip


def live(
    load: Workload, groups: Sequence[ReplicaGroup], failures: Sequence[Failure], **given: object
) -> tuple[Records, Workload, Heard]:
    """Serve it as it comes, telling nobody what will come."""
    size = groups[0].config.block_size
    source = LiveSource(size, several=load.samples is not None, keep=True)
    heard = Heard()
    cluster = Cluster(source, groups, leap=False, check=True, listener=heard, **given)  # type: ignore[arg-type]
    for failure in failures:
        cluster.plan_failure(failure)
    known: dict[int, Request] = {}
    leaves_s = load.arrival_s + inf if load.leaves_s is None else load.leaves_s
    events = [(at, False, i) for i, at in enumerate(load.arrival_s.tolist())]
    events += [(at, True, i) for i, at in enumerate(leaves_s.tolist()) if at < inf]
    for at_s, leaving, number in sorted(events):
        cluster.clock.advance(at_s)
        if leaving:
            source.leaves(known[number], at_s)
            cluster.clock.at(at_s, 0, partial(cluster.cancel, known[number]))
        else:
            lengths = [int(load.output_tokens[number])]
            if load.samples is not None:
                first, stop = load.samples.offsets[number : number + 2]
                lengths = load.samples.output_tokens[first:stop].tolist()
            assert load.content is not None
            known[number] = source.push(
                at_s,
                prompt_tokens=int(load.prompt_tokens[number]),
                output_tokens=lengths,
                max_tokens=int(load.max_tokens[number]),
                block_hashes=load.content.block_hashes(number, size, 1 << 20),
            )
            cluster.expect_arrival()
        cluster.clock.advance(at_s)
    source.close()
    cluster.clock.run()
    return cluster.records(), source.workload, heard


def group(scheduler: str, replicas: int = 2, blocks: int = 40, **more: object) -> ReplicaGroup:
    ahead = bool(more.pop("ahead", False))
    config = EngineConfig(
        max_num_seqs=6, max_num_batched_tokens=32, block_size=4, async_scheduling=ahead
    )
    return ReplicaGroup(replicas, config, LinearLatency(), scheduler, blocks, **more)  # type: ignore[arg-type]


POOLS = (
    group("chunked", 1, role="prefill", kv_bytes_per_token=1e6),
    group("chunked", 2, role="decode", kv_bytes_per_token=1e6),
)
CASES = {
    "static": ((group("static"),), [], {}, False),
    "orca": ((group("orca"),), [], {}, False),
    "paged": ((group("paged"),), [], {}, True),
    "chunked": ((group("chunked", front_end=FrontEnd(1, 0.01, 1e-4, 1e-3, 2e-3)),), [], {}, False),
    "ahead": ((group("chunked", 1, 34, ahead=True),), [], {}, True),
    "failures": ((group("chunked"),), [Failure(1, 1.0, 0.5), Failure(0, 1.2)], {}, False),
    "pools": (POOLS, [Failure(1, 1.1, 0.4)], {"kv_link": KvLink(3e8, 0.01)}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_served_as_it_comes_is_what_is_simulated_of_it_afterwards(case: str) -> None:
    groups, failures, given, several = CASES[case]
    asked = load(11, several=several)
    records, again, heard = live(asked, groups, failures, **given)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "max_tokens", "leaves_s"):
        np.testing.assert_array_equal(getattr(again, name), getattr(asked, name))
    for leap in (False, True):
        simulated, _ = simulate_cluster(
            again, groups, failures=failures, leap=leap, check=True, **given
        )
        assert_same_records(records, simulated)
    requests = records.requests
    assert 0 < requests["cancelled"].sum() < len(asked)
    assert sorted(one.index for one in heard.over) == list(range(len(asked)))
    if not several:
        for row in np.flatnonzero(~requests["rejected"]).tolist():
            number = int(requests["request"][row])
            assert heard.counts[number] == requests["output_tokens"][row]
            assert heard.times_s[number][0] == requests["first_token_s"][row]
            assert heard.times_s[number][-1] == requests["last_token_s"][row]


def test_a_cluster_of_one_replica_serves_what_a_replica_alone_does() -> None:
    asked = load(7)
    asked = Workload(asked.arrival_s, asked.prompt_tokens, asked.output_tokens, asked.max_tokens,
                     content=asked.content)  # fmt: skip
    one = group("chunked", 1)
    records, again, _ = live(asked, (one,), [])
    assert again.leaves_s is None
    del records.requests["retries"]
    alone = simulate(again, one.config, one.latency, scheduler="chunked", num_blocks=one.num_blocks)
    assert_same_records(records, alone)


def test_blocks_of_a_client_that_left_are_free() -> None:
    source, heard = LiveSource(4), Heard()
    cluster = Cluster(source, [group("chunked", 1)], leap=False, listener=heard)
    allocator = cluster.replicas[0].allocator
    request = source.push(0.0, prompt_tokens=30, output_tokens=[120], max_tokens=120)
    waiting = source.push(0.0, prompt_tokens=140, output_tokens=[9], max_tokens=9)
    cluster.expect_arrival()
    cluster.clock.advance(1.0)
    assert allocator.num_free < allocator.num_blocks and cluster.replicas[0].num_waiting == 1
    cluster.cancel(request, 1.0)
    cluster.clock.advance(1.2)
    assert heard.over == [request] and heard.counts[waiting.index] > 0, "the other is served"
    cluster.clock.advance(9.0)
    assert allocator.num_free == allocator.num_blocks
    assert heard.over == [request, waiting]
