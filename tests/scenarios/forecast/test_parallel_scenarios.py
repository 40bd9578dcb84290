"""Scenarios of experts, parallelism and quantised weights: what each of them is there to show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.schema.load import load_scenario
from tests.sim.latency.tables import small_table_folder
from tests.sim.serving import assert_same_records

FEW = {
    "mixture-of-experts": 150,
    "expert-parallel": 400,
    "tensor-parallel": 100,
    "pipeline-parallel": 800,
    "long-context": 10,
    "deepseek-mla": 300,
    "quantised": 40,
}


def summary_of(name: str, *settings: str) -> dict[str, Any]:
    few = [f"workload.num_requests={FEW[name]}"]
    scenario, origin = load_scenario(name, [*few, *settings])
    return forecast(scenario, origin=origin).summary


@pytest.mark.parametrize("name", FEW)
def test_leap_equals_step(name: str) -> None:
    settings = [f"workload.num_requests={min(max(FEW[name] // 4, 5), 60)}"]
    scenario, origin = load_scenario(name, settings)
    leapt, stepped = (
        forecast(scenario, origin=origin, leap=leap).records for leap in (True, False)
    )
    assert_same_records(leapt, stepped)


def test_experts_over_tensor_ranks_leap_as_they_step_and_wait_for_the_fullest() -> None:
    times = {}
    for groups in (1, 2):
        spread = ["hardware.tensor_parallel=2", f"hardware.experts_over={groups}"]
        settings = ["workload.num_requests=40", "latency.source=roofline", *spread]
        settings += ["workload.sampling=greedy"]
        scenario, origin = load_scenario("mixture-of-experts", settings)
        leapt, stepped = (forecast(scenario, origin=origin, leap=leap) for leap in (True, False))
        assert_same_records(leapt.records, stepped.records)
        times[groups] = leapt.summary["mean_tpot_ms"], leapt.summary["experts"]
    assert times[2][0] > times[1][0]
    assert times[1][1]["slowest_rank_over_mean"] == 1.0 < times[2][1]["slowest_rank_over_mean"]


@pytest.mark.parametrize(
    ("spread", "says"),
    [
        ("{tensor_parallel: 2, experts_over: 2, expert_parallel: 2}", "keep one of them"),
        ("{tensor_parallel: 2, experts_over: 4}", "does not divide tensor_parallel 2"),
        ("{tensor_parallel: 16, experts_over: 16}", "does not divide its 8 experts"),
    ],
)
def test_experts_lie_one_way(spread: str, says: str) -> None:
    given = spread.replace("{", "{gpu: h100-sxm, ")
    with pytest.raises(InputError, match=says):
        scenario, origin = load_scenario("mixture-of-experts", [f"hardware={given}"])
        deploy(scenario, origin=origin)


# -- contexts shared out among tensor-parallel ranks ----------------------------------------------


def contexts_over(ranks: int, *settings: str, leap: bool = True) -> Forecast:
    spread = [f"hardware.decode_context_parallel={ranks}", "hardware.tensor_parallel=8"]
    few = ["model=deepseek-v3", "hardware.gpu=b200", "workload.num_requests=12"]
    scenario, origin = load_scenario("quickstart", [*few, *spread, *settings])
    return forecast(scenario, origin=origin, leap=leap)


LONG = (
    "workload.lengths={prompt: {distribution: fixed, tokens: 60000}, "
    "output: {distribution: fixed, tokens: 60}}",
    "engine.max_model_len=100000",
    "workload.arrivals={process: all_at_once}",
)


def test_shared_contexts_leap_as_they_step_and_hold_so_many_times_the_tokens() -> None:
    slots = {}
    for ranks in (1, 2, 8):
        leapt, stepped = (contexts_over(ranks, leap=leap) for leap in (True, False))
        assert_same_records(leapt.records, stepped.records)
        config, first = leapt.deployment.config, leapt.records.iterations
        assert config.block_size == leapt.deployment.memory.block_size == 16 * ranks
        slots[ranks] = leapt.deployment.memory.slots
        assert (first["kv_used_tokens"] + first["kv_free_tokens"] <= slots[ranks]).all()
        assert leapt.summary["cost"]["gpus"] == 8
    assert slots[8] == 4 * slots[2] == 8 * slots[1]


def test_long_contexts_decode_faster_shared_out_and_short_ones_do_not() -> None:
    # An exchange a layer is what they cost, and eight times the cache is read without them.
    long_ms = {ranks: contexts_over(ranks, *LONG).summary["mean_tpot_ms"] for ranks in (1, 8)}
    assert long_ms[8] < long_ms[1]
    short = "workload.arrivals={process: constant, request_rate: 0.1}"
    alone_ms = {ranks: contexts_over(ranks, short).summary["mean_tpot_ms"] for ranks in (1, 8)}
    assert alone_ms[8] > alone_ms[1]


def test_prefixes_are_found_by_the_blocks_of_all_ranks() -> None:
    prefixes = "workload.shared_prefixes={num_prefixes: 1, tokens: 100}"
    apart = "workload.arrivals={process: constant, request_rate: 0.1}"
    found = {
        ranks: contexts_over(ranks, prefixes, apart).records.requests["cached_tokens"]
        for ranks in (1, 4)
    }
    assert (found[1][1:] == 96).all()  # of blocks of 16 tokens
    assert (found[4][1:] == 64).all()  # of 64


# -- mixture of experts ---------------------------------------------------------------------------


def test_a_mixture_has_the_memory_of_all_its_parameters_and_the_time_of_few() -> None:
    closed = ["workload.arrivals={process: all_at_once}", "workload.max_concurrency=1"]
    sparse = summary_of("mixture-of-experts", *closed)
    dense = summary_of("mixture-of-experts", *closed, "model=llama-2-70b")
    mixtral, llama = library.model("mixtral-8x7b"), library.model("llama-2-70b")
    assert mixtral.num_activated_parameters < 0.2 * llama.num_parameters
    weights = sparse["memory_bytes"]["weights"] / dense["memory_bytes"]["weights"]
    assert weights == pytest.approx(mixtral.num_parameters / llama.num_parameters, rel=0.01)
    speedup = dense["mean_tpot_ms"] / sparse["mean_tpot_ms"]
    activated = llama.num_parameters / mixtral.num_activated_parameters
    assert 0.5 * activated < speedup < activated


def test_a_larger_batch_activates_more_experts() -> None:
    seen = []
    for clients in (1, 4, 16):
        settings = [
            "workload.arrivals={process: all_at_once}",
            f"workload.max_concurrency={clients}",
            "workload.lengths.prompt={distribution: fixed, tokens: 16}",
            "workload.lengths.output={distribution: fixed, tokens: 200}",
            "latency.host_overhead.per_iteration_us=400",
        ]
        summary = summary_of("mixture-of-experts", *settings)
        expected = 8 * (1 - (1 - 2 / 8) ** clients)
        assert summary["experts"]["mean_activated"] == pytest.approx(expected, rel=0.05)
        seen.append(summary["mean_tpot_ms"])
    assert seen == sorted(seen)
    assert seen[1] > 1.6 * seen[0], "four tokens read nearly three times the experts of one"


def test_a_mixture_that_computes_nothing_activates_no_experts() -> None:
    gone = "cluster={replicas: 1, router: least_kv, failures: [{replica: 0, at_s: 0}]}"
    summary = summary_of("mixture-of-experts", "workload.num_requests=5", gone)
    assert summary["stranded"] == 5
    assert summary["experts"]["mean_activated"] is None
    assert summary["experts"]["per_layer"] == 8


# -- parallelism ----------------------------------------------------------------------------------


def test_popular_experts_slow_all_ranks_down_and_placement_helps() -> None:
    skewed = summary_of("expert-parallel")
    balanced = summary_of("expert-parallel", "experts.placement=balanced")
    even = summary_of("expert-parallel", "experts=null")
    for figure in ("mean_tpot_ms", "mean_ttft_ms"):
        assert skewed[figure] > balanced[figure] > even[figure]
    uneven = [each["experts"]["slowest_rank_over_mean"] for each in (skewed, balanced, even)]
    assert uneven[0] > 1.3 > uneven[1] > uneven[2] > 1.0
    assert skewed["cost"]["gpus"] == 8


def test_counts_of_a_trace_are_a_routing(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    rows = [f"{layer},{expert},{1 + (expert % 16 == layer)}" for layer in range(2)
            for expert in range(128)]  # fmt: skip
    file.write_text("layer,expert,tokens\n" + "\n".join(rows) + "\n")
    by_file = summary_of("expert-parallel", f"experts={{routing: counts, counts: {file}}}")
    even = summary_of("expert-parallel", "experts=null")
    assert by_file["experts"]["mean_activated"] < even["experts"]["mean_activated"]
    listed = ", ".join(["5"] * 128)
    equal = summary_of("expert-parallel", f"experts={{routing: counts, counts: [{listed}]}}")
    assert equal["mean_tpot_ms"] == pytest.approx(even["mean_tpot_ms"], rel=1e-9)


def test_tensor_parallelism_cuts_latency_less_than_it_adds_gpus() -> None:
    four, eight = (
        summary_of("tensor-parallel", f"hardware.tensor_parallel={ranks}") for ranks in (4, 8)
    )
    assert 1.3 < four["mean_tpot_ms"] / eight["mean_tpot_ms"] < 2
    share = [each["time_parts_s"]["communication"] / each["busy_s"] for each in (four, eight)]
    assert share[1] > share[0]
    over_nodes = summary_of("tensor-parallel", "hardware.gpus_per_node=2")
    assert over_nodes["mean_tpot_ms"] > 1.1 * four["mean_tpot_ms"]
    assert [each["cost"]["usd_per_hour"] for each in (four, eight)] == [12, 24]


def test_over_a_slow_network_stages_serve_more_than_split_matrices() -> None:
    staged = summary_of("pipeline-parallel")
    split = summary_of(
        "pipeline-parallel", "hardware.pipeline_parallel=1", "hardware.tensor_parallel=4"
    )
    assert staged["output_throughput"] > 1.1 * split["output_throughput"]
    assert staged["cost"]["gpus"] == split["cost"]["gpus"] == 4
    pipeline = staged["pipeline"]
    assert pipeline["stages"] == len(pipeline["stage_busy_share"]) == 4
    assert pipeline["bubble"] > 0


def test_smaller_chunks_leave_smaller_bubbles() -> None:
    large, small = (
        summary_of("pipeline-parallel", f"engine.max_num_batched_tokens={budget}")
        for budget in (2048, 512)
    )
    assert small["pipeline"]["bubble"] < 0.8 * large["pipeline"]["bubble"]
    assert small["output_throughput"] > large["output_throughput"]


def test_a_split_prompt_is_answered_sooner() -> None:
    alone = summary_of("long-context", "hardware.sequence_parallel=null")
    for kind in ("ring", "ulysses"):
        split = summary_of(
            "long-context", f"hardware.sequence_parallel={{kind: {kind}, degree: 8}}"
        )
        assert split["mean_ttft_ms"] < alone["mean_ttft_ms"] / 5
        assert split["num_gpu_blocks"] > 8 * alone["num_gpu_blocks"], "the cache is split too"
        assert split["cost"]["gpus"] == 8
    with pytest.raises(InputError, match="ulysses degree 16 does not divide its 8 key/value heads"):
        summary_of("long-context", "hardware.sequence_parallel={kind: ulysses, degree: 16}")
    summary_of("long-context", "hardware.sequence_parallel.degree=16")


def test_a_latent_cache_is_small_and_split_by_sequences_only() -> None:
    dealt = summary_of("deepseek-mla")
    split = summary_of("deepseek-mla", "hardware.expert_parallel=1", "hardware.tensor_parallel=8")
    assert dealt["num_gpu_blocks"] > 4 * split["num_gpu_blocks"]
    assert dealt["output_throughput"] > 1.2 * split["output_throughput"]
    model = library.model("deepseek-v3")
    assert model.mla is not None
    heads = model.num_layers * model.num_attention_heads * 2
    plain = heads * (model.mla.qk_head_dim + model.mla.v_head_dim)  # bytes with keys and values
    assert plain / model.kv_bytes_per_token() == pytest.approx(71.1, rel=0.01)


# -- quantised weights ----------------------------------------------------------------------------


def test_quantised_weights_take_the_place_of_gpus() -> None:
    clients = "workload.max_concurrency=1"
    figures = {
        (kind, ranks): summary_of(
            "quantised", f"engine.weight_dtype={kind}", f"hardware.tensor_parallel={ranks}", clients
        )
        for kind, ranks in (("int4", 1), ("int4", 4), ("fp8", 4), ("bf16", 4))
    }
    bytes_of = {kind: figures[kind, 4]["memory_bytes"]["weights"] for kind in ("bf16", "fp8")}
    tables = 2 * 128256 * 8192 * 2 / 4  # embedding and head stay in 16 bits
    products = bytes_of["bf16"] - tables
    assert bytes_of["fp8"] - tables == pytest.approx(products / 2, rel=0.002)
    four = figures["int4", 4]["memory_bytes"]["weights"]
    assert four - tables == pytest.approx(products * 4.125 / 16, rel=0.002)
    tpot_ms = {kind: figures[kind, 4]["mean_tpot_ms"] for kind in ("bf16", "fp8", "int4")}
    assert tpot_ms["bf16"] > 1.3 * tpot_ms["fp8"] > 1.3 * tpot_ms["int4"] * 0.8
    assert figures["int4", 1]["cost"]["gpus"] == 1
    with pytest.raises(InputError, match=r"llama-3\.1-70b does not fit on 1 x h100-sxm"):
        summary_of("quantised", "engine.weight_dtype=bf16")


def test_four_bit_weights_help_few_clients_and_not_many() -> None:
    def gain(clients: int) -> float:
        tpot_ms = [
            summary_of(
                "quantised",
                f"engine.weight_dtype={kind}",
                "hardware.tensor_parallel=4",
                f"workload.max_concurrency={clients}",
                "workload.num_requests=200",
            )["mean_tpot_ms"]
            for kind in ("bf16", "int4")
        ]
        return float(tpot_ms[0] / tpot_ms[1])

    assert gain(1) > 1.5
    assert gain(100) < 1.15


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "setting", "says"),
    [
        ("tensor-parallel", "hardware.tensor_parallel=12", "does not divide its 64 attention"),
        ("pipeline-parallel", "hardware.pipeline_parallel=81", "more stages than its 80 layers"),
        ("tensor-parallel", "hardware.expert_parallel=2", "hardware: llama-3.1-70b: expert_para"),
        ("expert-parallel", "hardware.expert_parallel=7", "does not divide its 128 experts"),
        ("expert-parallel", "hardware.tensor_parallel=3", "attention heads"),
        ("expert-parallel", "model=llama-3.1-8b", "hardware: llama-3.1-8b: expert_parallel 8"),
        ("tensor-parallel", "experts={}", "experts: llama-3.1-70b has no experts"),
        ("expert-parallel", "experts={routing: zipf}", "exponent belongs to routing zipf"),
        ("expert-parallel", "experts={exponent: 1.0}", "exponent belongs to routing zipf"),
        ("expert-parallel", "experts={routing: counts, counts: [1, 2]}", "counts has 2 experts"),
        ("expert-parallel", "experts={routing: counts, counts: no.csv}", "no such file: no.csv"),
        ("expert-parallel", "experts={placement: balanced}", "every expert is as likely"),
        ("long-context", "hardware.sequence_parallel={kind: rings, degree: 2}", "did you mean 'ri"),
        ("long-context", "hardware.sequence_parallel={kind: ring}", "degree: missing"),
        ("deepseek-mla", "hardware.sequence_parallel={kind: ulysses, degree: 2}", "use ring"),
        ("tensor-parallel", "hardware.gpus_per_node=3", "nor fills whole nodes"),
        ("quantised", "engine.weight_dtype=int3", "'int3' is not known; did you mean 'int"),
        ("tensor-parallel", "hardware.inter_node_link={latency_us: 1}", "bandwidth_gb_per_s"),
    ],
)
def test_an_impossible_choice_is_refused_with_its_reason(
    name: str, setting: str, says: str
) -> None:
    with pytest.raises(InputError) as refusal:
        summary_of(name, setting)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("expert,tokens\n0,1\n200,5\n", "counts.csv:3: expert 200; there are 0 to 127"),
        ("expert,tokens\n0,many\n", "counts.csv:2: expected whole numbers"),
        ("expert,tokens\n0,-1\n", "counts.csv:2: tokens -1"),
        ("expert,count\n0,1\n", "columns count, expert; expected expert, tokens"),
        ("expert,tokens\n", "no counts"),
        ("expert,tokens\n0,1\n1,1\n", "name 2 experts in a layer, every token goes to 8"),
    ],
)
def test_a_bad_trace_of_counts_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "counts.csv"
    file.write_text(text)
    with pytest.raises(InputError) as refusal:
        summary_of("expert-parallel", f"experts={{routing: counts, counts: {file}}}")
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("hardware.pipeline_parallel=2", "measured tensor parallelism at most, hardware asks for"),
        ("hardware.sequence_parallel={kind: ring, degree: 2}", "ring sequence 2; source roofline"),
        ("engine.weight_dtype=int4", "measured with weights in bfloat16, engine.weight_dtype is"),
        ("engine.weight_dtype=fp8", "measured with weights in bfloat16, engine.weight_dtype is"),
    ],
)
def test_what_a_table_did_not_measure_is_refused(tmp_path: Path, setting: str, says: str) -> None:
    folder = small_table_folder(tmp_path / "table", gpu="H200-SXM")
    scenario, origin = load_scenario(
        "quickstart", [f"latency.table={folder}", "workload.num_requests=5", setting]
    )
    with pytest.raises(InputError) as refusal:
        deploy(scenario, origin=origin)
    assert says in str(refusal.value)


def test_a_fixed_latency_says_what_it_leaves_out() -> None:
    settings = ["latency={source: fixed, iteration_ms: 40}", "workload.num_requests=40"]
    staged = summary_of("pipeline-parallel", *settings)
    assert staged["pipeline"]["stages"] == 4
    split = summary_of("expert-parallel", *settings)
    assert any("expert 8 has no effect on a fixed latency" in note for note in split["warnings"])
    assert any("experts has no effect" in note for note in split["warnings"])
    small = summary_of("quantised", *settings)
    assert any("weight_dtype has no effect on a fixed" in note for note in small["warnings"])


def test_a_link_between_nodes_can_be_given() -> None:
    slow, fast = (
        summary_of(
            "tensor-parallel",
            "hardware.gpus_per_node=2",
            f"hardware.inter_node_link={{bandwidth_gb_per_s: {rate}, latency_us: 5}}",
        )["mean_tpot_ms"]
        for rate in (5, 100)
    )
    assert slow > 1.2 * fast


def test_the_routing_of_a_measured_table_is_heeded_where_it_can_be() -> None:
    from sim.latency.expert_table import ExpertTable
    from sim.latency.table_data import Part
    from sim.model.expert_routing import ExpertRouting

    model = library.model("qwen3-30b-a3b")
    tokens, experts = (np.repeat([1, 64], 2), np.tile([8, 128], 2))
    part = Part({"tokens": tokens, "experts": experts}, 1e-5 * experts)
    skewed = ExpertRouting.zipf(128, 8, exponent=1.0, rng=np.random.default_rng(0))
    even_s, skewed_s = (
        ExpertTable(part, model, routing).many(np.array([32]))[0] for routing in (None, skewed)
    )
    assert even_s == pytest.approx(1e-5 * 128 * (1 - (1 - 1 / 16) ** 32))
    assert skewed_s == pytest.approx(1e-5 * skewed.activated(np.array([32]))[0])
    whole = Part({"tokens": np.array([1, 64]), "experts": np.array([128, 128])}, np.ones(2))
    with pytest.raises(ValueError, match="the routing they were measured with"):
        ExpertTable(whole, model, skewed)


# -- together with a cluster ----------------------------------------------------------------------


def test_the_cost_is_that_of_all_gpus_of_all_replicas() -> None:
    twice = summary_of("tensor-parallel", "cluster.replicas=2")["cost"]
    assert (twice["gpus"], twice["usd_per_hour"]) == (8, 24.0)
    groups = (
        "cluster={router: least_outstanding, groups: [{replicas: 1}, "
        "{replicas: 2, hardware: {gpu: b200, tensor_parallel: 2}}]}"
    )
    mixed = summary_of("tensor-parallel", groups)["cost"]
    assert (mixed["gpus"], mixed["usd_per_hour"]) == (8, pytest.approx(4 * 3.0 + 4 * 5.0))


def test_virtual_engines_stand_behind_round_robin_and_no_other_router() -> None:
    both = summary_of("pipeline-parallel", "cluster.replicas=2", "workload.max_concurrency=null")
    assert both["completed"] == FEW["pipeline-parallel"]
    assert both["cost"]["gpus"] == 8
    routed = "cluster={replicas: 2, router: least_kv}"
    assert summary_of("pipeline-parallel", routed)["completed"] == FEW["pipeline-parallel"]
    with pytest.raises(InputError, match="under scheduler paged needs a plain cluster"):
        summary_of("pipeline-parallel", routed, "engine.generation=vllm-v0")


@pytest.mark.parametrize(
    "spread",
    [
        "{gpu: h100-sxm, pipeline_parallel: 2}",
        "{gpu: h100-sxm, sequence_parallel: {kind: ring, degree: 2}}",
    ],
)
def test_speculation_over_other_ranks_than_tensor_parallel_ones_is_refused(spread: str) -> None:
    scenario, origin = load_scenario("speculation-eagle", [f"hardware={spread}"])
    with pytest.raises(InputError, match="it is not modelled, only over tensor_parallel"):
        deploy(scenario, origin=origin)


def test_a_dense_draft_may_speculate_for_a_mixture() -> None:
    settings = ["model=mixtral-8x7b", "experts={routing: zipf, exponent: 0.5}"]
    settings += ["workload.num_requests=20", "hardware.gpu=h200-sxm", "hardware.tensor_parallel=2"]
    draft = "speculation={method: draft_model, draft_model: llama-68m, num_draft_tokens: 3, "
    settings.append(draft + "acceptance: {rate: 0.7}}")
    scenario, origin = load_scenario("speculation-eagle", settings)
    assert forecast(scenario, origin=origin).summary["completed"] == 20
