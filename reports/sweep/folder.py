"""Sweep folders on disk: the table as Parquet, the sweep as YAML, its summary, its report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.sweep.report import sweep_report
from reports.sweep.summary import sweep_summary
from scenarios.errors import InputError
from scenarios.sweep.point_store import FOLDER, is_answers
from scenarios.sweep.table import SweepTable
from scenarios.whole import real, whole_file, write_whole
from scenarios.yaml_file import load_result

if TYPE_CHECKING:
    import pyarrow as pa

    from scenarios.sweep.sweep import SweepResult

TABLE, SWEEP, SUMMARY, REPORT = "sweep.parquet", "sweep.yaml", "sweep.json", "report.html"
FILES = (SWEEP, SUMMARY, TABLE, REPORT)


def is_sweep(folder: Path) -> bool:
    """Whether a folder looks like what `orcast sweep` writes, whole or not: enough to read it."""
    return any((folder / name).exists() for name in (SWEEP, TABLE, FOLDER))


def _was_written_by_a_sweep(folder: Path) -> bool:
    """Whether files may be replaced: names such as report.html could be anybody's.

    A sweep begins with the answers of its points, and a whole one has a summary.
    """
    if is_answers(folder / FOLDER):
        return True
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    whole = all((folder / name).is_file() for name in (SWEEP, TABLE))
    return whole and isinstance(summary, dict) and "by_setting" in summary


def check_target(folder: Path) -> None:
    """InputError, before anything is computed, where a sweep cannot be written to `folder`."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: a file is in the way; name a folder")
    if folder.is_dir():
        found = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".")
        begun = found == [FOLDER] and not any((folder / FOLDER).glob("[!.]*"))  # killed at once
        if found and not begun and not _was_written_by_a_sweep(folder):
            raise InputError(
                f"--out {folder}: not empty and not a sweep's folder; name another one"
            )
    nearest = next(one for one in (folder, *real(folder).parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--out {folder}: cannot be written")


def write_sweep(folder: Path, result: SweepResult) -> dict[str, Any]:
    """Write table, sweep, summary and report, each of them whole; returns the summary.

    None of them says when or how fast the sweep was run: the same study has the same bytes.
    """
    import yaml

    from scenarios.sweep.sweep import resolved

    table = result.table
    description = resolved(result.study, table.metrics)
    summary = sweep_summary(table, result.warnings)
    folder.mkdir(parents=True, exist_ok=True)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(description, Dumper=dumper, sort_keys=False, allow_unicode=True)
    write_whole(folder / SWEEP, text)
    with whole_file(folder / TABLE) as partial:
        _write_table(partial, table)
    summary_text = json.dumps(summary, indent=2) + "\n"
    write_whole(folder / SUMMARY, summary_text)
    page = sweep_report(table, scenario=description, warnings=result.warnings)
    write_whole(folder / REPORT, page)
    return summary


def read_sweep(folder: Path) -> tuple[SweepTable, dict[str, Any], tuple[str, ...]]:
    """A sweep's table, its description (the content of sweep.yaml) and its warnings.

    Raises ValueError, in one line, for a folder that is no finished sweep or has a damaged file.
    """
    import yaml

    missing = [name for name in FILES[:3] if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: an unfinished sweep, it lacks {', '.join(missing)}")
    try:
        description = load_result(folder / SWEEP)
        section = description["sweep"]
        table = SweepTable(
            name=str(description["name"]),
            description=str(description.get("description") or ""),
            axes=tuple(tuple(path.strip() for path in name.split("+")) for name in section["axes"]),
            sampling=str(section["sampling"]),
            confidence=float(section["confidence"]),
            metrics=tuple(str(metric) for metric in section["metrics"]),
            columns=_read_table(folder / TABLE),
        )
        notes = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["warnings"]
    except (
        yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        line = str(error).strip().split("\n", 1)[0]
        raise ValueError(f"{folder}: not a sweep, or a damaged one ({line})") from None
    needed = {"setting", "seed", "point", "error", *(path for axis in table.axes for path in axis)}
    if lacking := sorted(needed - table.columns.keys()):
        raise ValueError(f"{folder / TABLE}: not a sweep's table, it lacks {lacking[0]!r}")
    return table, description, tuple(str(note) for note in notes)


def write_sweep_report(folder: Path) -> Path:
    """(Re)build report.html from the table. Raises ValueError as `read_sweep` does."""
    table, description, warnings = read_sweep(folder)
    page = sweep_report(table, scenario=description, warnings=warnings)
    target = folder / REPORT
    write_whole(target, page)
    return target


def _write_table(path: Path, table: SweepTable) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _column(values) for name, values in table.columns.items()}
    pq.write_table(
        pa.Table.from_arrays(list(columns.values()), names=list(columns)), path, compression="lz4"
    )


def _column(values: list[Any]) -> pa.Array:
    """A column of one type with its gaps, from buffers: `pyarrow.array` would import pandas."""
    import pyarrow as pa

    known = np.array([value is not None for value in values])
    gaps = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    kind = next((type(value) for value in values if value is not None), float)
    if kind is str:
        texts = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        buffers = [gaps, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(pa.string(), len(values), buffers)
    filled = np.array([kind(0) if value is None else value for value in values], dtype=kind)
    if kind is bool:
        data, arrow = np.packbits(filled, bitorder="little"), pa.bool_()
    else:
        data, arrow = filled, pa.from_numpy_dtype(filled.dtype)
    return pa.Array.from_buffers(arrow, len(values), [gaps, pa.py_buffer(data)])


def _read_table(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            read = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None
    return {name: read.column(name).to_pylist() for name in read.column_names}
