"""The price of a million tokens, always busy and within objectives, and what is ruled out."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.plan.plan import plan
from scenarios.schema.load import load_scenario, parse_scenario
from scenarios.schema.sizing import Serving
from scenarios.sizing.serving_cost import FLOOR_SLACK, serving_cost
from scenarios.sizing.serving_plan import (
    FLEET,
    YEAR_S,
    model_file,
    ready_plan,
    service_figures,
    with_lifetime,
)
from scenarios.sizing.serving_price import RuledOut, ServingCost, cheapest, nearest_miss

CONFIG = library.model_config(library.model_path("llama-3.1-8b"))
# Short requests and a small batch, to be simulated quickly.
SMALL: dict[str, Any] = {
    "gpus": ["h100-sxm", "h200-sxm"],
    "tensor_parallel": [1, 2],
    "engine": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
    "lengths": {
        "prompt": {"distribution": "lognormal", "mean": 300, "sigma": 0.6, "max": 2000},
        "output": {"distribution": "lognormal", "mean": 40, "sigma": 0.5, "max": 200},
    },
}
SLO = {"ttft_ms": 150, "tpot_ms": 18, "percentile": 90}


def costs(**settings: Any) -> list[ServingCost | RuledOut]:
    settings = {"gpus": ["h100-sxm"], "tensor_parallel": [1]} | settings
    return serving_cost(CONFIG, Serving(**settings), name="llama-3.1-8b")


def cost(**settings: Any) -> ServingCost:
    """The only deployment, which can be."""
    (one,) = costs(**settings)
    assert isinstance(one, ServingCost)
    return one


def planned(folder: Path, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer to a plan made ready, from a file beside its model, and the chosen row."""
    (folder / model_file("sized-8b")).write_text(json.dumps(CONFIG))
    (folder / "plan.yaml").write_text(yaml.safe_dump(content))
    scenario, origin = load_scenario(str(folder / "plan.yaml"))
    answer = plan(scenario, origin=origin)
    (chosen,) = (row for row in answer["candidates"] if row["status"] == "chosen")
    return answer, chosen


# -- always busy -----------------------------------------------------------------------------------


def test_dollars_are_the_gpus_price_over_its_tokens() -> None:
    busy = cost()
    hour = library.gpu("h100-sxm").price_usd_per_hour
    assert busy.usd_per_million_tokens == pytest.approx(hour / 3600 / busy.tokens_per_s * 1e6)
    assert busy.usd_per_million_output_tokens > busy.usd_per_million_tokens
    assert (busy.load_share, busy.breaks, busy.replicas) == (1.0, "", None)


def test_a_long_closed_loop_has_the_same_rate() -> None:
    """Saturation another way: 256 clients that each ask again as soon as they are answered."""
    lengths = {
        "prompt": {"distribution": "uniform", "min": 256, "max": 768},
        "output": {"distribution": "uniform", "min": 96, "max": 288},
    }
    content = {
        "name": "closed",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h100-sxm"},
        "workload": {
            "arrivals": {"process": "all_at_once"},
            "lengths": lengths,
            "num_requests": 20_000,
            "max_concurrency": 256,
            "seed": 5,
            "sampling": "greedy",  # as of a model that no generation config goes with
        },
    }
    closed = forecast(parse_scenario(content, origin="test"))
    busy = cost(lengths=lengths)
    assert busy.tokens_per_s == pytest.approx(closed.summary["total_token_throughput"], rel=0.03)


def test_every_degree_that_holds_the_model_is_tried_cheapest_first() -> None:
    config = library.model_config(library.model_path("llama-2-13b"))
    serving = Serving(gpus=["rtx-4090", "h100-sxm"], tensor_parallel=[4, 2, 1])
    tried = serving_cost(config, serving, name="llama-2-13b")
    assert {(one.gpu, one.tensor_parallel) for one in tried} == {
        ("rtx-4090", 2), ("rtx-4090", 4), ("h100-sxm", 1), ("h100-sxm", 2), ("h100-sxm", 4),
    }, "26 GB do not fit on one RTX 4090"  # fmt: skip
    prices = [one.usd_per_million_tokens for one in tried if isinstance(one, ServingCost)]
    assert len(prices) == 5
    assert prices == sorted(prices)
    assert cheapest(tried) is tried[0]


# -- within objectives -----------------------------------------------------------------------------


def test_the_cheapest_within_objectives_is_the_plans_own_answer(tmp_path: Path) -> None:
    """The plan made ready finds the same deployment, goodput and price, all by itself."""
    serving = Serving(**SMALL, slo=SLO)
    tried = serving_cost(CONFIG, serving, name="sized-8b")
    best = cheapest(tried)
    assert best is not None
    content = ready_plan(serving, best, name="sized-8b")
    assert content is not None
    answer, chosen = planned(tmp_path, content)
    assert len(answer["candidates"]) == 4
    assert (chosen["gpu"], chosen["gpus_per_replica"]) == (best.gpu, best.tensor_parallel)
    assert chosen["goodput_low"] == pytest.approx(best.requests_per_s, rel=1e-9)
    assert chosen["breaks_first"] == best.breaks
    assert chosen["replicas"] == FLEET
    assert answer["load"]["request_rate"] == pytest.approx(FLEET * best.requests_per_s, rel=0.01)
    assert answer["load"]["request_rate"] <= FLEET * best.requests_per_s
    assert chosen["usd_per_million_tokens"] == pytest.approx(best.usd_per_million_tokens, rel=0.01)
    for one in tried:
        if isinstance(one, RuledOut):  # as the plan, which looks at every one, finds it
            (row,) = (
                row
                for row in answer["candidates"]
                if (row["gpu"], row["gpus_per_replica"]) == (one.gpu, one.tensor_parallel)
            )
            assert row["status"] == "meets"
            assert one.status == "dear"
            floor = one.floor_usd_per_million_tokens
            assert floor is not None
            assert row["usd_per_million_tokens"] > floor * (1 - FLOOR_SLACK)
            assert floor > best.usd_per_million_tokens
    assert any(isinstance(one, RuledOut) for one in tried), "two GPUs are never cheaper than one"


def test_an_objective_costs_more_than_a_deployment_that_is_always_busy() -> None:
    settings = {**SMALL, "gpus": ["h100-sxm"], "tensor_parallel": [1]}
    busy, strict = cost(**settings), cost(**settings, slo=SLO)
    tight = cost(**settings, slo=SLO | {"tpot_ms": 9})
    prices = [one.usd_per_million_tokens for one in (busy, strict, tight)]
    assert prices == sorted(prices)
    assert 1 > strict.load_share > tight.load_share > 0
    assert tight.breaks == "TPOT p90"
    assert tight.median_tpot_ms < 9
    assert strict.load_share == pytest.approx(strict.requests_per_s / busy.requests_per_s, rel=0.03)


def test_objectives_that_nothing_keeps_are_told_with_the_nearest_miss() -> None:
    tried = costs(**SMALL, slo={"tpot_ms": 1.5})
    assert cheapest(tried) is None
    nearest = nearest_miss(tried)
    assert nearest is tried[0]
    assert nearest.label == "2 x h200-sxm"
    assert nearest.reason.startswith("TPOT p99 is at best ")
    assert nearest.reason.endswith(" ms on an idle engine, the limit is 1.5 ms")
    misses = [one.miss for one in tried if isinstance(one, RuledOut) and one.miss is not None]
    assert len(misses) == 4
    assert misses == sorted(misses)
    assert misses[0] > 1


def test_a_degree_is_found_that_is_fast_enough_however_many_are_not() -> None:
    tried = costs(
        **SMALL | {"tensor_parallel": [1, 2, 4, 8], "gpus": ["h100-sxm"]}, slo={"tpot_ms": 3}
    )
    fast = [one.tensor_parallel for one in tried if isinstance(one, ServingCost)]
    assert fast and min(fast) >= 4
    assert {one.status for one in tried if isinstance(one, RuledOut)} <= {"idle", "no_load", "dear"}
    assert {one.tensor_parallel for one in tried} == {1, 2, 4, 8}


# -- a load of its own -----------------------------------------------------------------------------


def test_a_load_is_served_by_whole_replicas() -> None:
    settings = {**SMALL, "gpus": ["h100-sxm"], "tensor_parallel": [1]}
    alone = cost(**settings)
    tokens = 2.5 * alone.tokens_per_s * YEAR_S / 2  # in half a year: two and a half replicas
    fleet = cost(**settings, lifetime_tokens=tokens, years=0.5)
    assert fleet.replicas == 3
    assert fleet.fill == pytest.approx(2.5 / 3, rel=0.02), "lengths differ a little by run"
    usd = fleet.usd_per_million_tokens * tokens / 1e6
    assert usd == pytest.approx(3 * fleet.usd_per_hour * YEAR_S / 2 / 3600, rel=0.02)
    assert cost(**settings, lifetime_tokens=tokens).replicas is None


def test_the_load_is_the_tokens_of_a_life_over_its_seconds() -> None:
    service = service_figures(Serving(**SMALL, lifetime_tokens=1e12, years=2), origin=None)
    each = service["mean_prompt_tokens"] + service["mean_output_tokens"]
    assert service["request_rate"] * each * 2 * YEAR_S == pytest.approx(1e12)
    assert each == pytest.approx(340, rel=0.03)
    assert service["objectives"] == []


def test_whole_replicas_decide_as_the_plan_does(tmp_path: Path) -> None:
    """A little more than one H100 carries: one H200 is cheaper than two of them."""
    one = cost(**SMALL | {"gpus": ["h100-sxm"], "tensor_parallel": [1]}, slo=SLO)
    tokens = 1.1 * one.tokens_per_s * YEAR_S
    serving = Serving(**SMALL, slo=SLO, lifetime_tokens=tokens, years=1)
    best = cheapest(serving_cost(CONFIG, serving, name="sized-8b"))
    assert best is not None
    rate = service_figures(serving, origin=None)["request_rate"]
    content = ready_plan(serving, best, name="sized-8b", request_rate=rate)
    assert content is not None
    assert content["plan"]["load"] == {"request_rate": rate}
    assert "spread evenly over 1 year" in content["description"]
    _, chosen = planned(tmp_path, content)
    assert (chosen["gpu"], chosen["replicas"]) == (best.gpu, best.replicas) == ("h200-sxm", 1)
    assert chosen["usd_per_million_tokens"] == pytest.approx(best.usd_per_million_tokens)


def test_without_objectives_there_is_no_plan() -> None:
    assert ready_plan(Serving(**SMALL), cost(), name="sized-8b") is None


# -- what cannot be --------------------------------------------------------------------------------


def test_a_model_that_fits_nowhere_says_so() -> None:
    config = library.model_config(library.model_path("gpt-3-175b"))
    serving = Serving(gpus=["a100-40gb", "l40s"])
    tried = serving_cost(config, serving, name="gpt-3-175b")
    assert cheapest(tried) is None
    assert [one.tensor_parallel for one in tried] == [8, 8]
    assert "11 GPUs of that kind would do" in " ".join(
        one.reason for one in tried if isinstance(one, RuledOut)
    )


def test_a_cache_that_cannot_hold_one_request_is_no_deployment() -> None:
    (small,) = costs(engine={"num_gpu_blocks_override": 100})
    assert isinstance(small, RuledOut)
    assert "the KV cache holds 1,584 tokens, one request may need 6,144" in small.reason


def test_times_that_nobody_measured_are_refused_where_none_are_known() -> None:
    with pytest.raises(InputError, match=r"^sizing: serving\.latency: source aiconfigurator"):
        costs(latency={"source": "aiconfigurator"})


def test_a_rate_of_requests_is_the_tokens_of_those_years() -> None:
    serving = with_lifetime(Serving(**SMALL, request_rate=7.5, years=2), origin=None)
    assert serving.lifetime_tokens is not None
    assert service_figures(serving, origin=None)["request_rate"] == pytest.approx(7.5)


def test_years_need_something_to_be_served_in_them() -> None:
    with pytest.raises(ValueError, match="years need lifetime_tokens"):
        Serving(years=1)


def test_the_same_seed_costs_the_same() -> None:
    settings = {**SMALL, "gpus": ["h100-sxm"]}
    assert costs(**settings, slo=SLO) == costs(**settings, slo=SLO)
