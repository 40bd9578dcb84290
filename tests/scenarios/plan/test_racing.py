"""Giving candidates up early never changes which one is chosen."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.plan.goodput import Goodput, TooLow, find_goodput
from scenarios.plan.plan import plan
from tests.scenarios.plan.planning import DeterministicServer, small

FEW = ("plan.seeds=3", "plan.requests=100", "plan.tolerance=0.05")
GPUS = "plan.candidates={gpus: [a100-80gb, h100-sxm, l40s]}"


@given(st.integers(0, 2**31), st.floats(1.0, 12.0), st.floats(0.02, 1.2))
@settings(max_examples=12, deadline=None)
def test_who_would_be_promised_enough_is_never_given_up(
    seed: int, limit: float, needed: float
) -> None:
    def search(**further: object) -> Goodput | TooLow:
        server = DeterministicServer(seed, limit, 0.9)
        return find_goodput(
            server.trial, server.fill, server.objectives,
            seeds=3, requests=400, confidence=0.9, tolerance=0.05, **further,
        )  # type: ignore[arg-type]  # fmt: skip

    whole, raced = search(), search(enough=lambda rate_per_s: rate_per_s >= needed)
    assert isinstance(whole, Goodput)
    if isinstance(raced, TooLow):
        assert whole.low_per_s <= raced.most_per_s < needed
        assert len(raced.known.probes) <= len(whole.probes)
    else:
        assert whole.low_per_s == raced.low_per_s
        assert whole.by_seed_per_s == raced.by_seed_per_s


@pytest.mark.parametrize("load_per_s", [45, 400])
def test_the_cheapest_is_the_same_as_where_everything_is_explored(load_per_s: int) -> None:
    asked = (GPUS, f"plan.load.request_rate={load_per_s}", *FEW)
    every = plan(small(*asked))
    raced = plan(small(*asked, "plan.explore=cheapest"))
    for name in ("chosen", "check", "curve", "to_deploy", "nearest_miss"):
        assert json.dumps(every[name]) == json.dumps(raced[name])
    rows = {row["label"]: row for row in every["candidates"]}
    for row in raced["candidates"]:
        known = rows[row["label"]]
        if row["status"] != "dearer":
            assert row["goodput"] == known["goodput"] and row["status"] == known["status"]
        elif known["usd_per_hour"] is not None:
            assert known["usd_per_hour"] > rows[every["chosen"]]["usd_per_hour"]
            assert "costs at least" in row["reason"]
