"""The queue scenarios: what each is there to show, and what a queue refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from tests.sim.serving import assert_same_records

FCFS = "engine.scheduling_policy=fcfs"


def summary(name: str, *settings: str, requests: int = 4000) -> dict[str, Any]:
    scenario, origin = load_scenario(name, [f"workload.num_requests={requests}", *settings])
    return forecast(scenario, origin=origin).summary


@pytest.mark.parametrize(
    "name",
    [
        *("priority-classes", "shortest-job-first", "fair-sharing", "admission-control"),
        *("offline-batch", "single-stream"),
    ],
)
def test_a_queue_scenario_leaps_as_it_steps(name: str) -> None:
    scenario, origin = load_scenario(name, ["workload.num_requests=150"])
    both = [forecast(scenario, origin=origin, leap=leap) for leap in (True, False)]
    assert_same_records(both[0].records, both[1].records)


def test_priority_helps_one_class_at_the_other_ones_cost() -> None:
    first, plain = summary("priority-classes"), summary("priority-classes", FCFS)
    chat, batch = (
        [run["classes"][name]["p95_ttft_ms"] for run in (first, plain)]
        for name in ("chat", "batch")
    )
    assert chat[0] < 0.5 * chat[1]
    assert batch[0] > batch[1]
    assert first["total_output_tokens"] == plain["total_output_tokens"]


def test_deadlines_lie_between_priority_and_order_of_arrival() -> None:
    orders = ("priority", "earliest_deadline", "fcfs")
    runs = [summary("priority-classes", f"engine.scheduling_policy={order}") for order in orders]
    chat = [run["classes"]["chat"]["p95_ttft_ms"] for run in runs]
    assert chat[0] < chat[1] < chat[2]


def test_short_jobs_first_shorten_the_mean() -> None:
    short, plain = summary("shortest-job-first"), summary("shortest-job-first", FCFS)
    assert short["mean_e2el_ms"] < 0.7 * plain["mean_e2el_ms"]
    assert short["p99_e2el_ms"] > plain["p99_e2el_ms"], "somebody pays for it"


def test_a_fair_queue_protects_modest_clients_from_a_greedy_one() -> None:
    fair, plain = summary("fair-sharing"), summary("fair-sharing", FCFS)
    for name in ("modest", "small"):
        ours, theirs = (run["classes"][name]["mean_ttft_ms"] for run in (fair, plain))
        assert ours < 0.2 * theirs
    assert fair["output_throughput"] == pytest.approx(plain["output_throughput"], rel=0.05)


def test_a_bounded_queue_serves_more_in_time() -> None:
    bounded = summary("admission-control")
    endless = summary("admission-control", "engine.max_num_waiting=null")
    assert bounded["refused"] > 0 and bounded["gave_up"] == 0
    assert bounded["request_goodput"] > 1.5 * endless["request_goodput"]
    assert "refused" in " ".join(bounded["warnings"]) and "refused" not in endless


def test_a_single_stream_never_waits() -> None:
    run = summary("single-stream", requests=50)
    assert run["peak_running"] == 1 and run["mean_queue_ms"] == 0.0


def test_classes_of_a_trace_have_priorities_too(tmp_path: Path) -> None:
    at = "2023-11-16 18:15:46.6805900"
    rows = [f"{at},{100 + i},20,{'gold' if i % 4 == 0 else 'free'}" for i in range(40)]
    trace = tmp_path / "tiers.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens,tier", *rows]) + "\n")
    settings = [
        "workload.lengths=null", "workload.arrivals=null", "workload.num_requests=null",
        f"workload.trace={trace}", "workload.class_column=tier", "engine.max_num_seqs=2",
        "engine.scheduling_policy=priority", "workload.class_priority={gold: 0, free: 5}",
    ]  # fmt: skip
    scenario, origin = load_scenario("quickstart", settings)
    classes = forecast(scenario, origin=origin).summary["classes"]
    assert classes["gold"]["mean_ttft_ms"] < 0.5 * classes["free"]["mean_ttft_ms"]


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("quickstart", "engine.scheduling_policy=priority", "tells requests apart by class"),
        ("quickstart", "engine.scheduling_policy=fair", "tells requests apart by class"),
        ("quickstart", "engine.scheduling_policy=lifo", "'lifo' is not known"),
        ("quickstart", "engine.max_num_waiting=0", "engine.max_num_waiting"),
        ("priority-classes", "workload.class_priority={chat: 0}", "'batch' has none"),
        ("fair-sharing", "engine.scheduler=static", "fair needs a scheduler"),
    ],
)
def test_what_a_queue_cannot_do_is_refused(name: str, setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        scenario, origin = load_scenario(name, ["workload.num_requests=20", setting])
        forecast(scenario, origin=origin)


def test_a_class_that_does_not_occur_is_told() -> None:
    given = "workload.class_priority={chat: 0, batch: 1, chta: 2}"
    run = summary("priority-classes", given, requests=50)
    assert any("class_priority.chta: no request" in text for text in run["warnings"])
