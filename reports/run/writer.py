"""Write a run folder: whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.errors import InputError
from scenarios.whole import exchange, leavings, only_writer, partial_of, real
from sim.scratch import StoredColumns, windows

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
LONGEST_NAME = 120  # bytes of a folder's name that was made of a scenario's; disks take 255
PICTURES = {f"{page}{kind}" for page in ("", "compare-") for kind in ("png", "svg")}
OF_THE_SYSTEM = {".DS_Store"}  # what file managers leave in any folder
FILES |= {"trace.json.gz", "bench.json", "csv"} | PICTURES  # exports
FILES |= {"profile_export.jsonl", "benchmarks.json"}
FILES.add("arrivals.jsonl")  # of what was served


def folder_name(name: str) -> str:
    """A scenario's name as a folder name, so short that it fits wherever folders do."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.").encode()
    return plain[:LONGEST_NAME].decode(errors="ignore") or "run"


@contextmanager
def fresh_folder(
    target: Path,
    *,
    marker: str = MARKER,
    files: Collection[str] = frozenset(FILES),
    option: str = "--out",
) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    An older folder of results (it has the file `marker`, and none but `files`) is replaced;
    anything else that lies there is left alone. Raises InputError before anything is computed when
    `target` cannot be written or another command is writing it, OSError that names `target`.
    `option` is the one that named it.
    """
    given = f"{option} {target}"
    final = real(target)  # a link stays a link
    made = [folder for folder in final.parents if not folder.exists()]  # innermost first
    with ExitStack() as stack:
        stack.callback(_take_away, made)
        try:
            _check_target(target, marker, files, given)
            for folder in reversed(made):
                folder.mkdir(exist_ok=True)
            stack.enter_context(only_writer(final, given=given))
            partial = partial_of(final)
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            partial.mkdir()
        except OSError as error:
            raise InputError(f"{given}: cannot be written: {error.strerror}") from None
        with _named(target, partial, option):
            yield partial
            exchange(partial, final)


def _take_away(made: Iterable[Path]) -> None:
    """Folders made for nothing; those that now hold a run stay."""
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


@contextmanager
def _named(target: Path, partial: Path, option: str) -> Iterator[None]:
    """An OSError of a file in `partial`, or of none, tells it by where it was to be."""
    try:
        yield
    except OSError as error:
        where = None if error.filename is None else Path(os.fsdecode(error.filename))
        if where is not None and not where.is_relative_to(partial):
            raise
        told = target if where is None else target / where.relative_to(partial)
        raise InputError(
            f"{option} {told}: cannot be written: {error.strerror or error}"
        ) from error


def _check_target(target: Path, marker: str, files: Collection[str], given: str) -> None:
    """InputError where `target` is something that must not be replaced."""
    if Path.cwd().is_relative_to(real(target)):
        raise InputError(f"{given}: the current folder, or one around it; name another one")
    if os.path.lexists(real(target)) and not target.is_dir():
        what = "a link that leads nowhere" if target.is_symlink() else "a file"
        raise InputError(f"{given}: {what} is in the way; name a folder")
    if not target.is_dir():
        return
    found = {entry.name for entry in target.iterdir()} - OF_THE_SYSTEM
    found -= {path.name for name in files for path in leavings(target / name)}
    if found and marker not in found:
        what = KINDS.get(marker, "one of Orcast's")
        raise InputError(f"{given}: not empty and not {what}; name another one")
    if strangers := sorted(found - set(files)):
        raise InputError(
            f"{given}: holds {strangers[0]}, which is not Orcast's and would be lost; "
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
        columns, file = getattr(records, name), folder / f"{name}.parquet"
        # Dictionaries cost more time than they save space on columns that hardly repeat.
        kept = {"compression": "lz4", "use_dictionary": False}
        if not isinstance(columns, StoredColumns):
            pq.write_table(arrow_table(columns), file, **kept)
            return
        parts = map(arrow_table, windows(columns))
        first = next(parts)
        with pq.ParquetWriter(file, first.schema, **kept) as writer:
            for part in chain([first], parts):
                writer.write_table(part)

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
