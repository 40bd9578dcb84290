"""Sharing and memory in scenarios: what is drawn, what is refused, and what each scenario shows."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.schema.load import load_scenario, parse_scenario
from sim.batch import Batch, PrefillChunk
from sim.request import Request
from tests.sim.serving import assert_same_records

SHARING = ("parallel-sampling", "beam-search", "system-prompt", "multi-turn", "preemption",
           "kv-offload")  # fmt: skip
ALPACA = ("workload.lengths.prompt.mean=19.31", "workload.lengths.output.mean=58.45",
          "workload.arrivals.request_rate=6")  # fmt: skip


def answer(name: str, *settings: str, **given: Any) -> Forecast:
    scenario, origin = load_scenario(name, settings)
    return forecast(scenario, origin=origin, **given)


def figures(name: str, *settings: str) -> dict[str, Any]:
    return answer(name, *settings).summary


@pytest.mark.parametrize("name", SHARING)
def test_leap_equals_step(name: str) -> None:
    few = ["workload.num_requests=100", "engine.num_gpu_blocks_override=400"]
    if name in ("multi-turn", "kv-offload"):
        few += ["workload.sessions.max_context_tokens=3000", "workload.sessions.turn_gap_s=8"]
    leapt = answer(name, *few, check=True)
    stepped = answer(name, *few, check=True, leap=False)
    assert_same_records(leapt.records, stepped.records)
    assert leapt.summary["completed"] == 100
    if name == "kv-offload":
        assert leapt.summary["loaded_blocks"] > 0
    if name == "preemption":
        assert leapt.summary["preemptions"] > 0


# -- sharing --------------------------------------------------------------------------------------


def test_parallel_sampling_saves_what_the_paper_found() -> None:
    """Kwon et al., section 6.3: 6.1 to 9.8 % on Alpaca, 16.2 to 30.5 % on ShareGPT (n = 2 to 6)."""

    def saved(n: int, *settings: str) -> float:
        share = figures("parallel-sampling", f"workload.samples.n={n}",
                        "workload.num_requests=300", *settings)["kv_saved_by_sharing"]  # fmt: skip
        assert isinstance(share, float)
        return share

    sharegpt, alpaca = [saved(n) for n in (2, 6)], [saved(n, *ALPACA) for n in (2, 6)]
    assert sharegpt[0] == pytest.approx(0.162, abs=0.04)
    assert sharegpt[1] == pytest.approx(0.305, abs=0.04)
    assert alpaca[0] == pytest.approx(0.061, abs=0.04)
    assert alpaca[1] == pytest.approx(0.098, abs=0.05)


def test_beam_search_saves_what_the_paper_found() -> None:
    """Kwon et al., section 6.3: 37.6 to 55.2 % on Alpaca, 44.3 to 66.3 % on ShareGPT (2 to 6)."""

    def saved(width: int, *settings: str) -> float:
        share = figures("beam-search", f"workload.beam_search.width={width}",
                        "workload.num_requests=80", *settings)["kv_saved_by_sharing"]  # fmt: skip
        assert isinstance(share, float)
        return share

    sharegpt, alpaca = [saved(w) for w in (2, 6)], [saved(w, *ALPACA) for w in (2, 6)]
    assert sharegpt[0] == pytest.approx(0.443, abs=0.08)
    assert sharegpt[1] == pytest.approx(0.663, abs=0.14)
    assert alpaca[0] == pytest.approx(0.376, abs=0.08)
    assert alpaca[1] == pytest.approx(0.552, abs=0.08)


def test_samples_of_one_length_and_of_their_own() -> None:
    def lengths(*settings: str) -> list[np.ndarray]:
        scenario, origin = load_scenario("parallel-sampling", settings)
        workload = deploy(scenario, origin=origin).workload
        assert workload.samples is not None
        return np.split(workload.samples.output_tokens, workload.samples.offsets[1:-1])

    equal, own = lengths(), lengths("workload.samples=4")
    assert all(len(set(tokens.tolist())) == 1 for tokens in equal)
    assert sum(len(set(tokens.tolist())) > 1 for tokens in own) > 490
    assert [t[0] for t in own] == [t[0] for t in equal], "the first answer is as without samples"
    drawn = lengths("workload.samples.n=[1, 3]")
    counts = {len(tokens) for tokens in drawn}
    assert counts == {1, 3}


def test_a_cached_system_prompt_is_neither_computed_nor_held_again() -> None:
    settings = "workload.num_requests=1000"
    cached = figures("system-prompt", settings)
    apart = figures("system-prompt", settings, "engine.enable_prefix_caching=false")
    # 1,024 tokens of about 1,300, but for the first of each of the four.
    assert cached["prefix_cache_hit_rate"] == pytest.approx(1024 / 1308, abs=0.02)
    assert apart["prefix_cache_hit_rate"] == 0
    assert cached["kv_saved_by_sharing"] > 0.4 > apart["kv_saved_by_sharing"] == 0
    assert cached["mean_ttft_ms"] < 0.5 * apart["mean_ttft_ms"]


def test_a_conversations_turns_find_what_was_said_before() -> None:
    # Users who take their time, so that every turn finds the answer before it.
    settings = "workload.num_requests=300", "workload.sessions.turn_gap_s=200"
    cached = figures("multi-turn", *settings)
    again = figures("multi-turn", *settings, "engine.enable_prefix_caching=false")
    # Of six turns of u + r tokens each, turn k repeats (k - 1)(u + r) and adds u = 120, r = 250.
    repeated = sum(k * 370 for k in range(6))
    assert cached["prefix_cache_hit_rate"] == pytest.approx(
        repeated / (repeated + 6 * 120), abs=0.04
    )
    assert cached["mean_ttft_ms"] < 0.6 * again["mean_ttft_ms"]


# -- memory ---------------------------------------------------------------------------------------


def test_recompute_wins_with_small_blocks_and_swap_with_large_ones() -> None:
    """Kwon et al., section 7.3: about equal between 16 and 64 tokens a block."""

    def duration_s(preemption: str, block_size: int) -> float:
        return float(
            figures("preemption", f"engine.preemption={preemption}",
                    f"engine.block_size={block_size}", "workload.num_requests=400")["duration"]
        )  # fmt: skip

    small, middle, large = (
        duration_s("swap", size) / duration_s("recompute", size) for size in (1, 16, 256)
    )
    assert small > 1.1
    assert middle == pytest.approx(1.0, abs=0.03)
    assert large < 0.95


def test_swapping_one_short_victim_is_cheaper_than_one_more_pass_over_the_weights() -> None:
    scenario, origin = load_scenario("preemption", ["engine.block_size=16"])
    latency = deploy(scenario, origin=origin).latency

    def cost_s(tokens: int) -> tuple[float, float]:
        chunk = PrefillChunk(Request(0, 0.0, tokens, 1, 1), tokens, 0)
        recompute_s = latency.iteration_s(
            Batch(prefills=[chunk], num_tokens=tokens, num_emitting=1, num_seqs=1)
        )
        blocks = -(-tokens // 16)
        idle_s = latency.iteration_s(Batch())
        swap_s = latency.iteration_s(Batch(swap_in_blocks=blocks, swap_out_blocks=blocks))
        return swap_s - idle_s, recompute_s - idle_s

    swap_s, recompute_s = cost_s(100)
    assert swap_s < recompute_s, "a prefill reads all weights however short it is"
    swap_s, recompute_s = cost_s(400)
    assert swap_s == pytest.approx(recompute_s, rel=0.05), "and many tokens cost about as much"


def test_offloaded_conversations_come_back_over_the_link() -> None:
    few = "workload.num_requests=2000"
    offloaded = figures("kv-offload", few)
    recomputed = figures("kv-offload", few, "engine.kv_offloading_size_gib=0")
    nothing = figures("kv-offload", few, "engine.kv_offloading_size_gib=0",
                      "engine.enable_prefix_caching=false")  # fmt: skip
    rates = [each["prefix_cache_hit_rate"] for each in (nothing, recomputed, offloaded)]
    assert rates[0] == 0 < rates[1] < 0.75 * rates[2]
    assert offloaded["mean_ttft_ms"] < 0.5 * recomputed["mean_ttft_ms"]
    assert recomputed["mean_ttft_ms"] < nothing["mean_ttft_ms"]
    assert offloaded["time_parts_s"]["swap"] > 0 == recomputed["loaded_blocks"]
    small = figures("kv-offload", few, "engine.kv_offloading_size_gib=8")
    assert rates[1] < small["prefix_cache_hit_rate"] < rates[2], "more host memory, more hits"


# -- published effects ----------------------------------------------------------------------------


def test_orca_over_static_batching_grows_with_the_variance_of_outputs() -> None:
    def gain(sigma: float) -> float:
        settings = [f"workload.lengths.output.sigma={sigma}", "workload.num_requests=384"]
        orca, static = (
            figures("orca-vs-static", *settings, f"engine.scheduler={name}")["output_throughput"]
            for name in ("orca", "static")
        )
        return float(orca / static)

    gains = [gain(sigma) for sigma in (0.0, 0.25, 0.5, 1.0)]
    assert gains[0] == pytest.approx(1.0, abs=0.01), "equal lengths: nothing to gain"
    assert all(later > 1.25 * earlier for earlier, later in pairwise(gains))
    assert 3 < gains[-1] < 10


def test_paged_memory_carries_two_to_four_times_the_load_of_reserved_memory() -> None:
    """Kwon et al., section 6.2: 2.7 to 8 times Orca (Max), 1.7 to 2.7 times Orca (Oracle)."""

    def most_load(*settings: str) -> float:
        """The highest rate, in steps of 0.2/s, at a normalised latency below 100 ms a token."""
        for tenths in range(4, 60, 2):
            latency_ms = figures("vllm-vs-reservation", *settings, "workload.num_requests=800",
                                 f"workload.arrivals.request_rate={tenths / 10}",
                                 )["mean_normalized_latency_ms"]  # fmt: skip
            if latency_ms > 100:
                return (tenths - 2) / 10
        raise AssertionError("it never saturates")

    paged = most_load()
    reserved = {
        name: most_load("engine.scheduler=orca", f"engine.reservation={name}")
        for name in ("max_model_len", "pow2", "oracle")
    }
    assert reserved["max_model_len"] < reserved["pow2"] < reserved["oracle"] < paged
    assert 2.5 < paged / reserved["max_model_len"] < 8
    assert paged / reserved["pow2"] > 1.4
    assert paged / reserved["oracle"] > 1.15


def test_chunked_prefill_removes_stalls() -> None:
    """Agrawal et al., OSDI 2024: prompts in chunks keep the gap between two tokens bounded."""
    whole = figures("chunked-prefill-stalls", "engine.scheduler=paged",
                    "engine.max_num_batched_tokens=16384")  # fmt: skip
    chunked = figures("chunked-prefill-stalls")
    assert chunked["p99_itl_ms"] < 0.25 * whole["p99_itl_ms"]
    assert chunked["max_itl_ms"] < 0.05 * whole["max_itl_ms"]
    assert chunked["max_itl_ms"] < 100, "no gap is longer than a budget's iteration"
    assert chunked["mean_ttft_ms"] > whole["mean_ttft_ms"], "and prompts pay for it"


# -- contradictions -------------------------------------------------------------------------------

SPECULATION = "speculation={method: ngram, acceptance: {rate: 0.5}, num_draft_tokens: 4}"
REFUSED = {
    ("parallel-sampling", "workload.beam_search={width: 4}"): "keep one of them",
    ("parallel-sampling", "workload.samples.n=300"): (
        "workload.samples.n 300 is above engine.max_num_seqs 256"
    ),
    ("parallel-sampling", "workload.samples.n=[2, 400]"): "400 is above engine.max_num_seqs",
    ("beam-search", "workload.beam_search.width=300"): (
        "workload.beam_search.width 300 is above engine.max_num_seqs 256"
    ),
    ("parallel-sampling", "engine.scheduler=orca"): "needs engine.scheduler paged or chunked",
    ("beam-search", "engine.scheduler=static"): "needs engine.scheduler paged or chunked",
    ("parallel-sampling", "hardware.pipeline_parallel=2"): "over pipeline stages is not modelled",
    (
        "parallel-sampling",
        SPECULATION,
    ): "is not modelled under paged, only in samples under chunked",
    ("beam-search", SPECULATION): "is not modelled under paged",
    ("beam-search", "engine.scheduler=chunked"): (
        "workload.beam_search.width needs engine.scheduler paged"
    ),
    ("beam-search", "workload.beam_search.survival=1.5"): "less than or equal to 1",
    ("parallel-sampling", "workload.samples.n=0"): "greater than or equal to 1",
    ("parallel-sampling", "workload.samples.lengths=odd"): "'odd' is not known",
    ("kv-offload", "engine.enable_prefix_caching=false"): "needs enable_prefix_caching",
    ("kv-offload", "engine.scheduler=orca"): "needs scheduler paged or chunked",
    ("kv-offload", "engine.kv_offloading_size_gib=0.0001"): "does not hold even one block",
    ("preemption", "engine.swap_space_gib=0"): "needs swap_space_gib above 0",
    ("preemption", "engine.swap_space_gib=0.0001"): "does not hold even one block",
    ("preemption", "latency={source: fixed, iteration_ms: 5, swapped_block_us: 3}"): (
        "swapped_block_us belongs to source"
    ),
    ("multi-turn", "workload.sessions.turns=2.5"): "a fixed number of turns is whole",
    ("multi-turn", "workload.sessions.turn_gap_s=-1"): "greater than or equal to 0",
}


@pytest.mark.parametrize(("name", "setting"), REFUSED)
def test_contradictions_are_refused_with_the_reason(name: str, setting: str) -> None:
    with pytest.raises(InputError) as refusal:
        answer(name, setting)
    assert REFUSED[name, setting] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["workload.samples=2", "engine.scheduler=paged"],
        ["workload.beam_search={width: 2}"],
        [
            "workload.samples=2",
            "cluster={groups: [{replicas: 1, role: prefill}, "
            "{replicas: 1, role: decode, engine: {scheduler: paged}}], "
            "kv_link: {bandwidth_gb_per_s: 10}}",
        ],
    ],
)
def test_groups_of_sequences_cannot_move_from_pool_to_pool(settings: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        load_scenario("disaggregated", settings)
    assert "scheduler paged" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("disaggregated", []),
        ("speculation", []),
        ("pipeline-parallel", []),
        ("async-scheduling", []),
        ("quickstart", ["engine.max_num_seqs=2"]),
    ],
)
def test_under_chunked_samples_go_wherever_requests_go(name: str, settings: list[str]) -> None:
    found = answer(name, "workload.num_requests=40", "workload.samples=3", *settings, check=True)
    requests = found.records.requests
    assert found.summary["completed"] == 40
    assert (requests["samples"] == 3).all()
    assert found.records.iterations["emitted"].sum() == requests["sampled_tokens"].sum()


def test_sessions_over_a_trace_keep_its_lengths() -> None:
    sessions = {"turns": 3, "turn_gap_s": 1, "max_context_tokens": 99}
    content = {
        "name": "x", "model": "opt-13b", "hardware": {"gpu": "h100-sxm"},
        "workload": {"trace": "some.csv", "sessions": sessions},
    }  # fmt: skip
    with pytest.raises(InputError, match="max_context_tokens has no meaning over a trace's own"):
        parse_scenario(content, origin="x")


def test_a_trace_may_ask_for_samples(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:00:0{i}.0000000,{40 + i},{10 + i}" for i in range(8)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    settings = [f"workload={{trace: {trace}, samples: 3}}"]
    summary = figures("quickstart", *settings)
    assert summary["completed"] == 8
    assert summary["total_output_tokens"] > sum(10 + i for i in range(8))
