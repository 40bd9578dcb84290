"""`orcast plan`: what it prints and writes, what it refuses; it leaves nothing half done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import orcast as api
from tests.orcast.command_line import orcast, refusal
from tests.scenarios.plan.planning import SMALL

ROOT = Path(__file__).parents[2]
FILES = [
    "candidates.parquet",
    "chosen.yaml",
    "kubernetes.yaml",
    "plan.json",
    "report.html",
    "scenario.yaml",
]


@pytest.fixture(autouse=True)
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("small.yaml")
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_a_plan_is_printed_and_written() -> None:
    outcome = orcast("plan", "small.yaml", "--jobs", "1")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr == ""
    assert "Cheapest: 1 replica of h100-sxm (1 GPU), $3.00 an hour" in outcome.stdout
    assert "It breaks at " in outcome.stdout
    assert "First to break: " in outcome.stdout
    assert outcome.stdout.endswith(f"Report: {Path('runs/plan-small/report.html')}\n")
    assert sorted(path.name for path in Path("runs/plan-small").iterdir()) == FILES
    resolved = yaml.safe_load(Path("runs/plan-small/scenario.yaml").read_text())
    assert resolved["plan"]["confidence"] == 0.95, "defaults are written out"


def test_json_is_one_object_and_the_same_whatever_the_number_of_jobs() -> None:
    both = "plan.candidates.gpus=[h100-sxm, h200-sxm]"
    outcomes = [
        orcast("plan", "small.yaml", "--json", "--jobs", jobs, "--out", "out", "--set", both)
        for jobs in ("1", "2")
    ]
    assert outcomes[0] == outcomes[1]
    answer = json.loads(outcomes[0].stdout)
    assert answer["chosen"] == "h100-sxm"
    assert answer["plan_folder"] == "out"
    assert {row["basis"] for row in answer["candidates"]} == {"measured"}
    assert outcomes[0].stderr == ""
    written = json.loads(Path("out/plan.json").read_text())
    assert written == {key: value for key, value in answer.items() if key != "plan_folder"}


def test_a_gpu_that_nobody_measured_does_not_win_unmarked() -> None:
    """An H100 over PCIe is not among the package's measurements, and here it is cheap."""
    Path("mine.yaml").write_text("h100-pcie: 0.5\n")
    both = ("--set", "plan.candidates.gpus=[h100-sxm, h100-pcie]", "--prices", "mine.yaml")
    outcome = orcast("plan", "small.yaml", "--jobs", "1", *both)
    printed = " ".join(outcome.stdout.split())
    answer = json.loads(Path("runs/plan-small/plan.json").read_text())
    assert answer["chosen"] == "h100-pcie"
    assert "per million output tokens (iteration times are analytic, not measured)." in printed
    assert "Iteration times of 1 of 2 candidates are analytic, not measured" in printed
    bases = {row["label"]: row["basis"] for row in answer["candidates"]}
    assert bases == {"h100-pcie": "analytic", "h100-sxm": "measured"}
    columns = pq.read_table(Path("runs/plan-small/candidates.parquet")).column("basis")
    assert sorted(columns.to_pylist()) == ["analytic", "measured"]
    assert ">Times</th>" in Path("runs/plan-small/report.html").read_text()


def test_a_resolved_plan_is_a_scenario_again() -> None:
    first = orcast("plan", "small.yaml", "--json", "--jobs", "1", "--out", "one")
    again = orcast("plan", "one/scenario.yaml", "--json", "--jobs", "1", "--out", "one")
    assert first.status == again.status == 0, again.stderr
    assert first.stdout == again.stdout


def test_options_ask_the_question_without_a_scenario() -> None:
    outcome = orcast(
        "plan", "--model", "llama-3.1-8b", "--gpu", "h100", "--users", "40", "--think-time", "5",
        "--ttft", "800", "--tpot", "40", "--percentile", "90", "--jobs", "1", "--json",
        "--set", "plan.seeds=3", "--set", "plan.requests=200",
        "--set", "plan.candidates.layouts=[{tensor_parallel: 1}]",
    )  # fmt: skip
    answer = json.loads(outcome.stdout)
    assert (answer["model"], answer["chosen"]) == ("llama-3.1-8b", "h100-sxm")
    assert answer["load"]["users"] == 40 and answer["load"]["think_time_s"] == 5
    assert [one["name"] for one in answer["objectives"]] == ["TTFT p90", "TPOT p90"]


def test_options_replace_the_scenarios_own_objectives() -> None:
    own = "plan.objectives=[{e2el_ms: 1}]"
    outcome = orcast("plan", "small.yaml", "--jobs", "1", "--json", "--ttft", "700", "--set", own)
    assert outcome.status == 0, "what is set comes last"
    loaded = json.loads(
        orcast("plan", "small.yaml", "--jobs", "1", "--json", "--ttft", "700").stdout
    )
    assert loaded["objectives"][0]["limit_ms"] == 700


def test_an_slo_that_no_deployment_meets_is_an_answer() -> None:
    outcome = orcast("plan", "small.yaml", "--jobs", "1", "--set", "slo.tpot_ms=1")
    assert outcome.status == 0, outcome.stderr
    assert (
        "No deployment of the 1 meets the objectives. Nearest: h100-sxm: TPOT p90 is at best"
        in (" ".join(outcome.stdout.split()))
    )
    assert Path("runs/plan-small/report.html").is_file()


def test_prices_can_be_given_on_the_command_line() -> None:
    Path("mine.yaml").write_text("h100-sxm: 12.5\n")
    outcome = orcast("plan", "small.yaml", "--jobs", "1", "--prices", "mine.yaml", "--json")
    assert json.loads(outcome.stdout)["candidates"][0]["usd_per_hour"] == 12.5


def test_a_report_is_rebuilt_from_its_folder() -> None:
    orcast("plan", "small.yaml", "--jobs", "1")
    page = Path("runs/plan-small/report.html")
    before = page.read_bytes()
    page.unlink()
    assert orcast("report", "runs/plan-small").status == 0
    assert page.read_bytes() == before
    Path("runs/plan-small/plan.json").write_text("{}")
    assert (
        refusal("report", "runs/plan-small") == f"{Path('runs/plan-small/plan.json')}: not a plan"
    )
    for broken in ("{", "[" * 100_000):
        Path("runs/plan-small/plan.json").write_text(broken)
        assert "not JSON" in refusal("report", "runs/plan-small")


def test_what_is_not_a_plans_folder_is_left_alone() -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    line = refusal("plan", "small.yaml", "--out", "mine")
    assert line == "--out mine: not empty and not a plan's folder; name another one"
    assert orcast("plan", "small.yaml", "--jobs", "1", "--out", "ours").status == 0
    Path("ours/notes.txt").write_text("keep")
    assert "holds notes.txt" in refusal("plan", "small.yaml", "--out", "ours")


def test_bad_input_is_one_line_and_writes_nothing() -> None:
    for settings, words in {
        "plan.seeds=0": "--set: plan.seeds: 0: expected greater than or equal to 3",
        "plan.candidates.gpus=[h100-sxn]": "unknown GPU 'h100-sxn'; did you mean 'h100-sxm'?",
        "model=llama": "model: unknown model 'llama'",
        "workload.trace=none.csv": "none.csv: no such file",
    }.items():
        assert words in refusal("plan", "small.yaml", "--set", settings)
    assert not Path("runs").exists()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_plan_leaves_nothing_half_written(
    tmp_path: Path, ending: signal.Signals, jobs: str
) -> None:
    many = f"plan.candidates.engine.max_num_seqs={list(range(2, 120))}"
    process = subprocess.Popen(
        [sys.executable, "-m", "orcast.cli", "plan", "small.yaml", "--jobs", jobs, "--set", many],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):  # until it works: its folder is there, under a hidden name
        if list(tmp_path.glob("runs/.*.partial")):
            break
        time.sleep(0.05)
    time.sleep(1.0)
    assert process.poll() is None, "it ended before it could be interrupted"
    process.send_signal(ending)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if ending == signal.SIGINT else 143), err
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ProcessLookupError):  # nobody of its group works on
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_notebook_gets_a_table_and_a_figure() -> None:
    both = {"plan.candidates.gpus": ["h100-sxm", "h200-sxm"]}
    found = api.plan("small.yaml", both)
    assert found.chosen == "h100-sxm"
    table = found.table.set_index("label")
    assert list(table.index) == ["h100-sxm", "h200-sxm"]
    assert table.loc["h100-sxm", "status"] == "chosen"
    assert table.loc["h200-sxm", "usd_per_hour"] == 3.80
    assert table["goodput"].dtype.kind == "f"
    figure = found.figure
    assert [trace.name for trace in figure.data] == ["Pareto front", "h100-sxm", "h200-sxm"]
    assert "Cheapest: 1 replica of h100-sxm" in found._repr_html_()
    nothing = api.plan("small.yaml", {"slo.tpot_ms": 1})
    assert nothing.chosen is None
    assert nothing.table["goodput"].isna().all()
    assert "No deployment" in nothing.figure.layout.title.text
