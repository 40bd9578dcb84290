"""What the GPU session leaves behind, however it ends; without a GPU."""

from __future__ import annotations

import csv
import json
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from tests.benchmarks import gpu_session
from tests.benchmarks.gpu_session import ARCHIVE, ROOT, Run, run_stages, unpack
from tests.kernels.timing import Row, append_csv, start_csv


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("results", "work"):
        (tmp_path / name).mkdir()
    return Run(
        folder=tmp_path / "results",
        work=tmp_path / "work",
        reference=None,
        models=["tiny"],
        budget_s=5.0,
        left_s=60.0,
        known=None,
        device="cpu",
    )


def _stages(run: Run) -> dict[str, dict]:
    return json.loads((run.folder / "meta.json").read_text())["stages"]


def test_tables_and_journals_travel_in_one_file(run, tmp_path):
    for path in ("tables/cpu/a/meta.yaml", "tables/cpu/b.partial/journal.jsonl", "others/c/x"):
        (run.work / path).parent.mkdir(parents=True)
        (run.work / path).write_text(path)
    run.pack()
    run.pack()  # over the first
    assert [path.name for path in run.folder.iterdir()] == [ARCHIVE]
    there = tmp_path / "there"
    unpack(run.folder / ARCHIVE, there)
    found = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert found == {"tables/cpu/a/meta.yaml", "tables/cpu/b.partial/journal.jsonl"}
    with tarfile.open(run.folder / ARCHIVE) as packed:
        assert not any(name.startswith("/") for name in packed.getnames())


def test_other_models_tables_are_shared_but_not_the_models_own_nor_unfinished_ones(run, tmp_path):
    known = tmp_path / "known"
    for path in (run.tables / "a", run.tables / "b.partial", known / "a", known / "tiny"):
        path.mkdir(parents=True)
        (path / "meta.yaml").write_text(str(path))
    (known / "d").mkdir()
    others = gpu_session._others(replace(run, known=known), "tiny")
    assert [path.name for path in others.iterdir()] == ["a"]
    assert (others / "a" / "meta.yaml").read_text() == str(run.tables / "a")


def test_meta_tells_of_every_stage_when_some_fail_or_are_not_begun(run, monkeypatch):
    def fails(given: Run) -> dict[str, object]:
        begun, next_one = {"error": "interrupted"}, {"error": "not begun"}  # should it be killed
        assert _stages(run) == {"check": begun, "tune": next_one}
        raise RuntimeError("an illegal memory access")

    monkeypatch.setitem(gpu_session.STAGES, "check", fails)
    monkeypatch.setitem(gpu_session.STAGES, "tune", lambda given: {"rows": 3})
    assert not run_stages(run, ["check", "tune"], 60.0)
    assert _stages(run)["check"]["error"] == "RuntimeError: an illegal memory access"
    assert _stages(run)["tune"]["rows"] == 3
    assert not run_stages(run, ["tune"], 0.0)
    assert _stages(run) == {"tune": {"error": "not begun: 0 s are over"}}


def test_an_error_that_cuda_repeats_does_not_end_the_session(run, monkeypatch):
    def refuses() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_session, "environment", lambda device: {})
    monkeypatch.setattr(gpu_session.torch.cuda, "synchronize", refuses)
    monkeypatch.setitem(gpu_session.STAGES, "check", lambda given: refuses())
    monkeypatch.setitem(gpu_session.STAGES, "tune", lambda given: {"rows": 3})
    assert not run_stages(replace(run, device="cuda"), ["check", "tune"], 60.0)
    assert "CUDA error" in _stages(run)["check"]["error"]
    assert _stages(run)["tune"]["rows"] == 3


def test_an_interrupted_stage_is_told(run, monkeypatch):
    def ends(given: Run) -> dict[str, object]:
        raise SystemExit(143)

    monkeypatch.setitem(gpu_session.STAGES, "check", ends)
    with pytest.raises(SystemExit):
        run_stages(run, ["check", "tune"], 60.0)
    assert _stages(run)["check"]["error"] == "interrupted"
    assert _stages(run)["tune"] == {"error": "not begun"}


def test_a_check_without_a_passed_test_is_an_error_and_its_log_stays(run, tmp_path, monkeypatch):
    for name, text, error in (
        ("broken", "1 +", "0 tests passed: status"),
        ("none", "", "0 tests passed: status 5"),
        ("slow", "import time\n\ntime.sleep(60)", "no report of the tests: stopped after 4 s"),
    ):
        file = tmp_path / f"test_{name}.py"
        file.write_text(text)
        monkeypatch.setattr(gpu_session, "TESTS", file)
        result = gpu_session.check(replace(run, left_s=4.0 if name == "slow" else 60.0))
        assert str(result["error"]).startswith(error), result
        assert (run.folder / "check.log").is_file()


def test_a_command_finds_the_repository_and_what_the_caller_could_import(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = run.folder / "path"
    script = f"import os; open({str(out)!r}, 'w').write(os.environ['PYTHONPATH'])"
    assert gpu_session._run([sys.executable, "-c", script], 60.0) == "status 0"
    assert out.read_text() == os.pathsep.join([str(ROOT), str(tmp_path)])


def test_rows_are_on_disk_as_they_come(tmp_path):
    path = tmp_path / "table.csv"
    start_csv(path)
    for number in (1, 2):
        append_csv(Row("decode", "1 x 1", 2.0, 0.1, torch_us=3.0), path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["ratio"] for row in rows] == ["1.5"] * number
