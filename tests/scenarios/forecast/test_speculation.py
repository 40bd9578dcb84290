"""Scenarios that speculate: what each is there to show, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orcast import simulate
from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from tests import needs
from tests.orcast.command_line import refusal
from tests.sim.latency.tables import small_table_folder

SPECULATING = sorted(path.stem for path in library.ROOT.glob("speculation*.yaml"))


def summary_of(name: str, *settings: str) -> dict[str, Any]:
    scenario, origin = load_scenario(name, settings)
    return forecast(scenario, origin=origin).summary


def speed_up(name: str, *settings: str) -> float:
    """Output tokens per second against the same load without speculation, hosts being fast."""
    settings = (*settings, "latency.host_overhead={per_iteration_us: 400, per_sequence_us: 3}")
    plain = summary_of(name, *settings, "speculation=null")
    faster = summary_of(name, *settings)["output_throughput"] / plain["output_throughput"]
    assert isinstance(faster, float)
    return faster


def clients(count: int, rate: float) -> list[str]:
    """The load of `speculation`, with all answers equally long and so many clients."""
    return [
        f"workload.max_concurrency={count}",
        f"workload.num_requests={max(2 * count, 20)}",
        "workload.lengths.output={distribution: fixed, tokens: 256}",
        f"speculation.acceptance={{rate: {rate}}}",
    ]


# -- what the lecture asks ------------------------------------------------------------------------


def test_speculation_helps_a_small_batch_and_hurts_a_large_one() -> None:
    gains = [speed_up("speculation", *clients(count, 0.7)) for count in (1, 8, 64, 128, 256, 512)]
    assert gains == sorted(gains, reverse=True)
    assert 1.8 < gains[0] < 2.6, "two to three times, as published for one client"
    assert gains[-2] < 0.9
    assert gains[-1] < 0.8
    assert speed_up("speculation-large-batch", "workload.num_requests=1000") < 0.95


def test_a_speed_up_is_not_guaranteed() -> None:
    # With poor drafts it is a loss even for a single client.
    gains = [speed_up("speculation", *clients(1, rate)) for rate in (0.0, 0.1, 0.3, 0.6, 0.9)]
    assert gains == sorted(gains)
    assert gains[0] < 0.85
    assert gains[1] < 0.95
    assert gains[-1] > 3


def test_the_more_clients_the_higher_the_acceptance_at_which_it_pays() -> None:
    def pays_from(count: int) -> float:
        rates = (0.1, 0.3, 0.5, 0.7, 0.9)
        paying = (rate for rate in rates if speed_up("speculation", *clients(count, rate)) > 1)
        return next(paying)

    assert [pays_from(1), pays_from(32), pays_from(128), pays_from(256)] == [0.3, 0.5, 0.7, 0.9]


def test_the_best_draft_is_a_small_one() -> None:
    # The larger draft is accepted more often (assumed), and does not earn what it costs.
    drafts = {"llama-3.2-1b": 0.70, "llama-3.2-3b": 0.76, "llama-3.1-8b": 0.82}
    gains = [
        speed_up("speculation", *clients(1, rate), f"speculation.draft_model={draft}")
        for draft, rate in drafts.items()
    ]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] / gains[-1] > 1.05


def test_there_is_a_best_number_of_drafts_and_it_falls_with_the_batch() -> None:
    def best(count: int) -> int:
        gains = {
            k: speed_up("speculation", *clients(count, 0.7), f"speculation.num_draft_tokens={k}")
            for k in (1, 2, 4, 6, 10)
        }
        return max(gains, key=lambda k: gains[k])

    assert [best(1), best(64), best(256)] == [6, 2, 1]


# -- each scenario's own property -----------------------------------------------------------------


@pytest.mark.parametrize("name", SPECULATING)
def test_tokens_per_step_are_the_expected_ones(name: str) -> None:
    figures = summary_of(name, "workload.num_requests=100")["speculation"]
    length, expected = figures["acceptance_length"], figures["expected_tokens_per_step"]
    # No more than `depth` tokens either way: four standard deviations of the mean.
    assert abs(length - expected) < 4 * (figures["draft_depth"] / 2) / figures["steps"] ** 0.5
    assert 0 <= length - figures["tokens_per_step"] < 0.1, "an answer's end cuts little off"


@pytest.mark.parametrize("name", SPECULATING)
def test_leap_equals_step(name: str) -> None:
    from tests.sim.serving import assert_same_records

    scenario, origin = load_scenario(name, ["workload.num_requests=30"])
    leapt, stepped = (
        forecast(scenario, origin=origin, leap=leap, check=True) for leap in (True, False)
    )
    assert_same_records(leapt.records, stepped.records)


@pytest.mark.parametrize("scheduler", ["orca", "paged", "chunked"])
def test_every_policy_that_batches_by_iteration_speculates(scheduler: str) -> None:
    gain = speed_up("speculation", f"engine.scheduler={scheduler}", "workload.num_requests=40")
    assert 1.8 < gain < 2.4


def test_a_tree_is_deeper_than_the_chain_of_its_first_choices() -> None:
    few = "workload.num_requests=30"
    tree = summary_of("speculation-tree", few)
    chain = summary_of("speculation-tree", few, "speculation.branching=[1, 1, 1, 1]")
    assert tree["speculation"]["query_tokens"] == 22
    # 0.78 x 0.72 x 0.6 x 0.6 level by level, against 0.6 each.
    level = [0.78, 0.78 * 0.72, 0.78 * 0.72 * 0.6, 0.78 * 0.72 * 0.36]
    assert tree["speculation"]["expected_tokens_per_step"] == pytest.approx(1 + sum(level))
    assert chain["speculation"]["expected_tokens_per_step"] == pytest.approx(2.3056)
    assert tree["output_throughput"] > 1.1 * chain["output_throughput"]


def test_a_tree_is_the_wrong_choice_for_a_busy_engine() -> None:
    busy = ["workload.max_concurrency=64", "workload.num_requests=128"]
    tree = summary_of("speculation-tree", *busy)
    chain = summary_of("speculation-tree", *busy, "speculation.branching=[1, 1, 1, 1]")
    assert tree["output_throughput"] < chain["output_throughput"]


def test_lookup_takes_no_memory_and_no_gpu_time_but_for_its_logits() -> None:
    few = "workload.num_requests=100"
    lookup = summary_of("speculation-ngram", few)
    plain = summary_of("speculation-ngram", few, "speculation=null")
    assert lookup["memory_bytes"]["weights"] == plain["memory_bytes"]["weights"]
    figures = lookup["speculation"]
    assert figures["expected_tokens_per_step"] == pytest.approx(1 + 0.5 * (0.8 - 0.8**5) / 0.2)
    # Every other step finds something: four drafts then.
    assert figures["drafted_tokens"] / figures["steps"] == pytest.approx(2, abs=0.1)
    assert figures["draft_share"] < 0.02
    assert lookup["mean_tpot_ms"] < 0.6 * plain["mean_tpot_ms"]
    nothing = summary_of("speculation-ngram", few, "speculation.match_rate=0")["speculation"]
    assert nothing["tokens_per_step"] == 1
    assert nothing["drafted_tokens"] == 0


def test_a_head_per_position_and_a_layer_for_eagle_take_their_memory() -> None:
    few = "workload.num_requests=10"

    def draft_bytes(name: str, *settings: str) -> int:
        plain, drafting = (
            summary_of(name, few, *settings, *more)["memory_bytes"]["weights"]
            for more in (["speculation=null"], [])
        )
        assert isinstance(drafting, int)
        return drafting - plain

    assert draft_bytes("speculation-medusa") == 4 * 2 * (4096**2 + 4096 * 32000)
    # EAGLE's published sizes: 0.24, 0.37 and 0.99 billion parameters for 7B, 13B and 70B.
    for model, published in (("llama-2-7b", 0.24), ("llama-2-13b", 0.37), ("llama-2-70b", 0.99)):
        settings = [f"model={model}", "hardware.tensor_parallel=4"]
        parameters = 4 * draft_bytes("speculation-eagle", *settings) / 2
        assert parameters / 1e9 == pytest.approx(published, abs=0.006)


def test_eagle_meets_a_limit_that_plain_decoding_misses() -> None:
    settings = ["workload.num_requests=200", "slo.tpot_ms=6"]
    assert summary_of("speculation-eagle", *settings)["slo_met"]
    assert not summary_of("speculation-eagle", *settings, "speculation=null")["slo_met"]


def test_self_speculation_pays_its_share_of_layers_for_every_draft() -> None:
    figures = summary_of("speculation-self", "workload.num_requests=30")["speculation"]
    # Four drafts of a quarter of the layers are about one pass of the target: half the time.
    assert figures["draft_share"] == pytest.approx(0.5, abs=0.05)
    gains = [
        speed_up("speculation-self", "workload.num_requests=30", f"speculation.layer_share={share}")
        for share in (0.1, 0.25, 0.5)
    ]
    assert gains == sorted(gains, reverse=True)


def test_lookahead_trades_arithmetic_for_steps() -> None:
    few = "workload.num_requests=30"
    alone = summary_of("speculation-lookahead", few)["speculation"]
    assert alone["query_tokens"] == 120
    assert speed_up("speculation-lookahead", few) > 1.5
    assert speed_up("speculation-lookahead", few, "workload.max_concurrency=16") < 0.8
    assert speed_up("speculation-jacobi", few) == pytest.approx(1.05, abs=0.03)


def test_a_trace_of_accepted_tokens_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "accepted.jsonl"
    trace.write_text("[4, 0, 2]\n[1]\n")
    settings = [f"speculation.acceptance={{trace: {trace}}}", "workload.num_requests=40"]
    figures = summary_of("speculation", *settings)["speculation"]
    assert figures["expected_tokens_per_step"] == pytest.approx(2 / (1 / 3 + 1 / 2))
    assert figures["acceptance_length"] == pytest.approx(2.4, rel=0.03)


def test_measured_tables_time_target_and_draft(tmp_path: Path) -> None:
    folder = small_table_folder(tmp_path / "target")
    settings = {
        "latency.table": str(folder),
        "hardware.gpu": "h200-sxm",
        "workload.num_requests": 20,
        "engine.max_num_seqs": 16,
    }
    run = simulate("speculation-eagle", settings)
    assert run.summary["latency"]["measured"] is False, "drafting is analytic"
    assert run.summary["speculation"]["draft_share"] > 0
    lookup = simulate("speculation-ngram", settings)
    assert lookup.summary["latency"]["measured"] is True
    # The table: 4,000 us + 15 us a token. Five tokens a sequence, one sequence: about 1.5 % more.
    plain = simulate("speculation-ngram", {**settings, "speculation": None})
    assert lookup.summary["mean_itl_ms"] < 1.1 * plain.summary["mean_itl_ms"]
    with_draft = {
        **settings,
        "speculation": {
            "method": "draft_model",
            "draft_model": "llama-3.2-1b",
            "num_draft_tokens": 3,
            "acceptance": {"rate": 0.7},
            "host_per_step_us": 50,
        },
    }
    warnings = simulate("speculation-eagle", with_draft).summary["warnings"]
    assert any("the draft's times are analytic" in warning for warning in warnings)


def test_assumed_host_time_is_said() -> None:
    warnings = summary_of("speculation", "speculation.host_per_step_us=null")["warnings"]
    assert any("50 µs of host time per drafting step is an assumption" in text for text in warnings)
    assert not any("drafting step" in text for text in summary_of("speculation")["warnings"])


# -- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "draft_model=llama-3.1-405b": "speculation: the draft llama-3.1-405b .* is not smaller than the"
    " target llama-3.1-70b",
    "draft_model=llama-3.1-70b": "is not smaller than the target",
    "draft_model=llama-68m": "vocabulary of 32000 tokens, the target llama-3.1-70b of 128256",
    "draft_model=lama-3.2-1b": "unknown model 'lama-3.2-1b'.*did you mean 'llama-3.2-1b'",
    "draft_model=null": "speculation: method draft_model needs draft_model",
    "num_draft_tokens=0": r"speculation.num_draft_tokens: 0: expected greater than or equal to 1",
    "num_draft_tokens=null": "method draft_model needs num_draft_tokens",
    "acceptance={rate: 1.2}": r"speculation.acceptance.rate: 1\.2: expected less than or equal",
    "acceptance={rate: -0.1}": r"acceptance.rate: -0\.1: expected greater than or equal to 0",
    "acceptance={rate: .nan}": "expected a finite number",
    "acceptance={}": "exactly one of rate, per_position, per_rank, trace",
    "acceptance={rate: 0.5, trace: a}": "exactly one of .*, not rate and trace",
    "acceptance={per_position: [0.8, 0.6]}": "has 2 rates, drafts are 4 deep",
    "acceptance={per_position: [0.5, 0.6, 0.7, 0.8]}": "rises: these are the shares of all verif",
    "acceptance={per_rank: [0.5]}": "per_rank needs branching",
    "acceptance={trace: nowhere.jsonl}": "nowhere.jsonl: no such acceptance trace",
    "method=drfat_model": "did you mean 'draft_model'",
    "layer_share=0.5": "layer_share has no meaning for method draft_model; it takes",
    "verification=lossy": "'lossy' is not known; .*allowed: greedy, rejection",
    "draft_tensor_parallel=2": "draft_tensor_parallel 2: allowed are 1 and the target's 4",
    "draft_step_ms=1": "draft_step_ms belongs to latency.source fixed",
    "rate=0.5": "speculation.rate: unknown key",
}


@pytest.mark.parametrize(("setting", "message"), REFUSED.items())
def test_contradictions_are_refused_with_the_reason(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scenario, origin = load_scenario("speculation", [f"speculation.{setting}"])
        deploy(scenario, origin=origin)


TREES = {
    "branching=[]": "tree without nodes",
    "branching=[2, 0]": "tree without nodes",
    "branching=null": "method tree needs branching",
    "num_draft_tokens=3": "num_draft_tokens has no meaning for method tree",
    "acceptance={rate: 0.6}": "give acceptance.per_rank",
    "acceptance={per_rank: [0.9, 0.3, 0.1]}": "adds up to 1.3",
    "acceptance={per_rank: [0.9]}": "the tree tries up to 3 candidates",
    "verification=rejection": "per_rank needs verification greedy",
}


@pytest.mark.parametrize(("setting", "message"), TREES.items())
def test_impossible_trees_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scenario, origin = load_scenario("speculation-tree", [f"speculation.{setting}"])
        deploy(scenario, origin=origin)


@pytest.mark.parametrize("scheduler", ["static", "dynamic"])
def test_batching_by_request_is_refused_with_the_reason(scheduler: str) -> None:
    with pytest.raises(InputError, match=f"scheduler {scheduler} batches by request"):
        scenario, origin = load_scenario("speculation", [f"engine.scheduler={scheduler}"])
        deploy(scenario, origin=origin)


def test_a_budget_smaller_than_one_verification_is_refused() -> None:
    settings = ["engine.max_num_batched_tokens=4", "engine.max_num_seqs=1"]
    with pytest.raises(InputError, match=r"verifies 5 tokens, engine\.max_num_batched_tokens is 4"):
        scenario, origin = load_scenario("speculation", settings)
        deploy(scenario, origin=origin)


def test_a_draft_that_leaves_no_memory_is_refused() -> None:
    settings = ["model=llama-3.1-8b", "hardware={gpu: rtx-4090}", "engine.max_num_seqs=8"]
    with pytest.raises(InputError, match="speculation: no memory is left for the KV cache"):
        scenario, origin = load_scenario(
            "speculation", [*settings, "speculation.draft_model=llama-3.2-3b"]
        )
        deploy(scenario, origin=origin)


def test_a_given_cache_stays_as_large_beside_a_draft_or_is_refused() -> None:
    scenario, origin = load_scenario("speculation", ["engine.kv_cache_memory_gib=30"])
    assert deploy(scenario, origin=origin).memory.kv_bytes == 30 * 2**30
    scenario, origin = load_scenario("speculation", ["engine.kv_cache_memory_gib=38"])
    with pytest.raises(InputError, match=r"draft's weights and logits there is room for 33\.5"):
        deploy(scenario, origin=origin)


@pytest.mark.parametrize(
    ("line", "message"),
    [("[1, 9]", "accepts 9 tokens; drafts are 4 deep"), ("{}", "expected a list"), ("[1,", "JSON")],
)
def test_a_bad_trace_is_refused(tmp_path: Path, line: str, message: str) -> None:
    trace = tmp_path / "accepted.jsonl"
    trace.write_text(f"[1]\n{line}\n")
    with pytest.raises(InputError, match=message):
        scenario, origin = load_scenario(
            "speculation",
            [f"speculation.acceptance.trace={trace}", "speculation.acceptance.rate=null"],
        )
        deploy(scenario, origin=origin)


def test_fixed_latency_needs_the_drafts_too() -> None:
    fixed = "latency={source: fixed, iteration_ms: 10}"
    with pytest.raises(InputError, match=r"needs speculation\.draft_step_ms"):
        scenario, origin = load_scenario("speculation", [fixed])
        deploy(scenario, origin=origin)
    figures = summary_of("speculation", fixed, "speculation.draft_step_ms=1")["speculation"]
    assert figures["draft_share"] == pytest.approx(4 / 14, rel=0.05)


def test_the_command_line_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal("run", "speculation", "--set", "speculation.draft_model=llama-3.1-405b")
    assert "speculation: the draft llama-3.1-405b" in line
    assert not list(tmp_path.iterdir()), "nothing was half-written"


@needs.kernels
def test_the_real_engine_says_what_it_speculates_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal("validate", "speculation-eagle")
    assert (
        "speculation.method: the engine serves with draft_model, tree, ngram, jacobi, or one token "
        "at a time"
    ) in line
