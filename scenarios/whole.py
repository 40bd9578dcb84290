"""Files and folders that appear whole or not at all, and nothing half-written beside them."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scenarios.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows, where a file that is open cannot be taken away
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_SUFFIXES = (".partial", ".old")


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path beside `target` whose file takes its place when the block ends well.

    What writers that were killed left there is taken away. Raises OSError naming `target`.
    """
    target = real(target)  # a link stays a link
    partial = target.with_name(f".{_short(target.name)}.{secrets.token_hex(4)}.partial")
    with named(target):
        held = _created(partial)
        try:
            _sweep(target)
            yield partial
            os.replace(partial, target)
        finally:
            with suppress(OSError):
                partial.unlink()
            os.close(held)


def real(path: Path) -> Path:
    """A path with its links followed; one that leads to itself is left for the system to refuse."""
    return Path(os.path.realpath(path))


def write_whole(target: Path, text: str) -> None:
    """A text in UTF-8 as a file that is there whole or not at all."""
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def named(target: Path) -> Iterator[None]:
    """An OSError that does not say of which file it is (a full disk's) says so."""
    try:
        yield
    except OSError as error:
        known = error.filename
        if isinstance(known, str | bytes) and not os.fsdecode(known).endswith(_SUFFIXES):
            raise
        code = error.errno or 0
        raise OSError(code, error.strerror or str(error) or "failed", str(target)) from error


@contextmanager
def only_writer(final: Path, *, given: object) -> Iterator[None]:
    """As long as the block lasts nobody else writes the folder `final`; what was left there by one
    who was killed is taken away. InputError, naming what was `given`, where somebody does."""
    lock = final.with_name(f".{_short(final.name)}.lock")
    held = _locked(lock)
    if held is None:
        raise InputError(
            f"{given}: another command is writing it; wait for that one, or name another folder"
        )
    try:
        _sweep(final, also=lambda _: True)
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(held)


def exchange(partial: Path, final: Path) -> None:
    """Put the folder `partial` in the place of the folder `final`, at once where Linux does that.

    What lay there before is taken away.
    """
    old = final.with_name(f".{_short(final.name)}.{secrets.token_hex(4)}.old")
    if not final.is_dir():
        partial.rename(final)
    elif _swapped(partial, final):
        shutil.rmtree(partial, ignore_errors=True)
    else:
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def filled_folder(target: Path) -> Iterator[Path]:
    """A folder whose files come to lie in `target` when the block ends well: all at once where
    there is no such folder yet, else one after the other in the place of those of before.

    Raises InputError where another command fills it, OSError naming `target`.
    """
    final = real(target)
    with named(target):
        final.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(final, given=f"--out {target}"):
            partial = partial_of(final)
            try:
                partial.mkdir()
                yield partial
                if final.is_dir():
                    for path in sorted(partial.iterdir()):
                        path.replace(final / path.name)
                else:
                    partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def partial_of(final: Path) -> Path:
    """A name for what is to become `final`: like those that are swept, never seen before."""
    return final.with_name(f".{_short(final.name)}.{secrets.token_hex(4)}.partial")


def leavings(final: Path) -> list[Path]:
    """What writers of `final` have beside it, at work or killed."""
    head = f".{_short(final.name)}."
    with suppress(OSError):
        return [
            path
            for path in final.parent.iterdir()
            if path.name.startswith(head)
            and path.suffix in _SUFFIXES
            and len(path.name) == len(head) + 8 + len(path.suffix)
        ]
    return []


def _sweep(final: Path, *, also: Callable[[Path], bool] = lambda path: path.is_file()) -> None:
    """Take away what those left who were killed; the last whole result comes back where it was
    moved out of the way and nothing took its place."""
    for path in leavings(final):
        if path.is_dir():
            if not also(path):
                continue
            if path.suffix == ".old" and not final.exists():
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)
        elif not _is_held(path):
            with suppress(OSError):
                path.unlink()


def _short(name: str) -> str:
    """So much of a name that what is put around it fits in the 255 bytes of a name."""
    return name.encode()[:200].decode(errors="ignore")


def _created(path: Path) -> int:
    """A new file, locked for as long as its descriptor is open."""
    while True:
        held = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        if _lock(held) and _is_there(path, held):
            return held
        os.close(held)  # swept between its making and its lock


def _locked(path: Path) -> int | None:
    """The descriptor of a lock; None where another process has it."""
    while True:
        held = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        if not _lock(held):
            os.close(held)
            return None
        if _is_there(path, held):
            return held
        os.close(held)  # its last holder took it away meanwhile


def _lock(held: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_there(path: Path, held: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(held))
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    """Whether the process that made a file is at work on it."""
    try:
        held = os.open(path, os.O_RDWR)
    except OSError:
        return True
    try:
        return not _lock(held)
    finally:
        os.close(held)


def _swapped(one: Path, other: Path) -> bool:
    """Whether two folders could be exchanged in one step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    done: int = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0
