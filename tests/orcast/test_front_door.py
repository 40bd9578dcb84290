"""What a newcomer types first: the command alone, its help and its version."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import orcast as front_door
from orcast.cli import app, main
from tests import needs
from tests.orcast.command_line import orcast

ROOT = Path(__file__).parents[2]


def all_commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group, the front door's own first."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from all_commands(inner, (*words, name))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--bogus"), "run: No such option: --bogus"),
        (("plan", "--rate", "fast"), "plan: Invalid value for '--rate'"),
        (("calibrate", "run"), "calibrate run: Missing option '--model'"),
        (("show",), "show: a command is missing; see orcast show --help"),
        (("bogus",), "No such command 'bogus'; see orcast --help"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    outcome = orcast(*arguments)
    assert outcome.status == 2
    assert outcome.stderr.startswith("orcast: ") and outcome.stderr.count("\n") == 1
    assert words in outcome.stderr


@needs.linux  # /dev/full
def test_output_that_nobody_can_write_or_wants_ends_in_a_line_or_quietly() -> None:
    def ended(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        program = f'"{sys.executable}" -m orcast {command}'
        clean = {key: value for key, value in os.environ.items() if key != "ORCAST_TRACEBACK"}
        return subprocess.run(  # the shell sets up the streams
            ["sh", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False,
            env=clean | environment,
        )  # fmt: skip

    full = ended("list gpus > /dev/full")
    assert (full.returncode, full.stderr) == (
        2,
        "orcast: standard output: No space left on device\n",
    )
    gone = ended("list gpus --json | true; exit 0")
    assert gone.stderr == ""
    plain = ended("show gpu h100-sxm", PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stderr) == (0, ""), "what the terminal cannot show is escaped"
    closed = ended("run - <&-")
    assert closed.returncode == 2 and closed.stderr.startswith("orcast: standard input: ")


def test_a_fault_of_ours_is_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("scenarios.schema.load.load_scenario", fails)
    monkeypatch.setattr("sys.argv", ["orcast", "run", "quickstart"])
    monkeypatch.delenv("ORCAST_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 70


@pytest.mark.parametrize("words", list(all_commands(get_command(app))), ids=" ".join)
def test_every_command_knows_the_short_and_the_long_name_of_help(words: tuple[str, ...]) -> None:
    short, long = orcast(*words, "-h"), orcast(*words, "--help")
    assert short.status == long.status == 0
    assert "Usage:" in short.stdout
    assert short.stdout == long.stdout


def test_the_command_alone_shows_its_help() -> None:
    alone = orcast()
    assert (alone.status, alone.stderr) == (0, "")
    assert alone.stdout.strip() == orcast("--help").stdout.strip()


def test_the_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: f"1.2.3 of {name}")
    assert orcast("--version").stdout == "orcast 1.2.3 of orcast\n"


def test_files_that_are_not_installed_have_the_version_of_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert orcast("--version").stdout == f"orcast {project['version']}\n"
    assert front_door.__version__ == project["version"]


def test_the_package_can_be_run_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orcast", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("orcast ")
