"""For all tests: what they need is looked for, and a run ends with what was skipped, by kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests import needs

# One worker a core runs the tests: threads of its own would wait for a core by spinning on it.
# Read once, when a library with threads is loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# What is kept from run to run is the user's; workers share the run's own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = TemporaryDirectory(prefix="orcast-cache-")
    os.environ["XDG_CACHE_HOME"] = CACHE.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=list(needs.WORDS),
        help="fail where a test is skipped for lack of this, and where no test needs it",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(kind, detail): see tests/needs.py")
    config.pluginmanager.register(Skips(config), "skips-by-kind")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes minutes goes first, so that no worker is alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_interpreter.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = [mark.args for mark in item.iter_markers("needs")]
    item.user_properties += [("needs", args[0]) for args in marks]
    for args in marks:
        if why := needs.lacking(*args):
            pytest.skip(why)


class Skips:
    """Counts skips by kind, and makes failures of the kinds that ``--require`` names."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.required: list[str] = config.getoption("--require")
        self.files: dict[str, str] = {}  # whole files and folders, and why
        self.tests: Counter[str] = Counter()
        self.ran: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: Any = yield
        why = _why(report) if report.skipped else ""
        if why and needs.kind_of(why) in self.required:
            report.outcome = "failed"
            report.longrepr = f"{why}, and --require {needs.kind_of(why)} was given"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.tests[_kind(_why(report))] += 1
        elif report.when == "call":
            self.ran |= {str(kind) for name, kind in report.user_properties if name == "needs"}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.files[report.nodeid] = _why(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist tells of the files that it skips only with its last word."""
        self.files |= getattr(node, "workeroutput", {}).get("skipped_files", {})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: Any) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["skipped_files"] = self.files
        elif self.unmet() and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def unmet(self) -> list[str]:
        """What is required and no test had, or a whole file lacked."""
        lacking = {_kind(why) for why in self.files.values()}
        return [kind for kind in self.required if kind not in self.ran or kind in lacking]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Iterator[None]:
        """Below all that pytest has to say: what was skipped, the most first."""
        yield
        files = Counter(map(_kind, self.files.values()))
        for kind, total in (self.tests + files).most_common():
            counts = [
                f"{count} {what}" + "s" * (count > 1)
                for count, what in ((self.tests[kind], "test"), (files[kind], "whole file"))
                if count
            ]
            need = f"need{'s' * (total == 1)} {needs.WORDS[kind]}" if kind in needs.WORDS else kind
            terminalreporter.write_line(f"skipped: {' and '.join(counts)}: {need}")
        for kind in self.unmet():
            terminalreporter.write_line(f"required, and not all there or not run: {kind}", red=True)


def _kind(why: str) -> str:
    return needs.kind_of(why) or why


def _why(report: Any) -> str:
    """The reason of a skip, the last of the three things that pytest keeps of it."""
    said = report.longrepr
    return str(said[2] if isinstance(said, tuple | list) else said).removeprefix("Skipped: ")
