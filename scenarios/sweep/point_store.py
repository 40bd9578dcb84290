"""Answers of points on disk: a file each, whole or not there."""

from __future__ import annotations

import json
import os
import re
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any

from scenarios.whole import named

FOLDER = "points"
_ANSWER = re.compile(r"[0-9a-f]{32}\.json")  # named by the key of its point


class PointStore:
    """The answers under a folder by the key of their point, each sealed with its checksum.

    `damaged` counts those that were found changed or cut, which are no answers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.damaged = 0

    def read(self, key: str) -> dict[str, Any] | None:
        """The answer of a point; None where it has none yet, or one that is damaged."""
        try:
            text = self._path(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            text = ""
        try:
            sealed = json.loads(text)
            answer = sealed["answer"]
            if sealed["sha256"] == _seal(key, json.dumps(answer)) and _is_answer(answer):
                return dict(answer)
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        self.damaged += 1
        return None

    def write(self, key: str, text: str) -> None:
        """Keep an answer, the JSON that `json.dumps` made. A reader, or whoever comes after a kill,
        sees all of it or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{key}.{secrets.token_hex(4)}.partial"
        try:
            sealed = f'{{"sha256": "{_seal(key, text)}", "answer": {text}}}'
            with named(self._path(key)):
                partial.write_text(sealed, encoding="utf-8")
                os.replace(partial, self._path(key))
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def clear_partial(self) -> None:
        """Take away what a killed sweep left half-written."""
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)


def _seal(key: str, text: str) -> str:
    """The checksum of an answer and of the point that it belongs to."""
    return sha256(f"{key}\n{text}".encode()).hexdigest()


def _is_answer(answer: Any) -> bool:
    if not isinstance(answer, dict):
        return False
    told = answer.get("metrics"), answer.get("warnings")
    return isinstance(answer.get("error"), str) or (
        isinstance(told[0], dict) and isinstance(told[1], list)
    )


def is_answers(folder: Path) -> bool:
    """Whether a folder holds answers of points, at least one, and nothing else."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return bool(names) and all(_ANSWER.fullmatch(name) for name in names)
