"""Standard streams as a command uses them: whatever the locale, full, closed or gone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

OUTPUT = "standard output"


class OutputError(OSError):
    """Standard output could not be written."""


class _Output(io.FileIO):
    """Standard output, whose errors say that they are its own."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror, OUTPUT) from None


@contextmanager
def standard_streams() -> Iterator[None]:
    """What the terminal's encoding lacks is written as an escape; what is written has arrived, or
    OutputError is raised, when the block ends.

    Streams that somebody put in the place of the process' own are left as they are.
    """
    if sys.stdin is None:  # closed: there is nothing to read
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper) or before is not sys.__stdout__:
        yield
        return
    with suppress(OSError):
        before.flush()
    raw = _Output(before.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding,
        errors="backslashreplace",
        line_buffering=before.line_buffering,
        newline="\n" if os.linesep == "\n" else None,
    )
    try:
        yield
        sys.stdout.flush()
    finally:
        _let_go(sys.stdout)
        sys.stdout = before


def _let_go(stream: io.TextIOWrapper) -> None:
    """Drop what could not be written: nobody is to try again when the process ends."""
    with suppress(OSError, ValueError):
        stream.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
