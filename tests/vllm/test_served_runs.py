"""Fed the arrivals and step durations of real runs of vLLM, Orcast decides what vLLM decided."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vllm import served
from tests.vllm.compare import orcast_differs
from tests.vllm.figure import figure
from tests.vllm.runs import MODES, Compared, show
from tests.vllm.served import FILE, Served

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=MODES)
def run(request: pytest.FixtureRequest) -> Served:
    return served.read()[request.param]


def test_orcast_schedules_a_real_run_as_vllm_did(run: Served) -> None:
    assert orcast_differs(run.workload(), run.schedule()) is None


def test_the_runs_are_long_and_their_caches_small() -> None:
    for mode, run in served.read().items():
        one = Compared.of(run)
        assert run.limits["async_scheduling"] == MODES[mode]
        assert one.in_flight == (2 if MODES[mode] else 1)
        assert one.requests >= 500
        assert one.steps >= 1000
        assert one.preemptions >= 50
        assert one.hits >= 100
        assert one.woken >= 5
    assert FILE.stat().st_size < 150_000


def test_answers_ended_before_their_limit_and_conversations_went_on(run: Served) -> None:
    requests = run.requests
    assert sum(one.output_tokens < one.max_tokens for one in requests) >= 100
    assert sum(len(one.prompt) > 2 for one in requests) >= 50


def test_a_batch_was_decided_while_another_was_computed_only_if_asynchronous() -> None:
    for mode, run in served.read().items():
        ahead = 0
        results = [turn.result for turn in run.turns if turn.result is not None]
        decisions = [turn.decided for turn in run.turns if turn.tokens]
        for decided, before in zip(decisions[1:], results, strict=False):
            ahead += decided < before
        assert (ahead > 0.8 * len(decisions)) if MODES[mode] else ahead == 0


def test_the_documentation_has_the_figures_of_the_runs_that_are_kept() -> None:
    page = (ROOT / "docs" / "reference" / "vllm-schedules.md").read_text(encoding="utf-8")
    both = [Compared.of(served.read()[mode]) for mode in MODES]
    for what in (
        f"| requests | {both[0].requests} | {both[1].requests} |",
        f"| steps | {both[0].steps:,} | {both[1].steps:,} |",
        f"| seconds that the run took | {both[0].seconds:.1f} | {both[1].seconds:.1f} |",
        f"| preemptions | {both[0].preemptions} | {both[1].preemptions} |",
        f"prefix in the cache | {both[0].hits} | {both[1].hits} |",
        f" {both[1].launches} launches",
    ):
        assert what in page


def test_a_run_survives_a_file(run: Served) -> None:
    assert Served.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_what_the_simulator_is_told_is_needed(run: Served) -> None:
    workload, schedule = run.workload(), run.schedule()
    slower = tuple(duration + (at == 100) for at, duration in enumerate(workload.durations))
    assert orcast_differs(replace(workload, durations=slower), schedule) is not None
    sent = tuple(
        replace(one, at=served.ticks(request.arrived))
        for one, request in zip(workload.requests, run.requests, strict=True)
    )
    assert orcast_differs(replace(workload, requests=sent), schedule) is not None


def test_a_difference_is_shown(run: Served, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = run.turns
    tampered = replace(run, turns=(replace(first, free_blocks=first.free_blocks - 1), *others))
    assert show({"kept": run})
    assert not show({"tampered": tampered})
    said = capsys.readouterr().out
    assert "| all |" in said and "| not all |" in said
    assert "tampered: step 0" in said and "leaves free blocks" in said


def test_the_runs_have_a_picture(tmp_path: Path) -> None:
    figure(tmp_path / "runs.html", served.read())
    page = (tmp_path / "runs.html").read_text(encoding="utf-8")
    assert "free KV blocks" in page and "Orcast, ms" in page
