"""Requests as `orcast serve --record` notes them down: to the last bit what came, and when it left.

A JSON object a line: arrival_s, prompt_tokens, output_tokens, max_tokens; where a request has them,
sample_tokens (of each of its answers), leaves_s (when its client was gone), class, and hash_ids, an
id for every block_tokens tokens of its prompt and first answer, which stands for all before, too.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.workload.content import PromptContent
from sim.workload.samples import Samples
from sim.workload.trace_entries import Entry, entries
from sim.workload.trace_file import TraceFile
from sim.workload.workload import Workload


def read_served(file: TraceFile, *, content: bool) -> Workload:
    """All requests of a recording. Raises TraceError, one line that begins PATH:LINE."""
    found = list(entries(file))
    if not found:
        raise file.error(1, "no request in it, expected at least one")
    lengths = [_samples(entry) for entry in found]
    leaves_s = np.array([_number(entry, "leaves_s", inf) for entry in found])
    samples = Samples(
        np.array([len(one) for one in lengths]),
        np.array([tokens for one in lengths for tokens in one], np.int64),
    )
    labels = None if file.labels is None else list(file.labels)
    if labels is None and any(entry.get("class") is not None for entry in found):
        labels = [str(entry.get("class") or "") for entry in found]
    try:
        return Workload(
            arrival_s=np.array([entry.number("arrival_s") for entry in found], np.float64),
            prompt_tokens=_column(found, "prompt_tokens"),
            output_tokens=samples.longest,
            max_tokens=_column(found, "max_tokens"),
            content=_content(found) if content else None,
            labels=labels,
            name=file.path.stem,
            samples=samples if samples.counts.max() > 1 else None,
            leaves_s=leaves_s if np.isfinite(leaves_s).any() else None,
        )
    except ValueError as error:
        raise file.error(1, f"no recording of what was served: {error}") from None


def _samples(entry: Entry) -> list[int]:
    if entry.get("sample_tokens") is None:
        found = [entry.tokens(("output_tokens",))]
    else:
        found = entry.ids("sample_tokens")
    if not found or min(found) < 1:
        raise entry.error("an answer without tokens, expected at least 1")
    return found


def _column(found: list[Entry], key: str) -> NDArray[np.int64]:
    return np.array([entry.tokens((key,)) for entry in found], np.int64)


def _number(entry: Entry, key: str, default: float) -> float:
    return default if entry.get(key) is None else float(entry.number(key))


def _content(found: list[Entry]) -> PromptContent | None:
    ids = [[] if entry.get("hash_ids") is None else entry.ids("hash_ids") for entry in found]
    known = next((entry for entry, one in zip(found, ids, strict=True) if one), None)
    if known is None:
        return None
    unit = known.tokens(("block_tokens",))
    if unit < 1:
        raise known.error("block_tokens is 0, expected at least 1")
    return PromptContent.from_lists(ids, unit_tokens=unit)
