"""Bounds that rule a deployment out: no simulation is ever better than they say."""

import pytest

from scenarios.plan.ceiling import SLACK, Engines, ceiling
from scenarios.plan.exploration import deploy_engine
from scenarios.plan.objectives import Objective
from scenarios.plan.probe import run_sample, run_saturated
from scenarios.plan.replications import Replications
from tests.scenarios.plan.planning import small

OBJECTIVES = (
    Objective("ttft", 1.0, 90),
    Objective("tpot", 1.0, 50),
    Objective("e2el", 1.0, 75),
)


@pytest.mark.parametrize("scheduler", ["static", "dynamic", "orca", "paged", "chunked"])
@pytest.mark.parametrize("gpu", ["l40s", "h200-sxm"])
@pytest.mark.parametrize("seqs", [1, 8, 256])
def test_no_policy_serves_more_than_the_ceiling_or_answers_sooner_than_alone(
    scheduler: str, gpu: str, seqs: int
) -> None:
    scenario = small(
        f"hardware.gpu={gpu}",
        f"engine.scheduler={scheduler}",
        f"engine.max_num_seqs={seqs}",
    )
    deployment = deploy_engine(scenario, origin=None, compose=None)
    runs = Replications(scenario.workload, scenario.engine, None, 2)
    requests = max(200, 5 * seqs)
    workload = runs.at_unit_rate(0, requests)
    bounds = ceiling([Engines(deployment, 1, "both")], workload, OBJECTIVES)
    served = run_saturated(deployment, workload)
    assert served.rate_per_s <= bounds.requests_per_s * (1 + SLACK)
    lonely = run_sample(deployment, workload.scaled(100.0), OBJECTIVES)
    for one, idle_s, values in zip(OBJECTIVES, bounds.idle_s, lonely.latencies_s, strict=True):
        # The bound is over all requests, the run judges its middle part of the same lengths.
        assert idle_s <= one.at_rank(values) * 1.25, one.name
        assert idle_s > 0


def test_the_ceiling_is_close_where_batches_are_full_of_decodes() -> None:
    scenario = small("workload.lengths.prompt={distribution: fixed, tokens: 1}")
    deployment = deploy_engine(scenario, origin=None, compose=None)
    workload = Replications(scenario.workload, scenario.engine, None, 2).at_unit_rate(0, 400)
    bounds = ceiling([Engines(deployment, 1, "both")], workload, OBJECTIVES)
    served = run_saturated(deployment, workload)
    assert served.rate_per_s > 0.75 * bounds.requests_per_s


def test_prompts_that_may_be_cached_have_no_lowest_ttft() -> None:
    prefixes = "workload.shared_prefixes={num_prefixes: 1, tokens: 256}"
    cached, forgetful = (
        small(prefixes, f"engine.enable_prefix_caching={caching}") for caching in ("true", "false")
    )
    idle = []
    for scenario in (cached, forgetful):
        deployment = deploy_engine(scenario, origin=None, compose=None)
        workload = Replications(scenario.workload, scenario.engine, None, 2).at_unit_rate(0, 200)
        idle.append(ceiling([Engines(deployment, 1, "both")], workload, OBJECTIVES).idle_s)
    assert idle[0][0] == idle[0][2] == 0.0
    assert idle[0][1] == idle[1][1] > 0
    assert idle[1][0] > 0
