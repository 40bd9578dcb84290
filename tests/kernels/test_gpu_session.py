"""What the GPU session leaves behind, however it ends; without a GPU."""

from __future__ import annotations

import csv
import json
import math
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

import torch

from tests.benchmarks import gpu_session, gpu_stages, validation
from tests.benchmarks.gpu_session import ARCHIVE, KERNELS, PACKED, Session, pack, plan, unpack
from tests.benchmarks.gpu_stages import ROOT, Run
from tests.kernels import timing
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
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_session_that_is_killed_has_told_and_packed_what_was_measured(
    how, run, stand_ins, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # one that is killed outright leaves its work there
    script = (
        "from tests.benchmarks import gpu_session as g; from pathlib import Path;"
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # whoever ignores it here
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
    assert [round(limits[name]) for name in ("canary", "check", "benchmark")] == [45, 90, 120]
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


def test_a_second_command_that_was_ended_goes_on_from_its_own_results(run, stand_ins):
    """In the same folder: its meta.json tells of the first command's stages too."""
    first = run.folder / "first"
    first.mkdir()
    done = {name: {"passed": 1} for name in gpu_session.COMMANDS["first"]}
    stages = {**done, "check": {"error": "status -9"}, "tables": {"error": "interrupted"}}
    (first / "meta.json").write_text(json.dumps({"stages": stages}))
    given = ["--from", str(first), "--limits", "check=9s,tables=0s,longer=0s,end_to_end=0s"]
    gpu_session.main(["second", str(run.folder), *given, "--device", "cpu"])
    told = gpu_session._told_in(run.folder)
    assert told["canary"] == {"passed": 1} and told["check"]["failed"] == ["one"]
    assert list(plan("second", told)) == ["check", "tables", "longer", "end_to_end"]
    assert "check" not in plan("second", {**told, "check": {"passed": 1}})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frist"], "no stage 'frist'"),
        (["second", "--from", "empty"], "no results of an earlier command"),
        (["third", "--from", "nowhere"], "no results of an earlier command"),
        (["second", "--from", "broken"], "no meta.json of the first command that can be read"),
        (["first", "--limits", "tabels=3m"], "no stage 'tabels'"),
        (["first", "--limits", "tables"], "expected STAGE=TIME"),
        (["first", "--limits", "tables=soon"], "'soon': expected a time"),
        (["first", "--limit", "nine minutes"], "expected a time"),
        (["tables", "--models", "lama-3.1-8b"], "no model of the library"),
        (["tables", "--models", "none.json"], "no model of the library"),
        (["third", "--scenario", "none.yaml"], "no such file"),
        (["first", "file"], "file"),
    ],
)
def test_what_is_mistyped_costs_no_minutes(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "meta.json").write_text('{"stages": {"canary"')
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        gpu_session.main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_archive_that_was_cut_on_its_way_is_done_without(run, stand_ins, capfd, tmp_path):
    source = tmp_path / "earlier"
    source.mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "x").write_bytes(os.urandom(5000))
    pack(source / ARCHIVE, tmp_path, ["tables"])
    for name in (ARCHIVE, KERNELS):
        (source / name).write_bytes((source / ARCHIVE).read_bytes()[:3000])
    given = ["engine", str(run.folder), "--from", str(source), "--device", "cpu"]
    assert gpu_session.main(given) == 0
    assert _meta(run)["engine"]["tokens"] == 7
    said = capfd.readouterr().err
    assert said.count("done without") == 2 and ARCHIVE in said and KERNELS in said


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


def test_a_kernel_that_fails_costs_its_own_row(monkeypatch):
    def fails(calls):
        raise ValueError("out of resource: shared memory\nRequired: 300000")

    monkeypatch.setattr(timing, "time_us", fails)
    monkeypatch.setattr(timing, "rotations", lambda bytes_per_call: 1)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    made = (print, {"torch": print})
    row = timing.compare("linear", "1 x 2", lambda: made, ceilings=None, flops=7, note="tiles")
    assert math.isnan(row.ours_us) and row.ratio is None
    assert row.note == "tiles failed: ValueError: out of resource: shared memory"
    assert row.note in row.line()


def test_a_variation_that_fails_is_named_and_the_next_is_validated(tmp_path, monkeypatch, capsys):
    def validate(scenario, name, *given, **options):
        if "bursty" in name:
            raise MemoryError("no room")
        each = {"mean": {"diff_pct": 1.0}, "p99": {"diff_pct": 2.0}}
        return {
            "metrics": dict.fromkeys(validation.METRICS, each),
            "throughput": {"output": {"diff_pct": 3.0}},
            "per_request": {"e2e_mape_pct": 4.0},
        }

    monkeypatch.setattr(validation, "validate", validate)
    monkeypatch.setattr(validation, "load_model_of", lambda question: None)
    scenario = ROOT / "scenarios" / "validation" / "tiny-cpu.yaml"
    given = ["--scenario", str(scenario), "--only", "chunked, ", "--out", str(tmp_path / "out")]
    assert validation.main([*given, "--table", "none"]) == ["chunked, bursty"]
    told = json.loads((tmp_path / "out").read_text())
    assert told["chunked, bursty"] == {"error": "MemoryError: no room"}
    assert len(told) == 5 and "Median of the mean" in capsys.readouterr().out
