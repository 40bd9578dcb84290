"""One verdict everywhere: terminal, JSON, page, what-if page and Python say the same words."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import yaml

import orcast as library
from orcast.ui_cli import question
from reports.what_if.figures import snapshot
from scenarios.forecast.basis import CANDIDATES, caution, cautions, kind_of
from tests.orcast.command_line import orcast

SMALL = ("workload.num_requests=400",)
# Settings, what its verdict has to begin its answer with, and a warning it has to give.
CASES = {
    "met": ((), "Meets the SLO", None),
    "overrun": (
        ("workload.arrivals.request_rate=200", "workload.num_requests=2000"),
        "Misses the SLO",
        "Saturated: the queue grew",
    ),
    "analytic": (
        ("latency.source=roofline", "slo={}"),
        "400 of 400 requests completed",
        "Iteration times are analytic, not measured",
    ),
    "refused": (
        ("workload.arrivals.process=all_at_once", "workload.arrivals.request_rate=null",
         "engine.max_num_waiting=5"),
        "Misses the SLO",
        "requests were refused: 5 were waiting already",
    ),
    "names": (("name='<b>Meets</b>'", "slo.ttft_ms=1"), "Misses the SLO", None),
}  # fmt: skip


def words_of(text: str) -> str:
    return " ".join(text.replace("\u00a0", " ").split())


@pytest.mark.parametrize("case", CASES)
def test_every_place_says_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings, begins, warns = CASES[case]
    settings = (*SMALL, *settings)
    sets = [part for each in settings for part in ("--set", each)]
    printed = orcast("run", "quickstart", *sets, "--out", "run")
    asked = orcast("run", "quickstart", *sets, "--out", "again", "--json")
    summary = json.loads(asked.stdout)
    said, warnings = summary["verdict"]["words"], summary["warnings"]
    assert any(text.startswith(begins) for text in said), said
    assert warns is None or any(warns in text for text in warnings), warnings

    stdout = words_of(printed.stdout)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    top = page[page.index("<body") : page.index('class="cards"')]
    top = words_of(html.unescape(re.sub(r"</?(span|li|ul|p|strong|div)\b[^>]*>", " ", top)))
    _, _, ask = question("quickstart", list(settings))
    answer = ask({})
    shown = snapshot(answer.records, answer.summary)
    values = {path: yaml.safe_load(text) for path, text in (s.split("=", 1) for s in settings)}
    in_python = library.simulate("quickstart", values)
    assert shown["verdict"] == said == in_python.summary["verdict"]["words"]
    assert shown["warnings"] == warnings == in_python.summary["warnings"]
    for text in (*said, *warnings):
        assert words_of(text) in stdout
        assert words_of(text).replace(" ", "") in top.replace(" ", "")
    for text in warnings:
        assert f"orcast: warning: {text}" in asked.stderr


def test_a_verdict_counts_what_got_no_answer_as_missed() -> None:
    run = library.simulate(
        "quickstart",
        {"workload.num_requests": 200, "workload.arrivals": {"process": "all_at_once"},
         "engine.max_num_waiting": 5, "slo": {"ttft_ms": 1e6, "percentile": 90}},
    )  # fmt: skip
    (limit,) = run.summary["verdict"]["limits"]
    assert limit["value_ms"] < limit["limit_ms"] and not limit["met"]
    assert limit["within"] == run.summary["completed"] / 200
    assert run.summary["verdict"]["slo"] == "missed"


def test_times_that_are_measured_or_given_need_no_caution() -> None:
    assert caution("measured") is None and caution("given") is None
    said = [caution(kind) for kind in ("estimated", "analytic", None)]
    assert all(text and "trust the differences" in text for text in said)
    assert kind_of({"measured": True}) == "measured" and kind_of({"measured": False}) is None


def test_runs_and_candidates_are_cautioned_by_kind_in_the_same_words() -> None:
    kinds = [("A", "analytic"), ("B", "measured"), ("C", "analytic"), ("D", "estimated")]
    analytic, estimated = cautions(kinds)
    assert analytic == caution("analytic", of=" of A and C")
    assert estimated.startswith("Iteration times of D are estimated from measurements")
    (every,) = cautions([("A", "analytic"), ("B", "analytic")], trust=CANDIDATES)
    assert every == (
        "Iteration times are analytic, not measured: trust the order of candidates more than the "
        "absolute figures."
    )
