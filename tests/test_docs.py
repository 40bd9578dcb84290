"""What the documentation says can be typed: every command is parsed, and every forecast is run.

Forecasts run with few requests: that a command works is the question here, not its figures.
"""

from __future__ import annotations

import pydoc
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import ClickException
from typer.main import get_command

from orcast.cli import app
from scenarios.library import ROOT as LIBRARY
from scenarios.reference import scenario_reference
from tests.orcast.command_line import orcast

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {path.stem for path in LIBRARY.glob("*.yaml")}
FEW = ["--set", "workload.num_requests=30"]
# Files that only a reader has: tables, recordings, traces.
PLACEHOLDERS = re.compile(
    r"PROFILE|recorded/|tables?/|latency\.table|FILE|\.jsonl|\.csv|my-|=runs/"
)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `orcast` command in a page's code, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"((?:^    [^\n]*\n)+)", text, re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?orcast (.*)", line)
            if found and "…" not in line and "DIR" not in line:
                words = shlex.split(found[1], comments=True)
                yield words[: words.index("|")] if "|" in words else words


ALL = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)[:90]}")
    for page in PAGES
    for words in commands(page)
]


def test_the_pages_have_commands() -> None:
    assert len(ALL) > 40


@pytest.mark.parametrize("words", ALL)
def test_every_command_is_one_that_orcast_understands(words: list[str]) -> None:
    command = get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"orcast has no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    if rest and rest[0] == "--help":
        return
    try:
        command.make_context("orcast", rest)
    except ClickException as error:
        pytest.fail(f"orcast {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize(
    "words", [case for case in ALL if case.values[0][0] == "run" and case.values[0][1] in NAMES]
)
def test_every_forecast_of_the_documentation_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if PLACEHOLDERS.search(" ".join(words)):
        pytest.skip("needs a file that only its reader has")
    monkeypatch.chdir(tmp_path)
    few = [] if any("num_requests" in word for word in words) else FEW
    outcome = orcast(*words, *few)
    assert outcome.status == 0, outcome.stderr


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_scenario_reference_is_that_of_the_schema() -> None:
    page = ROOT / "docs" / "reference" / "scenario.md"
    again = "python -m scenarios.reference > docs/reference/scenario.md"
    assert page.read_text(encoding="utf-8") == scenario_reference(), f"make it again: {again}"


def test_the_scenario_reference_speaks_of_nothing_inside_python() -> None:
    page = scenario_reference()
    for word in ("Undefined", "typing", "<class", "NoneType", "Annotated"):
        assert word not in page
    assert "| `preferred_batch_sizes` | list of whole number ≥ 1 |  |" in page


def test_the_python_reference_has_every_result_and_its_members() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^::: (\S+)$(.*?)(?=^:::|\Z)", text, re.MULTILINE | re.DOTALL))
    assert {"Forecast", "Planned", "SizeStudy", "Records"} <= {n.split(".")[-1] for n in parts}
    for name, options in parts.items():
        members = re.search(r"members: \[(.*?)\]", options)
        assert members is not None, name
        thing = pydoc.locate(name)
        known = {*dir(thing), *getattr(thing, "__annotations__", ())}
        assert set(members[1].split(", ")) <= known, name


def test_every_scenario_of_the_library_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in sorted(NAMES - {"gpus"})
        if f"`{name}`" not in readme and f"`-{name.partition('-')[2]}`" not in readme
    ]
    assert missing == []
