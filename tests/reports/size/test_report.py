"""The page of a sizing: whole, escaped, and drawn in a browser, wide and narrow."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from reports.size.figures import costs, deployments, iso_flops, laws, training_memory
from reports.size.report import size_report
from reports.size.text import days, headline, memory, power, short, title, usd
from scenarios.sizing.load import load_sizing
from scenarios.sizing.sizing import size
from tests import needs
from tests.reports.browser import Browser

SETTINGS = (
    "serving.gpus=[l40s,h100-sxm]",
    "serving.engine.max_num_seqs=32",
    "over_training.sizes=[0.6,0.4]",
    "serving.lengths.prompt={distribution: uniform, min: 100, max: 600}",
    "serving.lengths.output={distribution: uniform, min: 10, max: 70}",
)


@cache
def figures() -> dict[str, Any]:
    sizing, origin = load_sizing(None, SETTINGS)
    return size(sizing, origin=origin).summary


@cache
def known_model() -> dict[str, Any]:
    sizing, origin = load_sizing(None, ["model=mixtral-8x7b"])
    return size(sizing, origin=origin).summary


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (short(7.43e9), "7.43B"), (short(999_960), "1M"), (short(224e9), "224B"),
        (short(36e12), "36T"), (short(12), "12"), (short(None), "–"),
        (power(1e22), "1e22"), (power(5.76e23), "5.76e23"), (power(None), "–"),
        (usd(0.01301), "$0.0130"), (usd(21_056.53), "$21,057"),
        (usd(2.5e6), "$2.50M"), (usd(120_808), "$121k"),
        (usd(12.3), "$12.3"), (usd(None), "–"),
        (memory(12.55 * 2**30), "12.6\u00a0GiB"), (memory(100), "100\u00a0B"),
        (days(6.57), "6.57\u00a0days"), (days(0.5), "12\u00a0h"),
    ],
)  # fmt: skip
def test_figures_read_as_people_write_them(shown: str, text: str) -> None:
    assert shown == text


def test_the_headline_is_what_the_budget_buys_and_what_exceeds_it_comes_second() -> None:
    beyond, answer = figures()["beyond_budget"], figures()["answer"]
    budget_usd, first = figures()["budget"]["usd"], figures()["candidates"][0]
    assert answer["training_usd"] == pytest.approx(budget_usd)
    assert beyond["over_usd"] == pytest.approx(beyond["training_usd"] - budget_usd)
    assert answer["loss"] == answer["loss_at_budget"] > beyond["loss"]
    text = headline(figures())
    bought, exceeded = text.split(" Beyond the budget: ")
    for words in (f"a loss of {answer['loss']:.4f}", usd(answer["lifetime_usd"]),
                  f"{first['loss']:.4f}, with", usd(first["lifetime_usd"])):  # fmt: skip
        assert words in bought
    for words in (usd(beyond["training_usd"]), usd(beyond["over_usd"]), short(beyond["tokens"])):
        assert words in exceeded
    assert "Beyond the budget, models of the same loss" in size_report(figures())
    assert title(figures()).startswith("1e22 FLOPs buy 3B parameters on 555B tokens")
    assert known_model()["beyond_budget"] is None


def test_the_costs_chart_stacks_what_the_table_adds_up() -> None:
    chart = costs(figures())
    assert chart is not None
    training, serving = (trace["y"] for trace in chart.data)
    rows = figures()["candidates"][::-1]
    for row, trained, served in zip(rows, training, serving, strict=True):
        assert trained + served == pytest.approx(row["lifetime_usd"], rel=1e-4)
    cheapest = chart.layout["annotations"][0]
    assert rows[cheapest["x"]]["model"] == figures()["answer"]["model"]


def test_each_iso_flop_curve_is_lowest_at_its_dot() -> None:
    chart = iso_flops(figures())
    for curve, dot in zip(chart.data[::2], chart.data[1::2], strict=True):
        assert min(curve["y"]) == pytest.approx(dot["y"][0], rel=1e-4)
        lowest = curve["x"][curve["y"].index(min(curve["y"]))]
        assert lowest == pytest.approx(dot["x"][0], rel=0.13)


def test_every_law_is_drawn_through_its_dot() -> None:
    chart = laws(figures())
    assert [key.label for key in chart.keys] == [one["law"] for one in figures()["laws"]]
    assert {dot["x"][0] for dot in chart.data[1::2]} == {1e22}


def test_memory_bars_add_up_to_the_whole() -> None:
    chart = training_memory(figures())
    whole = sum(trace["x"][1] for trace in chart.data)
    memories = figures()["training"]["memory"]
    assert whole == pytest.approx(memories["whole"]["total_bytes"] / 2**30, rel=1e-3)


def test_a_sizing_without_serving_has_no_serving_charts() -> None:
    assert costs({**figures(), "candidates": [{"lifetime_usd": None}]}) is None
    assert deployments(known_model()) is None


def test_the_deployments_chart_shows_prices_and_the_floors_of_the_dearer() -> None:
    chart = deployments(figures())
    assert chart is not None
    priced, floors = chart.data
    rows = figures()["serving"]
    shown = [one["usd_per_million_tokens"] for one in rows if not one["reason"]]
    assert priced["x"] == pytest.approx(shown, rel=1e-4)
    assert shown == sorted(shown)
    least = [one["floor_usd_per_million_tokens"] for one in rows if one["reason"]]
    assert floors["x"] == pytest.approx(least, rel=1e-4)
    assert min(least) > shown[0]
    assert [*priced["y"], *floors["y"]] == list(range(len(rows)))


def test_prices_say_what_service_they_are_for() -> None:
    page = size_report(figures())
    assert "within TTFT p95 ≤ 300 ms, TPOT p95 ≤ 30 ms" in page
    assert "of full load" in page
    assert "plan.yaml in this folder is the same question for orcast plan" in page
    fleet = json.loads(json.dumps(figures()))
    fleet["service"] |= {"request_rate": 90.2, "years": 1.0}
    for one in (fleet["answer"], *fleet["serving"]):
        one["replicas"] = 4
    page = size_report(fleet)
    assert "90.2 requests/s in all" in page
    assert "4 of 1 x" in page
    assert "spread evenly over a year, on whole replicas" in page
    busy = json.loads(json.dumps(figures()))
    busy["service"]["objectives"] = []
    assert "always busy" in size_report(busy)


def test_no_two_things_on_the_page_have_one_name() -> None:
    for summary in (figures(), known_model()):
        names = re.findall(r'\sid="([^"]+)"', size_report(summary))
        assert len(names) == len(set(names)) > 5


def test_text_from_outside_is_escaped() -> None:
    nasty = "</script><script>alert(1)</script>&"
    summary = json.loads(json.dumps(figures()).replace("sized-3b", "<img src=x onerror=y>"))
    summary |= {"name": nasty, "notes": [nasty]}
    summary["law"]["source"] = nasty
    page = size_report(summary)
    assert "<script>alert" not in page
    assert "<img src=x" not in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@needs.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", [figures, known_model], ids=["budget", "model"])
def test_the_page_is_drawn_in_a_browser_without_a_word_of_complaint(
    browser: Browser, tmp_path: Path, width: int, which: Any
) -> None:
    page = tmp_path / "report.html"
    page.write_text(size_report(which()), encoding="utf-8")
    browser.resize(width, 1600)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page.as_uri())
    browser.wait_for(f"location.href === {json.dumps(page.as_uri())}")
    charts = browser.wait_for("Number(document.documentElement.dataset.drawn)")
    drawn = browser.run(
        "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.trace path, "
        ".point path')).length"
    )
    assert charts == drawn == (5 if which is figures else 1)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    outside = browser.run(
        "[...document.querySelectorAll('.card .value')].filter(v => v.scrollWidth > v.clientWidth"
        " + 1).map(v => v.textContent)"
    )
    assert outside == [], "every headline figure fits its card"
    assert browser.problems == []
    # A browser just started still fetches the fonts of its own blank page, and data: is no request.
    outside = [url for url in browser.requests if not url.startswith(("chrome:", "data:"))]
    assert outside == [page.as_uri()]
