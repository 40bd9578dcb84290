"""Requests over time and block tables answer a reader, in a real browser, at both widths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.run.report import run_report
from tests import needs
from tests.reports.browser import Browser
from tests.reports.run.test_detail_figures import SMALL, run

pytestmark = needs.browser
EVIL = "<img src=x onerror=\"document.title='owned'\">"
OUTSIDE = ("http:", "https:", "ws:", "ftp:")


@pytest.fixture(scope="module", params=[1280, 390])
def browser(request: pytest.FixtureRequest) -> Any:
    with Browser(width=request.param) as opened:
        yield opened


def opened(browser: Browser, folder: Path, scenario: str, settings: dict[str, Any]) -> Any:
    """The page of a run, drawn; returns the run and its details."""
    found, details = run(scenario, settings)
    records = found.records
    count = len(records.requests["request"])
    records.requests["request_id"] = np.array([f"{EVIL} {number}" for number in range(count)])
    path = folder / "page.html"
    page = run_report(records, scenario=found.scenario, summary=found.summary, details=details)
    path.write_text(page, encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path.as_uri())
    browser.wait_for(
        "document.documentElement.dataset.drawn && location.href.endsWith('page.html')"
    )
    return found, details


def assert_sound(browser: Browser) -> None:
    assert browser.problems == []
    assert not [url for url in browser.requests if url.startswith(OUTSIDE)]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.title") != "owned"
    undrawn = browser.run(
        "[...document.querySelectorAll('.plot')].filter(plot => "
        "!plot.querySelector('.trace path, .heatmaplayer image')).map(plot => plot.id)"
    )
    assert undrawn == []


def test_block_tables_follow_the_slider_and_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    found, _ = opened(browser, tmp_path, "quickstart", SMALL)
    iterations = found.records.iterations
    said = "document.querySelector('.said').textContent"
    for at in (0, len(iterations["start_s"]) // 2, len(iterations["start_s"]) - 1):
        browser.run(
            "(() => { const slider = document.querySelector('.moment input');"
            f" slider.value = {at}; slider.dispatchEvent(new Event('input')); }})()"
        )
        text = browser.run(said)
        held = (159 * 16 - int(iterations["kv_free_tokens"][at])) // 16
        used = 100 * int(iterations["kv_used_tokens"][at]) / (held * 16)
        assert text.startswith(f"Iteration {at + 1:,} of ")
        assert (
            f"hold {held} of 159 blocks; of their slots {float(f'{used:.3g}'):g} % are used" in text
        )
    browser.run("document.querySelector('.moment input').focus()")
    before = browser.run(said)
    browser.press("ArrowLeft")
    browser.wait_for(f"{said} !== {before!r}")
    browser.run("document.querySelector('.widget details summary').click()")
    browser.wait_for(
        "document.querySelector('.widget pre').textContent.includes('tokens in blocks')"
    )
    assert "<img" in browser.run("document.querySelector('.widget pre').textContent")
    painted = browser.run(
        "[...document.querySelectorAll('.widget canvas')].map(canvas => canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0))"
    )
    assert painted == [True, True]
    assert_sound(browser)


def test_any_window_shows_the_requests_alive_in_it(browser: Browser, tmp_path: Path) -> None:
    found, _ = opened(browser, tmp_path, "quickstart", {"workload.num_requests": 1200})
    requests = found.records.requests
    note = "document.getElementById('request-lanes-note').textContent"
    assert browser.run(note).startswith("100 of the 1,200 requests alive")
    low_s, high_s = 20.0, 20.5
    browser.run(  # in another chart: they zoom together
        f"Plotly.relayout('throughput', {{'xaxis.range[0]': {low_s}, 'xaxis.range[1]': {high_s}}})"
        ".then(() => null)"
    )
    alive = (requests["arrival_s"] < high_s) & (requests["finished_s"] > low_s)
    browser.wait_for(
        f"{note} === 'All {int(alive.sum())} requests alive in this window are drawn.'"
    )
    drawn = browser.run(
        "[...new Set(document.getElementById('request-lanes').data.flatMap("
        "trace => trace.customdata))].sort((a, b) => a - b)"
    )
    assert drawn == requests["request"][alive].tolist()
    window = browser.run("document.getElementById('request-lanes')._fullLayout.xaxis.range")
    browser.run("document.getElementById('theme').click()")
    browser.wait_for("document.documentElement.dataset.theme")
    kept = browser.run("document.getElementById('request-lanes')._fullLayout.xaxis.range")
    assert kept == pytest.approx(window)
    assert browser.run("document.getElementById('load')._fullLayout.xaxis.range") == pytest.approx(
        window
    )
    buttons = "document.querySelectorAll('#request-lanes-windows button')"
    assert browser.run(f"[...{buttons}].map(button => button.textContent)") == [
        "Where most are unfinished",
        "Whole run",
    ]
    browser.run(f"{buttons}[1].click()")
    browser.wait_for(f"{note}.startsWith('100 of the 1,200 requests')")
    assert_sound(browser)


def test_replicas_have_block_tables_of_their_own(browser: Browser, tmp_path: Path) -> None:
    _, details = opened(browser, tmp_path, "replica-failure", {"workload.num_requests": 30})
    choices = "[...document.querySelectorAll('.moment option')].map(one => one.textContent)"
    assert browser.run(choices) == [f"replica {number}" for number in range(4)]
    browser.run(
        "(() => { const choice = document.querySelector('.moment select');"
        " choice.value = 2; choice.dispatchEvent(new Event('change')); })()"
    )
    count = len(details["blocks"]["starts_s"][2])
    assert f" of {count:,}, " in browser.run("document.querySelector('.said').textContent")
    assert_sound(browser)
