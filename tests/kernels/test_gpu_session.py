"""What the GPU session leaves behind, however it ends; without a GPU."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from tests.benchmarks import gpu_session, gpu_stages
from tests.benchmarks.gpu_session import ARCHIVE, PACKED, Session, pack, plan, unpack
from tests.benchmarks.gpu_stages import ROOT, Run
from tests.kernels.timing import Row, append_csv, start_csv

# Stages in place of the real ones: a process as they are, that ends in another way each.
STAND_INS = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
name, settings = sys.argv[1], json.loads(sys.argv[2])
work = Path(settings["work"])
(work / "results").mkdir(parents=True, exist_ok=True)
def tell(result):
    (work / "results" / f"{name}.json").write_text(json.dumps(result))
if name == "engine":
    tell({"tokens": 7})
elif name == "canary":
    os.kill(os.getpid(), signal.SIGSEGV)
elif name == "benchmark":
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
elif name == "check":
    tell({"passed": 3, "failed": ["one"]})
    sys.exit(1)
elif name == "tables":
    partial = work / "tables" / "gpu" / "m.partial"
    partial.mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    tell({"points": 1, "child": child.pid})
    with (partial / "journal.jsonl").open("w") as journal:
        while True:
            journal.write("a point\\n")
            journal.flush()
            time.sleep(0.05)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("results", "work"):
        (tmp_path / name).mkdir()
    return Run(
        folder=tmp_path / "results", work=tmp_path / "work", models=["tiny"], limit_s=60.0,
        device="cpu",
    )  # fmt: skip


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose stages are `STAND_INS`; they start at once and need no torch."""
    package = tmp_path / "checkout" / "tests" / "benchmarks"
    package.mkdir(parents=True)
    (package / "gpu_stages.py").write_text(STAND_INS)
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(gpu_session, "LEAST_S", 0.5)
    monkeypatch.setattr(gpu_session, "EVERY_S", 0.3)
    monkeypatch.setattr(gpu_session, "POLL_S", 0.1)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    return tmp_path / "checkout"


def _meta(run: Run) -> dict[str, dict]:
    return json.loads((run.folder / "meta.json").read_text())["stages"]


def _journal(run: Run, folder: Path) -> str:
    unpack(run.folder / ARCHIVE, folder, PACKED)
    return (folder / "tables" / "gpu" / "m.partial" / "journal.jsonl").read_text()


def _gone(process: int) -> bool:
    """Whether a process has ended; whoever inherits it may not have looked yet."""
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_every_end_of_a_stage_is_told_and_the_next_begins(run, stand_ins):
    stages = {"canary": 20.0, "benchmark": 20.0, "check": 20.0, "tables": 2.0, "engine": None}
    assert not Session(run, "first", stages, 60.0).finish()
    told = _meta(run)
    assert told["canary"]["error"] == "status -11"
    assert "status 1: RuntimeError: CUDA error: an illegal memory" in told["benchmark"]["error"]
    assert told["check"]["failed"] == ["one"] and "error" not in told["check"]
    assert told["tables"]["error"] == "stopped after 2 s" and told["tables"]["points"] == 1
    assert told["tables"]["duration_s"] == pytest.approx(2.0, abs=1.0)
    assert told["engine"]["tokens"] == 7 and "error" not in told["engine"]
    files = {path.name for path in run.folder.iterdir()}
    assert files == {"meta.json", "log.txt", ARCHIVE}


@needs.linux  # /proc
def test_a_stage_is_ended_with_all_that_it_started(run, stand_ins, tmp_path):
    Session(run, "tables", {"tables": 1.5}, 60.0).finish()
    assert _gone(_meta(run)["tables"]["child"])
    assert "a point" in _journal(run, tmp_path / "there")


@needs.linux
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_that_is_killed_has_told_and_packed_what_was_measured(
    how, run, stand_ins, tmp_path
):
    script = (
        "from tests.benchmarks import gpu_session as g; from pathlib import Path;"
        f"g.ROOT = Path({str(stand_ins)!r}); g.EVERY_S = 0.3; g.POLL_S = 0.1;"
        f"g.main(['tables,engine', {str(run.folder)!r}, '--device', 'cpu'])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    until_s = time.monotonic() + 60.0
    while not (run.folder / ARCHIVE).is_file() and time.monotonic() < until_s:
        time.sleep(0.1)
    stage = _meta(run)["tables"]["process"]
    process.send_signal(how)
    process.wait(30.0)
    if how == signal.SIGKILL:  # nobody ends the stage then but whoever ends the machine
        os.killpg(stage, signal.SIGKILL)
    told = _meta(run)
    assert told["tables"]["error"] == "interrupted" and told["tables"]["points"] == 1
    assert told["engine"] == {"error": "not begun"}
    assert _gone(stage) or how == signal.SIGKILL
    assert "a point" in _journal(run, tmp_path / "there")


def test_a_stage_without_its_packages_does_not_begin(run, stand_ins, monkeypatch):
    monkeypatch.setitem(gpu_session.BESIDES, "engine", ("no_such_package", "json"))
    assert not Session(run, "engine", {"engine": None}, 60.0).finish()
    assert _meta(run)["engine"] == {"error": "not begun: no package no_such_package here"}


def test_no_stage_begins_without_time(run, stand_ins):
    assert not Session(run, "engine", {"engine": None}, 0.0).finish()
    assert _meta(run)["engine"] == {"error": "not begun: 0 s were left"}


def test_the_first_command_is_planned_within_nine_minutes_and_the_engine_gets_the_rest(run):
    session = Session(run, "first", plan("first", None), gpu_session.LIMIT_S)
    limits = {name: session._limit_of(name) for name in session.planned}
    assert [round(limits[name]) for name in ("canary", "check", "benchmark")] == [30, 90, 120]
    assert limits["tables"] == 180.0
    kept_s = sum(limit_s for name, limit_s in limits.items() if name != "engine")
    assert gpu_session.LIMIT_S - kept_s >= gpu_session.ENGINE_S


def test_the_second_command_repairs_what_was_not_done_in_the_first(run):
    first = {name: {"passed": 1} for name in gpu_session.COMMANDS["first"]}
    assert list(plan("second", first)) == ["longer", "end_to_end"]
    first |= {"check": {"failed": ["one"]}, "tables": {"error": "stopped after 180 s"}}
    del first["engine"]
    planned = plan("second", first)
    assert list(planned) == ["check", "tables", "engine", "longer", "end_to_end"]
    session = Session(run, "second", planned, gpu_session.LIMIT_S)
    assert session._limit_of("longer") == pytest.approx(540 - 90 - 180 - 100 - 75 + 370, abs=1)


def test_tables_and_journals_travel_in_one_file_and_what_is_too_large_does_not(run, tmp_path):
    for path in ("tables/cpu/a/meta.yaml", "tables/cpu/b.partial/journal.jsonl", "others/c/x"):
        (run.work / path).parent.mkdir(parents=True)
        (run.work / path).write_text(path)
    for _ in range(2):  # over the first
        pack(run.folder / ARCHIVE, run.work, PACKED)
    assert [path.name for path in run.folder.iterdir()] == [ARCHIVE]
    before = (run.folder / ARCHIVE).read_bytes()
    pack(run.folder / ARCHIVE, run.work, PACKED, most_bytes=10)
    assert (run.folder / ARCHIVE).read_bytes() == before
    there = tmp_path / "there"
    unpack(run.folder / ARCHIVE, there, PACKED)
    found = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert found == {"tables/cpu/a/meta.yaml", "tables/cpu/b.partial/journal.jsonl"}
    with tarfile.open(run.folder / ARCHIVE) as packed:
        assert not any(name.startswith("/") for name in packed.getnames())


def test_other_models_tables_are_shared_but_not_the_models_own_nor_unfinished_ones(run, tmp_path):
    known = tmp_path / "known"
    theirs = known / run.tables.name
    for path in (run.tables / "a", run.tables / "b.partial", theirs / "a", theirs / "tiny"):
        path.mkdir(parents=True)
        (path / "meta.yaml").write_text(str(path))
    (theirs / "d").mkdir()
    others = gpu_stages._others(replace(run, known=known), "tiny")
    assert [path.name for path in others.iterdir()] == ["a"]
    assert (others / "a" / "meta.yaml").read_text() == str(run.tables / "a")


def test_settings_of_a_stage_survive_the_way_to_its_process(run):
    assert Run.from_settings(run.settings()) == run
    more = replace(run, known=Path("x"), scenario=Path("y"), requests=3)
    assert Run.from_settings(more.settings()) == more


def test_a_check_without_a_passed_test_is_an_error(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(gpu_stages.importlib.util, "find_spec", lambda name: None)  # no xdist
    (tmp_path / "test_broken.py").write_text("1 +")
    result = gpu_stages.check(replace(run, tests=tmp_path / "test_broken.py"))
    assert str(result["error"]).startswith("0 tests passed: status"), result
    assert "SyntaxError" in capfd.readouterr().out


def test_outcomes_of_tests_are_read_as_they_come_with_one_process_or_several():
    for line, told in (
        ("a.py::test_x[1 x 2] PASSED                 [  5%]", ("PASSED", "a.py::test_x[1 x 2]")),
        ("[gw3] [ 12%] FAILED a.py::test_y[b] ", ("FAILED", "a.py::test_y[b]")),
        ("a.py::test_z ", None),
        ("FAILED a.py::test_y - assert", None),
    ):  # fmt: skip
        assert gpu_stages._outcome(line) == told


def test_rows_are_on_disk_as_they_come(tmp_path):
    path = tmp_path / "table.csv"
    start_csv(path)
    for number in (1, 2):
        append_csv(Row("decode", "1 x 1", 2.0, 0.1, torch_us=3.0), path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["ratio"] for row in rows] == ["1.5"] * number
