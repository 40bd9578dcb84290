"""What a plan searches where asked: pools, speculation, degrees, precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reports.plan.report import plan_report
from reports.plan.words import over_time
from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.plan.candidates import candidates_of
from scenarios.plan.ceiling import SLACK, ceiling
from scenarios.plan.deploying import to_deploy
from scenarios.plan.exploration import Task, deploy_engine, engines_of
from scenarios.plan.objectives import objectives_of
from scenarios.plan.plan import plan
from scenarios.plan.probe import run_sample, run_saturated
from scenarios.plan.replications import Replications
from scenarios.plan.target import Target
from scenarios.schema.load import parse_scenario
from scenarios.schema.scenario import Scenario
from tests.scenarios.plan.planning import small

NGRAM = "speculation={method: ngram, num_draft_tokens: 3, acceptance: {rate: 0.7}}"
POOLS = (
    "cluster.groups=[{replicas: 1, role: prefill, name: first},"
    " {replicas: 2, role: decode, name: next, hardware: {gpu: l40s}}]",
    "cluster.kv_link={bandwidth_gb_per_s: 50}",
)
ANALYTIC = "latency.source=roofline"


def labels(*settings: str) -> list[str]:
    return [one.label for one in candidates_of(small(*settings))]


def test_every_combination_that_is_asked_for_is_a_candidate() -> None:
    assert labels(NGRAM, "plan.search=[pools, speculation]") == [
        "h100-sxm", "h100-sxm ngram k=3",
        "2x h100-sxm 1P+1D", "2x h100-sxm 1P+1D ngram k=3",
        "3x h100-sxm 1P+2D", "3x h100-sxm 1P+2D ngram k=3",
        "3x h100-sxm 2P+1D", "3x h100-sxm 2P+1D ngram k=3",
    ]  # fmt: skip
    assert labels("plan.search=[tensor_parallel, weight_dtype]")[:3] == [
        "h100-sxm weight_dtype=auto",
        "h100-sxm weight_dtype=fp8",
        "2x h100-sxm tp2 weight_dtype=auto",
    ]
    own = "plan.candidates.pools=[null, {prefill: 3, decode: 5}]"
    assert labels(own) == labels(own, "plan.search=[pools]") == ["h100-sxm", "8x h100-sxm 3P+5D"]


def test_what_the_scenario_has_is_planned_with_even_where_nothing_is_asked() -> None:
    (unit,) = candidates_of(small(*POOLS, NGRAM))
    assert unit.label == "3x h100-sxm 1P+2D" and unit.gpus_per_replica == 3
    assert unit.price_usd_per_hour == pytest.approx(3.0 + 2 * 0.86, abs=0.5)  # an H100, two L40S
    assert unit.scenario is not None and unit.scenario.speculation is not None
    assert labels(*POOLS, "plan.search=[pools]") == ["h100-sxm", "3x h100-sxm 1P+2D"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("plan.search=[speculation]",), "the scenario has none to try"),
        (("plan.search=[max_num_seqs]", "plan.candidates.engine={max_num_seqs: [8]}"), "keep one"),
        (("plan.search=[tensor_parallel]", "plan.candidates.layouts=[{tensor_parallel: 1}]"),
         "keep one"),
        (("plan.candidates.pools=[same]",), "the scenario has no pools"),
        (("plan.candidates.speculation=[same]",), "the scenario has no speculation"),
    ],
)  # fmt: skip
def test_a_search_for_what_is_not_there_is_refused(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        labels(*settings)


def task_of(scenario: Scenario) -> Task:
    (candidate,) = candidates_of(scenario)
    assert scenario.plan is not None
    runs = Replications(scenario.workload, scenario.engine, None, 3)
    found = objectives_of(scenario, origin="small")
    return Task(candidate, scenario.plan, found, Target(1.0), runs, None, None)


@pytest.mark.parametrize("settings", [POOLS, (NGRAM,)], ids=["pools", "speculation"])
def test_a_unit_never_serves_more_than_its_ceiling(settings: tuple[str, ...]) -> None:
    task = task_of(small(ANALYTIC, *settings))
    assert task.candidate.scenario is not None
    deployment = deploy_engine(task.candidate.scenario, origin=None, compose=None)
    work = task.replications.at_unit_rate(0, 400)
    bounds = ceiling(engines_of(deployment, task), work, task.objectives)
    full = run_saturated(deployment, work)
    assert 0.4 * bounds.requests_per_s < full.rate_per_s <= bounds.requests_per_s * (1 + SLACK)
    alone = run_sample(deployment, work.scaled(50.0), task.objectives)
    for values, idle_s, one in zip(alone.latencies_s, bounds.idle_s, task.objectives, strict=True):
        assert one.at_rank(values) >= idle_s * (1 - SLACK)


def test_two_units_carry_twice_the_load_of_one() -> None:
    task = task_of(small(ANALYTIC, *POOLS))
    assert task.candidate.scenario is not None
    deployment = deploy_engine(task.candidate.scenario, origin=None, compose=None)
    rate = run_saturated(deployment, task.replications.at_unit_rate(0, 400)).rate_per_s
    work = task.replications.at_unit_rate(0, 600)
    one, two = (
        run_sample(
            deployment,
            work.scaled(1 / (0.5 * units * rate)),
            task.objectives,
            replicas=units,
        )
        for units in (1, 2)
    )
    first, second = (float(np.mean(sample.latencies_s[0])) for sample in (one, two))
    assert second == pytest.approx(first, rel=0.3)
    assert one.watts == pytest.approx(two.watts, rel=0.1)


def test_pools_that_are_chosen_come_with_a_command_for_each() -> None:
    answer = plan(
        small(ANALYTIC, "plan.candidates.pools=[{prefill: 1, decode: 2}]", "plan.seeds=3",
              "plan.requests=100", "plan.tolerance=0.5")
    )  # fmt: skip
    (row,) = answer["candidates"]
    deployed = answer["to_deploy"]
    assert row["gpus"] == 3 * row["replicas"]
    prefill, first, decode, next_ = deployed["vllm"].splitlines()
    assert prefill == f"# prefill, {row['replicas']} of:"
    assert decode == f"# decode, {2 * row['replicas']} of:"
    assert "NixlConnector" in first and "NixlConnector" in next_
    assert "--disaggregation-mode prefill" in deployed["sglang"]
    names = [
        one["metadata"]["name"] for one in deployed["kubernetes"] if one["kind"] == "Deployment"
    ]
    assert names == ["llama-3-1-8b-prefill", "llama-3-1-8b-decode"]
    assert "router" in deployed["notes"][0]
    again = parse_scenario(deployed["scenario"] | {"plan": None}, origin="chosen")
    assert again.cluster.num_replicas == 3 * row["replicas"]
    assert forecast(again).summary["slo_met"]


def test_a_unit_of_pools_is_served_as_one_over_a_varying_load(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    rows = [f"2023-11-16 18:00:{k / 5:09.6f},300,40" for k in range(300)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    answer = plan(
        small(ANALYTIC, "plan.candidates.pools=[{prefill: 1, decode: 2}]", "plan.seeds=3",
              "plan.requests=100", "plan.tolerance=0.5",
              f"plan.load={{trace: {path}, window_s: 20, growth: 5}}")
    )  # fmt: skip
    (row,) = answer["candidates"]
    served = answer["over_time"]
    assert served["off"]["replicas"] == [row["replicas"]] * len(served["needed"])
    assert served["off"]["kept"], "two engines decode and one prefills, as was planned"
    assert served["on"] is served["autoscaling"] is None
    words = " ".join(over_time(answer))
    assert "come and go are not simulated" in words
    assert "replicas-over-time" in plan_report(answer)


def test_speculation_is_in_the_commands_that_have_a_flag_for_it() -> None:
    (candidate,) = candidates_of(small(NGRAM))
    assert candidate.scenario is not None
    told = to_deploy(candidate.scenario, gpus=1, replicas=1, serving=1, rate_per_s=1.0)
    assert (
        '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 3}\'' in told["vllm"]
    )
    other = small("speculation={method: jacobi, num_draft_tokens: 3, acceptance: {rate: 0.5}}")
    (candidate,) = candidates_of(other)
    assert candidate.scenario is not None
    told = to_deploy(candidate.scenario, gpus=1, replicas=1, serving=1, rate_per_s=1.0)
    assert "--speculative-config" not in told["vllm"] and "jacobi" in told["notes"][0]


def test_what_cannot_be_split_into_pools_loses_with_its_reason() -> None:
    answer = plan(
        small(ANALYTIC, "plan.candidates.pools=[null, {}]", "engine.scheduler=dynamic",
              "slo={e2el_ms: 9000, percentile: 90}", "plan.seeds=3", "plan.requests=100",
              "plan.tolerance=0.5")
    )  # fmt: skip
    rows = {row["label"]: row for row in answer["candidates"]}
    lost = rows["2x h100-sxm 1P+1D"]
    assert lost["status"] == "refused" and "cannot be split" in lost["reason"]
