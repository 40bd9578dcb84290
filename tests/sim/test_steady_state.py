"""What is left of a run without its warm-up and its cool-down."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.steady_state import settled_from
from tests.orcast.command_line import orcast

LOAD = [
    "--set", "workload.num_requests=40",
    "--set", "workload.arrivals={process: constant, request_rate: 2}",
    "--set", "latency={source: fixed, iteration_ms: 10}",
]  # fmt: skip


def summary(tmp_path: Path, *settings: str) -> dict[str, Any]:
    words = [part for one in settings for part in ("--set", one)]
    outcome = orcast("run", "quickstart", *LOAD, *words, "--json", "--out", tmp_path / "run")
    assert outcome.status == 0, outcome
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def test_a_steady_state_has_the_requests_between_warm_up_and_cool_down(tmp_path: Path) -> None:
    steady = summary(tmp_path, "metrics.warmup_s=5", "metrics.cooldown_s=2.5")["steady_state"]
    assert (steady["from_s"], steady["until_s"]) == (5.0, 17.0)
    assert steady["requests"] == steady["completed"] == 25  # one each half second, both ends
    assert steady["mean_ttft_ms"] > 0
    assert "slo_attainment" in steady


def test_of_a_run_without_warm_up_nothing_is_left_out(tmp_path: Path) -> None:
    found = summary(tmp_path)
    assert "steady_state" not in found
    nearly = summary(tmp_path, "metrics.warmup_s=1e-9")
    assert nearly["steady_state"]["requests"] == 39
    assert nearly["mean_ttft_ms"] == pytest.approx(found["mean_ttft_ms"])


def test_a_warm_up_longer_than_the_run_leaves_nothing(tmp_path: Path) -> None:
    steady = summary(tmp_path, "metrics.warmup_s=500")["steady_state"]
    assert steady["requests"] == 0
    assert steady["mean_ttft_ms"] is None
    shown = orcast(
        "run", "quickstart", *LOAD, "--set", "metrics.warmup_s=500", "--out", tmp_path / "a"
    )
    assert "Steady state: no request in it" in shown.stdout


def test_a_warm_up_is_found_where_a_series_settles() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, 500)
    assert settled_from(5.0 + noise) in range(50)
    begun = settled_from(5.0 - 4.0 * np.exp(-np.arange(500) / 20) + noise)
    assert begun is not None
    assert 40 <= begun <= 120
    assert settled_from(np.arange(500.0)) is None  # it grows to the end
    assert settled_from(np.ones(12)) is None  # too short to say
