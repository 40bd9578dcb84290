"""A validation's verdict: when a forecast holds, when it does not, and when nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest

from calibrate.recordings.verdict import device_state, verdict


def figures(e2e_pct: float, **changed: Any) -> dict[str, Any]:
    """A validation whose mean E2E is off by so much, and all else by 1 %."""
    return {
        "metrics": {
            metric: {"mean": {"diff_pct": e2e_pct if metric == "e2e" else 1.0}}
            for metric in ("ttft", "tpot", "e2e")
        },
        "throughput": {"output": {"diff_pct": -1.0}},
        "schedule_identity": {"checked": True, "differences": []},
        "iterations": {"bias_pct": e2e_pct},
        "request_errors": {},
        "slowdown": 1.0,
        "contention": 1.01,
        **changed,
    }


def test_within_five_per_cent_it_holds() -> None:
    found = verdict(figures(-4.2), doubts=("linear: points held out are off by 38%",))
    assert found.holds is True and "worst: mean E2E, -4.2 %" in found.words
    assert found.reasons == ()


def test_beyond_it_does_not_and_says_where_the_difference_lies() -> None:
    found = verdict(figures(12.0), doubts=("linear: points held out are off by 38%",))
    assert found.holds is False and found.words.endswith("mean E2E +12.0 %.")
    assert "+12.0 % of the iterations" in found.reasons[0]
    assert "held out are off by 38%" in found.reasons[1]
    elsewhere = verdict(figures(12.0, iterations={"bias_pct": 0.4}))
    assert "which batches were made" in elsewhere.reasons[0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"slowdown": 1.3}, "30% slower"),
        ({"slowdown": 0.8}, "20% faster"),
        ({"contention": 1.9}, "1.90 times as long"),
        ({"slowdown": 1.02}, None),
        ({"slowdown": None, "contention": None}, None),
    ],
)
def test_a_difference_on_a_device_that_is_not_what_it_was_stays_open(
    state: dict[str, Any], words: str | None
) -> None:
    told = list(device_state(figures(12.0, **state)))
    assert [words in text for text in told] == ([True] if words else [])
    assert verdict(figures(12.0, **state)).holds is (None if words else False)
    assert verdict(figures(2.0, **state)).holds is True


def test_another_schedule_is_no_matter_of_time() -> None:
    other = {"checked": True, "differences": ["iteration 3: 4 running, 5 forecast"]}
    assert verdict(figures(0.0, schedule_identity=other, slowdown=1.5)).holds is False


def test_failed_requests_leave_it_open() -> None:
    assert verdict(figures(0.0, request_errors={"3": "out of memory"})).holds is None
