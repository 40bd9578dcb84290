"""What vLLM chooses where it is not told, as the resolved scenario shows it."""

from __future__ import annotations

from typing import Any

import pytest

from scenarios.forecast.deployment import group_scenarios
from scenarios.plan.candidates import candidates_of
from scenarios.schema.load import parse_scenario
from scenarios.schema.vllm_defaults import capture_sizes


def engine(gpu: str, **knobs: Any) -> Any:
    return parse_scenario(content(gpu, **knobs), origin="limits").engine


def content(gpu: str, **knobs: Any) -> dict[str, Any]:
    one = {"distribution": "fixed", "tokens": 16}
    return {
        "name": "limits",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": gpu},
        "engine": knobs,
        "workload": {
            "arrivals": {"request_rate": 1.0},
            "lengths": {"prompt": one, "output": one},
            "num_requests": 4,
        },
    }


@pytest.mark.parametrize(
    ("gpu", "seqs", "served", "offline", "captured"),
    [
        ("b200", 1024, 16384, 16384, 1024),
        ("h200-sxm", 1024, 8192, 16384, 512),
        ("h100-sxm", 1024, 8192, 16384, 512),
        ("rtx-pro-6000", 1024, 8192, 16384, 512),
        ("a100-80gb", 256, 2048, 8192, 512),
        ("a100-40gb", 256, 2048, 8192, 512),
        ("l40s", 256, 2048, 8192, 512),
    ],
)
def test_a_batch_may_be_as_large_as_vllm_lets_it_be_on_that_gpu(
    gpu: str, seqs: int, served: int, offline: int, captured: int
) -> None:
    found = engine(gpu)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (seqs, served)
    assert found.max_cudagraph_capture_size == captured
    assert engine(gpu, usage_context="llm_class").max_num_batched_tokens == offline


def test_what_is_given_stays_and_bounds_the_rest() -> None:
    assert engine("h100-sxm", max_num_batched_tokens=512).max_num_seqs == 512
    assert engine("h100-sxm", max_num_seqs=3, max_model_len=100).max_num_batched_tokens == 300
    both = engine("h100-sxm", max_num_seqs=64, max_num_batched_tokens=2048)
    assert (both.max_num_seqs, both.max_num_batched_tokens) == (64, 2048)


@pytest.mark.parametrize("generation", ["vllm-sync", "vllm-v0", "orca", "static"])
def test_other_engines_have_limits_that_no_gpu_moves(generation: str) -> None:
    for gpu in ("h100-sxm", "l40s"):
        found = engine(gpu, generation=generation)
        assert (found.max_num_seqs, found.max_num_batched_tokens) == (256, 8192)
        assert found.max_cudagraph_capture_size is None


def test_a_group_on_another_gpu_has_that_gpus_limits() -> None:
    given = content("h100-sxm", max_num_batched_tokens=4096)
    given["cluster"] = {"groups": [{"replicas": 1}, {"replicas": 1, "hardware": {"gpu": "l40s"}}]}
    groups = [mine.engine for _, mine, _ in group_scenarios(parse_scenario(given, origin="groups"))]
    assert [each.max_num_seqs for each in groups] == [1024, 256]
    assert [each.max_num_batched_tokens for each in groups] == [4096, 4096]


def test_so_has_a_candidate_of_a_plan() -> None:
    for knobs, expected in (({}, [8192, 2048]), ({"max_num_batched_tokens": 8192}, [8192, 8192])):
        given = content("h100-sxm", **knobs)
        given["plan"] = {"candidates": {"gpus": ["h100-sxm", "l40s"]}}
        found = [each.scenario for each in candidates_of(parse_scenario(given, origin="plan"))]
        assert [one and one.engine.max_num_batched_tokens for one in found] == expected


@pytest.mark.parametrize(
    ("seqs", "tokens", "query_tokens", "most", "found"),
    # the number, the sum and the largest of those that vLLM 0.32.0 makes of these
    [
        (128, 2048, 1, 1024, (35, 4231, 256)),
        (1024, 8192, 1, 512, (51, 10503, 512)),
        (16, 64, 1, 1024, (7, 87, 32)),
        (2, 512, 1, 512, (3, 7, 4)),
        (512, 512, 5, 512, (57, 11618, 512)),
        (2, 2, 3, 1024, (2, 3, 2)),
        (7, 512, 8, 512, (17, 847, 112)),
        (60, 60, 4, 1024, (11, 291, 60)),
        (300, 1000, 3, 512, (60, 12828, 512)),
        (1024, 8192, 8, 1024, (83, 35335, 1024)),
    ],
)
def test_graphs_are_captured_for_the_sizes_that_vllm_captures(
    seqs: int, tokens: int, query_tokens: int, most: int, found: tuple[int, int, int]
) -> None:
    sizes = capture_sizes(
        most, max_num_seqs=seqs, max_num_batched_tokens=tokens, query_tokens=query_tokens
    )
    assert (len(sizes), sum(sizes), sizes[-1]) == found
