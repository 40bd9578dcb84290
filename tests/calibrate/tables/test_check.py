"""`orcast calibrate check`: what it sees in good, coarse and broken tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calibrate.profiles.llmservingsim import import_llmservingsim
from calibrate.tables.check import PROCESSOR, AxisCheck, TableCheck, check_table
from scenarios import library
from sim.latency.table_folder import table_of
from tests import needs
from tests.sim.latency.tables import META, rows, small_table


def checked(**changed: list[tuple[Any, ...]]) -> TableCheck:
    return check_table(table_of(META, {**rows(), **changed}))


def axis_of(result: TableCheck, part_name: str, axis_name: str) -> AxisCheck:
    part = next(part for part in result.parts if part.name == part_name)
    return next(axis for axis in part.axes if axis.name == axis_name)


def test_a_table_of_straight_lines_leaves_nothing_out() -> None:
    result = check_table(small_table())
    assert not result.errors
    for part in result.parts:
        for axis in part.axes:
            assert axis.falls == 0
            if axis.leave_one_out is not None:
                assert axis.leave_one_out[1] < 1e-6, (part.name, axis.name)


def test_the_axis_that_bends_is_the_one_to_measure_more_finely() -> None:
    bent = [(n, c, 5.0 + 5.0 * n**2 + 0.01 * c) for n in (1, 2, 4, 8, 16, 32) for c in (16, 32, 64)]
    result = checked(decode_attention=bent)
    part = next(part for part in result.parts if part.name == "decode_attention")
    assert part.worst_axis is not None and part.worst_axis.name == "sequences"
    assert any("measure sequences more finely" in text for text in result.warnings)


def test_a_hole_in_the_grid_is_a_gap() -> None:
    linear = [("all", tokens, 10.0 + tokens) for tokens in (1, 64, 128, 2048)]
    assert any(
        "nothing measured between 128 and 2048" in w for w in checked(linear=linear).warnings
    )


def test_times_that_fall_as_work_grows_are_an_error() -> None:
    linear = [("all", tokens, 1000.0 / tokens) for tokens in (1, 2, 4, 8, 16)]
    result = checked(linear=linear)
    assert any("time falls as work grows in 4 of 4" in text for text in result.errors)


def test_a_host_time_that_falls_is_a_warning_only() -> None:
    host = [(sequences, 100.0 / sequences) for sequences in (1, 2, 4, 8, 16)]
    result = checked(host=host)
    assert not result.errors
    assert any(w.startswith("host, sequences: time falls") for w in result.warnings)


def test_a_fall_on_a_processor_is_a_warning_only() -> None:
    falling = {"linear": [("all", tokens, 1000.0 / tokens) for tokens in (1, 2, 4, 8, 16)]}
    meta = {**META, "gpu": f"{PROCESSOR}AMD EPYC"}
    result = check_table(table_of(meta, {**rows(), **falling}))
    assert not result.errors
    assert any(w.startswith("linear, tokens: time falls") for w in result.warnings)


def test_a_single_point_is_an_error() -> None:
    result = checked(linear=[("all", 8, 10.0)])
    assert any("a single value" in text for text in result.errors)


def test_one_odd_point_is_a_warning_only() -> None:
    linear = [("all", t, 10.0 + t) for t in range(1, 40)] + [("all", 40, 30.0)]
    result = checked(linear=linear)
    assert not result.errors and any("time falls by over 5%" in w for w in result.warnings)


def test_a_point_is_looked_up_as_the_simulator_would_without_it() -> None:
    # A step from 16 to 24: without either, half of it is expected there.
    linear = [("all", 8, 1000.0), ("all", 16, 1000.0), ("all", 24, 2000.0), ("all", 32, 2000.0)]
    axis = axis_of(checked(linear=linear), "linear", "tokens")
    assert axis.leave_one_out == pytest.approx((0.375, 0.4875))  # +50 % and -25 %
    # Prefill without a cache grows with the square: exact on the simulator's scale of pairs.
    prefill = [(n, 0, 10.0 + n * (n + 1)) for n in (16, 32, 64, 128, 256)]
    axis = axis_of(checked(prefill_attention=prefill), "prefill_attention", "new_tokens")
    assert axis.leave_one_out is not None and axis.leave_one_out[1] < 1e-9


def test_only_points_between_others_are_left_out() -> None:
    result = checked(logits=[("lm_head", 1, 10.0), ("lm_head", 8, 400.0)])
    axis = axis_of(result, "logits", "sequences")
    assert axis.leave_one_out is None and (axis.smallest, axis.largest, axis.values) == (1, 8, 2)


def test_many_points_are_judged_by_some_of_them_and_always_the_same() -> None:
    mixed = [
        (new, cached, n, c, 100.0 + new * (cached + new / 2) + n * c + (new * 7919 + c) % 13)
        for new in (16, 32, 64, 128, 256, 512)
        for cached in (0, 64, 256, 1024, 4096)
        for n in (1, 2, 4, 8, 16, 32)
        for c in (16, 64, 256, 1024, 4096, 16384)
    ]
    first, second = (checked(mixed_attention=mixed) for _ in range(2))
    assert first == second
    assert axis_of(first, "mixed_attention", "context_tokens").compared == 5 * 180


def test_times_that_no_gpu_reaches_are_errors() -> None:
    milliseconds = [(name, tokens, us / 1e3) for name, tokens, us in rows()["linear"]]
    milliseconds = [row for row in milliseconds if row[1] <= 16]
    assert any("not in µs" in text for text in checked(linear=milliseconds).errors)
    nothing = [(n, c, 0.0 if n == 2 else us) for n, c, us in rows()["decode_attention"]]
    result = checked(decode_attention=nothing)
    assert any("decode_attention: 5 of 35 points take no time" in text for text in result.errors)


def test_an_operation_that_stops_early_is_a_warning() -> None:
    linear = [row for row in rows()["linear"] if row[0] != "mlp" or row[1] <= 512]
    result = checked(linear=linear)
    assert "linear, tokens: mlp was measured up to 512 only, others up to 2048" in result.warnings


def test_estimates_do_not_count_as_measurements() -> None:
    jagged = [("norms (estimated)", t, 100.0 * (t % 3)) for t in (1, 16, 32, 64, 128, 2048)]
    axis = axis_of(checked(linear=rows()["linear"] + jagged), "linear", "tokens")
    assert axis.falls == 0 and axis.leave_one_out is not None and axis.leave_one_out[1] < 1e-6


def test_missing_host_time_and_estimates_are_told() -> None:
    table = small_table(host_overhead_us=None, estimated=["norms"])
    result = check_table(table)
    assert any("no host overhead" in text for text in result.warnings)
    assert "estimated, not measured: norms" in result.lines()


def test_errors_held_out_and_repeats_apart_are_told() -> None:
    parts = {
        "linear": {"held_out": {"median": -0.38}, "spread_median": 0.02},
        "logits": {"held_out": {"median": 0.03}, "spread_median": 0.21},
        "host": "nobody's",
    }
    table = small_table(
        whole_iterations={"held_out": {"median": 0.12}}, parts=parts, contention=1.6
    )
    warnings = check_table(table).warnings
    for words in (
        "1.60 times as long by the clock",
        "whole iterations that it had not seen are off by 12% at the median",
        "linear: points held out are off by 38% at the median",
        "logits: repeats of one point lie 21% apart",
    ):
        assert sum(words in text for text in warnings) == 1, words
    assert not any("logits: points" in text or "linear: repeats" in text for text in warnings)
    assert not small_table(whole_iterations=None, parts=[]).doubts


def test_the_result_is_json() -> None:
    found = json.loads(json.dumps(check_table(small_table()).as_dict()))
    assert found["ok"] is True
    assert found["parts"]["linear"]["axes"]["tokens"]["largest"] == 2048


PROFILE = needs.SHARED / "vllm-rtx4090" / "profile"


@needs.shared("vllm-rtx4090/profile")
def test_a_measured_profile_has_no_errors_and_small_ones_between_its_points() -> None:
    meta, parts = import_llmservingsim(PROFILE, library.model("llama-3.1-8b"))
    result = check_table(table_of(meta, parts))
    assert not result.errors
    for part in result.parts:
        for axis in part.axes:
            if axis.leave_one_out is not None:
                assert axis.leave_one_out[0] < 0.05, (part.name, axis.name)
