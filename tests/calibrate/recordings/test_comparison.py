"""The same requests are matched, and the figures are what numpy says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calibrate.recordings.comparison import changed_settings, compare
from calibrate.recordings.measurement import Measurement, MeasurementError, simulated


def run_of(
    arrival_s: Any, ttft_s: Any, e2e_s: Any, *, prompt: Any = None, output: Any = None,
    label: str = "forecast", ids: list[str] | None = None,
) -> Measurement:  # fmt: skip
    arrival = np.asarray(arrival_s, float)
    number = len(arrival)
    columns: dict[str, np.ndarray] = {
        "arrival_s": arrival,
        "scheduled_s": arrival,
        "first_token_s": arrival + ttft_s,
        "finished_s": arrival + e2e_s,
        "prompt_tokens": np.arange(10, 10 + number) if prompt is None else np.array(prompt),
        "output_tokens": np.full(number, 5) if output is None else np.array(output),
    }
    if ids is not None:
        columns["request_id"] = np.array(ids)
    return simulated(label, columns, {"preempted_s": np.zeros(0), "resumed_s": np.zeros(0)})


def random_run(seed: int, *, stretch: float = 1.0, number: int = 40) -> Measurement:
    rng = np.random.default_rng(seed)
    arrival_s, ttft_s = np.sort(rng.random(number)) * 20, rng.random(number) + 0.1
    return run_of(arrival_s, ttft_s * stretch, (ttft_s + rng.random(number)) * stretch)


def test_figures_are_those_of_numpy() -> None:
    a, b = random_run(1), random_run(2)
    found = compare(a, b).as_dict()
    assert list(found) == [
        "a", "b", "requests", "metrics", "per_request", "makespan", "throughput",
    ]  # fmt: skip
    assert list(found["metrics"]) == ["ttft", "tpot", "e2e"]
    for metric, statistics in found["metrics"].items():
        assert list(statistics) == ["mean", "p50", "p90", "p95", "p99"]
        values = [getattr(side, f"{metric}_s") * 1e3 for side in (a, b)]
        for name, pair in statistics.items():
            at = [v.mean() if name == "mean" else np.percentile(v, int(name[1:])) for v in values]
            assert [pair["a"], pair["b"]] == pytest.approx(at, rel=1e-12)
            assert pair["diff_pct"] == pytest.approx((at[0] - at[1]) / at[1] * 100)
    errors = (a.e2e_s / b.e2e_s - 1) * 100
    assert found["per_request"]["e2e_mape_pct"] == pytest.approx(np.abs(errors).mean())
    assert found["per_request"]["e2e_bias_pct"] == pytest.approx(errors.mean())


def test_whole_run_counts_from_the_first_arrival_to_the_last_token() -> None:
    a = run_of([5.0, 6.0], [1, 1], [2.0, 3.0], output=[10, 30])
    b = run_of([0.0, 1.0], [1, 1], [2.0, 7.0], output=[10, 30])
    found = compare(a, b).as_dict()
    assert found["makespan"] == {"a": 4.0, "b": 8.0, "diff_pct": -50.0}
    assert found["throughput"]["request"] == {"a": 0.5, "b": 0.25, "diff_pct": 100.0}
    assert found["throughput"]["output"] == {"a": 10.0, "b": 5.0, "diff_pct": 100.0}


def test_sign_says_that_a_slower_forecast_is_above() -> None:
    found = compare(random_run(1, stretch=1.1), random_run(1))
    assert found.metrics()["e2e"]["p99"].diff_pct == pytest.approx(10)
    assert found.per_request()["e2e_bias_pct"] == pytest.approx(10)
    same = compare(random_run(3), random_run(3)).as_dict()
    assert {pair["diff_pct"] for pairs in same["metrics"].values() for pair in pairs.values()} == {
        0.0
    }


def test_answers_of_one_token_have_no_tpot() -> None:
    a = run_of([0, 1], [0.5, 0.5], [0.5, 2.5], output=[1, 3])
    assert compare(a, a).metrics()["tpot"]["mean"].a == 1000.0
    alone = run_of([0], [0.5], [0.5], output=[1])
    found = compare(alone, alone).as_dict()
    assert found["metrics"]["tpot"]["p50"] == {"a": None, "b": None, "diff_pct": None}
    assert found["per_request"]["tpot_mape_pct"] is None


def test_rejected_requests_are_left_out_and_said_so() -> None:
    a, b = random_run(1), random_run(1)
    rejected = np.arange(40) == 7
    a = replace(
        a, e2e_s=np.where(rejected, np.nan, a.e2e_s), completed=~rejected,
        output_tokens=np.where(rejected, 0, a.output_tokens),
    )  # fmt: skip
    found = compare(a, b)
    assert found.as_dict()["requests"] == 39
    assert 7 not in found.rows_b
    assert len(found.notes) == 1 and "1 of 40 requests did not complete in A" in found.notes[0]


def test_first_request_that_differs_is_named() -> None:
    a = run_of([0, 5, 10], [1, 1, 1], [2, 2, 2], prompt=[8, 9, 10])
    b = run_of([0, 5, 10], [1, 1, 1], [2, 2, 2], prompt=[8, 9, 11], ids=["x", "y", "z"])
    with pytest.raises(
        MeasurementError,
        match=r"request 2 in order of arrival \(z\) differs: 10 prompt and 5 output tokens in A",
    ):
        compare(a, b)
    with pytest.raises(MeasurementError, match="request 1 in order of arrival differs"):
        compare(a, run_of([0, 5, 10], [1] * 3, [2] * 3, prompt=[8, 9, 10], output=[5, 6, 5]))


def test_numbers_of_requests_must_agree() -> None:
    a, b = random_run(1), random_run(1)
    short = run_of(b.arrival_s[:30], b.ttft_s[:30], b.e2e_s[:30])
    with pytest.raises(MeasurementError, match=r"40 requests in A .* request 30 .* not in B"):
        compare(a, short)
    with pytest.raises(MeasurementError, match=r"30 requests in A .* is in B but not in A"):
        compare(short, b)


def test_requests_that_overtook_each_other_on_their_way_are_still_the_same() -> None:
    a = run_of([0.0, 1.0, 1.1, 5.0], [1, 2, 3, 4], [5, 6, 7, 8], prompt=[8, 9, 10, 8])
    b = run_of([0.0, 1.05, 1.02, 5.0], [1, 2, 3, 4], [5, 6, 7, 8], prompt=[8, 9, 10, 8])
    found = compare(a, b)
    assert found.per_request()["ttft_mape_pct"] == pytest.approx(0)
    assert found.rows_b.tolist() == [0, 2, 1, 3]
    assert "2 requests arrived in another order" in found.notes[0]
    far = run_of([0.0, 3.05, 1.02, 5.0], [1, 2, 3, 4], [5, 6, 7, 8], prompt=[8, 9, 10, 8])
    with pytest.raises(MeasurementError, match="request 1 in order of arrival differs"):
        compare(a, far)


def test_ids_match_whatever_the_order() -> None:
    a = run_of([0, 9], [1, 2], [3, 4], prompt=[8, 9], ids=["x", "y"])
    b = run_of([9, 0, 4], [1, 2, 7], [3, 4, 7], prompt=[8, 9, 5], ids=["x", "y", "only-b"])
    found = compare(a, b)
    assert found.per_request()["e2e_mape_pct"] == pytest.approx(0)
    assert found.names() == ["x", "y"]
    assert "1 of 3 requests of B (forecast) are not in the other run" in found.notes[0]


def test_ids_without_one_in_common_leave_the_order_of_arrival() -> None:
    a = run_of([0, 9], [1, 2], [3, 4], ids=["line-1", "line-2"])
    b = run_of([0, 9], [1, 2], [3, 4], ids=["bench-0", "bench-1"])
    found = compare(a, b)
    assert found.as_dict()["requests"] == 2 and found.names() == ["bench-0", "bench-1"]


def test_id_that_appears_twice_is_refused() -> None:
    a = run_of([0, 9], [1, 2], [3, 4], ids=["x", "x"])
    with pytest.raises(MeasurementError, match="a request_id appears more than once"):
        compare(a, a)


def test_runs_without_a_completed_request_in_common_are_refused() -> None:
    a = random_run(1)
    none = replace(a, completed=np.zeros(40, bool), label="empty")
    with pytest.raises(MeasurementError, match="no request completed in both forecast and empty"):
        compare(a, none)


def test_run_without_arrivals_lends_its_duration() -> None:
    a = random_run(1)
    unknown = np.full(40, np.nan)
    b = replace(a, arrival_s=unknown, first_token_s=unknown, finished_s=unknown, duration_s=30.0)
    found = compare(a, b)
    assert found.makespan().b == 30.0
    assert found.throughput()["output"].b == pytest.approx(200 / 30)
    assert "no arrival times: its makespan is the duration it gives" in found.notes[0]
    found = compare(a, replace(b, duration_s=None))
    assert found.throughput()["request"].as_dict()["diff_pct"] is None


def test_settings_are_told_apart_by_path() -> None:
    a = {"engine": {"max_num_seqs": 64, "sizes": [1, 2]}, "slo": None, "name": "x"}
    b = {"engine": {"max_num_seqs": 128, "sizes": [1, 2]}, "slo": {"ttft_ms": 5}, "name": "x"}
    assert changed_settings(a, b) == {
        "engine.max_num_seqs": (64, 128),
        "slo.ttft_ms": (None, 5),
    }
    run = random_run(1)
    assert compare(run, run, settings=(a, b)).as_dict()["scenario"]["slo.ttft_ms"] == {
        "a": None, "b": 5,
    }  # fmt: skip
    assert compare(run, run, settings=(a, a)).as_dict()["scenario"] == {}
