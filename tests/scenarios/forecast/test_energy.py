"""Energy of runs, plans and sizings: joules that add up, and what they cost."""

from typing import Any

import pytest

from orcast import plan, simulate, size
from scenarios import library
from sim.model.power import MEMORY_BOUND

H200 = library.gpu("h200-sxm")
assert H200.idle_watts is not None and H200.peak_watts is not None
IDLE_W, PEAK_W = H200.idle_watts, H200.peak_watts

FEW: dict[str, Any] = {"workload.num_requests": 60}


def test_a_run_tells_joules_and_electricity_as_estimated() -> None:
    summary = simulate(
        "quickstart", {**FEW, "electricity": {"usd_per_kwh": 0.2, "pue": 1.5}}
    ).summary
    found = summary["energy"]
    assert found["estimated"] is True
    assert IDLE_W < found["mean_watts"] < PEAK_W  # one GPU
    output = summary["total_output_tokens"]
    assert found["joules_per_output_token"] * output == pytest.approx(found["joules"])
    assert found["usd_per_hour"] == pytest.approx(found["mean_watts"] / 1000 * 1.5 * 0.2)
    million = found["joules_per_output_token"] * 1e6 / 3.6e6 * 1.5 * 0.2
    assert found["usd_per_million_output_tokens"] == pytest.approx(million)
    assert 0 < found["computing_share"] < found["busy_share"] <= 1


def test_energy_is_that_of_all_gpus_whoever_idles() -> None:
    one, two = (simulate("quickstart", {**FEW, "cluster.replicas": n}).summary for n in (1, 2))
    draws = [run["energy"]["mean_watts"] for run in (one, two)]
    assert 2 * IDLE_W < draws[1] < 2 * draws[0]
    slow = simulate("quickstart", {**FEW, "workload.arrivals.request_rate": 0.05}).summary["energy"]
    assert slow["busy_share"] < 0.5
    assert slow["joules_per_output_token"] > one["energy"]["joules_per_output_token"]


def test_prompts_draw_more_than_decodes() -> None:
    decodes = simulate("single-stream", {"workload.num_requests": 20}).summary["energy"]
    prompts = simulate(
        "offline-batch",
        {
            "workload.num_requests": 200,
            "workload.lengths.output": {"distribution": "fixed", "tokens": 1},
        },
    ).summary["energy"]
    low, high = (one["mean_watts"] / one["busy_share"] for one in (decodes, prompts))
    span = PEAK_W - IDLE_W
    assert low == pytest.approx(IDLE_W + MEMORY_BOUND * span, rel=0.1)
    assert high > IDLE_W + 0.7 * span


def test_leaping_draws_what_stepping_does() -> None:
    runs = [simulate("quickstart", FEW, step=step).summary["energy"] for step in (False, True)]
    assert runs[0] == runs[1]


def test_stages_of_a_pipeline_and_groups_are_counted_once() -> None:
    for scenario in ("pipeline-parallel", "heterogeneous", "disaggregated"):
        summary = simulate(scenario, {"workload.num_requests": 50}).summary
        assert 0 < summary["energy"]["busy_share"] <= 1, scenario
        assert summary["energy"]["mean_watts"] <= summary["cost"]["gpus"] * PEAK_W, scenario


def test_a_gpu_of_unknown_power_has_no_energy_and_ones_own_has() -> None:
    assert "energy" not in simulate("quickstart", {**FEW, "hardware.gpu": "trainium2"}).summary
    own = {"like": "trainium2", "idle_watts": 100, "peak_watts": 500}
    watts = simulate("quickstart", {**FEW, "hardware.gpu": own}).summary["energy"]["mean_watts"]
    assert 100 < watts < 500


def test_a_plan_tells_what_its_fleets_draw() -> None:
    asked: dict[str, Any] = {
        "plan.candidates.replicas": {"max": 8}, "workload.num_requests": 200,
        "plan.candidates.engine": {}, "plan.candidates.layouts": [{"tensor_parallel": 1}],
        "plan.candidates.gpus": ["h100-sxm", "l40s"], "plan.seeds": 3,
    }  # fmt: skip
    table = plan("plan-chat", asked).table
    known = table["status"].isin(["chosen", "meets"])
    assert known.any()
    for _, row in table[known].iterrows():
        gpu, count = library.gpu(row["gpu"]), row["replicas"] * row["gpus_per_replica"]
        assert gpu.idle_watts * count < row["mean_watts"] < gpu.peak_watts * count
        bill = row["mean_watts"] / 1000 * 1.2 * 0.1
        assert row["electricity_usd_per_hour"] == pytest.approx(bill)


def test_a_sizing_tells_what_training_and_serving_draw() -> None:
    summary = size(
        "budget-1e22",
        {
            "serving.gpus": ["h100-sxm"],
            "serving.tensor_parallel": [1],
            "serving.engine": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
            "over_training.sizes": [0.5],
        },
    ).summary
    found = summary["electricity"]
    hours = summary["training"]["cost"]["gpu_hours"]
    watts = found["training_joules"] / hours / 3600
    assert 70 < watts < 700
    assert found["training_usd"] == pytest.approx(hours * watts / 1000 * 1.2 * 0.1)
    assert 0 < found["serving_joules_per_token"] < 10
    bill = found["serving_joules_per_token"] / 3.6 * 1.2 * 0.1
    assert found["serving_usd_per_million_tokens"] == pytest.approx(bill)
