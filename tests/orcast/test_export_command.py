"""`orcast export`: traces, vLLM's JSON, tables and pictures of a run."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibrate.recordings.comparison import compare
from calibrate.recordings.measurement import read_measurement, simulated
from reports.export.trace import token_times_s
from reports.page.page_figures import page_figures
from reports.run.folder import load_run
from tests import needs
from tests.orcast.command_line import orcast, refusal

SETTINGS = ["workload.num_requests=150", "workload.arrivals.request_rate=60"]
SETTINGS += ["engine.num_gpu_blocks_override=900", "engine.max_num_batched_tokens=1024"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    assert orcast("run", "quickstart", *settings, "--out", str(folder)).status == 0
    return folder


def test_a_trace_holds_every_iteration_and_every_request(run_folder: Path) -> None:
    records, _, _ = load_run(run_folder)
    assert len(records.preemptions["request"]) > 0, "the run should show preemptions"
    said = orcast("export", str(run_folder), "trace")
    assert said.status == 0 and "ui.perfetto.dev" in said.stdout
    with gzip.open(run_folder / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    iterations = [event for event in events if event.get("cat") == "iteration"]
    assert len(iterations) == len(records.iterations["start_s"])
    total_s = sum(event["dur"] for event in iterations) / 1e6
    assert total_s == pytest.approx(records.iterations["duration_s"].sum(), rel=1e-6)
    open_spans: dict[tuple[int, str], int] = defaultdict(int)
    for event in events:
        if event.get("cat") == "request":
            open_spans[event["id"], event["name"]] += {"b": 1, "e": -1}[event["ph"]]
    assert len({number for number, _ in open_spans}) == 150
    assert set(open_spans.values()) == {0}
    names = {event["name"] for event in events}
    assert {"queue", "prefill", "decode", "preempted", "running", "waiting"} <= names


def test_a_window_of_a_trace_is_smaller(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    said = orcast("export", str(run_folder), "trace", "--window", "0.5:0.7", "--out", str(path))
    assert said.status == 0
    events = json.loads(path.read_text())["traceEvents"]
    iterations = [event for event in events if event.get("cat") == "iteration"]
    assert iterations
    assert all(event["ts"] < 0.7e6 and event["ts"] + event["dur"] > 0.5e6 for event in iterations)


def test_token_times_are_the_iterations_ends(run_folder: Path) -> None:
    records, _, summary = load_run(run_folder)
    times = token_times_s(records)
    assert [len(each) for each in times] == records.requests["output_tokens"].tolist()
    gaps_s = np.concatenate([np.diff(each) for each in times])
    assert (gaps_s > 0).all()
    # The run's own inter-token latencies, put together from what the engine emitted.
    assert gaps_s.mean() * 1e3 == pytest.approx(summary["mean_itl_ms"], rel=1e-9)
    assert np.percentile(gaps_s, 99) * 1e3 == pytest.approx(summary["p99_itl_ms"], rel=1e-9)


def test_under_speculation_a_gap_lies_between_two_portions(tmp_path: Path) -> None:
    settings = [
        "workload.num_requests=30",
        "latency={source: fixed, iteration_ms: 10}",
        "speculation={method: ngram, num_draft_tokens: 3, acceptance: {rate: 0.7}}",
    ]
    given = [part for setting in settings for part in ("--set", setting)]
    assert orcast("run", "quickstart", *given, "--out", tmp_path / "run").status == 0
    assert orcast("export", tmp_path / "run", "bench").status == 0
    result = json.loads((tmp_path / "run" / "bench.json").read_text())
    gaps_s = np.concatenate([np.array(each) for each in result["itls"]])
    assert gaps_s.mean() * 1e3 == pytest.approx(result["mean_itl_ms"], rel=1e-9)
    assert result["mean_itl_ms"] > 1.5 * result["mean_tpot_ms"]
    outcome = orcast("compare", tmp_path / "run", tmp_path / "run" / "bench.json", "--json")
    assert abs(json.loads(outcome.stdout)["metrics"]["e2e"]["p99"]["diff_pct"]) < 1e-6


def test_vllms_json_compares_with_the_run_it_is_from(run_folder: Path) -> None:
    assert orcast("export", str(run_folder), "bench").status == 0
    records, _, _ = load_run(run_folder)
    result = compare(
        simulated("run", records.requests, records.preemptions),
        read_measurement(run_folder / "bench.json"),
    )
    for statistics in result.metrics().values():
        for pair in statistics.values():
            assert pair.diff_pct == pytest.approx(0.0, abs=1e-6)


def test_counts_of_vllms_json_are_whole_numbers(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert orcast("export", run_folder, "bench", "--out", path).status == 0
    result = json.loads(path.read_text())
    for name in ("num_prompts", "completed", "total_input_tokens", "total_output_tokens"):
        assert type(result[name]) is int, name
    assert {type(length) for length in result["input_lens"]} == {int}


def test_tables_are_written_as_csv(run_folder: Path) -> None:
    assert orcast("export", str(run_folder), "csv").status == 0
    lines = (run_folder / "csv" / "requests.csv").read_text().splitlines()
    assert lines[0].startswith("request,arrival_s,scheduled_s")
    assert len(lines) == 151


@needs.browser
@needs.kaleido
def test_every_chart_becomes_a_picture(run_folder: Path) -> None:
    said = orcast("export", str(run_folder), "svg")
    assert said.status == 0, said.stderr
    pictures = {path.stem for path in (run_folder / "svg").glob("*.svg")}
    assert {"throughput", "load", "batches", "kv-memory", "cdf-ttft"} <= pictures
    assert "<svg" in (run_folder / "svg" / "load.svg").read_text()


def test_an_export_replaces_nothing_but_an_earlier_one(run_folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run_folder.glob("*.*")}
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for kind in ("trace", "bench"):
        assert "is not a" in refusal("export", run_folder, kind, "--out", notes)
        own = run_folder / "requests.parquet"
        assert "a part of" in refusal("export", run_folder, kind, "--out", own)
        for _ in range(2):  # the second takes the place of the first
            assert orcast("export", run_folder, kind, "--out", tmp_path / kind).status == 0
    assert "is not a bench" in refusal("export", run_folder, "bench", "--out", tmp_path / "trace")
    assert "a file is in the way" in refusal("export", run_folder, "csv", "--out", notes)
    (tmp_path / "requests.csv").write_text("name,what\n")
    assert "remove it first" in refusal("export", run_folder, "csv", "--out", tmp_path)
    assert not (tmp_path / "iterations.csv").exists()
    for _ in range(2):
        assert orcast("export", run_folder, "csv", "--out", tmp_path / "csv").status == 0
    assert notes.read_text() == "mine"
    after = {path.name: path.stat().st_mtime_ns for path in run_folder.glob("*.*")}
    assert {name: after[name] for name in before} == before


def test_a_run_folder_stays_one_after_an_export(run_folder: Path) -> None:
    for kind in ("csv", "svg", "png"):
        said = refusal("export", run_folder, kind, "--out", run_folder)
        assert f"holds results; name another folder, such as {run_folder / 'csv'}" in said
    assert not list(run_folder.glob("*.csv"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep, a plan, a sizing, a comparison and a table's folder, each as small as can be."""
    root = tmp_path_factory.mktemp("results")
    few = ("--set", "workload.num_requests=20")
    candidates = "plan.candidates={gpus: [h100-sxm, l40s]}"
    for name, *command in (
        ("sweep", "sweep", "quickstart", *few, "--axis", "engine.max_num_seqs=2,8", "--jobs", "1"),
        ("plan", "plan", "plan-chat", "--set", candidates, "--set", "plan.seeds=3", "--jobs", "1"),
        ("size", "size", "budget-1e22", "--set", "serving=null"),
        ("run", "run", "quickstart", *few),
        ("other", "run", "quickstart", *few, "--set", "engine.max_num_seqs=2"),
    ):
        said = orcast(*command, "--out", root / name)
        assert said.status == 0, said.stderr
    assert orcast("compare", root / "run", root / "other").status == 0
    (root / "table").mkdir()
    (root / "table" / "meta.yaml").touch()
    (root / "validation").mkdir()
    (root / "validation" / "validation.json").touch()
    return root


@pytest.mark.parametrize(
    ("kind", "table", "column"),
    [
        ("sweep", "sweep", "engine.max_num_seqs"),
        ("plan", "candidates", "usd_per_hour"),
        ("size", "candidates", "parameters"),
    ],
)
def test_a_studys_table_is_written_as_csv(
    results: Path, kind: str, table: str, column: str
) -> None:
    for _ in range(2):
        said = orcast("export", results / kind, "csv")
        assert said.status == 0, said.stderr
    head, *rows = (results / kind / "csv" / f"{table}.csv").read_text().splitlines()
    assert column in head.split(",") and len(rows) >= 2


@pytest.mark.parametrize("kind", ["sweep", "plan", "size", "run/compare.html"])
def test_every_figure_of_a_page_is_read_back(results: Path, kind: str) -> None:
    page = results / kind if kind.endswith(".html") else results / kind / "report.html"
    text = page.read_text(encoding="utf-8")
    figures = page_figures(page)
    assert len(figures) == text.count('<div class="plot"') > 0
    assert sum(len(figure.keys) for figure in figures) == text.count('<button class="key"')
    for figure in figures:
        assert figure.title and figure.layout["height"] > 70
        traces = [trace for key in figure.keys for trace in key.traces]
        assert all(trace < len(figure.data) for trace in traces)


@needs.browser
@needs.kaleido
def test_pictures_of_a_plan_and_of_a_comparison(results: Path) -> None:
    for _ in range(2):
        said = orcast("export", results / "plan", "svg")
        assert said.status == 0, said.stderr
    drawn = (results / "plan" / "svg" / "cost-bars.svg").read_text()
    assert "US dollars per hour" in drawn
    said = orcast("export", results / "run" / "compare.html", "png")
    assert said.status == 0, said.stderr
    picture = results / "run" / "compare-png" / "cdf-ttft.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = ("run", "quickstart", "--set", "workload.num_requests=20", "--out", results / "run")
    assert orcast(*again).status == 0, "exports are Orcast's own and may go"
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{results}/sweep", "trace"], "is a sweep's folder; trace is of a run"),
        (["{results}/plan", "bench"], "Allowed here: csv, png, svg"),
        (["{results}/table", "csv"], "are CSV files already"),
        (["{results}/validation", "csv"], "validation/measured"),
        (["{results}/table", "svg"], "make it with: orcast report"),
        (["{results}/run/scenario.yaml", "svg"], "not a page of Orcast's"),
        (["{results}/run/requests.parquet", "svg"], "not a page of Orcast's"),
    ],
)
def test_a_format_without_meaning_for_a_folder_is_refused(
    results: Path, arguments: list[str], words: str
) -> None:
    assert words in refusal("export", *(part.format(results=results) for part in arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "trace"], "not a run folder"),
        (["{run}", "tracee"], "did you mean 'trace'"),
        (["{run}", "trace", "--window", "5:2"], "expected START:END"),
        (["{run}", "csv", "--window", "1:2"], "--window belongs to the format trace"),
    ],
)
def test_a_wrong_export_is_refused_in_one_line(
    run_folder: Path, arguments: list[str], words: str
) -> None:
    said = orcast("export", *(part.replace("{run}", str(run_folder)) for part in arguments))
    assert said.status == 2
    assert words in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_csv_holds_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = '=HYPERLINK("http://x","y")'
    (tmp_path / "trace.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "arrival_time_ns": n,
                    "input_toks": 2,
                    "output_toks": 2,
                    "input_tok_ids": [1, 2],
                    "kind": kind,
                }
            )
            + "\n"
            for n, kind in enumerate((evil, "@SUM(A1)", "plain", "-1"))
        )
    )
    workload = "workload={trace: trace.jsonl, class_column: kind}"
    done = orcast("run", "quickstart", "--set", workload, "--out", "run")
    assert done.status == 0, done.stderr
    assert orcast("export", "run", "csv").status == 0
    classes = pd.read_csv("run/csv/requests.csv")["request_class"].tolist()
    assert classes == [f"'{evil}", "'@SUM(A1)", "plain", "'-1"]
