"""Folders and files are whole or not there: killed, on a full disk, two at once."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from reports.run.writer import fresh_folder
from scenarios.errors import InputError
from scenarios.whole import whole_file
from tests.attack.kinds import BASE
from tests.orcast.command_line import orcast, refusal


@pytest.fixture(autouse=True)
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(BASE))
    return tmp_path


def everything() -> dict[str, bytes]:
    """All files below the current folder but the page, which says when it was made."""
    return {
        str(path): path.read_bytes()
        for path in sorted(Path().rglob("*"))
        if path.is_file() and path.name not in ("report.html", "summary.json")
    }


KILLED = """
import os, signal
from pathlib import Path
import scenarios.whole as whole, reports.run.writer as writer
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
stage, out = {stage!r}, Path("out")
if stage == "before the exchange":
    writer.exchange = die
elif stage == "between two renames":
    whole._swapped = lambda *_: False
    rename, calls = Path.rename, []
    Path.rename = lambda self, to: die() if calls else calls.append(rename(self, to))
elif stage == "after the exchange":
    whole.shutil.rmtree = die
with writer.fresh_folder(out) as partial:
    (partial / "summary.json").write_text("new")
    if stage == "while writing":
        die()
"""


@pytest.mark.parametrize(
    "stage", ["while writing", "before the exchange", "between two renames", "after the exchange"]
)
def test_a_kill_at_any_time_loses_nothing_and_leaves_nothing(stage: str) -> None:
    Path("out").mkdir()
    Path("out/summary.json").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED.format(stage=stage)], check=False)
    assert done.returncode == -signal.SIGKILL
    with fresh_folder(Path("out")):  # the next start puts in order what the kill left
        there = Path("out/summary.json").read_text()
        assert there == ("new" if stage == "after the exchange" else "old")
        beside = {path.name for path in Path().iterdir() if path.name.startswith(".")}
        assert len(beside) == 2, "the lock and the new partial folder"
    assert {path.name for path in Path().iterdir()} == {"out", "small.yaml"}


class FullDisk:
    """Lets the first `number` writes happen, and no more."""

    def __init__(self, number: int) -> None:
        self.left = number

    def wrapped(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(*arguments: Any, **keywords: Any) -> Any:
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= 1
            return write(*arguments, **keywords)

        return writing


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], FullDisk]]:
    def fill(number: int) -> FullDisk:
        disk = FullDisk(number)
        for owner, name in (
            *((Path, "write_text"), (Path, "mkdir"), (Path, "rename")),
            *((pq, "write_table"), (os, "replace")),
        ):
            monkeypatch.setattr(owner, name, disk.wrapped(getattr(owner, name)))
        return disk

    yield fill
    monkeypatch.undo()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "small.yaml", "-q", "--out", "out"),
        ("report", "out"),
        ("export", "out", "trace"),
        ("export", "out", "bench"),
        ("compare", "out", "out"),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_named_and_leaves_everything_as_it_was(
    command: tuple[str, ...],
    full_disk: Callable[[int], FullDisk],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert orcast("run", "small.yaml", "-q", "--out", "out").status == 0
    before = everything()
    for number in range(30):
        disk = full_disk(number)
        outcome = orcast(*command)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        if disk.left or outcome.status == 0:
            assert outcome.status == 0, outcome
            assert number, "nothing was written at all"
            return
        assert outcome.status == 2, (number, outcome)
        assert "out" in outcome.stderr, outcome
        assert "No space left on device" in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert everything() == before
    raise AssertionError("too many writes")


def test_the_second_of_two_into_one_folder_is_told_so() -> None:
    with fresh_folder(Path("out")) as partial:
        (partial / "summary.json").write_text("first")
        holder = Path(".out.lock").open()  # noqa: SIM115
        with pytest.raises(BlockingIOError):
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.close()
        line = refusal("run", "small.yaml", "--out", "out")
        assert line.startswith("--out out: another command is writing it")
    assert Path("out/summary.json").read_text() == "first"
    assert not Path(".out.lock").exists()


@pytest.mark.parametrize("out", [".", "..", "/", "foreign", "hidden"])
def test_what_is_not_a_run_is_never_replaced(out: str) -> None:
    assert orcast("run", "small.yaml", "-q", "--out", "hidden").status == 0
    Path("hidden/.git").mkdir()
    Path("foreign").mkdir()
    Path("foreign/.env").write_text("precious")
    before = everything()
    line = refusal("run", "small.yaml", "--out", out)
    assert line.startswith(f"--out {out}: ")
    assert everything() == before


def test_a_file_that_a_killed_writer_left_is_swept_by_the_next() -> None:
    left = Path(".page.html.0123abcd.partial")
    left.write_text("half")
    with whole_file(Path("page.html")) as first, whole_file(Path("page.html")) as second:
        assert first.exists(), "one that is at work is not swept"
        first.write_text("first")
        second.write_text("second")
    assert [path.name for path in Path().iterdir() if "page" in path.name] == ["page.html"]
    assert Path("page.html").read_text() == "first", "the last to end"


def test_an_error_in_the_block_is_left_as_it_is() -> None:
    with pytest.raises(FileNotFoundError) as raised, fresh_folder(Path("out")):
        Path("missing.csv").read_text()
    assert raised.value.filename == "missing.csv"
    with pytest.raises(InputError, match="cannot be written"), fresh_folder(Path("small.yaml/out")):
        pass
