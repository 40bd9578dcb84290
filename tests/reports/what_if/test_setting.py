"""A setting as text: read back as it was written, and nonsense in an address said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.what_if.setting import MOST_PINS, address, opened, values_of, words, written
from scenarios.schema.knobs import Knob

KNOBS = [
    Knob("engine.max_num_seqs", "Batch limit", "Engine", (32, 64, 128), 128, True, "sequences"),
    Knob("workload.arrivals.request_rate", "Request rate", "Load", (10.0, 12.5), 10.0, True),
    Knob("engine.enable_prefix_caching", "Prefix cache", "Engine", (True, False), True, False),
    Knob("model", "Model", "Hardware", ("a/b&c=d", "é %", "plain"), "plain", False),
    Knob("speculation", "Speculation", "Engine", ("eagle", None), "eagle", False),
]
OWN = {knob.path: knob.value for knob in KNOBS}
settings = st.fixed_dictionaries({knob.path: st.sampled_from(knob.choices) for knob in KNOBS})


@given(values=settings, pins=st.lists(settings, max_size=MOST_PINS))
def test_an_address_is_read_back_as_it_was_written(
    values: dict[str, Any], pins: list[dict[str, Any]]
) -> None:
    setting = written(KNOBS, values)
    assert values_of(KNOBS, setting) == values
    pinned = list(dict.fromkeys(written(KNOBS, pin) for pin in pins))
    found = opened(KNOBS, address(setting, pinned))
    assert (found.setting, found.pins, found.ignored) == (setting, pinned, [])


def test_only_what_differs_from_the_scenario_is_written() -> None:
    assert written(KNOBS, OWN) == ""
    turned = OWN | {"engine.max_num_seqs": 64, "speculation": None}
    assert written(KNOBS, turned) == "engine.max_num_seqs=64&speculation=null"
    assert words(KNOBS, written(KNOBS, turned)) == [
        "Batch limit: 64 sequences",
        "Speculation: off",
    ]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?engine.max_num_seqs=65", "engine.max_num_seqs=65 is not one of its choices"),
        ("?engine.max_num_seqs=", "engine.max_num_seqs= is not one of its choices"),
        ("?engine.max_num_seqs=nan", "engine.max_num_seqs=nan is not one of its choices"),
        ("?engine.enable_prefix_caching=1", "is not one of its choices"),
        ("?<script>=1", "<script> is no knob of this scenario"),
        ("?%ff=%ff", "is no knob of this scenario"),
        ("?pin=engine.max_num_seqs%3D7", "a pinned setting: engine.max_num_seqs=7 is not"),
        ("?" + "a=1&" * 300, "more than 200 parts"),
        ("?" + "a" * 9000, "longer than 8000 characters"),
    ],
)
def test_nonsense_in_an_address_is_ignored_and_said(query: str, said: str) -> None:
    found = opened(KNOBS, query)
    assert (found.setting, found.pins) == ("", [])
    assert len(found.ignored) == 1 and said in found.ignored[0] and len(found.ignored[0]) < 120


def test_what_means_something_is_kept_beside_nonsense() -> None:
    found = opened(KNOBS, "?engine.max_num_seqs=64.0&nonsense=1")
    assert found.setting == "engine.max_num_seqs=64"
    assert found.ignored == ["nonsense is no knob of this scenario"]


def test_no_more_than_four_settings_are_pinned() -> None:
    query = "?pin=&" + "&".join(
        f"pin=engine.max_num_seqs%3D{n}%26workload.arrivals.request_rate%3D{rate}"
        for n in (32, 64)
        for rate in (10, 12.5)
    )
    found = opened(KNOBS, query)
    assert len(found.pins) == MOST_PINS
    assert found.ignored == ["only 4 settings can be pinned"]
