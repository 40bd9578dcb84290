"""Write a run folder: whole or not at all."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from scenarios.forecast.run_details import RunDetails
    from sim.records import Records

MARKER = "summary.json"  # what makes a folder one of ours, to be replaced without asking
# What a folder with such a marker is, in words.
KINDS = {
    MARKER: "a run folder",
    "meta.yaml": "a latency table",
    "plan.json": "a plan's folder",
    "sizing.json": "a sizing's folder",
}
FILES = {f"{table}.parquet" for table in ("requests", "iterations", "preemptions")}
FILES |= {MARKER, "scenario.yaml", "details.json", "report.html", "compare.html"}
PICTURES = {f"{page}{kind}" for page in ("", "compare-") for kind in ("png", "svg")}
FILES |= {"trace.json.gz", "bench.json", "csv"} | PICTURES  # exports


def folder_name(name: str) -> str:
    """A scenario's name as a folder name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


@contextmanager
def fresh_folder(
    target: Path, *, marker: str = MARKER, files: Collection[str] = frozenset(FILES)
) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    An older folder of results (it has the file `marker`, and none but `files`) is replaced;
    anything else that lies there is left alone. Raises
    InputError before anything is computed when `target` cannot be written.
    """
    try:
        _check_target(target, marker, files)
        final = target.resolve()  # a link stays a link
        hidden = f".{final.name}.{secrets.token_hex(4)}"  # unlike process ids, never seen before
        partial, old = final.parent / f"{hidden}.partial", final.parent / f"{hidden}.old"
        made = [folder for folder in final.parents if not folder.exists()]
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {target}: cannot be written: {error.strerror}") from None
    try:
        yield partial
        if final.is_dir():
            final.rename(old)
            partial.rename(final)
            shutil.rmtree(old)
        else:
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # folders made for nothing; those that now hold a run stay
            for folder in made:
                folder.rmdir()


def _check_target(target: Path, marker: str, files: Collection[str]) -> None:
    """InputError where `target` is something that must not be replaced."""
    if target.exists() and not target.is_dir():
        raise InputError(f"--out {target}: a file is in the way; name a folder")
    if not target.is_dir():
        return
    found = {entry.name for entry in target.iterdir() if not entry.name.startswith(".")}
    if found and marker not in found:
        what = KINDS.get(marker, "one of Orcast's")
        raise InputError(f"--out {target}: not empty and not {what}; name another one")
    if strangers := sorted(found - set(files)):
        raise InputError(
            f"--out {target}: holds {strangers[0]}, which is not Orcast's and would be lost; "
            "name another folder"
        )


def write_run(
    folder: Path,
    records: Records,
    *,
    scenario: Mapping[str, Any],
    summary: Mapping[str, Any],
    details: RunDetails | None = None,
) -> None:
    """scenario.yaml, summary.json, the three tables of the records, details.json, report.html."""
    import pyarrow.parquet as pq
    import yaml

    from reports.run.details import FILE, folded
    from reports.run.report import run_report

    def write(name: str) -> None:
        # Dictionaries cost more time than they save space on columns that hardly repeat.
        pq.write_table(
            arrow_table(getattr(records, name)),
            folder / f"{name}.parquet",
            compression="lz4",
            use_dictionary=False,
        )

    # Arrow compresses outside the interpreter's lock, while the page is made.
    with ThreadPoolExecutor() as pool:
        written = [pool.submit(write, name) for name in ("requests", "iterations", "preemptions")]
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump(dict(scenario), Dumper=dumper, sort_keys=False, allow_unicode=True)
        (folder / "scenario.yaml").write_text(text, encoding="utf-8")
        (folder / MARKER).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        more = None if details is None else folded(records, details)
        if more is not None:
            (folder / FILE).write_text(json.dumps(more, separators=(",", ":")), encoding="utf-8")
        page = run_report(records, scenario=scenario, summary=summary, details=more)
        (folder / "report.html").write_text(page, encoding="utf-8")
        for done in written:
            done.result()


def arrow_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
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
