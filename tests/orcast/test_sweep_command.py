"""`orcast sweep`: the same bytes whoever runs it, however often it was killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import orcast as package
from orcast.task_workers import HERE, with_ray_address
from reports.sweep.folder import check_target
from scenarios.errors import InputError
from tests import needs
from tests.orcast.command_line import orcast, refusal

ROOT = Path(__file__).parents[2]
AXES = ["--axis", "engine.max_num_seqs=4..32:x2", "--axis", "engine.block_size=0,16,64"]
SMALL = ["quickstart", *AXES, "--set", "workload.num_requests=150", "--set", "sweep.seeds=2"]
WRITTEN = ("sweep.parquet", "sweep.yaml", "sweep.json", "report.html")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes that is left in peace."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    assert orcast("sweep", *SMALL, "--out", folder, "--jobs", "1").status == 0
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a sweep, answers of points included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "orcast.cli", "sweep", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_sweep_leaves_table_summary_and_report(uninterrupted: dict[str, bytes]) -> None:
    assert {name for name in uninterrupted if "/" not in name} == set(WRITTEN)
    points = [name for name in uninterrupted if name.startswith("points/")]
    assert len(points) == 16, "eight of the settings are refused"
    summary = json.loads(uninterrupted["sweep.json"])
    assert (summary["runs"], summary["settings"], summary["failed"]) == (24, 12, 8)
    assert summary["metrics"]["request_goodput"]["best"]["values"]["engine.max_num_seqs"] == 32


def test_the_table_has_every_run_with_its_gaps(
    uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    import pandas as pd

    (tmp_path / "sweep.parquet").write_bytes(uninterrupted["sweep.parquet"])
    table = pd.read_parquet(tmp_path / "sweep.parquet")
    assert len(table) == 24
    assert table["engine.block_size"].tolist()[:6] == [0, 0, 16, 16, 64, 64]
    assert table["error"].isna().tolist() == [False, False, True, True, True, True] * 4
    assert table["error"][0] == "engine.block_size: 0: expected greater than or equal to 1"
    assert table["completed"].isna().tolist() == (~table["error"].isna()).tolist()
    summary = package.simulate(
        "quickstart",
        {"workload.num_requests": 150, "workload.seed": 2, "engine.max_num_seqs": 4},
    ).summary
    row = table[(table["engine.max_num_seqs"] == 4) & (table["engine.block_size"] == 16)].iloc[1]
    assert (row["seed"], row["p99_ttft_ms"], row["iterations"], row["slo_met"]) == (
        *(2, summary["p99_ttft_ms"], summary["iterations"], summary["slo_met"]),
    )


def test_the_number_of_processes_makes_no_difference(uninterrupted: dict[str, bytes]) -> None:
    assert orcast("sweep", *SMALL, "--out", "three", "--jobs", "3").status == 0
    assert content(Path("three")) == uninterrupted


@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_killed_at_random_moments_goes_on_to_the_same_bytes(
    uninterrupted: dict[str, bytes], seed: int
) -> None:
    rng = random.Random(seed)
    folder, cut_short = Path("killed"), 0
    for _ in range(4):
        process = started(*SMALL, "--out", folder, "--jobs", rng.choice("12"))
        # Some of the kills while the first points are made, some between two of them.
        wanted = len(list(folder.glob("points/*.json"))) + rng.choice([0, 1, 1, 2, 5])
        while process.poll() is None and len(list(folder.glob("points/*.json"))) < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        cut_short += process.wait() != 0
    assert cut_short, "every one of them was faster than its killer"
    last = orcast("sweep", *SMALL, "--out", folder, "--json")
    assert last.status == 0
    result = json.loads(last.stdout)
    assert result["computed"] + result["reused"] == 16
    left = {name: data for name, data in content(folder).items() if ".partial" not in name}
    assert left == uninterrupted


@needs.linux  # /proc
def test_no_worker_outlives_a_killed_sweep() -> None:
    slow = ["quickstart", "--axis", "engine.max_num_seqs=4..5", "--set", "sweep.seeds=8",
            "--set", "workload.num_requests=20000"]  # fmt: skip
    process = started(*slow, "--out", "slow", "--jobs", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[str] = []
    end_s = time.monotonic() + 60
    while len(workers) < 2:
        assert time.monotonic() < end_s
        workers = children.read_text().split()
        time.sleep(0.02)
    process.kill()
    process.wait()
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < end_s, "workers without a parent"
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs.ray
def test_a_ray_cluster_gives_the_same_bytes(uninterrupted: dict[str, bytes]) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "orcast.cli", "sweep", *SMALL, "--out", "ray", "--ray", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["computed"] == 16
    assert content(Path("ray")) == uninterrupted


def test_without_ray_its_option_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refusal("sweep", *SMALL, "--ray", "--out", "none")
    assert line.startswith("--ray needs the package ray: pip install 'orcast[cluster]'")
    assert not Path("none").exists()


def test_the_ray_option_may_stand_alone() -> None:
    assert with_ray_address(["sweep", "a.yaml", "--ray"]) == ["sweep", "a.yaml", f"--ray={HERE}"]
    assert with_ray_address(["--ray", "a.yaml", "--json"]) == [f"--ray={HERE}", "a.yaml", "--json"]
    for address in ("auto", "ray://head:10001", "10.0.0.1:6379"):
        assert with_ray_address(["--ray", address]) == ["--ray", address]


def test_the_summary_names_the_best_setting_and_what_matters(
    uninterrupted: dict[str, bytes],
) -> None:
    analytic = ("--set", "latency.source=roofline")
    shown = orcast("sweep", *SMALL, *analytic, "--out", "again").stdout
    assert "Highest goodput: " in shown
    assert "at max_num_seqs 32, block_size 16" in " ".join(shown.split())
    assert "% of the variance that each axis explains" in shown
    assert "8 of 24 runs failed" in " ".join(shown.split())
    assert "Report: again/report.html" in shown
    assert " ".join(shown.split()).count("Iteration times are analytic, not measured") == 1
    assert Path("again/report.html").read_text().lower().count("times are analytic") == 1


def test_the_report_is_rebuilt_from_the_table(uninterrupted: dict[str, bytes]) -> None:
    folder = Path("copy")
    folder.mkdir()
    for name in WRITTEN[:3]:
        (folder / name).write_bytes(uninterrupted[name])
    assert orcast("report", folder).status == 0
    assert (folder / "report.html").read_bytes() == uninterrupted["report.html"]


def test_a_sweep_folder_is_named_after_the_scenario() -> None:
    arguments = ["static-vs-continuous", "--axis", "engine.scheduler=static,orca"]
    assert orcast("sweep", *arguments).status == 0
    assert Path("sweeps/static-vs-continuous/sweep.parquet").is_file()


def test_a_sweep_whose_every_run_failed_ends_with_status_1() -> None:
    arguments = ["quickstart", "--axis", "hardware.gpu=rtx-4090,l40s", "--out", "out"]
    done = orcast("sweep", *arguments, "--set", "model=llama-2-70b")
    assert done.status == 1
    assert "2 of 2 runs failed" in done.stdout
    assert Path("out/report.html").is_file()


REFUSALS = {
    "engine.max_num_seq=1,2": r"--axis engine.max_num_seq=1,2: no such path 'engine.max_num_seq'; "
    "did you mean 'engine.max_num_seqs'?",
    "engine.block_size=0,-3": "engine.block_size: 0: expected greater than or equal to 1",
}


@pytest.mark.parametrize("axis", REFUSALS)
def test_what_cannot_be_swept_is_refused_and_nothing_is_written(axis: str) -> None:
    assert REFUSALS[axis] in refusal("sweep", "quickstart", "--axis", axis, "--out", "out")
    assert not list(Path().iterdir())


def test_a_folder_of_something_else_is_left_alone() -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    expected = "--out mine: not empty and not a sweep's folder; name another one"
    assert refusal("sweep", *SMALL, "--out", "mine") == expected
    assert refusal("sweep", *SMALL, "--out", "file").endswith("a file is in the way; name a folder")
    assert orcast("run", "static-vs-continuous", "--out", "mine").status == 2
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["sweep.yaml", "sweep.parquet", "sweep.json", "points/1.csv"])
def test_files_that_are_named_like_a_sweeps_are_left_alone(name: str) -> None:
    for own in ("report.html", name):
        Path("mine", own).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", own).write_text("{}")
    expected = "--out mine: not empty and not a sweep's folder; name another one"
    assert refusal("sweep", *SMALL, "--out", "mine") == expected
    assert Path("mine/report.html").read_text() == "{}"


def test_a_sweeps_folder_may_be_written_again(uninterrupted: dict[str, bytes]) -> None:
    for name in WRITTEN:  # whole, but its points were tidied away
        Path("whole").mkdir(exist_ok=True)
        Path("whole", name).write_bytes(uninterrupted[name])
    Path("whole/notes.txt").write_text("mine")
    check_target(Path("whole"))
    Path("killed/points").mkdir(parents=True)
    check_target(Path("killed"))
    answer = next(name for name in uninterrupted if name.startswith("points/"))
    Path("killed", answer).write_bytes(uninterrupted[answer])
    Path("killed/sweep.yaml").write_bytes(uninterrupted["sweep.yaml"])
    check_target(Path("killed"))


def test_jobs_and_ray_exclude_each_other() -> None:
    assert refusal("sweep", *SMALL, "--ray", "--jobs", "2").startswith("--jobs and --ray: ")


def test_an_unfinished_or_damaged_sweep_has_no_report(uninterrupted: dict[str, bytes]) -> None:
    Path("half/points").mkdir(parents=True)
    assert "an unfinished sweep, it lacks sweep.yaml" in refusal("report", "half")
    for name in WRITTEN:
        Path("half", name).write_bytes(uninterrupted[name])
    Path("half/sweep.parquet").write_bytes(b"PAR1")
    assert "not a Parquet file" in refusal("report", "half")
    for broken in ("name: x", "[" * 5_000):
        Path("half/sweep.yaml").write_text(broken)
        assert "not a sweep, or a damaged one" in refusal("report", "half")


# -- from Python ----------------------------------------------------------------------------------


def test_a_notebook_gets_a_tidy_table_and_its_figure() -> None:
    import numpy as np

    frame = package.sweep(
        "quickstart",
        {"engine.max_num_seqs": np.array([4, 8]), "engine.block_size": "16..64:x2"},
        {"workload.num_requests": 60, "sweep.seeds": 2},
        jobs=1,
    )
    assert len(frame) == 2 * 3 * 2
    assert list(frame.columns[:6]) == ["setting", "engine.max_num_seqs", "engine.block_size",
                                       "seed", "point", "error"]  # fmt: skip
    mean = frame.groupby("engine.max_num_seqs")["mean_ttft_ms"].mean()
    assert mean[4] > mean[8]
    assert not list(Path().iterdir()), "nothing is written"
    figure = package.sweep_figure(frame, "mean_ttft_ms")
    assert figure.data[0].type == "heatmap"
    assert np.array(figure.data[0].z).shape == (3, 2)
    along = package.sweep_figure(frame[frame["seed"] == 1], "p99_ttft_ms", x="engine.block_size")
    assert along.data[1].x == (16, 32, 64)
    for wrong, why in (
        ({"metric": "ttft"}, "no figure 'ttft'"),
        ({"x": "engine.blocksize"}, "no axis 'engine.blocksize'; did you mean 'engine.block_size'"),
        ({"y": "engine.block_size"}, "y without x"),
    ):
        with pytest.raises(ValueError, match=why):
            package.sweep_figure(frame, **wrong)
    with pytest.raises(ValueError, match="not a DataFrame"):
        package.sweep_figure(frame.reset_index().__class__(frame.to_dict()))


def test_a_notebook_is_told_of_bad_axes() -> None:
    with pytest.raises(InputError, match=r"axes\.engine\.blocksize: no such path"):
        package.sweep("quickstart", {"engine.blocksize": [16]})


def test_a_notebooks_folder_is_the_command_lines(uninterrupted: dict[str, bytes]) -> None:
    axes = {"engine.max_num_seqs": "4..32:x2", "engine.block_size": [0, 16, 64]}
    overrides = {"workload.num_requests": 150, "sweep.seeds": 2}
    package.sweep("quickstart", axes, overrides, out="notebook")
    assert content(Path("notebook")) == uninterrupted


def test_a_rate_curve_finds_its_knee_between_an_idle_and_a_full_deployment(tmp_path: Path) -> None:
    asked = ("sweep", "quickstart", "--rate-curve", "--jobs", "1", "--out", "curve",
             "--set", "workload.num_requests=600")  # fmt: skip
    outcome = orcast(*asked, "--json")
    assert outcome.status == 0, outcome.stderr
    shown = orcast(*asked).stdout
    said = re.search(r"The knee is at ([\d.]+) requests/s", " ".join(shown.split()))
    rows = pq.read_table("curve/sweep.parquet").to_pydict()
    rates = rows["workload.arrivals.request_rate"]
    assert said and min(rates) < float(said[1]) < max(rates)
    assert not rows["saturated"][rates.index(min(rates))]
    at_once = "workload.arrivals={process: all_at_once}"
    none = refusal("sweep", "quickstart", "--rate-curve", "--set", at_once)
    assert "there is none to vary" in none
