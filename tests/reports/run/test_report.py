"""The run's page: whole, valid, escaped, small, and unshaken by odd runs."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from reports.page.page import json_block
from reports.run.model_rows import table_rows
from reports.run.report import run_report

VOID = {"meta", "link", "br", "input", "img", "hr"}
EVIL = "<script>alert(1)</script>\"'&amp;</script>"


class Checker(HTMLParser):
    """Follows the nesting of elements and keeps texts, attributes and scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.scripts.append((dict(attrs).get("type", ""), ""))
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text.append(data)


def parsed(run):
    page = run_report(run, scenario=run.scenario, summary=run.summary)
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return page, checker


def figures_of(checker):
    block = next(text for kind, text in checker.scripts if kind == "application/json")
    return json.loads(block)["figures"]


def test_page_is_whole_and_its_figures_are_valid_plotly(make_large_run, make_batched_run):
    from plotly.graph_objects import Figure

    for run in (make_large_run(2_000, 20_000), make_batched_run([6, 8, 4, 7], rows=2)):
        _, checker = parsed(run)
        figures = figures_of(checker)
        assert {"cdf-ttft", "cdf-tpot", "cdf-e2el", "throughput", "load", "batches"} < {
            figure["name"] for figure in figures
        }
        for figure in figures:
            Figure(data=figure["data"], layout=figure["layout"])
            assert figure["name"] in checker.ids


def test_parts_of_the_page_come_in_the_order_of_reading(make_batched_run):
    run = make_batched_run([6, 8, 4, 7], rows=2)
    run.summary["warnings"] = ["beware"]
    page, _ = parsed(run)
    order = ["<h1>", 'class="warnings"', 'class="cards"', 'id="cdf-ttft"', "<table>"]
    order += ['id="throughput"', 'id="load"', 'id="batches"', 'id="kv-memory"']
    order += ['id="request-chart"', 'id="scenario"', 'id="provenance"']
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_warnings_of_the_run_are_shown_as_text(make_batched_run):
    run = make_batched_run([3], rows=1)
    run.summary["warnings"] = ["62 % of the iterations are <b>extrapolated</b>"]
    page, _ = parsed(run)
    assert "62 % of the iterations are &lt;b&gt;extrapolated&lt;/b&gt;" in page
    run.summary["warnings"] = []
    page, _ = parsed(run)
    assert 'class="warnings"' not in page


def test_names_from_outside_are_shown_as_text_everywhere(make_batched_run):
    run = make_batched_run([3, 4], rows=2)
    _, plain = parsed(run)
    run.scenario |= {"name": EVIL, "model": EVIL, "workload": {"trace": EVIL, EVIL: EVIL}}
    run.scenario["engine"]["scheduler"] = EVIL
    run.scenario["hardware"]["gpu"] = EVIL
    run.summary |= {"latency": {"source": EVIL, "label": EVIL, EVIL: 1}, "warnings": [EVIL]}
    run.summary[EVIL] = EVIL
    run.requests["request_id"] = np.array([EVIL, "<img src=x onerror=alert(2)>"])
    page, checker = parsed(run)
    assert "alert(1)</" not in page
    assert "<img" not in page
    assert len(checker.scripts) == len(plain.scripts)
    assert not [name for _, name, _ in checker.attributes if name.startswith("on")]
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert heading[1].startswith("&lt;script&gt;alert(1)&lt;/script&gt;")
    chart = next(figure for figure in figures_of(checker) if figure["name"] == "request-chart")
    assert "<script" not in json.dumps(chart)
    assert "&lt;script" in json.dumps(chart)


def test_json_cannot_end_its_script_element():
    block = json_block({"a": "</script><!--<script>"})
    assert "<" not in block
    assert json.loads(block) == {"a": "</script><!--<script>"}


def test_page_fetches_nothing_and_forbids_fetching(make_batched_run):
    page, checker = parsed(make_batched_run([3], rows=1))
    assert "default-src 'none'" in page
    links = [value for _, name, value in checker.attributes if name in ("src", "href")]
    assert links
    assert all(link.startswith("#") for link in links)


def test_plotly_is_inside_verbatim(make_batched_run):
    import plotly.offline

    page, _ = parsed(make_batched_run([3], rows=1))
    assert plotly.offline.get_plotlyjs() in page


def test_page_of_twenty_thousand_requests_is_small(make_large_run):
    page, _ = parsed(make_large_run(19_366, 100_000))
    assert len(page.encode()) < 6_000_000
    assert "each point is the mean of" in page


def test_slo_is_judged_in_words(make_batched_run):
    run = make_batched_run([6, 8, 4, 7], rows=4)
    run.scenario["slo"] = {"ttft_ms": 10, "tpot_ms": 5000, "percentile": 95}
    run.summary["slo_attainment"] = {"all": 0.0, "ttft": 0.0, "tpot": 1.0}
    run.summary["slo_latency_ms"] = {"ttft": 812.0, "tpot": 21.0}
    page, checker = parsed(run)
    verdict = "".join(checker.text).replace("\u00a0", " ")
    assert "Misses the SLO of 95 %: TTFT p95 812 ms, 0 % within 10 ms; " in verdict
    assert "TPOT p95 21 ms, 100 % within 5,000 ms." in verdict
    assert '<span class="bad">Misses</span>' in page
    del run.scenario["slo"]
    page, _ = parsed(run)
    assert "Goodput" not in page
    assert "Within SLO" not in page


def test_speculation_has_a_card(make_batched_run):
    run = make_batched_run([6, 8], rows=2)
    page, _ = parsed(run)
    assert "Tokens per step" not in page
    run.summary["speculation"] = {
        "tokens_per_step": 2.5,
        "expected_tokens_per_step": 2.75,
        "draft_share": 0.2,
    }
    _, checker = parsed(run)
    text = " ".join(checker.text).replace("\u00a0", " ")
    assert "Tokens per step 2.50 2.75 expected 20 % of the time is drafting" in text


def test_one_request_of_one_token_has_a_page(make_batched_run):
    _, checker = parsed(make_batched_run([1], rows=1))
    names = [figure["name"] for figure in figures_of(checker)]
    assert "cdf-ttft" in names
    assert "cdf-tpot" not in names


def reject_all(run):
    for name in ("scheduled_s", "first_token_s", "finished_s"):
        run.requests[name][:] = np.nan
    run.requests["rejected"][:] = True
    run.iterations = {name: column[:0] for name, column in run.iterations.items()}


@pytest.mark.parametrize("arrivals", [[0.0, 0.0], [0.5, 2.0]])
def test_run_that_rejected_everything_has_a_page(make_batched_run, summarize_run, arrivals):
    run = make_batched_run([4, 5], rows=2, arrivals=arrivals)
    reject_all(run)
    summarize_run(run)
    _, checker = parsed(run)
    assert "No request completed of 2." in "".join(checker.text)
    assert figures_of(checker) == []


def test_empty_run_has_a_page(make_batched_run, summarize_run):
    run = make_batched_run([4], rows=1)
    run.requests = {name: column[:0] for name, column in run.requests.items()}
    run.iterations = {name: column[:0] for name, column in run.iterations.items()}
    summarize_run(run)
    _, checker = parsed(run)
    assert figures_of(checker) == []


def test_missing_and_nan_figures_become_dashes(make_batched_run):
    run = make_batched_run([4, 2], rows=2)
    run.summary = {"completed": 2, "mean_ttft_ms": float("nan"), "p99_ttft_ms": None}
    run.scenario = {}
    page, _ = parsed(run)
    assert not re.search(r"\bnan\b", page[: page.index("<script")], re.I)
    assert "unnamed scenario" in page


def test_request_that_never_finished_is_left_out_of_latencies(make_batched_run):
    run = make_batched_run([4, 2, 3], rows=1)
    run.requests["finished_s"][2] = np.nan
    run.requests["first_token_s"][2] = np.nan
    run.requests["scheduled_s"][2] = np.nan
    _, checker = parsed(run)
    ttft = next(figure for figure in figures_of(checker) if figure["name"] == "cdf-ttft")
    assert ttft["data"][0]["y"] == [0, 50, 100]


def test_scenario_of_odd_types_is_still_yaml(make_batched_run):
    import html
    from pathlib import Path

    import yaml

    run = make_batched_run([4], rows=1)
    run.scenario["workload"] = {"trace": Path("a/b.csv"), "rate": np.float64(2.5), "seeds": (1, 2)}
    page, _ = parsed(run)
    found = re.search(r"<pre>(.*?)</pre>", page, re.S)
    assert found is not None
    loaded = yaml.safe_load(html.unescape(found[1]))
    assert loaded["workload"] == {"trace": "a/b.csv", "rate": 2.5, "seeds": [1, 2]}


def test_building_a_page_imports_neither_pandas_nor_plotly():
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys; import reports.run.report, reports.run.terminal, reports.page.page as p; "
        "p.plotly_script(); "
        "print(sorted({'pandas', 'plotly', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_model_with_groups_has_a_row_for_the_blocks_of_each() -> None:
    groups = [
        {"kind": "sliding 128", "layers": 12, "tables": 1, "window": 128, "most_blocks": 1838}
    ]
    rows = table_rows({"kv_cache": {"tables": groups}})
    assert rows == [["sliding 128", "12", "1", "1,838"]]
    assert table_rows({"kv_cache": {}}) == []
