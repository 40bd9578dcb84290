"""The what-if page in a real browser: it follows its knobs, and says what `orcast run` says."""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("dash", reason=needs.DASH)

from typer.testing import CliRunner

from orcast.cli import app as command_line
from orcast.ui_cli import nearby, question, what_if
from reports.what_if.page import HOST
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.schema.load import load_scenario
from tests.orcast.command_line import refusal
from tests.reports.audit import THEMES, WIDTHS, audit, show
from tests.reports.browser import Browser
from tests.reports.what_if.page_server import served

SCENARIO = """
name: "<script>document.title = 'taken'</script><b>bold</b>"
model: llama-3.1-8b
hardware: {gpu: h200-sxm}
engine: {max_num_seqs: 64}
latency: {source: roofline}
workload:
  arrivals: {process: poisson, request_rate: 20}
  lengths:
    prompt: {distribution: lognormal, mean: 512, sigma: 0.9}
    output: {distribution: lognormal, mean: 192, sigma: 0.8}
  num_requests: 2000
slo: {ttft_ms: 200, tpot_ms: 25, percentile: 99}
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ui") / "what-if.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def url(scenario: Path) -> Iterator[str]:
    with served(what_if(str(scenario), [])[0].server) as address:
        yield address


def cells(browser: Browser) -> dict[str, list[str]]:
    """The page's table by its first column."""
    rows = browser.run(
        "[...document.querySelectorAll('#figures tbody tr')]"
        ".map(row => [...row.children].map(cell => cell.textContent))"
    )
    return {row[0]: row[1:] for row in rows}


@needs.browser
def test_a_turned_knob_changes_the_forecast(url: str, tmp_path: Path) -> None:
    drawn = "document.querySelectorAll('.js-plotly-plot .trace path').length >= 5"
    slider = "document.querySelector('[title=\"workload.arrivals.request_rate\"] [role=slider]')"
    with Browser() as browser:
        browser.open(url)
        browser.wait_for(drawn)
        first = cells(browser)
        command = browser.run("document.getElementById('command').textContent")
        assert command.startswith("orcast run ") and "--set" not in command
        # Sliders are fetched on their own and may come after the charts are drawn.
        browser.wait_for(f"{slider} !== null")
        browser.run(f"{slider}.focus()")
        browser.press("ArrowRight")
        browser.press("ArrowRight")
        browser.wait_for("document.getElementById('command').textContent.includes('rate=25')")
        second = cells(browser)
        assert "not measured" in browser.run("document.querySelector('.warnings').textContent")
        headline = browser.run("document.querySelector('.verdict').textContent")
        assert "1 GPU, $3.80 an hour" in headline.replace("\xa0", " ")
        assert "1 GPUs" not in browser.run("document.body.textContent")
        assert second["Output tokens/s"][0] != first["Output tokens/s"][0]
        assert second["Output tokens/s"][1] != "–"
        assert browser.run("document.title").startswith("<script>document.title = 'taken'</script>")
        assert "<b>bold</b>" in browser.run("document.querySelector('.what').textContent")
        for width, theme in product(WIDTHS, THEMES):
            show(browser, width=width, theme=theme, height=1600)
            browser.wait_for(drawn)
            assert audit(browser) == [], f"{theme}, {width} px"
            browser.screenshot(tmp_path / f"what-if-{width}-{theme}.png")
        show(browser, width=390, theme="light", height=1600)
        before = browser.run("getComputedStyle(document.body).backgroundColor")
        word = "document.getElementById('theme-button').textContent"
        assert browser.run(word) == "Dark", "the word of every report"
        browser.run("document.getElementById('theme-button').click()")
        browser.wait_for(f"{word} === 'Light'")
        browser.wait_for(f"getComputedStyle(document.body).backgroundColor !== {before!r}")
        elsewhere = [
            address
            for address in browser.requests
            if not address.startswith((url, "data:", "blob:", "chrome:", "about:"))
        ]
        assert elsewhere == []
        assert browser.problems == []


@needs.browser
def test_the_address_holds_the_setting_and_what_is_pinned(url: str, tmp_path: Path) -> None:
    answered = "document.querySelector('#figures tbody') !== null"
    with Browser(width=390, height=2400) as browser:
        browser.open(f"{url}?engine.max_num_seqs=8&nonsense=<b>1</b>&pin=")
        browser.wait_for(answered)
        text = "document.getElementById('ignored').textContent"
        assert "nonsense is no knob" in browser.run(text)
        assert browser.run("location.search") == "?engine.max_num_seqs=8&pin="
        assert cells(browser)["Setting"] == ["Batch limit: 8 sequences", "the scenario's own"]
        browser.run("document.getElementById('pin').click()")
        browser.wait_for("document.querySelectorAll('[data-unpin]').length === 2")
        pinned = "?engine.max_num_seqs=8&pin=&pin=engine.max_num_seqs%3D8"
        assert browser.run("location.search") == pinned
        browser.run("document.querySelector('[data-unpin]').click()")
        browser.wait_for("document.querySelectorAll('[data-unpin]').length === 1")
        shown = cells(browser)
        assert shown["Setting"] == ["Batch limit: 8 sequences"] * 2
        browser.call("Page.reload")
        browser.wait_for(f"document.readyState === 'complete' && {answered}")
        assert cells(browser) == shown
        assert browser.run(text) == "", "the address says what is shown, and no nonsense"
        # The answer comes first on a phone; nothing is wider than it.
        top = "document.querySelector('{}').getBoundingClientRect().{}"
        bottom = browser.run(top.format("#figures", "bottom"))
        assert browser.run(top.format(".knobs", "top")) >= bottom > 0
        assert browser.run("document.documentElement.scrollWidth") == 390
        browser.screenshot(tmp_path / "pinned.png")
        # Sliders say what they stand for.
        browser.wait_for("document.querySelectorAll('[role=slider][aria-valuetext]').length > 8")
        named = "[...document.querySelectorAll('[role=slider]')].map(at => at.ariaLabel + ': ' + "
        said = browser.run(named + "at.getAttribute('aria-valuetext'))")
        assert {"Batch limit: 8 sequences", "Request rate: 20 requests/s"} <= set(said)
        assert browser.problems == []


@needs.browser
def test_a_setting_that_does_not_fit_leads_to_one_that_does(url: str) -> None:
    with Browser() as browser:
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        browser.open(f"{url}?model=llama-3.1-405b")
        way = "document.querySelector('#verdict a[href*=\"tensor_parallel=8\"]')"
        browser.wait_for(f"{way} !== null")
        words = browser.run("document.getElementById('verdict').textContent")
        assert words.startswith("No forecast: hardware: llama-3.1-405b does not fit on 1 x h200")
        browser.wait_for("document.querySelector('.dash-slider-track') !== null")
        colours = "getComputedStyle(document.querySelector('{}')).backgroundColor"
        track = browser.run(colours.format(".dash-slider-track"))
        assert contrast(track, browser.run(colours.format("fieldset.panel"))) >= 3
        browser.run(f"{way}.click()")
        browser.wait_for("document.querySelector('#figures tbody') !== null")
        assert browser.run("location.search").endswith("hardware.tensor_parallel=8")
        assert cells(browser)["GPUs"][0] == "8"
        # No script that came with the page's content would run: not even one put there now.
        browser.run(
            "{const it = document.createElement('script'); it.textContent = 'window.ran = 1';"
            " document.body.append(it)}"
        )
        assert browser.run("window.ran") is None
        assert [text for text in browser.problems if "Content Security Policy" not in text] == []


def contrast(*colours: str) -> float:
    """WCAG 2's ratio of two colours as computed styles have them."""
    lights = []
    for colour in colours:
        parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_page_says_exactly_what_the_command_line_says(scenario: Path, tmp_path: Path) -> None:
    _, _, ask = question(str(scenario), ["engine.block_size=32"])
    turned = {"workload.arrivals.request_rate": 30.0, "engine.max_num_seqs": 48}
    answer = ask(turned)
    words = shlex.split(answer.command)
    assert words[:2] == ["orcast", "run"]
    result = CliRunner().invoke(
        command_line, [*words[1:], "--json", "--out", str(tmp_path / "run")]
    )
    said = json.loads(result.stdout)
    clocks = {"wall_s", "simulated_requests_per_s", "run_folder"}
    assert {key: value for key, value in said.items() if key not in clocks} == {
        key: value for key, value in answer.summary.items() if key not in clocks
    }
    (tmp_path / "again.yaml").write_text(answer.scenario)
    again, _, ask_again = question(str(tmp_path / "again.yaml"), [])
    assert again.engine.block_size == 32
    assert ask_again({}).summary["p99_ttft_ms"] == said["p99_ttft_ms"]


def test_only_what_the_knobs_offer_can_be_asked_for(scenario: Path) -> None:
    _, _, ask = question(str(scenario), [])
    for turned in (
        {"model": "/etc/passwd"},
        {"hardware.gpu": "h200-sxm\nlatency: {table: /etc}"},
        {"engine.max_num_seqs": 10**9},
        {"engine.max_num_seqs": True},
    ):
        with pytest.raises(ValueError, match="not one of its choices"):
            ask(turned)


def test_every_knob_has_the_scenarios_value_among_its_choices(scenario: Path) -> None:
    for name in (str(scenario), "static-vs-continuous", "quickstart", "kv-waste"):
        _, known, _ = question(name, [])
        assert {"engine.scheduler", "model"} <= {knob.path for knob in known}
        assert all(knob.value in knob.choices for knob in known)


def test_a_setting_without_a_forecast_is_refused_in_words(scenario: Path) -> None:
    _, _, ask = question(str(scenario), [])
    with pytest.raises(InputError, match="does not fit on 1 x h200-sxm"):
        ask({"model": "llama-3.1-405b"})


def test_a_port_in_use_is_refused_before_any_address_is_shown(scenario: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = refusal("ui", scenario, "--port", str(port))
    assert words == f"--port {port}: in use; name another, or 0 for any free one"


def test_the_terminal_says_that_times_are_unmeasured(scenario: Path) -> None:
    _, warnings = what_if(str(scenario), [])
    assert "analytic, not measured" in warnings[0]


def test_experts_have_ranks_and_dense_layers_have_stages() -> None:
    for model, path in (
        ("qwen3-0.6b", "hardware.pipeline_parallel"),
        ("mixtral-8x7b", "hardware.expert_parallel"),
    ):
        settings = [f"model={model}", "hardware.tensor_parallel=2", "workload.num_requests=20"]
        _, known, ask = question("quickstart", settings)
        paths = [knob.path for knob in known if knob.path.endswith("_parallel")]
        assert paths == ["hardware.tensor_parallel", path]
        assert ask({path: 2}).summary["cost"]["gpus"] in (2, 4)


def test_precision_times_and_speculation_can_be_turned() -> None:
    settings = ["workload.num_requests=20", "latency.source=auto"]
    _, known, ask = question("speculation-eagle", settings)
    choices = {knob.path: knob.choices for knob in known}
    assert choices["latency.source"] == ("auto", "roofline")
    assert choices["speculation"] == ("eagle", None)
    assert "fp8" in choices["engine.weight_dtype"]
    assert "fp8" in choices["engine.kv_cache_dtype"]
    assert "speculation" in ask({}).summary
    off = ask({"speculation": None, "latency.source": "roofline", "engine.weight_dtype": "fp8"})
    assert "speculation" not in off.summary
    assert off.summary["latency"]["basis"] == "analytic"
    assert "speculation=null" in off.command


def test_sources_that_the_scenario_rules_out_are_no_choice() -> None:
    _, known, _ = question("quickstart", ["latency.gemm_efficiency=0.5"])
    assert "latency.source" not in {knob.path for knob in known}


def test_a_scenario_without_a_forecast_opens_no_page_and_names_its_file(scenario: Path) -> None:
    words = refusal("ui", scenario, "--set", "model=llama-3.1-405b", "--port", "0")
    assert words.startswith(f"{scenario}: hardware: llama-3.1-405b does not fit")


def test_what_can_be_read_only_once_is_no_scenario_of_a_page() -> None:
    assert "give it a file" in refusal("ui", "-", "--port", "0")


def test_what_would_fit_is_found_and_fits(scenario: Path) -> None:
    _, known, _ = question(str(scenario), [])
    values = {knob.path: knob.value for knob in known} | {"model": "llama-3.1-405b"}
    found = nearby(str(scenario), [], known)(values, lambda: None)
    turned = [{path: each[path] for path in each if each[path] != values[path]} for each in found]
    assert {"hardware.tensor_parallel": 8} in turned
    for each in turned:
        (only,) = each.items()  # one knob more, and no other
        settings = ["model=llama-3.1-405b", f"{only[0]}={only[1]}"]
        loaded, origin = load_scenario(str(scenario), settings)
        deploy(loaded, origin=origin)
