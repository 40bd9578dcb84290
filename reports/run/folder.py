"""Run folders on disk: read one back, rebuild its report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reports.page.records import Columns
from reports.run.details import load_details
from reports.run.report import run_report
from scenarios.whole import write_whole
from scenarios.yaml_file import load_result
from sim import plain_file

FILES = ("requests.parquet", "iterations.parquet", "summary.json", "scenario.yaml")
REQUEST_COLUMNS = (
    *("request", "arrival_s", "scheduled_s", "first_token_s", "finished_s", "prompt_tokens"),
    *("output_tokens", "cached_tokens", "preemptions", "rejected", "replica"),
)
ITERATION_COLUMNS = (
    *("start_s", "duration_s", "running", "waiting", "prefill_seqs", "prefill_tokens"),
    *("decode_seqs", "context_tokens", "num_tokens", "kv_used_tokens", "kv_reserved_tokens"),
    *("kv_fragmentation_tokens", "kv_free_tokens", "preempted", "finished", "replica"),
)
PREEMPTION_COLUMNS = ("request", "preempted_s", "resumed_s")


@dataclass(frozen=True, slots=True)
class FolderRecords:
    """The records of a run as read from its folder."""

    requests: Columns
    iterations: Columns
    preemptions: Columns


def load_run(directory: Path | str) -> tuple[FolderRecords, dict[str, Any], dict[str, Any]]:
    """Read a run folder: records, resolved scenario, summary.

    A folder without preemptions.parquet (an optional file) has no preemption intervals. Raises
    ValueError, in one line, for a folder that is not a run or holds a damaged file.
    """
    import yaml

    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a run folder: no such directory")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a run folder: it lacks {', '.join(missing)}")
    requests = _read_columns(folder / FILES[0], REQUEST_COLUMNS)
    iterations = _read_columns(folder / FILES[1], ITERATION_COLUMNS)
    preempted = folder / "preemptions.parquet"
    preemptions: Columns = {
        "request": np.zeros(0, dtype=np.int64),
        "preempted_s": np.zeros(0),
        "resumed_s": np.zeros(0),
    }
    if preempted.is_file():
        preemptions = _read_columns(preempted, PREEMPTION_COLUMNS)
    try:
        summary = json.loads(plain_file.read_text(folder / FILES[2]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / FILES[2]}: not JSON ({_first_line(error)})") from None
    try:
        scenario = load_result(folder / FILES[3])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / FILES[3]}: not YAML ({_first_line(error)})") from None
    for name, value in ((FILES[2], summary), (FILES[3], scenario)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{folder / name}: expected a mapping, found {type(value).__name__}")
    return FolderRecords(requests, iterations, preemptions), dict(scenario), dict(summary)


def write_run_report(directory: Path | str) -> Path:
    """(Re)build report.html of a run's folder and return its path.

    The page is written beside its final name and renamed, so that a reader never sees half of it.
    Raises ValueError as `load_run` does, OSError where the folder cannot be written to.
    """
    records, scenario, summary = load_run(directory)
    details = load_details(directory)
    target = Path(directory) / "report.html"
    write_whole(target, run_report(records, scenario=scenario, summary=summary, details=details))
    return target


def _read_columns(path: Path, needed: tuple[str, ...]) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({_first_line(error)})") from None
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: not a run's records, it lacks the column {missing[0]!r}")
    return {name: _as_numpy(table.column(name)) for name in table.column_names}


def _as_numpy(column: Any) -> npt.NDArray[Any]:
    """An Arrow column as numpy, numbers without a copy; nulls become NaN or None.

    Arrow's own `to_numpy` would import pandas, which takes half a second.
    """
    import pyarrow as pa

    array = column.combine_chunks()
    number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    if number and not array.null_count and len(array):
        return np.from_dlpack(array)
    dtype = {pa.bool_(): bool, pa.string(): object}.get(array.type, np.float64 if number else None)
    return np.array(array.to_pylist(), dtype=dtype)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
