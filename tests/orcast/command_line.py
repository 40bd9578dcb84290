"""Runs the command line in this process, the way the installed command does."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from orcast.cli import main
from tests import needs

# Third-party data beside the checkout, on machines that have it.
AZURE_TRACE = needs.SHARED / "azure" / "AzureLLMInferenceTrace_conv.csv"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind: its exit status and both streams."""

    status: int
    stdout: str
    stderr: str


def orcast(*arguments: str | Path) -> Outcome:
    """Run ``orcast ARGUMENTS``. A Python warning would be text on stderr: it counts as an error."""
    out, err = io.StringIO(), io.StringIO()
    status: int | str | None = 0
    before = signal.getsignal(signal.SIGTERM)
    with (
        patch.object(sys, "argv", ["orcast", *map(str, arguments)]),
        patch.dict(os.environ, {"ORCAST_TRACEBACK": "1"}),  # a fault of ours is shown whole
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        try:
            main()
        except SystemExit as end:
            status = end.code
        finally:
            signal.signal(signal.SIGTERM, before)
    assert status is None or isinstance(status, int), "a text would be printed and end with 1"
    return Outcome(status or 0, out.getvalue(), err.getvalue())


def refusal(*arguments: str | Path) -> str:
    """The one line that ``orcast ARGUMENTS`` refuses its input with, without the name in front."""
    outcome = orcast(*arguments)
    assert outcome.status == 2, outcome
    assert outcome.stdout == ""
    assert outcome.stderr.endswith("\n")
    assert outcome.stderr.count("\n") == 1, f"more than one line: {outcome.stderr}"
    assert outcome.stderr.startswith("orcast: ")
    return outcome.stderr.removeprefix("orcast: ").removesuffix("\n")
