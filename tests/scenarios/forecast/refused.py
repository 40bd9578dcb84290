"""The page that lists what is refused together, as rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "refused.md"
# Of one thing alone, not of several together: a request, a batch, a memory that is too small.
LIMITS = (
    "no request can be served",
    "must be at least",
    "one sequence verifies",
    "is above engine.max_num_seqs",
    "is above max_num_seqs",
    "does not hold even one block",
    "no memory is left for the KV cache",
    "does not fit on",
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What does not go together, settings that ask for it, and the words of the refusal."""

    what: str
    settings: tuple[str, ...]
    words: str


@cache
def listed() -> list[Refusal]:
    """The rows of the page."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 4 and "`" in cells[2]:
            settings = re.split(r" (?=[a-z_.]+=)", cells[2].strip("`"))
            rows.append(Refusal(cells[0], tuple(settings), cells[3]))
    return rows


def is_listed(message: str) -> bool:
    """Whether a refusal is one of those of the page, or a limit."""
    return any(words in message for words in (*(one.words for one in listed()), *LIMITS))
