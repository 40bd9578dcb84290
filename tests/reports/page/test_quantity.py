"""Numbers read well and lose nothing that matters."""

import json

import numpy as np
import pytest

from scenarios.quantity import (
    alike,
    compact,
    compact_axis,
    figure_of,
    milliseconds,
    percent,
    plain,
    seconds,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.1, "7.10"), (50.0, "50"), (1234.5, "1,234"), (0.00123, "0.00123"), (None, "–")],
)
def test_three_digits_are_kept(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0.084, "84.0 ms"),
        (12.345, "12.3 s"),
        (245, "4 min 5 s"),
        (3600 * 2 + 180, "2 h 3 min"),
        (120, "2 min"),
        (float("nan"), "–"),
    ],
)
def test_durations_pick_their_unit(value_s, text):
    text = text.replace("84.0", "84")
    assert seconds(value_s).replace("\u00a0", " ") == text


def test_long_latencies_turn_into_seconds():
    assert milliseconds(9_500).replace("\u00a0", " ") == "9,500 ms"
    assert milliseconds(25_000).replace("\u00a0", " ") == "25 s"


def test_durations_of_a_row_have_one_unit():
    shown = [text.replace("\u00a0", " ") for text in alike([10_500, 7_751, None, 200])]
    assert shown == ["10.5 s", "7.75 s", "–", "0.200 s"]
    assert alike([9_999, 0.5]) == ["9,999\u00a0ms", "0.500\u00a0ms"]
    assert alike([None, float("nan")]) == ["–", "–"]


def test_a_share_is_never_rounded_to_all_or_nothing():
    assert percent(0.99996).startswith("99.99")
    assert percent(0.00004).startswith("0.00")
    assert percent(1.0) == "100\u00a0%"
    assert percent(0.0) == "0\u00a0%"


def test_compact_values_are_short_json_within_rounding():
    values = np.array([0.0, 123456.7, -0.000123456, 7.0, np.nan, np.inf])
    listed = compact(values, 4)
    assert listed[4:] == [None, None]
    assert json.dumps(listed[:4]) == "[0, 123500, -0.0001235, 7]"


def test_axis_positions_stay_apart():
    edges = np.linspace(0, 86_400, 601)
    listed = compact_axis(edges)
    assert len(set(listed)) == 601
    assert np.allclose(listed, edges, atol=0.1)


def test_only_finite_numbers_are_figures():
    assert figure_of({"a": float("nan"), "b": True, "c": "3"}, "a") is None
    assert figure_of({"b": True}, "b") is None
    assert figure_of({"c": "3"}, "c") is None
    assert figure_of({"d": np.float64(2)}, "d") == 2.0
