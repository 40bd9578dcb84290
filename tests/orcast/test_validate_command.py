"""`orcast validate`: the whole loop on this machine's processor, from calibration to page."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from tests.orcast.command_line import Outcome, orcast
from tests.reports.browser import Browser

SCENARIO = "scenarios/validation/tiny-cpu.yaml"
ROOT = Path(__file__).parents[2]
FEW = ["--set", "workload.num_requests=25"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validation") / "tiny"


@pytest.fixture(scope="module")
def first(folder: Path) -> Outcome:
    return orcast("validate", SCENARIO, *FEW, "--budget", "8s", "--out", folder)


def test_it_prints_an_error_table(first: Outcome) -> None:
    assert first.status == 0, first.stderr
    for words in ("Mean TTFT", "p99 E2E", "Iterations:", "Engine time: schedule"):
        assert words in first.stdout
    verdict = " ".join(first.stdout.split()).partition("Verdict: ")[2]
    assert verdict.startswith(("The forecast ", "Nothing can be said: "))
    assert "the simulator makes the same schedule" in " ".join(first.stdout.split())


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orcast.cli", "validate", SCENARIO, *FEW, "--budget", "60s"]
    running = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s and running.poll() is None:
        found = next(tmp_path.rglob("journal.jsonl"), None)
        if found is not None and '"part"' in found.read_text():
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "the same command goes on" in said
    (journal,) = tmp_path.rglob("journal.jsonl")
    assert '"part"' in journal.read_text()
    assert not (tmp_path / "out").exists()


def test_both_runs_are_run_folders(first: Outcome, folder: Path) -> None:
    assert first.status == 0
    compared = orcast("compare", folder / "forecast", folder / "measured", "--json")
    assert compared.status == 0, compared.stderr
    figures = json.loads((folder / "validation.json").read_text())
    assert json.loads(compared.stdout)["metrics"] == figures["metrics"]
    assert orcast("report", folder / "measured").status == 0
    assert orcast("export", folder / "measured", "trace").status == 0
    lines = (folder / "measured" / "outputs.jsonl").read_text().splitlines()
    assert len(lines) == 25
    measured = json.loads((folder / "measured" / "summary.json").read_text())
    assert sum(len(json.loads(line)["tokens"]) for line in lines) == measured["total_output_tokens"]


def test_measured_acceptance_drives_a_scenario(
    first: Outcome, folder: Path, tmp_path: Path
) -> None:
    """The two commands of docs/concepts/speculative-decoding.md, with fewer requests."""
    assert first.status == 0
    technique = "speculation={method: ngram, num_draft_tokens: 4, acceptance: {rate: 0.5}}"
    few = ["--set", "workload.num_requests=10", "--set", technique]
    told = orcast(
        "validate", SCENARIO, *few, "--table", folder / "table", "--out", tmp_path / "ngrams"
    )
    assert told.status == 0, told.stderr
    assert "the simulator makes the same schedule" in " ".join(told.stdout.split())
    measured = json.loads((tmp_path / "ngrams" / "measured" / "summary.json").read_text())
    figures = measured["speculation"]
    lines = (tmp_path / "ngrams" / "measured" / "acceptance.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    drafted = [count for row in rows for count in row if count is not None]
    assert sum(map(len, rows)) == figures["steps"]
    assert figures["match_rate"] == pytest.approx(len(drafted) / figures["steps"])
    assert sum(figures["acceptance_per_position"]) == pytest.approx(sum(drafted) / len(drafted))
    given = ["--set", "speculation.match_rate=null", "--set", "workload.num_requests=60"]
    wanted = ["--set", f"speculation.acceptance={{recording: {tmp_path / 'ngrams'}}}"]
    driven = orcast("run", "speculation-ngram", *given, *wanted, "--json", "--out", tmp_path / "r")
    assert driven.status == 0, driven.stderr
    forecast = json.loads(driven.stdout)["speculation"]
    expected = 1 + figures["match_rate"] * sum(figures["acceptance_per_position"])
    assert forecast["expected_tokens_per_step"] == pytest.approx(expected)
    deeper = ["--set", "speculation.num_draft_tokens=5"]
    refused = orcast("run", "speculation-ngram", *given, *wanted, *deeper, "--out", tmp_path / "d")
    assert refused.status == 2
    assert "drafts 4 deep, the scenario's are 5" in refused.stderr


def test_what_only_an_engine_can_tell_is_written_down(first: Outcome, folder: Path) -> None:
    assert first.status == 0
    figures = json.loads((folder / "validation.json").read_text())
    assert figures["schedule_identity"] == {"checked": True, "differences": []}
    assert figures["request_errors"] == {}
    own = figures["iterations"]
    assert own["median_error_pct"] > 0
    assert sum(own["phase_shares"].values()) == pytest.approx(1.0)
    assert len(own["worst"]) == 12
    assert all(worst["reason"] for worst in own["worst"])


def test_a_second_validation_takes_the_table_of_the_first(first: Outcome, folder: Path) -> None:
    assert first.status == 0
    before = (folder / "table" / "meta.yaml").read_text()
    again = orcast("validate", SCENARIO, *FEW, "--out", folder, "--json")
    assert again.status == 0, again.stderr
    assert json.loads(again.stdout)["table"] == str(folder / "table")
    assert (folder / "table" / "meta.yaml").read_text() == before


@needs.browser
def test_the_page_is_drawn_and_quiet(first: Outcome, folder: Path, tmp_path: Path) -> None:
    assert first.status == 0
    with Browser() as browser:
        browser.open((folder / "report.html").as_uri())
        browser.wait_for("document.documentElement.dataset.drawn")
        for width in (1280, 390):
            browser.resize(width, 1600)
            browser.wait_for(f"document.documentElement.scrollWidth <= {width}")
            browser.screenshot(tmp_path / f"validation-{width}.png")
        titles = browser.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        assert {"Iteration by iteration", "Batch and memory over time"} <= set(titles)
        assert browser.problems == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in browser.requests)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quickstart"], "no CUDA GPU"),
        ([SCENARIO, "--set", "cluster.replicas=2"], "the engine serves with one replica"),
        ([SCENARIO, "--table", "nowhere"], "nowhere"),
        ([SCENARIO, "--eos"], "--eos needs a checkpoint"),
        (
            [
                SCENARIO,
                "--set",
                "model=opt-13b",
                "--set",
                "hardware.gpu=h200-sxm",
                "--device",
                "cpu",
            ],
            "model_type",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused_in_one_line(
    arguments: list[str], words: str, first: Outcome, folder: Path, tmp_path: Path
) -> None:
    assert first.status == 0
    if words == "no CUDA GPU":
        import torch

        if torch.cuda.is_available():
            needs.skip("no-cuda")
    table = [] if "--table" in arguments else ["--table", str(folder / "table")]
    refused = orcast("validate", *arguments, *table, "--out", tmp_path / "out")
    assert refused.status == 2
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
