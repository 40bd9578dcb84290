"""Write a run folder: whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from sim.records import Records

MARKER = "summary.json"  # what makes a folder one of ours, to be replaced without asking


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    An older folder of results is replaced; anything else that lies there is left alone. Raises
    InputError before anything is computed when `target` cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"--out {target}: a file is in the way; name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise InputError(f"--out {target}: not empty and not a run folder; name another one")
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {target}: cannot be written: {error.strerror}") from None
    try:
        yield partial
        if target.is_dir():
            old = target.parent / f".{target.name}.{os.getpid()}.old"
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_run(
    folder: Path, records: Records, *, scenario: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """scenario.yaml, summary.json, the three tables of the records, report.html."""
    import pyarrow.parquet as pq
    import yaml

    from reports.run_report import run_report

    for name in ("requests", "iterations", "preemptions"):
        # Dictionaries cost more time than they save space on columns that hardly repeat.
        pq.write_table(
            _table(getattr(records, name)),
            folder / f"{name}.parquet",
            compression="lz4",
            use_dictionary=False,
        )
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(dict(scenario), Dumper=dumper, sort_keys=False, allow_unicode=True)
    (folder / "scenario.yaml").write_text(text, encoding="utf-8")
    (folder / MARKER).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    page = run_report(records, scenario=scenario, summary=summary)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """Columns as an Arrow table, numbers without a copy.

    `pyarrow.array` would import pandas to ask whether it was given a Series: half a second.
    """
    import pyarrow as pa

    arrays = []
    for values in columns.values():
        if values.dtype.kind in "if":
            buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
        elif values.dtype.kind == "b":
            buffers = [None, pa.py_buffer(np.packbits(values, bitorder="little"))]
        else:
            arrays.append(pa.array(values.tolist(), pa.string()))
            continue
        kind = pa.from_numpy_dtype(values.dtype)
        arrays.append(pa.Array.from_buffers(kind, len(values), buffers))
    return pa.Table.from_arrays(arrays, names=list(columns))
