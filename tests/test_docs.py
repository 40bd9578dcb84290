"""What the documentation says can be typed: every command is parsed, and run where it can be.

A page's commands run in its order, in one folder, with few requests: that a command works is the
question here, not its figures.
"""

from __future__ import annotations

import json
import pydoc
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from typer.main import get_command

from orcast.cli import app
from scenarios.library import scenario_names
from scenarios.schema.reference import scenario_reference
from tests.orcast.command_line import orcast

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = scenario_names()
# Commands that are parsed and not run here, and why.
PARSED_ONLY = {
    r"^laws\b": "fits for a minute; it has tests of its own",
    r"^(ui|serve)\b": "a server, which runs until it is interrupted; it has tests of its own",
    r"^validate\b|^calibrate (run|report|numerics)\b": "needs PyTorch; it has tests of its own",
    r"aiconfigurator": "needs the tables that come with the package aiconfigurator-core",
    r"PROFILE|FILE|recorded/|\.jsonl|\.csv|my-|mine": "needs a file that only its reader has",
    r"runs/served/": "needs what a live endpoint recorded",
    r"runs/ngrams": "needs what the engine measured; tests/orcast/test_validate_command.py runs it",
    r"(^| |=)tables?(/|$)": "needs a latency table that only its reader has",
    r"^export .* (png|svg)$": "needs kaleido and a browser; it has tests of its own",
}
SMALL = {  # by command: settings that make an answer cheap, not good
    "run": {"workload.num_requests": "30"},
    "sweep": {"workload.num_requests": "30", "sweep.seeds": "1"},
    "plan": {
        "plan.seeds": "3",
        "plan.requests": "100",
        "plan.tolerance": "0.5",
        "plan.load.request_rate": "20",
        "plan.candidates.layouts": "[{tensor_parallel: 1}]",
        "plan.candidates.engine": "{scheduler: [chunked]}",
    },
    "size": {
        "serving.gpus": "[h100-sxm]",
        "serving.tensor_parallel": "[1]",
        "over_training.sizes": "[0.5]",
        "serving.engine.max_num_seqs": "32",
        "serving.lengths.prompt": "{distribution: uniform, min: 100, max: 600}",
        "serving.lengths.output": "{distribution: uniform, min: 10, max: 70}",
    },
}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `orcast` command in a page's code, in order."""
    text = page.read_text(encoding="utf-8")
    code = r"^```([^\n]*)\n(.*?)^```|((?:^    [^\n]*\n)+)|`(orcast [^`]+)`"
    for language, fenced, indented, inline in re.findall(code, text, re.DOTALL | re.MULTILINE):
        if inline:
            words = inline.split()[1:]
            # In a sentence, a command's name or what stands for an argument is no command yet.
            if len(words) > 1 and words[-1] != "run" and not re.search(r"\b[A-Z]+\b|…", inline):
                yield words
        if language not in ("", "sh", "bash", "console"):
            continue
        for line in (fenced or indented).replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?orcast (.*)", line)
            if found and "…" not in line and "DIR" not in line:
                words = shlex.split(found[1], comments=True)
                yield words[: words.index("|")] if "|" in words else words


def why_not_run(words: list[str]) -> str | None:
    """Why a command is only parsed; None for one that is run."""
    line = re.sub(r"docs/examples/\S+", "", " ".join(words))  # files that the pages bring along
    return next((why for what, why in PARSED_ONLY.items() if re.search(what, line)), None)


def runs(page: Path) -> list[tuple[str, ...]]:
    """The commands of a page that are run here, each once."""
    return list(
        dict.fromkeys(tuple(words) for words in commands(page) if why_not_run(words) is None)
    )


def small(words: list[str]) -> list[str]:
    """The command with settings that make it cheap, where it does not set them itself."""
    settings = dict(SMALL.get(words[0], {}))
    if words[1:2] == ["beam-search"]:  # a beam takes as long as hundreds of plain requests
        settings["workload.num_requests"] = "3"
    if any(word.startswith(("model=", "serving=")) for word in words) and words[0] == "size":
        settings = {}
    if any(word.startswith("workload.trace=") for word in words):  # which has its own number
        settings.pop("workload.num_requests", None)
    if "llama-3.1-70b" in words:  # which one GPU does not hold
        settings["plan.candidates.layouts"] = "[{tensor_parallel: 4}]"
    if any(word.startswith("workload.trace=") for word in words):  # which has its own requests
        settings.pop("workload.num_requests", None)
    if {"--users", "--rate", "--trace"} & set(words):  # the load is said
        settings.pop("plan.load.request_rate", None)
    added = [
        part
        for path, value in settings.items()
        if not any(word.startswith(f"{path}=") for word in words)
        for part in ("--set", f"{path}={value}")
    ]
    if words[0] == "plan":  # of the GPUs it names, one
        added += ["--set", "plan.candidates.gpus=[h100-sxm]"]
    return [*words, *added, *(["--jobs", "1"] if words[0] in ("sweep", "plan", "size") else [])]


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


def test_what_is_not_run_says_why() -> None:
    run = [case.values[0] for case in ALL if why_not_run(case.values[0]) is None]
    kinds = {words[0] for words in run}
    assert {"run", "sweep", "plan", "size", "compare", "report"} <= kinds
    assert len(run) > 0.7 * len(ALL)


DONE: set[tuple[str, ...]] = set()  # commands that have been run


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if runs(page)]
)
def test_the_commands_of_a_page_run_in_the_order_it_gives_them(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for words in runs(page):
        alone = words[0] in ("run", "sweep", "plan") and not {"--out", "-o"} & set(words)
        left = re.search(r"\b(runs|sweeps)/", page.read_text(encoding="utf-8"))
        if alone and words in DONE and not left:
            continue  # another page's, and no command here reads what it left
        outcome = orcast(*small(list(words)))
        DONE.add(words)
        assert outcome.status == 0, f"orcast {' '.join(words)}: {outcome.stderr}"


@pytest.mark.parametrize(
    "notebook", [pytest.param(file, id=file.name) for file in sorted(ROOT.glob("docs/**/*.ipynb"))]
)
def test_the_cells_of_a_notebook_run_in_order(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "kept without outputs: they would go stale"
            exec(compile("".join(cell["source"]), f"{notebook.name}: {cell['id']}", "exec"), names)


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_no_page_of_the_site_links_to_what_is_not_on_it() -> None:
    pages = (ROOT / "docs").rglob("*.md")
    outside = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).resolve().is_relative_to(ROOT / "docs")
    ]
    assert outside == []


def test_the_scenario_reference_is_that_of_the_schema() -> None:
    page = ROOT / "docs" / "reference" / "scenario.md"
    again = "python -m scenarios.schema.reference > docs/reference/scenario.md"
    assert page.read_text(encoding="utf-8") == scenario_reference(), f"make it again: {again}"


def test_the_scenario_reference_speaks_of_nothing_inside_python() -> None:
    page = scenario_reference()
    for word in ("Undefined", "typing", "<class", "NoneType", "Annotated"):
        assert word not in page
    assert "| `preferred_batch_sizes` | list of whole number ≥ 1 |  |" in page


def test_the_python_reference_has_every_result_and_its_members() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^::: (\S+)$(.*?)(?=^:::|\Z)", text, re.MULTILINE | re.DOTALL))
    assert {"Forecasted", "Planned", "SizeStudy", "Records"} <= {n.split(".")[-1] for n in parts}
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
        for name in NAMES
        if f"`{name}`" not in readme and f"`-{name.partition('-')[2]}`" not in readme
    ]
    assert missing == []
