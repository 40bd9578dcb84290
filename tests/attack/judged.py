"""The rule that every input is held to, and the attack itself."""

from __future__ import annotations

import os
import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from shlex import join, quote
from tempfile import TemporaryDirectory

from tests.attack import commands
from tests.attack.kinds import KINDS, Attack, Results
from tests.orcast.command_line import orcast

LONGEST_S = 20  # of processor time; of waiting for what does not come, `WAITING_S`
WAITING_S = 600
ENDED: Counter[int] = Counter()  # inputs by exit status
LONGEST_TEXT = 300  # of a refusal, beyond the paths in it


class HangError(Exception):
    """It did not end."""


@contextmanager
def ending() -> Iterator[None]:
    """A command that computes longer than `LONGEST_S`, or waits longer, is interrupted."""

    def late(number: int, _: object) -> None:
        raise HangError(f"computes over {LONGEST_S} s" if number == signal.SIGPROF else "waits")

    numbers = (signal.SIGPROF, signal.SIGALRM)
    before = [signal.signal(number, late) for number in numbers]
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    signal.alarm(WAITING_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def fault(attack: Attack, folder: Path) -> str | None:
    """What is wrong with how an input was met; None where it kept the rule."""
    try:
        with ending():
            met = orcast(*attack.arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        ours = [one for one in reversed(frames) if "/tests/" not in one.filename][:6]
        told = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in ours)
        return f"{type(error).__name__}: {str(error)[:150]} at {told}"
    left = [path for path in folder.rglob(".*") if path.name.endswith((".partial", ".old"))]
    if left:
        return f"left over: {left[0].name}"
    ENDED[met.status] += 1
    if met.status == 0:
        return None
    if met.status != 2:
        return f"exit {met.status}: {met.stderr[:200]}"
    if (folder / attack.out).exists():
        return f"refused, yet written: {met.stderr[:200]}"
    if met.stderr.count("\n") != 1 or not met.stderr.startswith("orcast: "):
        return f"not one line: {met.stderr[:300]!r}"
    text = met.stderr.replace(str(folder), "").replace(str(folder.parent), "")
    names = [" ".join(name.split()) for name in attack.names]  # as one line has them
    for name in names:
        text = text.replace(name, name[:20])  # a path, however long it is
    if len(text) > LONGEST_TEXT:
        return f"{len(text)} characters: {text[:400]}"
    if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text.rstrip("\n")):
        return f"control characters: {text!r}"
    if not any(name[:20] in text for name in names):
        return f"names nothing: {text}"
    return None


def attacked(
    kind: Callable[[Path, Random], Attack], seed: str, *, kept: Path | None = None
) -> str | None:
    """The fault of one input, drawn with `seed`; None where there is none. Its files stay in the
    folder `kept`, with the command."""
    before = Path.cwd()
    with nullcontext(kept) if kept else TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        try:
            attack = kind(folder, Random(seed))
            if kept:
                print(f"cd {quote(str(folder))}; orcast {join(attack.arguments)}", flush=True)
            return fault(attack, folder)
        finally:
            os.chdir(before)


def all_kinds(results: Path) -> dict[str, Callable[[Path, Random], Attack]]:
    """The kinds, and the folders of results, sound ones of which are made in `results`."""
    return {**KINDS, **commands.KINDS, "results": Results(results)}
