"""A command in a process of its own that is killed, or denied a file, at a moment that was chosen.

The process is a fork of one that has imported everything: what it does with files is counted by
Python's audit events, and at one of them it kills itself or finds that the call fails.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.orcast.command_line import Outcome, orcast

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Where the machine and the interpreter keep what is theirs.
FOREIGN = ("/dev/", "/proc/", "/sys/")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command's process came to its end: None for an outcome where it was killed."""

    outcome: Outcome | None
    calls: int  # that changed files
    seconds: float


class Watch:
    """Counts the calls by which a process changes files; does something at one of them."""

    def __init__(self, at: int | None, act: Callable[[str], None]) -> None:
        self.calls, self._at, self._act = 0, at, act
        sys.addaudithook(self._saw)

    def _saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            written = isinstance(flags, int) and flags & WRITING
            if not written or not isinstance(path, str | bytes | os.PathLike):
                return
            if os.fsdecode(path).startswith(FOREIGN):
                return
        elif event not in CHANGES:
            return
        self.calls += 1
        if self._at is not None and self.calls == self._at:
            self._act(os.fsdecode(arguments[0]))


def _die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fails(number: int) -> Callable[[str], None]:
    def fail(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    return fail


def forked(
    arguments: tuple[str, ...],
    *,
    killed_at: int | None = None,
    killed_after_s: float | None = None,
    fails_at: int | None = None,
    with_errno: int = errno.ENOSPC,
    longest_file: int | None = None,
) -> Ended:
    """Run ``orcast ARGUMENTS`` in a fork. It is killed at its n-th change of a file, or after a
    time; or that change fails; or no file can become longer than so many bytes."""
    reading, writing = os.pipe()
    began_s = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        _serve(arguments, writing, killed_at, fails_at, with_errno, longest_file)
    os.close(writing)
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # workers that it had started
    seconds = time.monotonic() - began_s
    if not told:
        return Ended(None, 0, seconds)
    outcome, calls = pickle.loads(told)
    if isinstance(outcome, BaseException):
        raise outcome
    return Ended(outcome, calls, seconds)


def _serve(
    arguments: tuple[str, ...],
    writing: int,
    killed_at: int | None,
    fails_at: int | None,
    with_errno: int,
    longest_file: int | None,
) -> None:
    """What the fork does; it never comes back."""
    told: Any = None
    watch = None
    try:
        if longest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, most))
        act = _die if fails_at is None else _fails(with_errno)
        watch = Watch(killed_at if fails_at is None else fails_at, act)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            told = orcast(*arguments)
    except BaseException as error:  # told to the one who waits
        told = RuntimeError(f"{type(error).__name__}: {error}")
    finally:
        if longest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        os.write(writing, pickle.dumps((told, 0 if watch is None else watch.calls)))
        os._exit(0)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too, but for what tells when it was made."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "report.html" and not path.name.endswith(".lock"):
            data = path.read_bytes()
            if path.name == "summary.json":
                data = _timeless(data)
            found[str(path.relative_to(folder))] = data
    return found


def _timeless(data: bytes) -> bytes:
    lines = data.splitlines()
    return b"\n".join(
        line for line in lines if b'"wall_s"' not in line and b"_requests_per_s" not in line
    )
