"""Which scenarios have a front end, what is assumed of it, and what a result says about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reports.run.terminal import summary_table
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.forecast.provenance import latency_origins
from scenarios.schema.load import load_scenario
from sim.engine.front_end import FrontEnd

ASSUMED = FrontEnd(1, 1e-3, 1e-6, 30e-6, 2.4e-3)


def of(*settings: str) -> FrontEnd | None:
    scenario, origin = load_scenario(
        "quickstart", ["workload.num_requests=20", "latency.source=roofline", *settings]
    )
    return deploy(scenario, origin=origin).front_end


@pytest.mark.parametrize(
    ("generation", "expected"),
    [("vllm", ASSUMED), ("vllm-sync", ASSUMED), ("vllm-v0", None), ("orca", None)],
)
def test_a_generation_has_one_or_none(generation: str, expected: FrontEnd | None) -> None:
    assert of(f"engine.generation={generation}") == expected


def test_what_is_given_comes_before_what_is_assumed() -> None:
    given = of("frontend={api_server_count: 3, per_request_us: 50}")
    assert given == FrontEnd(3, 50e-6, 1e-6, 30e-6, 2.4e-3)
    assert of("engine.generation=orca", "frontend.latency_us=7") == FrontEnd(latency_s=7e-6)
    assert of("frontend.enabled=false", "frontend.latency_us=7") is None


def test_iterations_of_given_length_have_none_unless_asked() -> None:
    fixed = "latency={source: fixed, iteration_ms: 10}"
    assert of(fixed) is None
    assert of(fixed, "frontend.enabled=true") == ASSUMED
    assert of(fixed, "frontend.per_request_us=9") == FrontEnd(per_request_s=9e-6)


def test_negative_times_and_no_processes_are_refused() -> None:
    for setting in ("frontend.latency_us=-1", "frontend.api_server_count=0"):
        with pytest.raises(InputError, match=f"--set: {setting.split('=')[0]}: "):
            of(setting)


def test_every_result_says_what_was_assumed() -> None:
    scenario, origin = load_scenario(
        "quickstart",
        ["workload.num_requests=20", "latency.source=roofline", "frontend.latency_us=7"],
    )
    found = forecast(scenario, origin=origin)
    words = (
        "1 API server, 1000 µs a request, 1 µs a prompt token, 30 µs an output token (assumed); "
        "7 µs each way (given)"
    )
    assert found.summary["front_end"] == words
    assert f"Front end: {words}" in summary_table(found.summary).plain
    origins = {origin.part: origin for origin in latency_origins(found.deployment)}
    assert origins["Front end"].source == words
    assert not origins["Front end"].measured


def test_engines_times_are_kept_beside_the_clients() -> None:
    requests: dict[str, Any] = {}
    for enabled in ("true", "false"):
        scenario, origin = load_scenario(
            "quickstart",
            ["workload.num_requests=50", "latency.source=roofline", f"frontend.enabled={enabled}"],
        )
        requests[enabled] = forecast(scenario, origin=origin).records.requests
    behind, alone = requests["true"], requests["false"]
    np.testing.assert_array_equal(behind["arrival_s"], alone["arrival_s"])
    assert not any(name.startswith("engine_") for name in alone)
    for name in ("first_token_s", "last_token_s", "finished_s"):
        assert (behind[name] - behind[f"engine_{name}"] > 2.4e-3).all()
    assert (behind["engine_arrival_s"] - behind["arrival_s"] > 3.4e-3).all()


@pytest.mark.parametrize(
    ("generation", "microseconds", "each"),
    [("vllm", 1800, 0), ("vllm-sync", 450, 36), ("vllm-v0", 400, 3)],
)
def test_a_host_is_assumed_by_generation(generation: str, microseconds: float, each: float) -> None:
    scenario, origin = load_scenario(
        "quickstart", [f"engine.generation={generation}", "latency.source=roofline"]
    )
    host = getattr(deploy(scenario, origin=origin).latency, "host", None)
    assert host is not None
    assert host.per_iteration_s == microseconds / 1e6
    assert host.per_sequence_s == each / 1e6
    assert host.source.startswith("assumed")
