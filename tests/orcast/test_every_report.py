"""Every kind of report that a command writes, opened in a real browser, wide and narrow.

`ORCAST_SCREENSHOTS=FOLDER pytest tests/orcast/test_every_report.py` keeps pictures to look at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from tests import needs
from tests.orcast.command_line import orcast
from tests.reports.audit import THEMES, WIDTHS, audit, show
from tests.reports.browser import Browser

pytestmark = needs.browser

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>bold</b>"
NAMED = ("--set", f"name={json.dumps(HOSTILE)}")
FEW = ("--set", "workload.num_requests=200")
PLAN = ("--set", "plan.candidates={gpus: [h100-sxm, l40s]}", "--set", "plan.seeds=3")


def _run(folder: Path, name: str, *settings: str) -> Path:
    _ok("run", name, *FEW, *NAMED, *settings, "--out", folder)
    return folder / "report.html"


def _compare(folder: Path) -> Path:
    for name, rate in (("a", 20), ("b", 40), ("c", 60)):
        rate_of = f"workload.arrivals.request_rate={rate}"
        _ok("run", "quickstart", *FEW, *NAMED, "--set", rate_of, "--out", folder / name)
    _ok("compare", folder / "a", folder / "b", folder / "c")
    return folder / "a" / "compare.html"


def _sweep(folder: Path) -> Path:
    axes = ("--axis", "engine.max_num_seqs=8,64", "--axis", "engine.block_size=8,16")
    _ok("sweep", "quickstart", *FEW, *NAMED, *axes, "--jobs", "1", "--out", folder)
    return folder / "report.html"


def _plan(folder: Path) -> Path:
    _ok("plan", "plan-chat", *NAMED, *PLAN, "--jobs", "1", "--out", folder)
    return folder / "report.html"


def _size(folder: Path) -> Path:
    settings = ("--set", "serving=null", "--set", "over_training.sizes=[0.5, 0.2]")
    _ok("size", "budget-1e22", *NAMED, *settings, "--out", folder)
    return folder / "report.html"


def _calibrate(folder: Path) -> Path:
    device = ("--device", "cpu", "--budget", "4s")
    _ok("calibrate", "run", "--model", "tiny", *device, "--out", folder)
    return folder / "report.html"


def _ok(*arguments: str | Path) -> None:
    outcome = orcast(*arguments)
    assert outcome.status == 0, outcome.stderr


REPORTS = {
    "run": partial(_run, name="quickstart"),
    "run-of-a-cluster": partial(_run, name="routers"),
    "run-with-speculation": partial(_run, name="speculation"),
    "run-with-classes": partial(_run, name="priority-classes"),
    "compare": _compare,
    "sweep": _sweep,
    "plan": _plan,
    "size": _size,
    "calibration": _calibrate,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[needs.kernels] * (kind == "calibration")) for kind in REPORTS],
)
def test_a_report_is_drawn_quiet_and_offline(browser: Browser, tmp_path: Path, kind: str) -> None:
    page = REPORTS[kind](tmp_path / kind)
    assert page.stat().st_size < 6e6
    browser.resize(1280, 2400)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page.as_uri())
    browser.wait_for(f"location.href === {json.dumps(page.as_uri())}")
    charts = browser.wait_for("Number(document.documentElement.dataset.drawn)")
    for width, theme in product(WIDTHS, THEMES):
        show(browser, width=width, theme=theme)
        assert audit(browser) == [], f"{theme}, {width} px"
        empty = browser.run(
            "[...document.querySelectorAll('.plot')].filter(plot => !plot.querySelector("
            "'.trace path, .point path, .hm image, .heatmaplayer image, .shapelayer path')"
            ").map(plot => plot.id)"
        )
        assert empty == [], "every chart shows something"
        untitled = browser.run(
            "[...document.querySelectorAll('.plot')].filter(plot => ['x', 'y'].some(axis =>"
            " plot._fullLayout[axis + 'axis']?.type !== 'category' &&"
            " !plot._fullLayout[axis + 'axis']?.ticktext && plot._fullLayout[axis +"
            " 'axis']?.visible !== false && plot.querySelector('.' + axis + 'tick') &&"
            " !plot.querySelector('.' + axis + 'title, .g-' + axis + 'title text')))"
            ".map(plot => plot.id)"
        )
        assert untitled == [], "every axis of numbers says what it counts"
        if folder := os.environ.get("ORCAST_SCREENSHOTS"):
            height = browser.run("document.documentElement.scrollHeight")
            browser.resize(width, min(height, 9000))
            browser.run("new Promise(resolve => setTimeout(resolve, 500))")
            browser.screenshot(Path(folder) / f"{kind}-{width}-{theme}.png")
    assert charts == browser.run("document.querySelectorAll('.plot').length") > 0
    assert browser.run("document.querySelectorAll('img[onerror], h1 b').length") == 0
    if kind not in ("calibration", "compare"):  # these name tables and folders, not scenarios
        assert HOSTILE in browser.run("document.body.innerText"), "text from outside is text"
    assert browser.problems == []
    # Heat maps are pictures that the page has made itself.
    outside = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [page.as_uri()]
