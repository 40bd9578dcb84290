"""Deciding an iteration ahead: what is hidden, who is seen when, leaping as stepping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from sim.batch import Batch
from sim.latency.overlapped import OverlappedLatency
from sim.latency.protocol import FixedLatency, HostOverhead
from sim.queues import QueueRules
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.serving import LinearLatency, assert_same_records, engines, run, workloads

CONFIG = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64, async_scheduling=True)
HOST_S = 0.25


class Hosted(LinearLatency):
    """Linear, of which a part is the host's."""

    host = HostOverhead(0.006, 0.0011, "test")


class OneSecond(FixedLatency):
    """The device takes a second, the host a quarter."""

    def __init__(self) -> None:
        super().__init__(1.0 + HOST_S)

    def host_s(self, num_seqs: int) -> float:
        return HOST_S


@pytest.mark.parametrize("scheduler", ["orca", "paged", "chunked"])
@settings(max_examples=120, deadline=None)
@given(workload=workloads(), engine=engines())
def test_leap_equals_step(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = replace(engine[0], async_scheduling=True), engine[1]
    both = [
        run(
            workload, config, scheduler=scheduler, num_blocks=num_blocks, leap=leap,
            latency=OverlappedLatency(Hosted()),  # type: ignore[arg-type]
        )
        for leap in (True, False)
    ]  # fmt: skip
    assert_same_records(*both)
    requests = both[0].requests
    assert len(requests["request"]) == len(workload)
    assert (
        both[0].iterations["emitted"].sum() == workload.output_tokens[~requests["rejected"]].sum()
    )


@pytest.mark.parametrize("order", ["priority", "shortest_job"])
@settings(max_examples=40, deadline=None)
@given(workload=workloads(), engine=engines())
def test_leap_equals_step_in_other_orders(
    order: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    rules = QueueRules(order, priority={"a": 1, "b": 0})
    config = replace(engine[0], async_scheduling=True, queue=rules)
    workload = replace(workload, labels=["ab"[i % 2] for i in range(len(workload))])
    both = [
        run(
            workload, config, scheduler="chunked", num_blocks=engine[1], leap=leap,
            latency=OverlappedLatency(Hosted()),  # type: ignore[arg-type]
        )
        for leap in (True, False)
    ]  # fmt: skip
    assert_same_records(*both)


def served(workload: Workload, *, ahead: bool = True, leap: bool = True) -> Records:
    config = replace(CONFIG, async_scheduling=ahead)
    latency = OverlappedLatency(OneSecond()) if ahead else OneSecond()
    return run(workload, config, scheduler="chunked", latency=latency, leap=leap)  # type: ignore[arg-type]


def one(*arrival_s: float, output: int = 10) -> Workload:
    count = len(arrival_s)
    return Workload(np.array(arrival_s), np.full(count, 8), np.full(count, output))


@pytest.mark.parametrize("leap", [True, False])
def test_only_the_first_iteration_after_a_pause_pays_for_the_host(leap: bool) -> None:
    records = served(one(0.0, 100.0), leap=leap)
    durations = records.iterations["duration_s"]
    assert np.allclose(durations[[0, 10]], 1.0 + HOST_S)
    assert np.allclose(np.delete(durations, [0, 10]), 1.0)
    plain = served(one(0.0, 100.0), ahead=False, leap=leap)
    assert np.allclose(plain.iterations["duration_s"], 1.0 + HOST_S)


def test_the_slower_of_host_and_device_counts() -> None:
    latency = OverlappedLatency(Hosted(base_s=0.004, per_token_s=0.0))
    batch = Batch(num_decodes=4, num_tokens=4, num_seqs=4, num_emitting=4, decided_ahead=True)
    host_s = 0.006 + 4 * 0.0011
    device_s = 0.004 - host_s  # less than nothing: the host alone decides
    assert latency.iteration_s(batch) == max(device_s, host_s) == host_s


def test_who_arrives_during_an_iteration_is_seen_by_the_decision_after_the_next() -> None:
    # Iterations begin at 0, 1.25, 2.25, 3.25, …; the one at 2.25 was decided at 1.25.
    # It emits as it ends, a second later.
    assert served(one(0.0, 1.5)).requests["first_token_s"][1] == pytest.approx(4.25)
    assert served(one(0.0, 1.25)).requests["first_token_s"][1] == pytest.approx(3.25)
    assert served(one(0.0, 1.5)).requests["scheduled_s"][1] == pytest.approx(2.25), "decided then"
    plain = served(one(0.0, 1.5), ahead=False)
    assert plain.requests["scheduled_s"][1] == pytest.approx(2.5)


def test_parts_add_up_to_what_is_not_hidden() -> None:
    latency = OverlappedLatency(_Parted())
    records = run(
        one(0.0, 0.4, 7.0),
        CONFIG,
        scheduler="chunked",
        latency=latency,  # type: ignore[arg-type]
    )
    parts = latency.parts_s(records.iterations)
    assert np.allclose(sum(parts.values()), records.iterations["duration_s"])
    assert (parts["host"] >= -1e-12).all() and parts["host"].sum() > 0
    assert np.isclose(parts["host"], 0.0).sum() > np.isclose(parts["host"], HOST_S).sum()


class _Parted(OneSecond):
    def parts_s(self, iterations):  # type: ignore[no-untyped-def]
        host_s = np.full(len(iterations["start_s"]), HOST_S)
        return {"device": iterations["duration_s"] - host_s, "host": host_s}


def test_ranks_that_share_out_sequences_share_out_the_hosts_work() -> None:
    """No more host time is hidden than an iteration has: none of its parts is negative."""
    settings = [
        "engine.async_scheduling=true", "workload.num_requests=60",
        "latency.host_overhead={per_iteration_us: 0, per_sequence_us: 50}",
    ]  # fmt: skip
    scenario, origin = load_scenario("expert-parallel", settings)
    found = forecast(scenario, origin=origin)
    assert found.summary["time_parts_s"]["host"] >= 0


def test_where_no_host_is_known_nothing_is_hidden() -> None:
    latency = OverlappedLatency(FixedLatency(1.0))
    records = run(one(0.0), CONFIG, scheduler="chunked", latency=latency)  # type: ignore[arg-type]
    assert np.allclose(records.iterations["duration_s"], 1.0)
    assert set(latency.parts_s(records.iterations)) == {"fixed"}


def figures(*settings: str) -> dict[str, Any]:
    scenario, origin = load_scenario("async-scheduling", ["workload.num_requests=600", *settings])
    return forecast(scenario, origin=origin).summary


def test_the_scenario_leaps_as_it_steps_and_gains() -> None:
    # A host that is always faster than the device: what waits for one is not told apart.
    given = (
        "workload.arrivals={process: all_at_once}",
        "latency.host_overhead.per_iteration_us=400",
    )
    ahead, plain = figures(*given), figures(*given, "engine.async_scheduling=false")
    assert ahead["output_throughput"] > 1.05 * plain["output_throughput"]
    assert ahead["time_parts_s"]["host"] < 0.05 * plain["time_parts_s"]["host"]
    for part in ("linear", "attention", "logits"):
        assert ahead["time_parts_s"][part] == pytest.approx(plain["time_parts_s"][part], rel=0.02)
    scenario, origin = load_scenario("async-scheduling", ["workload.num_requests=150"])
    both = [forecast(scenario, origin=origin, leap=leap).records for leap in (True, False)]
    assert_same_records(*both)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.scheduler=static"], "needs a scheduler that decides every iteration"),
    ],
)
def test_what_cannot_be_decided_ahead_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        figures(*settings)


def test_what_is_computed_again_is_found_whole_though_a_last_token_is_in_flight() -> None:
    prompts, outputs = np.array([4, 5]), np.array([9, 8])
    known = [list(range(100, 113)), list(range(200, 213))]
    workload = Workload(np.zeros(2), prompts, outputs, content=PromptContent.from_lists(known))
    config = replace(CONFIG, block_size=4, watermark=0.0)
    records = run(workload, config, scheduler="paged", num_blocks=6)
    assert records.requests["preemptions"].sum() > 0
    assert records.iterations["emitted"].sum() == 17
