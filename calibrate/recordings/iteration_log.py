"""An engine's own log of its iterations: what each computed, and how long it took.

Two forms: vLLM's, of a server started with ``--enable-logging-iteration-details``, a line each,

    … Iteration(7): 1 context requests, 120 context tokens, 5 generation requests,
    5 generation tokens, iteration elapsed time: 12.34 ms, GPU KV cache usage: 3.2%

and iterations.parquet of a run folder of Orcast's own engine. vLLM does not say how long contexts
are; how much of the cache is in use does, all sequences together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrate.recordings.measurement import Floats, MeasurementError
from sim import plain_file
from sim.batch import Batch, PrefillChunk
from sim.request import Request

Counts = NDArray[np.int64]

_LINE = re.compile(
    r"Iteration\(\d+\): (\d+) context requests, (\d+) context tokens, (\d+) generation requests, "
    r"(\d+) generation tokens, iteration elapsed time: ([\d.]+) ms(?P<dummy> \(dummy\))?, "
    r"\w+ KV cache usage: ([\d.]+)%"
)
_COLUMNS = ("start_s", "duration_s", "prefill_seqs", "prefill_tokens", "decode_seqs",
            "context_tokens")  # fmt: skip


@dataclass(frozen=True, slots=True)
class IterationLog:
    """Iterations in order; `start_s` counts from the first, idle time left out where unknown."""

    label: str
    start_s: Floats
    duration_s: Floats
    prefill_seqs: Counts
    prefill_tokens: Counts
    decode_seqs: Counts
    context_tokens: Counts  # of the decodes, all together

    def __len__(self) -> int:
        return len(self.duration_s)

    def batch(self, row: int) -> Batch:
        """What an iteration computed; its prompts are taken as equally long and not cached."""
        prompts, tokens = int(self.prefill_seqs[row]), int(self.prefill_tokens[row])
        decodes = int(self.decode_seqs[row])
        context = int(self.context_tokens[row])
        asker = Request(0, 0.0, max(tokens, 1), 1, 1)
        shares = [tokens // prompts + (n < tokens % prompts) for n in range(prompts)]
        return Batch(
            prefills=[PrefillChunk(asker, share, 0) for share in shares if share],
            num_decodes=decodes,
            context_tokens=context,
            longest_tokens=-(-context // max(decodes, 1)),
            num_tokens=tokens + decodes,
            num_emitting=prompts + decodes,
            num_seqs=prompts + decodes,
        )


def read_iteration_log(path: Path, *, slots: int) -> IterationLog | None:
    """The log in this file or run folder; None where there is none. `slots`: tokens of the cache.

    Raises MeasurementError for a file that cannot be read.
    """
    if path.is_dir():
        table = path / "iterations.parquet"
        return _of_run(table) if table.is_file() else None
    try:
        text = plain_file.read_text(path, errors="replace")
    except OSError as error:
        raise MeasurementError(f"{path}: cannot be read: {error.strerror}") from None
    found = [match for match in _LINE.finditer(text) if match["dummy"] is None]
    if not found:
        return None
    rows = np.array([[float(match[n]) for n in (1, 2, 3, 5, 7)] for match in found])
    prompts, tokens, decodes = (rows[:, column].astype(np.int64) for column in range(3))
    duration_s = rows[:, 3] / 1e3
    if (duration_s <= 0).any():
        raise MeasurementError(f"{path}: an iteration of 0 ms; take a log of whole iterations")
    held = rows[:, 4] / 100.0 * slots - tokens
    context = np.maximum(held, decodes).astype(np.int64) * (decodes > 0)
    start_s = np.concatenate([[0.0], np.cumsum(duration_s)[:-1]])
    return IterationLog(str(path), start_s, duration_s, prompts, tokens, decodes, context)


def _of_run(path: Path) -> IterationLog:
    from pyarrow import parquet

    table = parquet.read_table(path)
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise MeasurementError(f"{path}: no column {missing[0]}")
    columns = {name: table.column(name).to_numpy() for name in _COLUMNS}
    whole = {name: columns[name].astype(np.int64) for name in _COLUMNS[2:]}
    start_s = columns["start_s"].astype(np.float64)
    return IterationLog(
        str(path), start_s - start_s[0], columns["duration_s"].astype(np.float64), **whole
    )
