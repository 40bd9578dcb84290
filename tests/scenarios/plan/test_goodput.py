"""The highest load that keeps the objectives, against queues whose answer is a formula."""

import numpy as np
import pytest

from scenarios.plan.exploration import deploy_engine
from scenarios.plan.goodput import Goodput, find_goodput
from scenarios.plan.objectives import Objective
from scenarios.plan.probe import run_sample, run_saturated
from scenarios.plan.replications import Replications
from tests.scenarios.plan.planning import DeterministicServer, deterministic_server_load, small


def searched(server: DeterministicServer, **changed: float) -> Goodput:
    given = {"seeds": 5, "requests": 1000, "confidence": 0.95, "tolerance": 0.01} | changed
    return find_goodput(server.trial, server.fill, server.objectives, **given)  # type: ignore[arg-type]


def one_by_one(objectives: tuple[Objective, ...], *settings: str, requests: int) -> Goodput:
    """The simulator itself as an M/D/1 server: one row, 10 ms an iteration, one token a request."""
    scenario = small(
        "latency={source: fixed, iteration_ms: 10}",
        "engine.max_num_seqs=1",
        "workload.lengths.prompt={distribution: fixed, tokens: 8}",
        "workload.lengths.output={distribution: fixed, tokens: 1}",
        *settings,
    )
    deployment = deploy_engine(scenario, origin=None, compose=None)
    runs = Replications(scenario.workload, scenario.engine, None, 5)
    return find_goodput(
        lambda rate, seed, count, ahead: run_sample(
            deployment,
            runs.at_unit_rate(seed, count).scaled(1 / rate),
            objectives,
            head_start=ahead,
        ),
        lambda seed, count: run_saturated(deployment, runs.at_unit_rate(seed, count)),
        objectives,
        seeds=5,
        requests=requests,
        confidence=0.95,
        tolerance=0.01,
    )


@pytest.mark.parametrize("scheduler", ["static", "orca", "chunked"])
@pytest.mark.parametrize(("limit", "share"), [(3.0, 0.9), (5.0, 0.99)])
def test_goodput_of_a_deterministic_server_is_erlangs_within_its_interval(
    scheduler: str, limit: float, share: float
) -> None:
    objectives = (Objective("ttft", (limit + 1) * 0.01, 100 * share),)
    found = one_by_one(objectives, f"engine.scheduler={scheduler}", requests=1500)
    expected_per_s = deterministic_server_load(limit, share) / 0.01
    assert found.low_per_s <= expected_per_s <= found.high_per_s
    assert found.high_per_s - found.low_per_s < 0.3 * expected_per_s, "an interval that says much"
    assert found.rate_per_s == pytest.approx(expected_per_s, rel=0.08)


@pytest.mark.parametrize(("limit", "share"), [(3.0, 0.9), (8.0, 0.9), (5.0, 0.99), (12.0, 0.99)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(limit: float, share: float) -> None:
    # 40 times 95 %: fewer than 32 would be a chance of one in a thousand at 92 %.
    expected = deterministic_server_load(limit, share)
    found = [searched(DeterministicServer(number, limit, share)) for number in range(40)]
    held = sum(one.low_per_s <= expected <= one.high_per_s for one in found)
    assert held >= 32
    estimates = np.array([one.rate_per_s for one in found])
    error = estimates.std(ddof=1) / 40**0.5
    assert abs(estimates.mean() - expected) < 4 * error + 0.005, "all but free of bias"


def test_more_confidence_is_a_wider_interval_about_the_same_estimate() -> None:
    found = {
        confidence: searched(DeterministicServer(7, 3.0, 0.9), confidence=confidence)
        for confidence in (0.6, 0.95, 0.999)
    }
    assert len({one.rate_per_s for one in found.values()}) == 1
    widths = [one.high_per_s - one.low_per_s for one in found.values()]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_a_finer_tolerance_is_a_narrower_bracket() -> None:
    for tolerance in (0.2, 0.05, 0.005):
        found = searched(DeterministicServer(3, 3.0, 0.9), tolerance=tolerance)
        assert found.kept is not None
        assert found.broken is not None
        assert 1 < found.broken.rate_per_s / found.kept.rate_per_s <= 1 + tolerance + 1e-9
        assert found.kept.stress <= 1 < found.broken.stress


def test_a_few_loads_are_enough() -> None:
    server = DeterministicServer(1, 5.0, 0.99)
    found = searched(server)
    assert len(found.probes) <= 10
    assert len(server.tried) <= 10 * 5 + 5


def test_a_loose_limit_is_not_a_licence_to_let_the_queue_grow() -> None:
    # An hour of waiting is allowed, and no run is an hour long: what is served is the limit.
    found = one_by_one((Objective("ttft", 3600.0, 99),), requests=500)
    assert found.broken is None
    assert found.rate_per_s == pytest.approx(100.0, rel=1e-9)
    assert found.high_per_s <= 100.0 + 1e-6
    assert found.low_per_s > 95


def test_a_limit_on_time_between_tokens_alone_does_not_exceed_what_is_served() -> None:
    scenario = small("latency={source: fixed, iteration_ms: 10}", "engine.max_num_seqs=4")
    deployment = deploy_engine(scenario, origin=None, compose=None)
    runs = Replications(scenario.workload, scenario.engine, None, 3)
    objectives = (Objective("tpot", 0.015, 99),)
    found = find_goodput(
        lambda rate, seed, count, ahead: run_sample(
            deployment, runs.at_unit_rate(seed, count).scaled(1 / rate), objectives
        ),
        lambda seed, count: run_saturated(deployment, runs.at_unit_rate(seed, count)),
        objectives,
        seeds=3,
        requests=400,
        confidence=0.95,
        tolerance=0.02,
    )
    # Four rows, a token each per 10 ms, 40 tokens a request: 10 requests/s.
    assert found.rate_per_s == pytest.approx(400 / 40, rel=0.06)
    assert found.broken is None


def test_a_limit_below_the_service_time_is_met_by_no_load() -> None:
    found = one_by_one((Objective("ttft", 0.005, 90),), requests=300)
    assert found.rate_per_s == found.high_per_s == 0.0
    assert found.kept is None
    assert found.broken is not None
    assert found.broken.rate_per_s < 0.1, "tried down to next to nothing"
    assert found.broken.at_rank_s[0] == pytest.approx(0.01)


def test_runs_are_longer_where_requests_may_wait_longer() -> None:
    patient = searched(DeterministicServer(1, 60.0, 0.9), requests=200)
    assert patient.requests > 200
    assert patient.settled
    capped = searched(DeterministicServer(1, 60.0, 0.9), requests=200, most_requests=200)
    assert capped.requests == 200
    assert not capped.settled
