"""Two or more runs of one kind: read forwards, in words, the best of every row told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.recordings.measurement import Measurement, MeasurementError, simulated
from calibrate.recordings.side_by_side import SideBySide, side_by_side
from reports.compare.runs_figures import OVERLAID, distributions
from reports.compare.runs_page import runs_page
from reports.compare.runs_words import headline, said, settings_rows, title, whole_lines
from tests.orcast.command_line import orcast, refusal
from tests.reports.compare.test_report import EVIL, FEW, record, requests_of
from tests.reports.run.test_report import Checker, figures_of

NOTHING = {"preempted_s": np.array([]), "resumed_s": np.array([])}


def run_of(stretch: float, *, label: str = "run", seed: int = 1, number: int = 40) -> Measurement:
    return simulated(label, requests_of(number, seed=seed, stretch=stretch), NOTHING)


def summary_of(goodput: float, usd: float, *, met: bool) -> dict[str, Any]:
    cost = {"usd_per_hour": 2.0, "usd_per_million_output_tokens": usd}
    return {"request_goodput": goodput, "preemptions": 0, "cost": cost, "slo_met": met}


def three() -> SideBySide:
    return side_by_side(
        [run_of(1.0), run_of(20.0), run_of(0.9)],
        settings=[
            {"engine": {"max_num_seqs": size}, "cluster": {"groups": groups}}
            for size, groups in ((256, []), (2, [{"replicas": 2}]), (256, []))
        ],
        summaries=[
            summary_of(10.0, 0.2, met=True),
            summary_of(0.5, 0.4, met=False),
            summary_of(11.0, 0.3, met=True),
        ],
    )


def test_changes_read_forwards_and_the_best_of_each_row_is_told() -> None:
    found = three().as_dict()
    mean = found["metrics"]["ttft"]["mean"]
    assert mean["values"][1] == pytest.approx(20 * mean["values"][0])
    assert mean["change_pct"] == pytest.approx([0, 1900, -10])
    assert mean["best"] == [2]
    assert found["outcomes"]["request_goodput"]["best"] == [2]
    assert found["outcomes"]["usd_per_million_output_tokens"]["best"] == [0]
    assert found["outcomes"]["usd_per_hour"]["best"] == []  # alike everywhere
    assert found["per_request"]["e2e_bias_pct"] == pytest.approx([0, 1900, -10])


def test_words_have_no_python_in_them_and_ratios_above_ten_times() -> None:
    beside = three().as_dict()
    assert title(beside) == (
        "3 runs: C has the highest goodput and the shortest mean E2E; A has the cheapest output "
        "tokens"
    )
    text = headline(beside).replace("\u00a0", " ")
    assert text.startswith(
        "They differ in engine.max_num_seqs (256; 2; 256) and cluster.groups (none; replicas 2; "
        "none). A and C meet the SLO, B misses it. Goodput: A 10 requests/s,"
    )
    assert not re.search(r"[\[\]{}']|None|True|False", text)
    (goodput,) = [line for line in whole_lines(beside) if line.label.startswith("Goodput")]
    assert goodput.changes[1].replace("\u00a0", " ") == "÷ 20"
    assert said({"a": None, "b": True, "c": [1.0, 2.5]}) == "b yes, c 1, 2.5"


def test_two_runs_say_what_becomes_of_each_figure() -> None:
    beside = side_by_side([run_of(1.0), run_of(20.0)], settings=[{"x": 1}, {"x": 2}]).as_dict()
    assert title(beside).replace("\u00a0", " ").endswith("mean E2E × 20")
    assert headline(beside).startswith("Changed: x from 1 to 2. Output tokens/s: ")
    same = side_by_side([run_of(1.0), run_of(1.0)], settings=[{"x": 1}, {"x": 1}]).as_dict()
    assert title(same) == "From A to B nothing changes"
    assert headline(same).startswith("Not a single setting differs.")


def test_of_several_forecasts_the_one_closest_to_the_measurement_is_told() -> None:
    measured = replace(run_of(1.0, label="served"), recorded=True)
    beside = side_by_side([run_of(1.3), run_of(1.05), measured]).as_dict()
    assert beside["base"] == 2 and beside["base_is_measured"]
    assert title(beside) == "B is closest to the measurement"
    assert headline(beside).replace("\u00a0", " ") == (
        "A request's E2E is off, on average: A 30 %, B 5 %."
    )
    assert beside["metrics"]["ttft"]["mean"]["best"] == [1]
    assert beside["metrics"]["ttft"]["mean"]["change_pct"] == pytest.approx([30, 5, 0])


def test_runs_of_different_requests_keep_their_own_figures() -> None:
    found = side_by_side([run_of(1.0), run_of(1.0, seed=2, number=50)])
    assert not found.same_requests and "served different requests" in found.notes[0]
    beside = found.as_dict()
    assert beside["requests"] == [40, 50] and beside["per_request"] is None
    assert "Request by request" not in runs_page(found)
    with pytest.raises(MeasurementError, match="1 runs"):
        side_by_side([run_of(1.0)])


def test_what_did_not_complete_everywhere_is_left_out_of_every_latency() -> None:
    one, two = run_of(1.0), run_of(1.0, label="two")
    for column in (two.completed, two.finished_s, two.first_token_s, two.ttft_s, two.e2e_s):
        column[3] = False if column.dtype == bool else np.nan
    found = side_by_side([one, two, one])
    assert found.as_dict()["requests"] == [39, 39, 39]
    assert "1 of 40 requests did not complete in B (two)" in found.notes[0]


def test_a_page_is_whole_and_text_stays_text() -> None:
    from plotly.graph_objects import Figure

    runs = tuple(replace(run, label=EVIL) for run in three().runs)
    found = replace(three(), settings={EVIL: (EVIL, 1, 2)}, runs=runs)
    text = runs_page(found)
    assert "<script>alert" not in text and text.count("★") > 10
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    figures = figures_of(checker)
    names = [figure["name"] for figure in figures]
    assert {"cdf-ttft", "parity-e2e-B", "parity-e2e-C", "load-A", "load-B", "load-C"} <= {*names}
    assert len({*names}) == len(names)
    for figure in figures:
        Figure(data=figure["data"], layout=figure["layout"])
        assert figure["layout"]["xaxis"]["range"], "the page's script narrows it"
    cdf = next(figure for figure in figures if figure["name"] == "cdf-ttft")
    assert [trace["name"] for trace in cdf["data"]] == ["A", "B", "C"]


def test_more_runs_than_one_chart_keeps_apart_get_a_chart_each() -> None:
    names = "ABCDEFGH"
    latencies = {"ttft": [np.arange(1.0, 9.0) + at for at in range(len(names))]}
    charts = distributions(names, latencies)
    assert len(names) > OVERLAID and len(charts) == len(names) - 1
    assert [trace["name"] for trace in charts[0].data] == ["A", "B"]


def test_the_command_takes_two_or_more_and_reads_forwards(tmp_path: Path) -> None:
    for name, limit in (("one", 256), ("two", 2), ("three", 4)):
        settings = (*FEW, "--set", f"engine.max_num_seqs={limit}")
        assert orcast("run", "quickstart", *settings, "--out", tmp_path / name).status == 0
    one, two, third = (tmp_path / name for name in ("one", "two", "three"))
    told = orcast("compare", one, two).stdout
    page = unescape((one / "compare.html").read_text(encoding="utf-8").partition("<script")[0])
    for text in (told, page):
        said_so = " ".join(text.replace("\u00a0", " ").split())
        assert "engine.max_num_seqs from 256 to 2" in said_so
        assert not re.search(r"\berrors?\b|\bbias\b|is off by|B to A", text)
        for word in ("Goodput", "within the SLO", "KV memory", "Preemptions", "Cost", "analytic"):
            assert word in text, word
    asked = orcast("compare", one, two, third, "--json", "--out", tmp_path / "page.html")
    found = json.loads(asked.stdout)
    assert found["scenario"] == {"engine.max_num_seqs": [256, 2, 4]}
    assert [path for path, _ in settings_rows(found)] == ["engine.max_num_seqs"]
    summary = json.loads((two / "summary.json").read_text())
    assert found["outcomes"]["request_goodput"]["values"][1] == summary["request_goodput"]
    assert "note: Iteration times are analytic, not measured" in asked.stderr
    recording = record(tmp_path / "recording", requests_of(30))
    (tmp_path / "recording" / "timeseries.csv").unlink()
    assert "different requests" in orcast("compare", one, two, recording).stdout
    assert "one run, nothing to compare it with" in refusal("compare", one)
