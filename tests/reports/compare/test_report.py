"""A comparison is shown whole: on the page, on the terminal, as JSON; bad input is one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from calibrate.recordings.comparison import Comparison, compare
from calibrate.recordings.measurement import read_measurement, simulated
from reports.compare.figures import MAX_POINTS, load_figures, parity
from reports.compare.headline import Scale, headline, signed, title
from reports.compare.report import compare_report, page_target, write_compare_report
from reports.compare.table import comparison_table
from tests import needs
from tests.orcast.command_line import orcast, refusal
from tests.reports.run.test_browser import FLAGS, FRAME, WATCH
from tests.reports.run.test_report import Checker, figures_of

EVIL = "<script>alert(1)</script>&amp;"
NAMES = ("Forecast", "Measured")
SAMPLES = "t,running,waiting\n" + "".join(f"{t},{t % 4},{t % 3}\n" for t in range(1, 9))
LOOK = """<script>
(async () => {
  while (!document.documentElement.dataset.drawn) await new Promise(go => setTimeout(go, 50));
  const plots = [...document.querySelectorAll(".plot")];
  const outside = plots.filter(plot => {
    const box = plot.getBoundingClientRect();
    return [...plot.querySelectorAll(".xtitle, .ytitle, .xtick, .ytick")].some(text => {
      const inside = text.getBoundingClientRect();
      return inside.left < box.left - 1 || inside.right > box.right + 1
        || inside.bottom > box.bottom + 1;
    });
  }).map(plot => plot.id);
  const seen = {
    problems, outside, width: document.documentElement.scrollWidth, room: innerWidth,
    drawn: plots.filter(plot => plot.querySelector(".trace path")).map(plot => plot.id),
    resources: performance.getEntriesByType("resource").length,
  };
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
  parent.postMessage(result.textContent, "*");
})();
</script>"""


# Whose times nobody measured, so that this has to be said.
FEW = ("--set", "workload.num_requests=30", "--set", "latency.source=roofline")


def requests_of(number: int, *, seed: int = 1, stretch: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrival_s, wait_s = np.sort(rng.random(number)) * 8, rng.lognormal(-2, 1.5, number)
    ttft_s, output = (wait_s + 0.05) * stretch, rng.integers(1, 40, number)
    return {
        "arrival_s": arrival_s,
        "scheduled_s": arrival_s + wait_s * stretch,
        "first_token_s": arrival_s + ttft_s,
        "finished_s": arrival_s + ttft_s + (output - 1) * 0.02 * stretch,
        "prompt_tokens": rng.integers(5, 900, number),
        "output_tokens": output,
    }


def record(folder: Path, requests: dict[str, np.ndarray], *, prefix: str = "r") -> Path:
    """The requests as an engine would have recorded them."""
    names = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
    columns = ("prompt_tokens", "output_tokens", "arrival_s", "first_token_s", "finished_s")
    rows = zip(*(requests[column].tolist() for column in columns), strict=True)
    lines = [
        json.dumps({"request_id": f"{prefix}{number}", **dict(zip(names, row, strict=True))})
        for number, row in enumerate(rows)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "requests.jsonl").write_text("\n".join(lines))
    (folder / "timeseries.csv").write_text(SAMPLES)
    return folder


def compared(folder: Path, number: int = 40, *, prefix: str = "r", **options: Any) -> Comparison:
    away = {"preempted_s": np.array([2.0]), "resumed_s": np.array([3.0])}
    a = simulated("forecast", requests_of(number, stretch=1.03), away)
    b = read_measurement(record(folder / "run", requests_of(number), prefix=prefix), "run")
    return compare(a, b, **options)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "forecast"
    done = orcast("run", "quickstart", *FEW, "--out", folder)
    assert done.status == 0, done.stderr
    return folder


def recording_of(run_folder: Path, target: Path) -> Path:
    """What an engine would have recorded, had it done exactly what the run says."""
    from reports.run.folder import load_run

    records, _, _ = load_run(run_folder)
    return record(target, dict(records.requests))


def test_page_is_whole_and_its_figures_are_valid_plotly(tmp_path: Path) -> None:
    from plotly.graph_objects import Figure

    found = compared(tmp_path, settings=({"engine": {"max_num_seqs": 1}}, {"engine": {}}))
    checker = Checker()
    checker.feed(compare_report(found))
    checker.close()
    assert checker.open == []
    figures = figures_of(checker)
    kinds = [f"{kind}-{metric}" for kind in ("parity", "cdf") for metric in ("ttft", "tpot", "e2e")]
    assert [figure["name"] for figure in figures] == [*kinds, "running", "waiting"]
    for figure in figures:
        Figure(data=figure["data"], layout=figure["layout"])
        assert figure["layout"]["xaxis"]["range"]
    text = " ".join(checker.text)
    assert "The largest difference among the latency figures is +" in text
    assert "engine.max_num_seqs" in text
    assert "Forecast against measurement" in text


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    found = compared(tmp_path, prefix=EVIL, settings=({EVIL: EVIL}, {}))
    text = compare_report(found)
    assert "<script>alert" not in text
    hover = figures_of(_checked(text))[0]["data"][2]["customdata"]
    assert hover[0] == "&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;0"


def _checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    return checker


def test_points_above_the_line_are_slower_forecasts() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    figure = parity("ttft", measured * 1.2, measured, NAMES, labels=["a", "b", "c"])
    points = figure.data[2]
    assert points["x"] == [1000, 2000, 4000] and points["y"] == [1200, 2400, 4800]
    assert points["text"] == ["+20.00"] * 3
    assert figure.caption.startswith("0\u00a0% of 3 requests")
    assert "Measured" in figure.layout["xaxis"]["title"]["text"]


def test_many_points_are_thinned_to_the_farthest_and_some_of_the_rest() -> None:
    measured = np.linspace(1, 2, 10_000)
    forecast = measured * 1.01
    forecast[77] = 9.0
    labels = [str(row) for row in range(10_000)]
    figure = parity("e2e", forecast, measured, NAMES, labels=labels)
    assert len(figure.data[2]["x"]) == MAX_POINTS
    assert "77" in figure.data[2]["customdata"]
    assert "2,000 are drawn" in figure.caption


def test_load_counts_requests_between_their_times() -> None:
    requests = {
        "arrival_s": np.array([0.0, 0.0]),
        "scheduled_s": np.array([0.0, 4.0]),
        "first_token_s": np.array([1.0, 5.0]),
        "finished_s": np.array([6.0, 10.0]),
        "prompt_tokens": np.array([5, 5]),
        "output_tokens": np.array([5, 5]),
    }
    away = {"preempted_s": np.array([7.0]), "resumed_s": np.array([8.0])}
    side = simulated("x", requests, away)
    running, waiting = load_figures(side, side, ("A", "B"))
    at = {round(x, 1): row for row, x in enumerate(running.data[1]["x"])}
    for time_s, ran, waited in ((2.0, 1, 1), (5.0, 2, 0), (7.2, 0, 1), (9.0, 1, 0)):
        assert running.data[1]["y"][at[time_s]] == pytest.approx(ran)
        assert waiting.data[1]["y"][at[time_s]] == pytest.approx(waited)


def test_words_of_a_comparison() -> None:
    pair = {"a": 12_100.0, "b": 11_000.0, "diff_pct": 10.0}
    small = {"a": 99.0, "b": 100.0, "diff_pct": -1.0}
    figures = {
        "requests": 3,
        "metrics": {"ttft": {"mean": small, "p99": pair}, "tpot": {"mean": small}, "e2e": {}},
        "per_request": {"e2e_mape_pct": 0.5, "e2e_bias_pct": -0.25},
    }
    assert headline(figures, NAMES).replace("\u00a0", " ") == (
        "The largest difference among the latency figures is +10.0 %, at the p99 TTFT: 12.10 s "
        "forecast, 11.00 s measured. A request's E2E is off by 0.50 % on average, with a bias of "
        "−0.25 %."
    )
    assert title(figures) == "Every latency figure within 10.0\u00a0%"
    assert Scale.of(figures, "ttft").text(99.0) == "0.09900"
    assert [signed(value) for value in (None, -0.001, 0.004)] == ["–", "0\u00a0%", "0\u00a0%"]
    told = [signed(value).replace("\u00a0", " ") for value in (899.0, 900.0, -80.0, -98.0, -100.0)]
    assert told == ["+899.0 %", "× 10", "−80.0 %", "÷ 50", "−100.0 %"]


def test_terminal_shows_fifteen_figures_and_what_differs(tmp_path: Path) -> None:
    found = compared(tmp_path, settings=({"name": "\x1b[31mred"}, {"name": "y" * 99}))
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(comparison_table(found.as_dict(), ("[b]mind[/b] this",)))
    text = console.export_text()
    assert len(re.findall(r"(?:Mean|Median|p9\d) (?:TTFT|TPOT|E2E) ", text)) == 15
    assert "Per request, over 40: mean absolute error TTFT" in text
    assert "note: [b]mind[/b] this" in text
    assert "\x1b" not in text and "y" * 40 not in text


def test_page_goes_into_the_run_folder_or_where_it_is_told(tmp_path: Path) -> None:
    assert page_target(None, tmp_path) is None
    (tmp_path / "summary.json").touch()
    assert page_target(None, tmp_path) == tmp_path / "compare.html"
    assert page_target(tmp_path / "x.html", tmp_path) == tmp_path / "x.html"
    for bad in (tmp_path, tmp_path / "no" / "x.html", tmp_path / "report.html"):
        with pytest.raises(ValueError, match="--out"):
            page_target(bad, tmp_path)


def test_page_takes_the_place_of_nothing_but_a_page(run_folder: Path, tmp_path: Path) -> None:
    recording = recording_of(run_folder, tmp_path / "recording")
    kept = {path: path.read_bytes() for path in (*run_folder.iterdir(), *recording.iterdir())}
    assert "report.html" in {path.name for path in kept}
    for path in kept:
        words = refusal("compare", run_folder, recording, "--out", path)
        assert f"--out {path}: " in words
        assert "name another file" in words
    assert {path: path.read_bytes() for path in kept} == kept
    page = tmp_path / "page.html"
    for _ in range(2):
        assert orcast("compare", run_folder, recording, "--out", page).status == 0


def test_page_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    found = compared(tmp_path)
    page = tmp_path / "compare.html"
    page.write_text("old")
    write_compare_report(page, found)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.name for path in tmp_path.iterdir()} == {"compare.html", "run"}


def test_run_against_its_own_recording_differs_in_nothing(run_folder: Path, tmp_path: Path) -> None:
    recording = recording_of(run_folder, tmp_path / "recording")
    done = orcast("compare", run_folder, recording, "--json")
    assert done.status == 0
    assert re.fullmatch(
        "orcast: note: Iteration times are analytic, not measured: .*\n", done.stderr
    )
    found = json.loads(done.stdout)
    assert found["a"] == str(run_folder) and found["requests"] == 30
    assert "scenario" not in found
    assert found["makespan"]["diff_pct"] == pytest.approx(0, abs=1e-6)
    for statistics in found["metrics"].values():
        for pair in statistics.values():
            assert pair["diff_pct"] == pytest.approx(0, abs=1e-6)
    assert (run_folder / "compare.html").is_file()
    assert not (recording / "compare.html").exists()
    done = orcast("compare", recording / "requests.jsonl", run_folder)
    assert done.status == 0 and "Mean TTFT" in done.stdout and "Page:" not in done.stdout


def test_an_engines_run_is_a_measurement(run_folder: Path, tmp_path: Path) -> None:
    measured = tmp_path / "measured"
    shutil.copytree(run_folder, measured)
    summary = json.loads((measured / "summary.json").read_text())
    latency = {"source": "engine", "measured": True, "label": "an engine"}
    summary |= {"mode": "engine", "latency": latency}
    (measured / "summary.json").write_text(json.dumps(summary))
    done = orcast("compare", run_folder, measured)
    assert "mean absolute error" in done.stdout
    assert "Iteration times of A are analytic, not measured" in " ".join(done.stdout.split())


def test_rejected_requests_are_told_beside_the_json(run_folder: Path, tmp_path: Path) -> None:
    recording = recording_of(run_folder, tmp_path / "recording")
    lines = (recording / "requests.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"last_token_ts": None})
    (recording / "requests.jsonl").write_text("\n".join(lines))
    done = orcast("compare", run_folder, recording, "--json")
    assert json.loads(done.stdout)["requests"] == 29
    assert "1 of 30 requests did not complete in B" in done.stderr


def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    run_folder: Path, tmp_path: Path
) -> None:
    recording = recording_of(run_folder, tmp_path / "recording")
    file = recording / "requests.jsonl"
    assert "nowhere" in refusal("compare", run_folder, tmp_path / "nowhere")
    assert "neither a run folder" in refusal("compare", run_folder, tmp_path)
    assert "there is no folder" in refusal(
        "compare", run_folder, recording, "--out", tmp_path / "no" / "page.html"
    )
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]))
    assert "30 requests in A" in refusal("compare", run_folder, recording)
    file.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"input_toks": 3}), *lines[1:]]))
    assert "request 0 in order of arrival (r0) differs" in refusal("compare", run_folder, recording)
    file.write_text("\n".join([lines[0], "{"]))
    assert "requests.jsonl:2" in refusal("compare", run_folder, recording)
    (run_folder / "scenario.yaml").unlink()
    assert "lacks scenario.yaml" in refusal("compare", run_folder, recording)
    assert not (run_folder / "compare.html").exists()


@needs.browser
@pytest.mark.parametrize("narrow", [False, True], ids=["1280", "390"])
def test_page_opens_in_a_browser(tmp_path: Path, narrow: bool) -> None:
    settings = ({"engine": {"sizes": list(range(60))}}, {"engine": {"sizes": []}})
    text = compare_report(compared(tmp_path, settings=settings))
    text = text.replace("<meta name=", WATCH + "<meta name=", 1)
    text = text.replace("</body></html>", LOOK + "</body></html>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME, encoding="utf-8")
    url = (tmp_path / ("frame.html" if narrow else "page.html")).as_uri()
    done = subprocess.run(
        [str(needs.CHROMIUM), *FLAGS, "--window-size=1280,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, "the page never finished drawing"
    seen = json.loads(unescape(found[1]))
    assert seen["problems"] == [] and seen["resources"] == 0
    assert len(seen["drawn"]) == 8
    assert seen["outside"] == []
    assert seen["width"] <= seen["room"] == (390 if narrow else 1280)
