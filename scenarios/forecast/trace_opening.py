"""Traces as they lie on disk: as Parquet, or as the simulator reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from scenarios import library
from scenarios.schema.workload import TraceColumns
from scenarios.tokenizer_file import read_tokenizer
from sim.workload import TraceError, Workload, read_trace
from sim.workload.trace_file import STDIN, TraceFile, read_bytes
from sim.workload.traces import Columns

PARQUET = b"PAR1"


def open_trace(path: str | os.PathLike[str]) -> TraceFile:
    """A trace of any packing. Raises TraceError, one line that names the file."""
    name, data = read_bytes(path)
    if data[:4] == PARQUET:
        return _parquet(name, data)
    return TraceFile.of_bytes(name, data)


def read_scenario_trace(
    trace: str | TraceFile,
    *,
    beside: Path | None = None,
    format: str = "auto",
    columns: TraceColumns | None = None,
    tokenizer: str | None = None,
    content: bool = False,
    label: str | None = None,
) -> Workload:
    """The trace that a scenario names: relative to the current folder, or beside the scenario."""
    if isinstance(trace, str):
        found = None if trace == STDIN else library.find_file(trace, beside=beside)
        trace = open_trace(trace if found is None else found)
    return read_trace(
        trace,
        format=format,
        content=content,
        label=label,
        columns=None if columns is None else Columns(**columns.model_dump()),
        count_tokens=None if tokenizer is None else token_counter(tokenizer, beside=beside),
    )


def token_counter(name: str, *, beside: Path | None = None) -> Callable[[str], int]:
    """A function that counts a text's tokens, by a tokenizer.json or a folder that has one."""
    path = library.find_file(name, beside=beside) or Path(name)
    try:
        tokenizer, _ = read_tokenizer(path)
    except ModuleNotFoundError as error:
        raise TraceError(f"{error}; without workload.tokenizer lengths are estimated") from None
    except ValueError as error:
        raise TraceError(str(error)) from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _parquet(path: Path, data: bytes) -> TraceFile:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(data), memory_map=False)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TraceError(f"{path}: a damaged Parquet file ({error!s:.120})") from None
    if not rows:
        raise TraceError(f"{path}: a Parquet file without rows, expected requests")
    return TraceFile(path, "", table=rows)
