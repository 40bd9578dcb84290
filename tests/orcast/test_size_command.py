"""`orcast size`: what it prints, what it writes, and that its model goes on to be served."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import orcast
from scenarios.sizing.load import load_sizing
from tests.orcast.command_line import Outcome, refusal
from tests.orcast.command_line import orcast as run

LIGHT = (
    *("--set", "serving.gpus=[l40s]", "--set", "serving.tensor_parallel=[1]"),
    *("--set", "over_training.sizes=[0.4]", "--set", "serving.engine.max_num_seqs=32"),
    *("--set", "serving.lengths.prompt={distribution: uniform, min: 100, max: 600}"),
    *("--set", "serving.lengths.output={distribution: uniform, min: 10, max: 70}"),
)


@dataclass(frozen=True, slots=True)
class Sized:
    """One answer that several tests look at."""

    folder: Path
    told: Outcome

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "sizing.json").read_text())
        return found


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Sized:
    folder = tmp_path_factory.mktemp("sized") / "sized for me"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        outcome = run("size", *LIGHT, "--jobs", "1", "--out", folder)
    assert outcome.status == 0
    return Sized(folder, outcome)


def test_without_a_file_the_library_sizing_is_answered(sized: Sized) -> None:
    figures = sized.figures
    assert figures["name"] == "budget-1e22"
    assert figures["budget"]["flops"] == 1e22
    assert len(figures["candidates"]) == 2
    assert "Iteration times are analytic" in sized.told.stdout


def test_a_library_models_figures_are_printed() -> None:
    outcome = run("size", "--set", "model=llama-3.1-8b")
    assert outcome.status == 0
    assert "8,030,261,248" in outcome.stdout
    assert "What llama-3.1-8b takes" in outcome.stdout
    assert "128 KiB" in outcome.stdout.replace("\u00a0", " "), "its KV cache a token"
    figures = json.loads(run("size", "--set", "model=deepseek-v3", "--json").stdout)
    assert figures["model"]["parameters"]["total"] == 671_026_419_200


def test_gophers_budget_gives_the_published_optima() -> None:
    """Both forms of the law in one answer: 48.0B as courses write it, 40.3B unrounded."""
    outcome = run("size", "--set", "budget.flops=5.76e23", "--set", "serving=null", "--json")
    laws = {one["law"]: one for one in json.loads(outcome.stdout)["laws"]}
    assert laws["chinchilla"]["parameters"] == pytest.approx(48.0e9, rel=0.01)
    assert laws["chinchilla-unrounded"]["parameters"] == pytest.approx(40e9, rel=0.01)
    assert laws["chinchilla-unrounded"]["tokens"] == pytest.approx(2.4e12, rel=0.01)


def test_the_tables_show_the_answer_and_fit_a_terminal(sized: Sized) -> None:
    for text in (
        "1e22 FLOPs buy 3B parameters on 555B tokens",
        "The best use of 1e22 training FLOPs, by law",
        "What 1e22 FLOPs ($21,057) buy",
        "Beyond the budget, models of the same loss, 2.0788",
        "Optimizer states",
        "1 x l40s",
        "Serving sized-3b within TTFT p95 ≤ 300 ms, TPOT p95 ≤ 30 ms",
    ):
        assert text in sized.told.stdout
    # The folder's own path may be longer than a line.
    lines = sized.told.stdout.replace(str(sized.folder), "sized").splitlines()
    assert max(map(len, lines)) <= 120


def test_the_folder_holds_the_report_and_a_model_that_can_be_served(
    sized: Sized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sized.folder.parent)
    assert {path.name for path in sized.folder.iterdir()} == {
        "sizing.yaml", "sizing.json", "candidates.parquet", "config.json", "report.html",
        "plan.yaml", "sized-3b.json",
    }  # fmt: skip
    served = run(
        *("run", "quickstart", "--set", "model=sized for me", "--set", "hardware.gpu=l40s"),
        *("--set", "workload.num_requests=20", "--json"),
    )
    assert served.status == 0, served.stderr
    assert json.loads(served.stdout)["completed"] == 20


def test_the_folder_holds_a_plan_that_gives_the_same_answer(
    sized: Sized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder, also one that has a model of its own lying about."""
    (told,) = re.findall(r"^Plan: +orcast (.*)$", sized.told.stdout, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    outcome = run(*shlex.split(told), "--jobs", "1", "--json")
    assert outcome.status == 0, outcome.stderr
    plan, answer = json.loads(outcome.stdout), sized.figures["answer"]
    (chosen,) = plan["candidates"]
    assert plan["chosen"] == answer["gpu"] == "l40s"
    assert chosen["goodput_low"] == pytest.approx(answer["requests_per_s"])
    assert chosen["goodput_low"] < chosen["goodput"] < chosen["goodput_high"]
    assert chosen["usd_per_million_tokens"] == pytest.approx(
        answer["usd_per_million_tokens"], rel=0.01
    )
    assert plan["check"]["kept"], "the fleet as a whole keeps its limits too"


def test_another_answer_replaces_the_folder_of_the_one_before(sized: Sized, tmp_path: Path) -> None:
    shutil.copytree(sized.folder, tmp_path / "out")
    settings = ["--set", "over_training.sizes=[0.3]"]
    assert run("size", *LIGHT, *settings, "--out", tmp_path / "out").status == 0
    (model,) = (tmp_path / "out").glob("sized-*.json")
    assert model.name == "sized-2.21b.json"
    (tmp_path / "out" / "sized.txt").write_text("precious")
    assert "would be lost" in refusal("size", *LIGHT, "--out", tmp_path / "out")


def test_without_objectives_no_plan_is_promised(tmp_path: Path) -> None:
    outcome = run("size", *LIGHT, "--set", "serving.slo={}", "--out", tmp_path / "out")
    assert outcome.status == 0
    assert "orcast plan" not in outcome.stdout
    assert not (tmp_path / "out/plan.yaml").exists()
    assert "with work always waiting" in outcome.stdout


def test_report_rebuilds_the_page(tmp_path: Path) -> None:
    run("size", "--set", "model=qwen3-0.6b", "--out", tmp_path / "out")
    page = tmp_path / "out/report.html"
    before = page.read_bytes()
    page.unlink()
    outcome = run("report", tmp_path / "out")
    assert outcome.status == 0
    assert page.read_bytes() == before
    (tmp_path / "out/sizing.json").write_text("{}")
    assert "not a sizing's figures" in refusal("report", tmp_path / "out")
    for broken in ("{", "[" * 100_000):
        (tmp_path / "out/sizing.json").write_text(broken)
        assert "not JSON" in refusal("report", tmp_path / "out")


def test_the_same_sizing_writes_the_same_bytes(sized: Sized, tmp_path: Path) -> None:
    """As it was resolved, with two processes instead of one."""
    again = run("size", sized.folder / "sizing.yaml", "--jobs", "2", "--out", tmp_path / "again")
    assert again.status == 0
    for file in sorted(sized.folder.iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    line = refusal("size", "--set", "model=qwen3-0.6b", "--out", tmp_path)
    assert "not empty and not a sizing's folder" in line
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_nonsense_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    assert "too few for any model" in refusal("size", "--set", "budget.flops=1e9")
    assert "greater than 0" in refusal("size", "--set", "budget.flops=-1")
    assert "did you mean 'chinchilla'" in refusal("size", "--set", "law=chinchila")
    assert "did you mean 'budget'" in refusal("size", "--set", "budgte.flops=1e22")
    target = tmp_path / "out"
    refusal("size", "--set", "budget.flops=1e9", "--out", target)
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_gets_a_tidy_table_and_a_figure() -> None:
    settings = {
        "serving.gpus": ["l40s"], "over_training.sizes": [0.4], "serving.engine.max_num_seqs": 32
    }  # fmt: skip
    table, figure, summary = orcast.size(overrides=settings)
    assert list(table["model"]) == ["sized-7.43b", "sized-3b"]
    assert table["lifetime_usd"].is_monotonic_decreasing
    assert [trace.name for trace in figure.data] == ["Training", "Serving"]
    assert float(figure.data[0].y[1]) == pytest.approx(table["training_usd"][0], rel=1e-5)
    assert summary["answer"]["model"] == "sized-3b"
    alone = orcast.size(overrides={"serving": None, "over_training.sizes": [0.5]})
    assert alone.figure.layout.xaxis.type == "log", "isoFLOP curves where nothing is served"
    known = orcast.size(overrides={"model": "llama-2-7b"})
    assert known.table["parameters"].tolist() == [6_738_415_616]
    assert len(known.figure.data) == 4


def test_the_library_sizing_is_valid_and_says_what_it_asks() -> None:
    sizing, origin = load_sizing(None)
    assert origin is not None
    assert origin.stem == sizing.name
    assert sizing.description


def test_neither_pandas_nor_plotly_is_loaded_to_answer() -> None:
    program = (
        "import sys; sys.argv=['orcast','size','--set','model=qwen3-8b','--json']\n"
        "from orcast.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'pandas','plotly.graph_objects','torch'} & sys.modules.keys()\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{program}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
