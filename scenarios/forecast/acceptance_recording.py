"""Acceptance as an engine has measured it: the summary of a folder of ``orcast validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scenarios import library
from scenarios.errors import InputError
from scenarios.schema.speculation import Speculation as Given
from sim import plain_file
from sim.speculation import DraftShape

SUMMARY = "summary.json"


def read_recording(
    name: str, given: Given, shape: DraftShape, *, beside: Path | None
) -> tuple[np.ndarray, float]:
    """Survival by position, f8[depth], of verifications with a draft, and the share that had one.

    A longer chain accepts the same at its first positions as a shorter one, so that a recording
    serves every chain up to its own length; a tree serves its own shape alone. Raises InputError
    for a folder without such a measurement, or with one of something else.
    """
    path = _summary_in(library.find_file(name, beside=beside))
    if path is None:
        raise InputError(f"{name}: no run of the engine: expected a folder of orcast validate")
    figures = _figures(path)
    survival = _shares(figures.get("acceptance_per_position"))
    match_rate = _shares([figures.get("match_rate")])
    if not survival or not match_rate:
        raise InputError(f"{path}: speculation has no measured acceptance_per_position, match_rate")
    method, tokens = figures.get("method"), figures.get("query_tokens")
    if method != given.method:
        raise InputError(f"{path}: recorded with method {method}, the scenario's is {given.method}")
    if not shape.is_chain and tokens != shape.query_tokens:
        raise InputError(
            f"{path}: recorded with {tokens} query tokens, the scenario's tree has "
            f"{shape.query_tokens}: only the same tree accepts as much"
        )
    if len(survival) < shape.depth:
        raise InputError(
            f"{path}: recorded with drafts {len(survival)} deep, the scenario's are {shape.depth}"
        )
    return np.array(survival[: shape.depth], dtype=np.float64), match_rate[0]


def _summary_in(folder: Path | None) -> Path | None:
    """The engine's summary, in the folder of a validation or of its run."""
    if folder is None:
        return None
    places = (folder / "measured" / SUMMARY, folder / SUMMARY)
    return next((path for path in places if path.is_file()), None)


def _figures(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(plain_file.read_text(path))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON") from None
    figures = summary.get("speculation") if isinstance(summary, dict) else None
    return figures if isinstance(figures, dict) else {}


def _shares(values: Any) -> list[float]:
    """A list of numbers from 0 to 1; empty where it is anything else."""
    if not isinstance(values, list) or not all(type(one) in (int, float) for one in values):
        return []
    return [float(one) for one in values] if all(0 <= one <= 1 for one in values) else []
