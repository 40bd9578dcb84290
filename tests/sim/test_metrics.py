"""The summary against numpy and against what vLLM's `bench serve` computes, request by request."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.metrics import PERCENTILES, Slo, request_times_s, summarize, weighted_percentiles
from sim.records import Records

STATISTICS = ("mean", "median", "std", *(f"p{percentile}" for percentile in PERCENTILES))

# (arrival, when each token came back, in seconds)
FOUR = [
    (0.5, [0.75, 1.0, 1.5, 2.0]),
    (1.0, [1.25]),
    (1.5, [4.0, 4.25, 5.0]),
    (2.0, [2.5, 6.5]),
]


def records_of(served: list[tuple[float, list[float]]], *, rejected: int = 0) -> Records:
    """Records of requests with these token times, and of `rejected` more that arrived last."""
    count = len(served) + rejected
    nothing = [math.nan] * rejected
    arrivals = [arrival for arrival, _ in served]
    arrivals += [max(arrivals, default=0.0)] * rejected
    first = [times[0] for _, times in served]
    last = [times[-1] for _, times in served]
    gaps = [gap for _, times in served for gap in np.diff(times)]
    return Records(
        requests={
            "request": np.arange(count),
            "arrival_s": np.array(arrivals),
            "scheduled_s": np.array([(a + f) / 2 for a, f in zip(arrivals, first, strict=False)]
                                    + nothing),
            "first_token_s": np.array(first + nothing),
            "last_token_s": np.array(last + nothing),
            "finished_s": np.array(last + nothing),
            "prompt_tokens": np.arange(count) + 10,
            "output_tokens": np.array([len(times) for _, times in served] + [7] * rejected,
                                      dtype=np.int64),
            "cached_tokens": np.arange(count) % 3,
            "preemptions": np.arange(count) % 2,
            "rejected": np.arange(count) >= len(served),
            "replica": np.zeros(count, dtype=np.int32),
        },
        iterations={
            "start_s": np.array([0.5, 1.5, 4.5]),
            "duration_s": np.array([1.0, 3.0, 2.0]),
            "running": np.array([1, 4, 2]),
            "waiting": np.array([5, 0, 0]),
            "kv_used_tokens": np.array([10, 40, 20]),
            "kv_reserved_tokens": np.array([0, 10, 0]),
            "kv_fragmentation_tokens": np.array([6, 14, 12]),
            "kv_free_tokens": np.array([64, 16, 48]),
            "kv_shared_tokens": np.array([16, 0, 8]),
            "copied_blocks": np.array([1, 0, 2]),
            "swap_blocks": np.array([0, 5, 4]),
            "loaded_blocks": np.array([0, 3, 0]),
            "extrapolated": np.array([False, False, True]),
        },
        preemptions={},
        gaps_s=np.array(gaps),
        gap_weights=np.ones(len(gaps)),
    )  # fmt: skip


def as_vllm_does(served: list[tuple[float, list[float]]]) -> dict[str, float]:
    """`calculate_metrics` of vLLM's `bench serve`: lists of seconds, statistics by numpy."""
    ttfts, tpots, itls, e2els = [], [], [], []
    for arrival, times in served:
        ttft, latency = times[0] - arrival, times[-1] - arrival
        ttfts.append(ttft)
        e2els.append(latency)
        itls += [later - earlier for earlier, later in pairwise(times)]
        if len(times) > 1:
            tpots.append((latency - ttft) / (len(times) - 1))
    figures: dict[str, float] = {}
    for name, values in {"ttft": ttfts, "tpot": tpots, "itl": itls, "e2el": e2els}.items():
        figures[f"mean_{name}_ms"] = float(np.mean(values)) * 1000
        figures[f"median_{name}_ms"] = float(np.median(values)) * 1000
        figures[f"std_{name}_ms"] = float(np.std(values)) * 1000
        for percentile in PERCENTILES:
            figures[f"p{percentile}_{name}_ms"] = float(np.percentile(values, percentile)) * 1000
    duration = max(times[-1] for _, times in served) - min(arrival for arrival, _ in served)
    outputs = sum(len(times) for _, times in served)
    prompts = sum(10 + at for at in range(len(served)))
    return figures | {
        "completed": len(served),
        "duration": duration,
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": len(served) / duration,
        "output_throughput": outputs / duration,
        "total_token_throughput": (prompts + outputs) / duration,
    }


times_s = st.floats(0.001, 100.0, allow_subnormal=False)
some_requests = st.lists(
    st.tuples(times_s, st.lists(times_s, min_size=1, max_size=6)).map(
        lambda drawn: (drawn[0], np.cumsum([drawn[0], *drawn[1]])[1:].tolist())
    ),
    min_size=1,
    max_size=12,
).filter(lambda drawn: any(len(times) > 1 for _, times in drawn))


@given(some_requests)
def test_the_summary_is_what_vllm_would_have_written(
    served: list[tuple[float, list[float]]],
) -> None:
    served = sorted(served)
    summary = summarize(records_of(served))
    for name, expected in as_vllm_does(served).items():
        assert summary[name] == pytest.approx(expected, rel=1e-9, abs=1e-9), name


def test_a_small_example_by_hand() -> None:
    summary = summarize(records_of(FOUR))
    assert summary["duration"] == 6.0
    assert summary["mean_ttft_ms"] == 875.0  # (250 + 250 + 2500 + 500) / 4
    assert summary["median_ttft_ms"] == summary["p50_ttft_ms"] == 375.0
    assert summary["mean_tpot_ms"] == pytest.approx((1250 / 3 + 500 + 4000) / 3)
    assert summary["mean_itl_ms"] == pytest.approx(6250 / 6)
    assert summary["request_throughput"] == pytest.approx(4 / 6)
    assert summary["total_output_tokens"] == 10
    assert summary["mean_queue_ms"] == pytest.approx(875 / 2)
    assert summary["request_goodput"] is None, "there is no SLO to be good by"


def test_a_request_of_one_token_has_no_tpot() -> None:
    times = request_times_s(records_of(FOUR).requests)
    assert np.isnan(times["tpot"]).tolist() == [False, True, False, False]
    assert times["tpot"][3] == 4.0


def test_tpot_counts_until_the_response_is_returned() -> None:
    # Request-level batching returns a response with its batch, after its last token.
    records = records_of([(0.0, [1.0, 2.0])])
    records.requests["finished_s"][:] = 5.0
    summary = summarize(records)
    assert (summary["mean_e2el_ms"], summary["mean_tpot_ms"]) == (5000.0, 4000.0)
    assert summary["mean_itl_ms"] == 1000.0


def test_rejected_requests_count_as_rejected_and_nowhere_else() -> None:
    with_some, without = summarize(records_of(FOUR, rejected=3)), summarize(records_of(FOUR))
    assert (with_some["completed"], with_some["rejected"]) == (4, 3)
    for name in ("mean_ttft_ms", "p99_e2el_ms", "total_input_tokens", "output_throughput"):
        assert with_some[name] == without[name]


def test_statistics_of_nothing_are_none_and_the_summary_is_still_json() -> None:
    empty = {"start_s", "duration_s", "running", "waiting", "extrapolated"}
    records = records_of([], rejected=2)
    assert empty <= records.iterations.keys()
    nothing = {name: column[:0] for name, column in records.iterations.items()}
    summary = summarize(replace(records, iterations=nothing), Slo(ttft_s=1.0))
    assert (summary["completed"], summary["rejected"], summary["duration"]) == (0, 2, 0.0)
    for name in ("ttft", "tpot", "itl", "e2el", "queue"):
        assert [summary[f"{statistic}_{name}_ms"] for statistic in STATISTICS] == [None] * 7
    assert summary["request_throughput"] == 0.0
    assert summary["slo_met"] is False
    json.dumps(summary, allow_nan=False)


# -- weighted percentiles -------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 9)),
        min_size=1,
        max_size=40,
    ).filter(lambda pairs: any(weight for _, weight in pairs)),
    st.lists(st.floats(0, 100), min_size=1, max_size=5),
)
def test_weighted_percentiles_are_numpys_of_the_repeated_values(
    pairs: list[tuple[float, int]], percentiles: list[float]
) -> None:
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    found = weighted_percentiles(values, weights.astype(float), tuple(percentiles))
    expected = np.percentile(np.repeat(values, weights), percentiles)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_inter_token_gaps_weigh_as_many_tokens_as_had_them() -> None:
    gaps_s, weights = np.array([0.03, 0.01, 0.5]), np.array([200.0, 700.0, 3.0])
    summary = summarize(replace(records_of(FOUR), gaps_s=gaps_s, gap_weights=weights))
    every = np.repeat(gaps_s, weights.astype(int)) * 1e3
    assert summary["mean_itl_ms"] == pytest.approx(every.mean())
    assert summary["std_itl_ms"] == pytest.approx(every.std())
    for percentile in PERCENTILES:
        expected = np.percentile(every, percentile)
        assert summary[f"p{percentile}_itl_ms"] == pytest.approx(expected)


# -- service levels -------------------------------------------------------------------------------


def good_as_vllm_counts(served: list[tuple[float, list[float]]], slo: Slo) -> int:
    """vLLM's goodput: requests within every limit; an answer of one token has TPOT 0."""
    good = 0
    for arrival, times in served:
        values = {
            "ttft": times[0] - arrival,
            "tpot": (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0,
            "e2el": times[-1] - arrival,
        }
        good += all(values[name] <= limit for name, limit in slo.limits.items())
    return good


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(ttft_s=0.25), 2),
        (Slo(ttft_s=0.5), 3),
        (Slo(tpot_s=0.5), 3),
        (Slo(ttft_s=0.5, tpot_s=0.5), 2),
        (Slo(e2el_s=1.5), 2),
        (Slo(ttft_s=0.1), 0),
        (Slo(ttft_s=9.0, tpot_s=9.0, e2el_s=9.0), 4),
    ],
)
def test_goodput_counts_requests_within_every_limit(slo: Slo, good: int) -> None:
    assert good_as_vllm_counts(FOUR, slo) == good
    summary = summarize(records_of(FOUR), slo)
    assert summary["request_goodput"] == pytest.approx(good / 6.0)
    assert summary["slo_attainment"]["all"] == good / 4
    assert set(summary["slo_attainment"]) == {"all", *slo.limits}


def test_the_slo_is_met_when_its_share_of_requests_keeps_each_limit() -> None:
    # Three of four keep the first limit, three of four the second, only two both.
    limits = Slo(ttft_s=0.5, tpot_s=0.5)
    assert summarize(records_of(FOUR), replace(limits, percentile=75.0))["slo_met"] is True
    rejecting = summarize(records_of(FOUR, rejected=4), replace(limits, percentile=50.0))
    assert rejecting["slo_attainment"]["all"] == 2 / 8, "no answer: all limits missed"
    assert rejecting["slo_met"] is False
    assert summarize(records_of(FOUR), replace(limits, percentile=76.0))["slo_met"] is False


# -- the engine over time -------------------------------------------------------------------------


def test_means_over_time_weigh_iterations_by_their_duration() -> None:
    summary = summarize(records_of(FOUR))
    assert summary["iterations"] == 3
    assert summary["busy_s"] == 6.0
    assert summary["mean_running"] == pytest.approx((1 * 1 + 4 * 3 + 2 * 2) / 6)
    assert summary["mean_waiting"] == pytest.approx(5 / 6)
    assert (summary["peak_running"], summary["peak_waiting"]) == (4, 5)
    assert summary["extrapolated_share"] == pytest.approx(2 / 6)
    assert summary["preemptions"] == 2
    assert summary["cached_prompt_tokens"] == 3


def test_kv_memory_is_shared_out_by_kind() -> None:
    summary = summarize(records_of(FOUR))
    used, allocated, slots = 10 * 1 + 40 * 3 + 20 * 2, 16 * 1 + 64 * 3 + 32 * 2, 80 * 6
    assert summary["kv_utilization"] == pytest.approx(used / slots)
    assert summary["kv_useful"] == pytest.approx(used / allocated)
    assert summary["kv_share"]["reserved"] == pytest.approx(30 / slots)
    assert sum(summary["kv_share"].values()) == pytest.approx(1.0)
