"""Bad input, said in one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST = 230  # characters of a refusal, beyond the paths of files in it
LONGEST_WORD = 80
DAMAGES = (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeWarning, TypeError)

_AROUND = "():,;'\""  # what stands around a path in a sentence


class InputError(ValueError):
    """Input that cannot be used; the message is one line naming file, path and remedy."""


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """``did you mean 'x'? allowed: …`` for a name that is not one of `allowed`."""
    names = list(allowed)
    close = get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"


@contextmanager
def reading(*sources: object) -> Iterator[None]:
    """Whatever the content of `sources` makes impossible is an InputError that names them.

    For files that anybody may have changed, where what lies in them is used: a key that is gone, a
    list where a number was, a number beyond what arithmetic can do. NumPy only warns of these.
    """
    both = " and ".join(map(str, sources))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield
    except ValueError as error:
        text = str(error)
        named = text.startswith("--") or any(str(source) in text for source in sources)
        raise InputError(text if named else f"{both}: {text}") from error
    except DAMAGES as error:
        missing = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{both}: damaged: {missing or type(error).__name__}") from error


def one_line(message: str) -> str:
    """A message as one line that a terminal can show: nothing that steers it, the middle of what
    is too long left out; paths of files stay whole."""
    words = [_shown(word) for word in message.split()]
    # The paths of the files that were read: in full, however long, and so is the first word.
    free = [
        n == 0 or (word.lstrip(_AROUND)[:1] == os.sep and _is_path(word))
        for n, word in enumerate(words)
    ]
    if sum(len(word) + 1 for word, path in zip(words, free, strict=True) if not path) <= LONGEST:
        return " ".join(words)
    kept: tuple[list[str], list[str]] = ([], [])
    first, last = 0, len(words)
    for part, longest in ((kept[0], LONGEST * 5 // 8), (kept[1], LONGEST * 3 // 8)):
        left = longest
        while first < last:
            at = first if part is kept[0] else last - 1
            left -= 0 if free[at] else len(words[at]) + 1
            if left < 0:
                break
            part.append(words[at])
            first, last = (at + 1, last) if part is kept[0] else (first, at)
    return " ".join([*kept[0], "…", *reversed(kept[1])])


def _shown(word: str) -> str:
    """A word with what cannot be seen written out, and not longer than anybody reads."""
    if not word.isprintable():
        word = "".join(
            one if one.isprintable() else one.encode("unicode_escape").decode() for one in word
        )
    if len(word) <= LONGEST_WORD or _is_path(word):
        return word
    half = LONGEST_WORD // 2
    return f"{word[:half]}…{word[-half:]}"


def _is_path(word: str) -> bool:
    """Whether it is, but for a colon or a bracket behind it, a file's path or in a folder."""
    path = word.strip(_AROUND)
    if os.sep not in path or len(path) > 4096:
        return False
    return os.path.exists(path) or os.path.isdir(os.path.dirname(path) or "?")
