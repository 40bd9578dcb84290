"""Forecasts of serving points kept in a file, so that a run that was broken off goes on from there.

A line of JSON a forecast: its source and point, the code that made it, and TTFT and TPOT in ms or
why there is none. Of other code nothing is taken.
"""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = ("calibrate", "orcast", "scenarios", "sim", "tests/benchmarks/accuracy")

Told = tuple[float, float] | str


class KeptForecasts:
    """What a file holds of this code's forecasts; with no file, those of this process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Told] = {}
        if path is None or not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                code, key, told = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was broken off
            if code == _code():
                self._known[key] = told if isinstance(told, str) else (told[0], told[1])

    def get(self, key: str) -> Told | None:
        """What was forecast of this point, if anything."""
        return self._known.get(key)

    def keep(self, key: str, told: Told) -> None:
        """Remember it, in the file as well."""
        self._known[key] = told
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([_code(), key, told]) + "\n")


@cache
def _code() -> str:
    """All that a forecast is made with."""
    code = sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            code.update(path.read_bytes())
    return code.hexdigest()[:16]
