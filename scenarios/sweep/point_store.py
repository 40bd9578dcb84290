"""Answers of points on disk: a file each, whole or not there."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

FOLDER = "points"
_ANSWER = re.compile(r"[0-9a-f]{32}\.json")  # named by the key of its point


class PointStore:
    """The answers under a folder by the key of their point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def read(self, key: str) -> dict[str, Any] | None:
        """The answer of a point; None where it has none yet, or one that cannot be read."""
        try:
            answer = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return answer if isinstance(answer, dict) else None

    def write(self, key: str, text: str) -> None:
        """Keep an answer. A reader, or whoever comes after a kill, sees all of it or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{key}.{secrets.token_hex(4)}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self._path(key))
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def clear_partial(self) -> None:
        """Take away what a killed sweep left half-written."""
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)


def is_answers(folder: Path) -> bool:
    """Whether a folder holds answers of points, at least one, and nothing else."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return bool(names) and all(_ANSWER.fullmatch(name) for name in names)
