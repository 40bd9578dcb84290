"""The report of a sweep: what it says, and how it opens in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reports.sweep.figures import heat_map, lines, points, sensitivity_chart
from reports.sweep.report import headline, sweep_report
from reports.sweep.terminal import sweep_table
from reports.sweep.words import Measure, axis_label, axis_title, level_label
from scenarios.sweep.statistics import sensitivity
from scenarios.sweep.table import SweepTable, columns_of
from tests import needs
from tests.reports.browser import Browser

SIZE, BLOCK = "engine.max_num_seqs", "engine.block_size"
SCENARIO = {"name": "own", "latency": {"source": "roofline"}, "sweep": {}}
EVIL = "<script>alert(1)</script>"


def made(
    axes: dict[str, list[Any]],
    figure: Callable[..., dict[str, float] | str],
    *,
    seeds: int = 3,
    metrics: tuple[str, ...] = ("output_throughput", "p99_ttft_ms"),
    sampling: str = "cartesian",
    name: str = "own",
) -> SweepTable:
    """A sweep over these axes; `figure` gives a run's figures, or the error it failed with."""
    rows = []
    for number, values in enumerate(product(*axes.values())):
        for seed in range(seeds):
            found = figure(*values, seed)
            row = {"setting": number, **dict(zip(axes, values, strict=True)), "seed": seed}
            row |= {"point": "", "error": found if isinstance(found, str) else None}
            rows.append(row | (found if isinstance(found, dict) else {}))
    columns = columns_of(rows, ["setting", *axes, "seed", "point", "error", *metrics])
    paths = tuple((path,) for path in axes)
    return SweepTable(name, "", paths, sampling, 0.95, metrics, columns)


def busy(size: int, block: int, seed: int) -> dict[str, float]:
    """A queue below 64 rows, waste in large blocks."""
    throughput = min(size, 64) * 20.0 - block / 4 + seed
    return {"output_throughput": throughput, "p99_ttft_ms": 5e4 / size + 10 * block + seed}


def busy_alone(size: int, seed: int) -> dict[str, float]:
    return busy(size, 16, seed)


@pytest.fixture
def sweep() -> SweepTable:
    return made({SIZE: [8, 16, 32, 64, 128], BLOCK: [8, 16, 32]}, busy)


def test_a_heat_map_has_a_cell_for_each_pair_and_frames_the_best(sweep: SweepTable) -> None:
    figure = heat_map(sweep, "output_throughput", 0, 1)
    assert figure.data[0]["z"] == [
        [159, 319, 639, 1279, 1279],
        [157, 317, 637, 1277, 1277],
        [153, 313, 633, 1273, 1273],
    ]
    shape = figure.layout["shapes"][0]
    assert (shape["x0"], shape["y0"]) == (2.5, -0.5), "64 rows, blocks of 8"
    assert figure.data[0]["customdata"][0][3] == "1,279 ± 2.5 tokens/s"
    assert not figure.data[0]["reversescale"]
    assert heat_map(sweep, "p99_ttft_ms", 0, 1).data[0]["reversescale"], "bright is good"


def test_a_cell_without_figures_stays_empty() -> None:
    holes = made({SIZE: [8, 16], BLOCK: [8, 16]}, lambda size, block, seed: "no room" if (
        size == block) else busy(size, block, seed))  # fmt: skip
    cells = heat_map(holes, "output_throughput", 0, 1).data[0]
    assert cells["z"] == [[None, 319], [157, None]]
    assert cells["text"][0][0] == ""


def test_lines_have_bands_as_wide_as_their_intervals(sweep: SweepTable) -> None:
    figure = lines(sweep, "output_throughput", 0, 1)
    assert [key.label for key in figure.keys] == ["8", "16", "32"]
    band, line = figure.data[0], figure.data[1]
    assert line["x"] == [8, 16, 32, 64, 128]
    assert figure.layout["xaxis"]["type"] == "log"
    # Seeds 0, 1, 2: the mean 1, and t(2) 4.303 times 1 / sqrt(3).
    assert line["y"][0] == 159
    assert band["y"][-1] - line["y"][0] == pytest.approx(4.303 / 3**0.5, abs=0.02)
    assert band["y"][0] - line["y"][0] == pytest.approx(-4.303 / 3**0.5, abs=0.02)


def test_a_band_that_reaches_0_is_cut_and_the_caption_says_so() -> None:
    def queued(size: int, seed: int) -> dict[str, float]:
        return {"p99_ttft_ms": {8: 9000.0, 16: 1200.0, 32: 20.0}[size] + (size == 16) * 900 * seed}

    table = made({SIZE: [8, 16, 32]}, queued, metrics=("p99_ttft_ms",))
    figure = lines(table, "p99_ttft_ms", 0, None)
    assert figure.layout["yaxis"]["type"] == "log"
    band, line = figure.data
    assert line["y"] == [9000, 2100, 20]
    assert band["y"][:3] == [9000, 20, 20], "2,100 ± 2,236 ms, cut at the lowest value"
    assert "Where an interval reaches 0, its band is cut at the lowest value shown." in (
        figure.caption
    )
    surely = lines(made({SIZE: [8, 16]}, busy_alone), "p99_ttft_ms", 0, None)
    assert "cut" not in surely.caption


def test_lines_average_over_the_axes_that_are_not_shown() -> None:
    table = made({SIZE: [8, 16], BLOCK: [8, 24], "engine.watermark": [0.1, 0.3]},
                 lambda *values: {"output_throughput": sum(values[:3])})  # fmt: skip
    assert lines(table, "output_throughput", 0, 1).data[1]["y"] == [16.2, 24.2]
    assert lines(table, "output_throughput", 0, None).data[1]["y"] == [24.2, 32.2]


def test_shares_of_the_variance_fill_the_bar(sweep: SweepTable) -> None:
    parts = [sensitivity(sweep, metric) for metric in sweep.metrics]
    chart = sensitivity_chart(sweep, [part for part in parts if part is not None])
    for bar in range(2):
        assert sum(trace["x"][bar] for trace in chart.data) == pytest.approx(100, abs=0.05)
    assert [key.label for key in chart.keys][:2] == [
        "max_num_seqs (sequences)",
        "block_size (tokens)",
    ]


def test_the_headline_names_the_best_and_how_many_are_as_good(sweep: SweepTable) -> None:
    assert headline(sweep) == (
        "Highest output throughput: 1,279 ± 2.5 tokens/s at max_num_seqs 64, block_size 8. "
        "3 seeds do not tell 1 other setting from it."
    )
    alone = made({SIZE: [8, 16]}, lambda size, _: {"p99_ttft_ms": size}, seeds=1,
                 metrics=("p99_ttft_ms",))  # fmt: skip
    assert headline(alone) == "Lowest p99 TTFT: 8 ms at max_num_seqs 8."


def test_the_headline_says_which_limits_no_run_comes_to() -> None:
    def run(size: int, seed: int) -> dict[str, float]:
        return busy(min(size, 70), 16, 0) | {"peak_running": min(size, 68 + seed)}

    text = headline(made({SIZE: [64, 128, 512]}, run))
    assert text.endswith("max_num_seqs is never reached at 128, 512: at most 70 run.")
    assert "reached" not in headline(made({SIZE: [16, 64]}, run))


def test_long_times_are_in_seconds() -> None:
    assert Measure.of("p99_ttft_ms", [5.0, 20_000.0]).title == "p99 TTFT (s)"
    assert Measure.of("memory_bytes.kv_cache", [2**31]).number(2**31) == "2"
    assert Measure.of("mean_tpot_ms", [5.0]).title == "Mean TPOT (ms)"
    assert Measure.of("time_parts_s.linear", [5.0]).title == "time_parts_s.linear"


def test_axes_of_one_name_are_told_apart() -> None:
    table = made({"workload.lengths.prompt.mean": [1, 2], "workload.lengths.output.mean": [3]},
                 lambda *_: {"output_throughput": 1.0})  # fmt: skip
    assert axis_label(table, 0) == "workload.lengths.prompt.mean"


def test_axes_have_their_units(sweep: SweepTable) -> None:
    figure = heat_map(sweep, "output_throughput", 0, 1)
    assert figure.layout["xaxis"]["title"]["text"] == "max_num_seqs (sequences)"
    assert figure.layout["yaxis"]["title"]["text"] == "block_size (tokens)"
    along = lines(sweep, "output_throughput", 0, 1)
    assert along.layout["xaxis"]["title"]["text"] == "max_num_seqs (sequences)"
    assert along.caption.startswith("A line for each block_size (tokens).")
    axes: dict[str, list[Any]] = {
        "workload.arrivals.request_rate": [1.5, 2.5], "engine.swap_space_gib": [1.0, 4.0],
        "workload.lengths.prompt.mean": [100, 200], "slo.ttft_ms": [200, 500],
        "engine.scheduler": ["paged", "orca"], "hardware.gpu": ["l40s", "b200"],
    }  # fmt: skip
    table = made(axes, lambda *_: {"output_throughput": 1.0}, seeds=1)
    assert [axis_title(table, axis) for axis in range(6)] == [
        *("request_rate (requests/s)", "swap_space_gib (GiB)", "mean (tokens)", "ttft_ms (ms)"),
        *("scheduler", "gpu"),
    ]


def test_the_terminal_leaves_figures_out_rather_than_cut_a_setting() -> None:
    metrics = ("request_goodput", "output_throughput", "p99_ttft_ms", "p99_tpot_ms")
    folder = "/data/models/of/a/very/long/path/indeed/"
    models = ["llama-3.1-8b", "llama-3.1-70b", f"{folder}a.json", f"{folder}b.json"]
    table = made(
        {"model": models, "hardware.gpu": ["h100-sxm", "rtx-pro-6000"], SIZE: [8]},
        lambda model, gpu, size, seed: dict.fromkeys(metrics, 1e4 * len(model) + 100.0 * seed),
        metrics=metrics,
    )
    console = Console(width=80, highlight=False, file=StringIO())
    console.print(sweep_table(table, []))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue().partition("% of the variance")[0]
    assert "…" not in shown
    for text in ("llama-3.1-8b ", "llama-3.1-70b ", "/a.json", "/b.json", "rtx-pro-6000"):
        assert text in shown
    assert "No room here for p99 TTFT, p99 TPOT: see the report." in shown


def test_long_levels_stay_apart() -> None:
    folder = "/data/models/of/a/very/long/path/indeed/"
    assert level_label((f"{folder}a.json",)) != level_label((f"{folder}b.json",))


def test_text_from_outside_is_text(tmp_path: Path) -> None:
    table = made({"model": [EVIL, "b"]}, lambda model, _: EVIL if model == "b" else {
        "output_throughput": 3.0}, name=EVIL)  # fmt: skip
    page = sweep_report(table, scenario=SCENARIO | {"name": EVIL}, warnings=[EVIL])
    assert EVIL not in page
    data = re.search(r'id="orcast-figures">(.*?)</script>', page, re.S)
    assert data is not None
    assert "<" not in data[1]
    figures = json.loads(data[1])["figures"]
    assert "&lt;script&gt;" in json.dumps(figures)


# -- in the browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as tab:
        yield tab


SEEN = """(() => { const all = [...document.querySelectorAll(".plot")]; return {
  drawn: Number(document.documentElement.dataset.drawn),
  empty: all.filter(p => !p.querySelector(".trace path, .hm image")).map(p => p.id),
  wide: document.documentElement.scrollWidth - innerWidth,
  clipped: all.filter(p => { const box = p.getBoundingClientRect();
    return [...p.querySelectorAll(".xtitle, .ytitle, .xtick, .ytick")].some(t => {
      const r = t.getBoundingClientRect();
      return r.left < box.left - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 1; });
    }).map(p => p.id),
  overlapping: all.filter(p => { const t = p.querySelector(".ytitle")?.getBoundingClientRect();
    return t && [...p.querySelectorAll(".ytick text")].some(
      k => k.getBoundingClientRect().left < t.right - 1); }).map(p => p.id),
  cells: document.querySelectorAll(".heatmap-label").length,
  text: document.body.innerText,
}; })()"""


def opened(browser: Browser, folder: Path, table: SweepTable, width: int) -> dict[str, Any]:
    """Open the table's report and return what is to be seen of it; nothing may go wrong."""
    path = folder / "report.html"
    path.write_text(sweep_report(table, scenario=SCENARIO, warnings=["beware"]), encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(width, 1600)
    browser.open(path.as_uri())
    browser.wait_for(
        f"location.href === {path.as_uri()!r} && document.documentElement?.dataset.drawn"
    )
    seen: dict[str, Any] = browser.run(SEEN)
    assert browser.problems == []
    assert [url for url in browser.requests if url.startswith(("http", "ws"))] == []
    assert seen["empty"] == []
    assert seen["wide"] <= 0, "the page scrolls sideways"
    assert seen["clipped"] == []
    assert seen["overlapping"] == []
    return seen


@needs.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_and_answers(
    browser: Browser, tmp_path: Path, sweep: SweepTable, width: int
) -> None:
    seen = opened(browser, tmp_path, sweep, width)
    assert seen["drawn"] == 5
    assert seen["cells"] == 2 * 15
    assert "Highest output throughput: 1,279 ± 2.5 tokens/s" in seen["text"]
    assert "beware" in seen["text"]
    browser.run("document.querySelector('.key[data-figure^=lines]').click()")
    hidden = "document.querySelector('[id^=lines-output]').data.slice(0, 2).map(t => t.visible)"
    assert browser.wait_for(f"JSON.stringify({hidden}) === '[false,false]'")
    before = browser.run("document.querySelector('#sensitivity-shares').data[0].marker.color")
    browser.run("document.getElementById('theme').click()")
    changed = f"document.querySelector('#sensitivity-shares').data[0].marker.color !== '{before}'"
    assert browser.wait_for(changed)
    assert browser.problems == []


@needs.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_axes_of_names_and_failures_open(browser: Browser, tmp_path: Path, width: int) -> None:
    def figures(policy: str, gpu: str, size: int, seed: int) -> dict[str, float] | str:
        if gpu == "rtx-4090":
            return f"hardware: {EVIL} does not fit"
        return {"output_throughput": len(policy) * size + seed, "p99_ttft_ms": 1e5 / size}

    table = made({"engine.scheduler": ["static", "paged", "chunked"],
                  "hardware.gpu": ["h100-sxm", "a100-80gb", "rtx-4090"], SIZE: [8, 64]},
                 figures)  # fmt: skip
    seen = opened(browser, tmp_path, table, width)
    assert "does not fit" in seen["text"]
    assert EVIL in seen["text"], "as text"


@needs.browser
def test_a_drawn_sweep_opens(browser: Browser, tmp_path: Path) -> None:
    table = made({SIZE: [3, 17, 40, 99, 250]},
                 lambda size, seed: {"output_throughput": 10 * size + seed,
                                     "p99_ttft_ms": 1e6 / size**2},
                 sampling="latin_hypercube")  # fmt: skip
    figure = points(table, "p99_ttft_ms", 0)
    assert figure.data[0]["x"] == [3, 17, 40, 99, 250]
    assert figure.layout["yaxis"]["type"] == "log"
    assert opened(browser, tmp_path, table, 1280)["drawn"] == 3


@needs.browser
def test_a_sweep_of_failures_opens(browser: Browser, tmp_path: Path) -> None:
    table = made({SIZE: [3, 17]}, lambda *_: "no room")
    seen = opened(browser, tmp_path, table, 1280)
    assert seen["drawn"] == 0
    assert "Runs that failed" in seen["text"]
