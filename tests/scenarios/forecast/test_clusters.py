"""The cluster scenarios: what each is there to show, and what a cluster refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcast.composed import compose
from scenarios.errors import InputError
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.schema.knobs import as_overrides, knobs
from scenarios.schema.load import load_scenario, parse_scenario
from tests import needs
from tests.sim.latency.tables import moe_table_folder
from tests.sim.serving import assert_same_records

COLOCATED = ["cluster.groups=[]", "cluster.kv_link=null", "cluster.replicas=4"]


def run(name: str, *settings: str, requests: int = 1500) -> Forecast:
    scenario, origin = load_scenario(name, [f"workload.num_requests={requests}", *settings])
    return forecast(scenario, origin=origin)


def summary(name: str, *settings: str, requests: int = 1500) -> dict[str, Any]:
    return run(name, *settings, requests=requests).summary


@pytest.mark.parametrize(
    "name", ["routers", "disaggregated", "autoscaling", "replica-failure", "heterogeneous"]
)
def test_a_cluster_scenario_leaps_as_it_steps(name: str) -> None:
    scenario, origin = load_scenario(name, ["workload.num_requests=150"])
    both = [forecast(scenario, origin=origin, leap=leap) for leap in (True, False)]
    assert_same_records(both[0].records, both[1].records)


def test_prefix_aware_routing_keeps_up_where_turns_do_not() -> None:
    aware, in_turn = summary("routers"), summary("routers", "cluster.router=round_robin")
    assert aware["cached_prompt_tokens"] > 1.5 * in_turn["cached_prompt_tokens"]
    assert aware["mean_ttft_ms"] < 0.1 * in_turn["mean_ttft_ms"]


def test_disaggregation_serves_more_within_tight_limits() -> None:
    apart, together = summary("disaggregated"), summary("disaggregated", *COLOCATED)
    assert apart["cluster"]["kv_transfers"] > 0
    assert apart["slo_attainment"]["tpot"] > together["slo_attainment"]["tpot"]
    assert apart["request_goodput"] > 1.05 * together["request_goodput"]
    assert apart["p99_tpot_ms"] < together["p99_tpot_ms"]
    # What it costs: the cache's way to the decode pool comes before the first token.
    transfer_ms = apart["cluster"]["mean_kv_transfer_ms"]
    assert 0 < transfer_ms < 20
    assert apart["mean_ttft_ms"] > apart["mean_prefill_ttft_ms"] + transfer_ms
    assert "mean_prefill_ttft_ms" not in together


def test_the_first_token_of_pools_comes_after_the_transfer_and_a_decode_step() -> None:
    """Ten times alone: 10 ms of prompt, 8,000 tokens x 128 KiB over 1 GB/s, 41 steps of 10 ms."""
    given = {
        "name": "pools",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h100-sxm"},
        "engine": {"max_num_seqs": 64, "max_num_batched_tokens": 8192},
        "latency": {"source": "fixed", "iteration_ms": 10},
        "workload": {
            "arrivals": {"process": "constant", "request_rate": 0.1},
            "lengths": {
                "prompt": {"distribution": "fixed", "tokens": 8000},
                "output": {"distribution": "fixed", "tokens": 41},
            },
            "num_requests": 10,
        },
        "cluster": {
            "groups": [{"replicas": 1, "role": role} for role in ("prefill", "decode")],
            "kv_link": {"bandwidth_gb_per_s": 1.0},
        },
    }
    found = forecast(parse_scenario(given, origin="pools")).summary
    sent_ms = 8000 * 131072 / 1e9 * 1e3
    assert found["mean_prefill_ttft_ms"] == pytest.approx(10)
    assert found["mean_ttft_ms"] == pytest.approx(10 + sent_ms + 10)
    assert found["mean_tpot_ms"] == found["mean_itl_ms"] == pytest.approx(10)
    assert found["mean_e2el_ms"] == pytest.approx(10 + sent_ms + 41 * 10)


def test_kv_caches_travel_with_their_bytes() -> None:
    found = summary("disaggregated", requests=300)
    per_token = 131072  # 2 x 32 layers x 8 heads x 128 x 2 bytes
    assert found["cluster"]["kv_transferred_bytes"] == pytest.approx(
        found["total_input_tokens"] * per_token
    )


def test_an_autoscaler_pays_for_less_and_is_late_for_bursts() -> None:
    host = "latency.host_overhead.per_iteration_us=400"
    scaled = summary("autoscaling", host, requests=6000)
    fixed = summary("autoscaling", host, "cluster.autoscaling=null", requests=6000)
    assert scaled["cluster"]["replica_seconds"] < 0.6 * fixed["cluster"]["replica_seconds"]
    assert scaled["slo_attainment"]["ttft"] < fixed["slo_attainment"]["ttft"]
    assert scaled["completed"] == fixed["completed"] == 6000


def test_a_failure_loses_no_request() -> None:
    failing = summary("replica-failure", requests=6000)
    sound = summary("replica-failure", "cluster.failures=[]", requests=6000)
    assert failing["completed"] == sound["completed"] == 6000
    assert failing["cluster"]["retried_requests"] > 0
    assert failing["p99_tpot_ms"] > sound["p99_tpot_ms"]


def test_unequal_replicas_want_a_router_that_looks() -> None:
    looking = summary("heterogeneous")
    blind = summary("heterogeneous", "cluster.router=round_robin")
    assert looking["p99_ttft_ms"] < 0.5 * blind["p99_ttft_ms"]


def test_a_fleet_that_is_gone_says_so_of_every_request_it_left() -> None:
    gone = [
        "cluster.replicas=2", "cluster.failures=[{replica: 0, at_s: 2}, {replica: 1, at_s: 3}]",
        "workload.max_concurrency=8", "workload.arrivals={process: all_at_once}",
    ]  # fmt: skip
    found = summary("replica-failure", *gone, requests=100)
    assert found["completed"] + found["rejected"] == 100
    assert found["rejected"] == found["stranded"] > 0
    (said,) = (text for text in found["warnings"] if "found no replica" in text)
    assert said.startswith(f"{found['stranded']} requests")
    assert not any("larger than the KV cache" in text for text in found["warnings"])


def test_data_parallel_ranks_are_engines_behind_vllms_balancer() -> None:
    greedy = "workload.sampling=greedy"
    ranks = summary("quickstart", "hardware.data_parallel=2", greedy, requests=200)
    engines = ["cluster.replicas=2", "cluster.router=data_parallel", greedy]
    replicas = summary("quickstart", *engines, requests=200)
    assert ranks["cluster"] == replicas["cluster"]
    assert ranks["cost"] == replicas["cost"]
    assert ranks["cost"]["gpus"] == 2
    assert max(ranks["cluster"]["requests"]) - min(ranks["cluster"]["requests"]) < 20
    apart = summary("quickstart", "hardware.data_parallel=2", "cluster.router=random", requests=200)
    assert apart["cluster"]["router"] == "random"


def test_data_parallel_ranks_of_a_mixture_keep_step() -> None:
    """Eight GPUs as four ranks of two: a step as long for all, experts over all eight."""
    mixture = [
        "model=qwen3-30b-a3b", "hardware.tensor_parallel=2", "hardware.data_parallel=4",
        "hardware.expert_parallel=8",
    ]  # fmt: skip
    found = run("quickstart", *mixture, requests=200)
    assert found.summary["cost"]["gpus"] == 8
    assert len(found.summary["cluster"]["requests"]) == 4
    iterations = found.records.iterations
    order = np.argsort(iterations["start_s"], kind="stable")
    starts_s, lasted_s = iterations["start_s"][order], iterations["duration_s"][order]
    same = np.diff(starts_s) == 0
    assert same.any() and (np.diff(lasted_s)[same] == 0).all()
    assert (starts_s[1:][~same] >= (starts_s + lasted_s)[:-1][~same] - 1e-9).all()
    assert found.deployment.memory.num_gpu_blocks > 0
    alone = run("quickstart", "model=qwen3-30b-a3b", "hardware.tensor_parallel=2", requests=200)
    saved = alone.deployment.memory.weight_bytes - found.deployment.memory.weight_bytes
    experts = sum(op.weight_bytes for op in found.deployment.model.expert_operations())
    assert saved == pytest.approx(experts * (1 / 2 - 1 / 8), rel=1e-3)
    assert found.summary["time_parts_s"]["communication"] > 0
    closed = run("quickstart", *mixture, "workload.max_concurrency=6", requests=100)
    assert closed.summary["completed"] == 100


@pytest.mark.parametrize("ahead", ["true", "false"])
def test_ranks_of_a_mixture_take_their_times_from_a_table_of_one_gpu(
    tmp_path: Path, ahead: str
) -> None:
    folder = moe_table_folder(tmp_path / "table", gpu="H200-SXM")
    mixture = [
        "workload.num_requests=150", "model=qwen3-30b-a3b", f"latency={{table: {folder}}}",
        "hardware.data_parallel=2", "hardware.expert_parallel=2",
        f"engine.async_scheduling={ahead}", "engine.max_cudagraph_capture_size=64",
    ]  # fmt: skip
    scenario, origin = load_scenario("quickstart", mixture)
    leapt, stepped = (forecast(scenario, origin=origin, leap=leap) for leap in (True, False))
    assert_same_records(leapt.records, stepped.records)
    parts = leapt.summary["time_parts_s"]
    assert sum(parts.values()) == pytest.approx(
        leapt.records.iterations["duration_s"].sum(), rel=1e-6
    )
    assert parts["moe"] > 0 < parts["communication"]
    one, origin = load_scenario("quickstart", [*mixture[:3], "hardware.expert_parallel=2"])
    with pytest.raises(InputError, match="measured tensor parallelism at most"):
        forecast(one, origin=origin)


@needs.tables
def test_ranks_of_a_mixture_are_composed_by_default() -> None:
    """Four GPUs, two ranks: experts as measured on four that share them out."""
    mixture = [
        "workload.num_requests=100", "model=qwen3-30b-a3b", "latency.source=auto",
        "hardware={gpu: h100-sxm, tensor_parallel: 2, data_parallel: 2, expert_parallel: 4}",
    ]  # fmt: skip
    scenario, origin = load_scenario("quickstart", mixture)
    leapt, stepped = (
        forecast(scenario, origin=origin, compose=compose, leap=leap) for leap in (True, False)
    )
    assert_same_records(leapt.records, stepped.records)
    (latency,) = {group.latency.label for group in leapt.deployment.groups}
    assert latency.startswith("measured kernels: vllm")
    parts = leapt.summary["time_parts_s"]
    total_s = leapt.records.iterations["duration_s"].sum()
    assert sum(parts.values()) == pytest.approx(total_s, rel=1e-6)
    plain, origin = load_scenario(
        "quickstart", [*mixture[:2], "latency.source=roofline", mixture[3]]
    )
    analytic = forecast(plain, origin=origin).summary["mean_tpot_ms"]
    assert leapt.summary["mean_tpot_ms"] == pytest.approx(analytic, rel=0.5)


def test_each_pool_has_a_knob_that_turns_it() -> None:
    scenario, _ = load_scenario("disaggregated", ["workload.num_requests=40"])
    known = knobs(scenario)
    counts = {knob.label: knob.path for knob in known if knob.label.startswith("Replicas")}
    assert list(counts) == ["Replicas of prefill", "Replicas of decode"]
    settings = as_overrides(known, {counts["Replicas of decode"]: 4})
    assert settings == ["cluster.groups[1].replicas=4"]
    turned, _ = load_scenario("disaggregated", settings)
    assert [group.replicas for group in turned.cluster.groups] == [2, 4]


def test_degrees_that_decide_each_other_are_no_knobs() -> None:
    mixture = ["model=qwen3-30b-a3b", "hardware.data_parallel=2", "hardware.expert_parallel=2"]
    for settings, turned in ((mixture[:1], True), (mixture, False)):
        paths = {knob.path for knob in knobs(load_scenario("quickstart", settings)[0])}
        assert ("hardware.expert_parallel" in paths) == turned
        assert ("hardware.tensor_parallel" in paths) == turned


def test_a_router_that_sees_nothing_is_told() -> None:
    (said,) = (
        text
        for text in summary("routers", "engine.enable_prefix_caching=false", requests=50)[
            "warnings"
        ]
        if "cluster.router" in text
    )
    assert said == (
        "cluster.router prefix_aware works as least_outstanding: engine.enable_prefix_caching is "
        "off"
    )
    unknown = summary("heterogeneous", "cluster.router=session_sticky", requests=50)["warnings"]
    assert any("the content of no prompt is known" in text for text in unknown)


GROUP = "{name: a, role: prefill, replicas: 1}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["cluster.router=fastest"], "cluster.router: 'fastest' is not known"),
        ([f"cluster.groups=[{GROUP}]"], "needs prefill and decode groups"),
        (
            [f"cluster.groups=[{GROUP}, {{role: decode, replicas: 1}}]"],
            "need a kv_link between them",
        ),
        (["cluster.kv_link={bandwidth_gb_per_s: 50}"], "kv_link has no meaning"),
        (
            ["cluster.autoscaling={target_outstanding: 8, min_replicas: 3}"],
            "min_replicas 3 is above",
        ),
        (["cluster.failures=[{replica: 4, at_s: 1}]"], "there is no replica 4"),
        (["cluster.replicas=2", "cluster.groups=[{replicas: 2}]"], "replicas and groups are both"),
        (
            ["cluster.groups=[{replicas: 1, engine: {max_num_seq: 3}}]"],
            "cluster.groups[0]: engine.max_num_seq: unknown key",
        ),
        (
            ["cluster.groups=[{replicas: 1, hardware: {gpu: h900}}]"],
            "cluster.groups[0]: hardware.gpu: unknown GPU 'h900'",
        ),
        (
            [
                "cluster.groups=[{role: prefill, replicas: 1, engine: {scheduler: static}}, "
                "{role: decode, replicas: 1}]",
                "cluster.kv_link={bandwidth_gb_per_s: 50}",
            ],
            "cannot be split into prefill and decode",
        ),
        (
            [
                "cluster.groups=[{role: prefill, replicas: 1, engine: {kv_cache_dtype: fp8}}, "
                "{role: decode, replicas: 1}]",
                "cluster.kv_link={bandwidth_gb_per_s: 50}",
            ],
            "kv_cache_dtype is auto here, fp8 there",
        ),
        (
            [
                "workload.shared_prefixes={num_prefixes: 4, tokens: 64}",
                "cluster.groups=[{replicas: 1}, {replicas: 1, engine: {block_size: 32}}]",
            ],
            "block_size is 16 here, 32 there",
        ),
        (
            [
                "model=llama-3.1-70b",
                "hardware.pipeline_parallel=4",
                "engine.generation=vllm-v0",
                "cluster.replicas=2",
                "workload.max_concurrency=8",
            ],
            "without workload.max_concurrency",
        ),
        (
            ["model=qwen3-30b-a3b", "hardware.data_parallel=2"],
            "set hardware.expert_parallel=2 (all their GPUs)",
        ),
        (
            ["model=qwen3-30b-a3b", "hardware.data_parallel=2", "hardware.expert_parallel=4"],
            "experts are over all ranks of data_parallel, tensor_parallel 1 x 2 = 2",
        ),
        (
            ["hardware.data_parallel=2", "cluster.failures=[{replica: 0, at_s: 1}]"],
            "hardware.data_parallel: ranks come and go with their engine",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(InputError) as refused:
        summary("quickstart", *settings, requests=10)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_models_on_one_gpu_pay_for_it_once_and_share_its_time() -> None:
    sliced = run("several-models", requests=120)
    figures = sliced.summary
    assert figures["cost"]["gpus"] == 1
    assert figures["cluster"]["requests"] == [
        figures["classes"][name]["requests"] for name in ("chat", "code")
    ]
    iterations = sliced.records.iterations
    lost_s = float((iterations["duration_s"] - iterations["alone_s"]).sum())
    assert figures["time_parts_s"]["others"] == pytest.approx(lost_s) and lost_s > 0
    busy_s, up_s = float(iterations["alone_s"].sum()), figures["cluster"]["replica_seconds"] / 2
    assert figures["energy"]["busy_share"] == pytest.approx(busy_s / up_s)
    turns = summary("several-models", "cluster.gpu_sharing=turns", requests=120)
    tpot_ms = [
        [each["classes"][name]["mean_tpot_ms"] for name in ("chat", "code")]
        for each in (figures, turns)
    ]
    assert tpot_ms[0][0] < tpot_ms[1][0] and tpot_ms[0][1] > tpot_ms[1][1]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("engine.gpu_memory_utilization=0.9", "comes to 1.4"),
        ("cluster.autoscaling={target_outstanding: 2}", "share a GPU is not modelled"),
        ("workload.classes.mail={share: 1, lengths: {prompt: {distribution: fixed, tokens: 9}, "
         "output: {distribution: fixed, tokens: 9}}}", "nobody serves requests of class mail"),
    ],
)  # fmt: skip
def test_models_that_cannot_share_a_gpu_are_refused(setting: str, words: str) -> None:
    groups = "cluster.groups=[{replicas: 1, classes: [chat], shared_gpu: a}, "
    groups += "{replicas: 1, model: llama-3.2-1b, classes: [code], shared_gpu: a, "
    groups += "engine: {gpu_memory_utilization: 0.5}}]"
    settings = [groups, setting] if "memory" in setting else [setting]
    with pytest.raises(InputError, match=words):
        run("several-models", *settings)
