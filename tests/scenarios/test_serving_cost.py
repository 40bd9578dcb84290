"""The price of a million tokens under saturation, and what is ruled out."""

from typing import Any

import pytest

from scenarios import library
from scenarios.forecast import forecast
from scenarios.load import parse_scenario
from scenarios.serving_cost import RuledOut, ServingCost, cheapest, serving_cost
from scenarios.sizing_schema import Serving

CONFIG = library.model_config(library.model_path("llama-3.1-8b"))


def costs(**settings: Any) -> list[ServingCost | RuledOut]:
    settings = {"gpus": ["h100-sxm"], "tensor_parallel": [1]} | settings
    return serving_cost(CONFIG, Serving(**settings), name="llama-3.1-8b")


def test_dollars_are_the_gpus_price_over_its_tokens() -> None:
    (cost,) = costs()
    assert isinstance(cost, ServingCost)
    hour = library.gpu("h100-sxm").price_usd_per_hour
    assert cost.usd_per_million_tokens == pytest.approx(hour / 3600 / cost.tokens_per_s * 1e6)
    assert cost.usd_per_million_output_tokens > cost.usd_per_million_tokens
    assert cost.mean_running == pytest.approx(256, rel=0.01), "as many as the batch allows"


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
        },
    }
    closed = forecast(parse_scenario(content, origin="test"))
    (cost,) = costs(lengths=lengths)
    assert isinstance(cost, ServingCost)
    assert cost.tokens_per_s == pytest.approx(closed.summary["total_token_throughput"], rel=0.03)


def test_the_two_smallest_degrees_that_hold_the_model_are_tried_cheapest_first() -> None:
    tried = costs(gpus=["rtx-4090", "h100-sxm"], tensor_parallel=[8, 4, 2, 1])
    assert {(one.gpu, one.tensor_parallel) for one in tried} == {
        ("rtx-4090", 1), ("rtx-4090", 2), ("h100-sxm", 1), ("h100-sxm", 2),
    }  # fmt: skip
    prices = [one.usd_per_million_tokens for one in tried if isinstance(one, ServingCost)]
    assert prices == sorted(prices)
    assert cheapest(tried) is tried[0]


def test_a_model_that_fits_nowhere_says_so() -> None:
    config = library.model_config(library.model_path("gpt-3-175b"))
    serving = Serving(gpus=["a100-40gb", "l40s"])
    tried = serving_cost(config, serving, name="gpt-3-175b")
    assert cheapest(tried) is None
    assert [one.tensor_parallel for one in tried] == [8, 8]
    assert "10 GPUs of that kind would do" in " ".join(
        one.reason for one in tried if isinstance(one, RuledOut)
    )


def test_a_deployment_slower_than_asked_for_is_ruled_out_with_its_time() -> None:
    (slow,) = costs(tpot_ms=5.0)
    assert isinstance(slow, RuledOut)
    assert slow.reason.startswith("median TPOT ")
    assert slow.reason.endswith(" ms is above 5 ms")


def test_a_cache_that_cannot_hold_one_request_is_no_deployment() -> None:
    (small,) = costs(engine={"num_gpu_blocks_override": 100})
    assert isinstance(small, RuledOut)
    assert "the KV cache holds 1,600 tokens, one request may need 6,144" in small.reason


def test_the_same_seed_costs_the_same() -> None:
    assert costs() == costs()
