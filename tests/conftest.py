"""For all tests: what they need, and a last word on those that were skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests import needs

# One worker a core runs the tests: threads of its own would wait for a core by spinning on it.
# Read once, when a library with threads is loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

FILES = pytest.StashKey[dict[str, str]]()  # a whole file that was skipped → why
UNMET = pytest.StashKey[list[str]]()  # kinds that were required and of which nothing ran


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=list(needs.WORDS),
        help="fail where a test is skipped for lack of this, or none needs it; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(kind, detail): see tests/needs.py")
    config.stash[FILES] = {}
    config.stash[UNMET] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = [mark.args for mark in item.iter_markers("needs")]
    item.user_properties += [("needs", args[0]) for args in marks]
    for args in marks:
        if why := needs.lacking(*args):
            pytest.skip(why)


# -- skips of a kind that --require names are failures ------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.skipped and needs.kind_of(_why(report)) in item.config.getoption("--require"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} {_why(report)}, which --require asks for"
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A worker of xdist tells of a file that it skips to nobody: it goes with its last message."""
    if report.skipped:
        _files[report.nodeid] = _why(report)


_files: dict[str, str] = {}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    config.stash[FILES].update(_files)
    if hasattr(config, "workeroutput"):
        config.workeroutput["skipped_files"] = _files
        return
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    ran = {
        value
        for outcome in ("passed", "failed")
        for report in reporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", [])
        if name == "needs"
    }
    skipped = {needs.kind_of(why) for why in config.stash[FILES].values()}
    unmet = [kind for kind in config.getoption("--require") if kind not in ran or kind in skipped]
    config.stash[UNMET] = unmet
    if unmet and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[FILES].update(getattr(node, "workeroutput", {}).get("skipped_files", {}))


# -- the last word ------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    """What was skipped, by kind, the largest first: below all that pytest has to say."""
    yield
    files = config.stash[FILES]
    tests = [r for r in terminalreporter.stats.get("skipped", []) if r.nodeid not in files]
    count = Counter(_kind(_why(report)) for report in tests)
    whole = Counter(_kind(why) for why in files.values())
    terminalreporter.ensure_newline()
    for kind, number in (count + whole).most_common():
        parts = [
            f"{n} {what if n == 1 else what + 's'}"
            for n, what in ((count[kind], "test"), (whole[kind], "whole file"))
            if n
        ]
        verb = "needs" if number == 1 else "need"
        why = f"{verb} {needs.WORDS[kind]}" if kind in needs.WORDS else kind
        terminalreporter.write_line(f"skipped: {' and '.join(parts)}: {why}")
    for kind in config.stash[UNMET]:
        terminalreporter.write_line(
            f"--require {kind}: not every test of that kind ran, or there was none", red=True
        )


def _kind(why: str) -> str:
    return needs.kind_of(why) or why


def _why(report: Any) -> str:
    """The reason of a skip: the last of the three that pytest keeps."""
    place = report.longrepr
    text = place[2] if isinstance(place, tuple | list) else str(place)
    return text.removeprefix("Skipped: ")
