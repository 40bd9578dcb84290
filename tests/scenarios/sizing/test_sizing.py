"""From a budget to a model and its cost: the parts agree with each other and with the laws."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios import library
from scenarios.sizing.load import load_sizing
from scenarios.sizing.scaling_law import LAWS
from scenarios.sizing.sizing import Sized, size
from scenarios.sizing.training import cost_of_flops

ONE = ("serving.gpus=[l40s]", "serving.tensor_parallel=[1]")
LIGHT = (*ONE, "serving.slo={}", "over_training.sizes=[0.6,0.4,0.2]")
NO_SERVING = ("serving=null", "over_training.sizes=[0.5]")


@cache
def sized(*settings: str, name: str | None = "budget-1e22") -> Sized:
    sizing, origin = load_sizing(name, settings)
    return size(sizing, origin=origin)


def test_the_budget_is_spent_whole_by_the_compute_optimal_model() -> None:
    first = sized(*NO_SERVING).rows[0]
    assert 6 * first["activated_parameters"] * first["tokens"] == pytest.approx(1e22)
    assert first["training_flops"] == pytest.approx(1e22)
    best = LAWS["chinchilla"].optimum(1e22)
    assert first["activated_parameters"] == pytest.approx(best.parameters, rel=0.03)
    assert first["loss"] == pytest.approx(best.loss, rel=1e-4)


def test_a_budget_in_dollars_is_what_training_then_costs() -> None:
    summary = sized("budget.usd=50000", *NO_SERVING).summary
    assert summary["candidates"][0]["training_usd"] == pytest.approx(50_000)
    gpu = library.gpu("h100-sxm")
    cost = cost_of_flops(summary["budget"]["flops"], gpu, gpus=64, mfu=0.4)
    assert cost.usd == pytest.approx(50_000)


def test_every_candidate_reaches_the_same_loss_with_more_training() -> None:
    rows = sized(*LIGHT).rows
    assert len(rows) == 4
    losses = [row["loss"] for row in rows]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)
    sizes = [row["activated_parameters"] for row in rows]
    flops = [row["training_flops"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert flops == sorted(flops)
    at_budget = [row["loss_at_budget"] for row in rows]
    assert at_budget == sorted(at_budget), "with the budget alone the optimum is the best"


def test_money_adds_up() -> None:
    for row in sized(*LIGHT).rows:
        serving_usd = row["usd_per_million_tokens"] * 2e12 / 1e6
        assert row["serving_usd"] == pytest.approx(serving_usd)
        assert row["lifetime_usd"] == pytest.approx(row["training_usd"] + serving_usd)
        hours = row["training_days"] * 24 * 64
        assert row["training_gpu_hours"] == pytest.approx(hours)


def test_the_answer_is_the_cheapest_over_its_life() -> None:
    result = sized(*LIGHT)
    answer, beyond = result.summary["answer"], result.summary["beyond_budget"]
    assert beyond["lifetime_usd"] == min(row["lifetime_usd"] for row in result.rows)
    assert answer["training_usd"] == pytest.approx(result.summary["budget"]["usd"])
    (row,) = (row for row in result.rows if row["model"] == answer["model"] == beyond["model"])
    assert answer["loss"] == row["loss_at_budget"] > beyond["loss"] == row["loss"]
    assert answer["lifetime_usd"] == pytest.approx(row["lifetime_usd_at_budget"])
    assert answer["activated_parameters"] < result.rows[0]["activated_parameters"]
    assert not answer["compute_optimal"]
    spec = dataclasses.asdict(library.model("llama-3.1-8b"))
    assert spec.keys() >= {"hidden_size"}
    assert result.config["hidden_size"] == answer["hidden_size"]


def test_the_more_is_served_the_smaller_the_answer() -> None:
    answers = [
        sized(*LIGHT, f"serving.lifetime_tokens={tokens}").summary["answer"]
        for tokens in ("1e9", "2e12", "1e14")
    ]
    assert answers[0]["compute_optimal"]
    sizes = [answer["activated_parameters"] for answer in answers]
    assert sizes[0] > sizes[1] > sizes[2]


def test_without_lifetime_tokens_prices_are_known_and_totals_are_not() -> None:
    result = sized(*LIGHT, "serving.lifetime_tokens=null")
    assert result.summary["answer"]["compute_optimal"]
    assert result.rows[0]["usd_per_million_tokens"] > 0
    assert result.rows[0]["lifetime_usd"] is None
    assert "lifetime_optimum" not in result.summary


def test_an_objective_makes_over_training_pay_more() -> None:
    """Large models are nearer to a limit on latency: they lose more of their rate to it."""
    busy, strict = (
        sized(*ONE, f"serving.slo={slo}", "over_training.sizes=[0.4]")
        for slo in ("{}", "{tpot_ms: 30, percentile: 95}")
    )
    dearer = [
        one["usd_per_million_tokens"] / other["usd_per_million_tokens"]
        for one, other in zip(strict.rows, busy.rows, strict=True)
    ]
    assert dearer[0] > 2 * dearer[1] > 2
    assert [row["load_share"] for row in busy.rows] == [1.0, 1.0]
    assert strict.rows[0]["load_share"] < strict.rows[1]["load_share"] < 1
    assert strict.summary["answer"]["model"] == "sized-3b"
    assert strict.summary["service"]["objectives"] == [{"name": "TPOT p95", "limit_ms": 30}]
    assert strict.summary["plan"]["model"] == "sized-3b.json"
    assert busy.summary["plan"] is None


def test_objectives_that_nothing_keeps_are_an_answer_with_the_nearest_miss() -> None:
    result = sized(*ONE, "serving.slo={tpot_ms: 4}", "over_training.sizes=[0.2]")
    assert all(row["lifetime_usd"] is None for row in result.rows)
    assert result.summary["answer"]["compute_optimal"]
    assert result.summary["plan"] is None
    (note,) = (one for one in result.summary["notes"] if "no deployment" in one)
    assert note.startswith(
        "sized-7.43b: no deployment can serve it: none keeps the objectives; the nearest miss is "
        "1 x l40s: TPOT p99 is at best "
    )
    assert note.endswith(" ms on an idle engine, the limit is 4 ms")


def test_any_number_of_jobs_gives_the_same_sizing() -> None:
    sizing, origin = load_sizing("budget-1e22", LIGHT)
    told: list[tuple[int, int]] = []
    spread = size(sizing, origin=origin, jobs=2, progress=lambda *done: told.append(done))
    assert spread.summary == sized(*LIGHT).summary
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_model_too_small_for_the_loss_says_why_it_is_no_answer() -> None:
    rows = sized("serving=null", "over_training.sizes=[0.2,0.01]").rows
    assert "no number of tokens brings it to a loss of 2.0788" in rows[-1]["reason"]
    assert rows[-1]["tokens"] is None
    limited = sized("serving=null", "over_training.sizes=[0.2]", "over_training.max_tokens=1e12")
    assert "over_training.max_tokens is 1e+12" in limited.rows[-1]["reason"]


@pytest.mark.parametrize("law", ["chinchilla", "chinchilla-unrounded", "besiroglu", "kaplan"])
def test_every_law_sizes(law: str) -> None:
    summary = sized(f"law={law}", *NO_SERVING).summary
    best = LAWS[law].optimum(1e22)
    assert summary["law"]["name"] == law
    assert summary["laws"][0]["law"] == law
    assert summary["optimum"]["parameters"] == pytest.approx(best.parameters)
    assert summary["candidates"][0]["training_flops"] == pytest.approx(1e22)
    assert summary["candidates"][0]["loss"] == pytest.approx(best.loss, rel=1e-3)


def test_kaplan_counts_parameters_without_embeddings() -> None:
    first = sized("law=kaplan", *NO_SERVING).rows[0]
    embedding = 2 * 128_256 * first["hidden_size"]
    counted = first["parameters"] - embedding
    assert counted == pytest.approx(LAWS["kaplan"].optimum(1e22).parameters, rel=0.03)
    assert 6 * counted * first["tokens"] == pytest.approx(1e22)


def test_a_law_fitted_to_runs_beside_the_file_comes_with_intervals(tmp_path: Path) -> None:
    law = LAWS["besiroglu"]
    n, d = np.geomspace(1e8, 5e9, 4), np.geomspace(2e9, 2e11, 4)
    lines = [f"{a:.6g},{b:.6g},{float(law.loss(a, b)):.6f}" for a in n for b in d]
    (tmp_path / "runs.csv").write_text("parameters,tokens,loss\n" + "\n".join(lines))
    file = tmp_path / "mine.yaml"
    file.write_text(
        "budget: {flops: 1e22}\nlaw: {form: chinchilla, runs: runs.csv, bootstrap: 2}\n"
        "over_training: {sizes: [0.5]}\n"
    )
    summary = sized(name=str(file)).summary
    assert summary["law"]["num_runs"] == 16
    assert summary["law"]["mean_error"] < 1e-5
    low, high = summary["law"]["optimum_intervals"]["parameters"]
    assert low <= summary["optimum"]["parameters"] * 1.001
    assert high >= summary["optimum"]["parameters"] * 0.999
    assert summary["optimum"]["parameters"] == pytest.approx(law.optimum(1e22).parameters, rel=0.02)


def test_coefficients_of_ones_own_are_a_law() -> None:
    own = "law={form: chinchilla, coefficients: {a: 406.4, alpha: 0.34, b: 410.7, beta: 0.28, "
    summary = sized(own + "irreducible: 1.69}}", *NO_SERVING).summary
    assert summary["law"]["name"] == "own"
    assert summary["optimum"]["parameters"] == pytest.approx(5.16e9, rel=0.01)


def test_experts_are_sized_by_what_a_token_activates() -> None:
    settings = ["shape.num_experts=64", "shape.experts_per_token=8", *NO_SERVING]
    result = sized(*settings, "shape.expert_width_ratio=0.25")
    first = result.rows[0]
    assert first["activated_parameters"] == pytest.approx(7.43e9, rel=0.03)
    assert first["parameters"] > 4 * first["activated_parameters"]
    assert any("fitted to dense models" in note for note in result.summary["notes"])


def model_of(*settings: str) -> dict[str, Any]:
    return sized(*settings, name=None).summary


def test_a_known_model_is_described_without_a_budget() -> None:
    summary = model_of("model=llama-3.1-8b")
    assert summary["model"]["parameters"]["total"] == 8_030_261_248
    assert summary["answer"]["tokens"] is None
    assert len(summary["inference"]) == len(library.gpus()) - 1
    assert "budget" not in summary


def test_a_known_model_with_tokens_has_a_loss_and_a_cost() -> None:
    """Llama 2 7B, 2 trillion tokens: 184,320 A100 hours (Touvron et al. 2023, table 2)."""
    summary = model_of(
        "model=llama-2-7b", "tokens=2e12", "training.gpu=a100-80gb", "training.mfu=0.39"
    )
    assert summary["answer"]["training_gpu_hours"] == pytest.approx(184_320, rel=0.01)
    assert summary["answer"]["loss"] == pytest.approx(1.98, rel=0.01)


def test_gpt_3_in_half_precision_needs_ten_a100_40gb_to_hold_and_two_nodes_to_serve() -> None:
    summary = model_of("model=gpt-3-175b", "serving.gpus=[a100-40gb]")
    (row,) = summary["inference"]
    held, served = row["gpus_for_weights"], row["tensor_parallel"]
    assert (held, served) == (10, 16), "a group of 12 would straddle nodes of eight"
    assert row["kv_cache_tokens"] > 10_000
    assert any("no deployment can serve it" in note for note in summary["notes"])


def test_training_that_does_not_fit_says_how_many_gpus_would_do() -> None:
    notes = model_of("model=llama-3.1-405b", "training.gpus=8")["notes"]
    assert any("training does not fit on 8 x h100-sxm" in note for note in notes)
    least = model_of("model=llama-3.1-405b", "training.gpus=8")["training"]["memory"]["least_gpus"]
    assert any(f"{least} such GPUs would do" in note for note in notes)
    enough = model_of("model=llama-3.1-405b", f"training.gpus={least}")
    assert enough["training"]["memory"]["fits"]
    never = model_of("model=llama-3.1-405b", "training.gpus=8", "training.zero_stage=0")["notes"]
    assert any("no number of them does" in note for note in never)


def test_a_sizing_is_repeatable_to_the_last_bit() -> None:
    sizing, origin = load_sizing("budget-1e22", LIGHT)
    assert size(sizing, origin=origin).summary == size(sizing, origin=origin).summary


def test_a_resolved_sizing_is_a_sizing_again() -> None:
    from scenarios.schema.sizing import Sizing

    sizing, _ = load_sizing("budget-1e22", LIGHT)
    assert Sizing.model_validate(sizing.model_dump(mode="json")) == sizing
