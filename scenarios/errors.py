"""Bad input, said in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Input that cannot be used; the message is one line naming file, path and remedy."""


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """``did you mean 'x'? allowed: …`` for a name that is not one of `allowed`."""
    names = list(allowed)
    close = get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"
