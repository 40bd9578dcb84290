"""`orcast calibrate check`: what it sees in good, coarse and broken tables."""

from __future__ import annotations

import json
from typing import Any

from calibrate.check import check_table
from sim.latency.table_folder import table_of
from tests.sim.latency.tables import META, rows, small_table


def checked(**changed: list[tuple[Any, ...]]):  # type: ignore[no-untyped-def]
    return check_table(table_of(META, {**rows(), **changed}))


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


def test_a_single_point_is_an_error() -> None:
    result = checked(linear=[("all", 8, 10.0)])
    assert any("a single value" in text for text in result.errors)


def test_one_odd_point_is_a_warning_only() -> None:
    linear = [("all", t, 10.0 + t) for t in range(1, 40)] + [("all", 40, 30.0)]
    result = checked(linear=linear)
    assert not result.errors and any("time falls by over 5%" in w for w in result.warnings)


def test_missing_host_time_and_estimates_are_told() -> None:
    table = small_table(host_overhead_us=None, estimated=["norms"])
    result = check_table(table)
    assert any("no host overhead" in text for text in result.warnings)
    assert "estimated, not measured: norms" in result.lines()


def test_the_result_is_json() -> None:
    found = json.loads(json.dumps(check_table(small_table()).as_dict()))
    assert found["ok"] is True
    assert found["parts"]["linear"]["axes"]["tokens"]["largest"] == 2048
