"""`orcast export`: traces, vLLM's JSON, tables and pictures of a run."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from calibrate.comparison import compare
from calibrate.measurement import read_measurement, simulated
from reports.run_folder import load_run
from reports.trace_export import token_times_s
from tests.orcast.command_line import orcast
from tests.reports.browser import CHROMIUM

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


def test_tables_are_written_as_csv(run_folder: Path) -> None:
    assert orcast("export", str(run_folder), "csv").status == 0
    lines = (run_folder / "csv" / "requests.csv").read_text().splitlines()
    assert lines[0].startswith("request,arrival_s,scheduled_s")
    assert len(lines) == 151


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_every_chart_becomes_a_picture(run_folder: Path) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido (extra images)")
    said = orcast("export", str(run_folder), "svg")
    assert said.status == 0, said.stderr
    pictures = {path.stem for path in (run_folder / "svg").glob("*.svg")}
    assert {"throughput", "load", "batches", "kv-memory", "cdf-ttft"} <= pictures
    assert "<svg" in (run_folder / "svg" / "load.svg").read_text()


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
