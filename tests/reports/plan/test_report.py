"""The page and the tables of a plan, from its answer alone."""

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.plan.report import plan_report
from reports.plan.table import candidate_columns, plan_table
from reports.plan.words import verdict
from scenarios.plan.plan import plan
from tests import needs
from tests.reports.browser import Browser
from tests.scenarios.plan.planning import small


@cache
def _computed(*settings: str) -> str:
    return json.dumps(plan(small(*settings)))


def answered(*settings: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_computed(*settings))
    return found


TWO = "plan.candidates={gpus: [h100-sxm, l40s], engine: {max_num_seqs: [32, 4096]}}"


def figures_of(page: str) -> dict[str, Any]:
    block = re.search(r'id="orcast-figures">(.*?)</script>', page, re.S)
    assert block is not None
    return {figure["name"]: figure for figure in json.loads(block[1])["figures"]}


def printed(answer: dict[str, Any]) -> str:
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    Console(file=stream, width=160, highlight=False).print(plan_table(answer))
    return stream.getvalue()


def test_the_page_has_its_charts_and_every_candidate() -> None:
    answer = answered(TWO)
    page = plan_report(answer)
    names = {"cost-bars", "cost-and-speed", "speed-and-throughput", "until-it-breaks"}
    assert figures_of(page).keys() == names | {"goodput-bars"}
    for row in answer["candidates"]:
        assert row["label"] in page
    assert "max_num_batched_tokens 2048 must be at least max_num_seqs 4096" in page
    assert "analytic, not measured" in page
    ids = re.findall(r' id="([^"]+)"', page.split("<script")[0])
    assert len(ids) == len(set(ids)), "an anchor or a chart would hide another"
    assert "http://" not in page.split("<script>")[0]


def test_the_chosen_point_is_marked_and_the_front_goes_through_it() -> None:
    answer = answered(TWO)
    figure = figures_of(plan_report(answer))["cost-and-speed"]
    assert "chosen: " in figure["layout"]["annotations"][0]["text"]
    chosen = next(row for row in answer["candidates"] if row["status"] == "chosen")
    line = figure["data"][0]
    assert any(
        x == pytest.approx(chosen["tokens_per_s_per_user"], rel=1e-3)
        and y == pytest.approx(chosen["usd_per_million_output_tokens"], rel=1e-3)
        for x, y in zip(line["x"], line["y"], strict=True)
    )


def test_the_curve_crosses_one_where_the_chosen_deployment_breaks() -> None:
    answer = answered(TWO)
    figure = figures_of(plan_report(answer))["until-it-breaks"]
    chosen = next(row for row in answer["candidates"] if row["status"] == "chosen")
    curves = [(np.array(each["x"]), np.array(each["y"])) for each in figure["data"]]
    below = max(y[x < 0.9 * chosen["breaks_at"]].max() for x, y in curves)
    above = max(y[x > 1.1 * chosen["breaks_at"]].max() for x, y in curves)
    assert below < 1 < above


def test_an_answer_without_a_deployment_has_a_page_too() -> None:
    answer = answered("slo.tpot_ms=1")
    page = plan_report(answer)
    assert "No deployment of the 1 meets the objectives." in page
    assert figures_of(page) == {}
    assert "too slow: TPOT p90 is at best" in printed(answer)
    assert np.isnan(candidate_columns(answer)["goodput"]).all()


def test_what_cannot_be_deployed_is_no_near_miss() -> None:
    near = answered("plan.candidates.layouts=[{tensor_parallel: 3}, {}]", "slo.tpot_ms=1")
    assert near["nearest_miss"] == "h100-sxm"
    small_cache = answered("engine.num_gpu_blocks_override=2")
    assert small_cache["nearest_miss"] is None
    assert verdict(small_cache) == (
        "No deployment of the 1 meets the objectives. "
        "h100-sxm: every request is larger than the KV cache."
    )


def test_text_from_outside_is_shown_and_never_run() -> None:
    evil = "</script><script>alert(1)</script><b>"
    answer = deepcopy(answered(TWO))
    answer["name"] = answer["model"] = evil
    text = json.dumps(answer).replace("h100-sxm", "<img src=x onerror=alert(2)>[bold]")
    page = plan_report(json.loads(text))
    assert "<script>alert(1)" not in page
    assert "<img" not in page
    assert "<img src=x onerror=alert(2)>[bold]" in printed(json.loads(text)).replace("\n", "")


def test_a_gpu_has_its_colour_whatever_else_is_planned() -> None:
    looks = []
    for gpus in ("[h100-sxm, l40s]", "[l40s, h100-sxm]"):
        answer = answered(f"plan.candidates={{gpus: {gpus}}}", "slo.ttft_ms=2000")
        data = figures_of(plan_report(answer))["cost-and-speed"]["data"]
        looks.append(
            {trace["name"]: (trace["marker"]["color"], trace["marker"]["symbol"])
             for trace in data if "marker" in trace}
        )  # fmt: skip
    assert looks[0] == looks[1]
    assert set(looks[0]) == {"h100-sxm", "l40s"}


@needs.browser
def test_long_names_and_high_prices_stay_inside(tmp_path: Path) -> None:
    answer = answered(TWO)
    more = " paged max_num_seqs=1024"
    answer["chosen"] += more
    for row in answer["candidates"]:
        row["label"] += more
        if row["usd_per_hour"]:
            row["usd_per_hour"] *= 100
    page = tmp_path / "plan.html"
    page.write_text(plan_report(answer), encoding="utf-8")
    with Browser(width=1280) as browser:
        browser.open(page.as_uri())
        browser.wait_for("Number(document.documentElement.dataset.drawn)")
        table = "document.querySelector('#candidates table')"
        assert browser.run(f"{table}.scrollWidth <= {table}.parentElement.clientWidth - 32")
        browser.resize(390, 1600)
        browser.wait_for("document.documentElement.scrollWidth <= 390")
        boxes = "[...document.querySelectorAll('{}')].map(text => text.getBoundingClientRect())"
        bars = browser.run(
            boxes.format("#cost-bars .bartext") + ".every(box => box.right <= innerWidth - 12)"
        )
        assert bars, "the longest bar's figure is cut off"
        marks = browser.run(
            boxes.format("#until-it-breaks .annotation-text")
            + ".map(box => [box.left, box.right, box.top, box.bottom])"
        )
        load, breaks = marks
        assert load[3] <= breaks[2] or load[1] <= breaks[0], "one label lies on the other"


def test_the_table_is_tidy() -> None:
    answer = answered(TWO)
    columns = candidate_columns(answer)
    assert {len(column) for column in columns.values()} == {4}
    assert columns["max_num_seqs"].tolist() == ["32", "4096"] * 2
    assert columns["status"].tolist().count("refused") == 2
    assert columns["front_cost_and_speed"].dtype == bool


def test_a_load_over_time_is_drawn_with_what_is_carried() -> None:
    answer = deepcopy(answered(TWO))
    answer["load"] |= {"profile_request_rate": [10.0, 60.0, 20.0], "window_s": 60.0}
    for row in answer["candidates"]:
        row["usd_per_hour_following"] = row["usd_per_hour"] and row["usd_per_hour"] / 2
    figure = figures_of(plan_report(answer))["load-over-time"]
    assert figure["data"][0]["y"] == [10, 60, 20, 20]
    assert figure["layout"]["shapes"], "what the chosen deployment carries"
    assert "50% less" in printed(answer)
