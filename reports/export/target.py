"""Where a page or an export may be written: nowhere that something else would be lost."""

import gzip
import zlib
from pathlib import Path

from reports.page.page import MARK
from reports.plan import folder as plan_folder
from reports.run import writer
from reports.size import folder as size_folder
from reports.sweep import folder as sweep_folder

# What makes a folder one of Orcast's: a run, sweep, plan, sizing, table or validation.
MARKERS = (*writer.KINDS, "requests.parquet", "sweep.yaml", "sweep.parquet", "validation.json")
# Made at any time after the folder, and again.
EXPORTS = frozenset(
    {"compare.html", "trace.json.gz", "bench.json", "profile_export.jsonl", "benchmarks.json"}
    | writer.PICTURES
    | {"csv"}
)
PARTS = writer.FILES | plan_folder.FILES | size_folder.FILES | set(sweep_folder.FILES)
PARTS = (PARTS | set(MARKERS)) - EXPORTS
HEAD_BYTES = 4096
# How a file of each kind begins, or what its beginning holds.
_MARKS = {
    "page": MARK.encode(),
    "trace": b'{"displayTimeUnit":"ms","traceEvents":[',
    "bench": b'{"backend": "orcast"',
    "aiperf": b'"worker_id": "orcast"',
    "guidellm": b'"guidellm_version": "orcast"',
    "png": b"\x89PNG",
    "svg": b'<svg class="main-svg"',
}
_WORDS = {
    "page": "a page of Orcast's",
    "trace": "a trace of Orcast's",
    "bench": "a bench JSON of Orcast's",
    "aiperf": "an AIPerf export of Orcast's",
    "guidellm": "a GuideLLM export of Orcast's",
    "png": "a PNG picture",
    "svg": "a chart of Orcast's",
    "csv": "this table as CSV",
}


def check_file(path: Path, kind: str, *, columns: str = "") -> None:
    """ValueError where an export at `path` would take the place of something that is not one.

    `kind` is page, trace, bench, aiperf, guidellm, csv, png or svg; `columns` is how a CSV file's
    first line begins.
    """
    if path.is_dir():
        raise ValueError(f"--out {path}: a folder; name a file")
    if path.name in PARTS and is_result_folder(path.parent):
        raise ValueError(f"--out {path}: a part of {path.parent} itself; name another file")
    if path.exists() and (columns.encode() if columns else _MARKS[kind]) not in _head(path):
        raise ValueError(
            f"--out {path}: exists and is not {_WORDS[kind]}; name another file or remove it first"
        )


def check_folder(path: Path) -> None:
    """ValueError where `path` cannot be the folder of an export's files."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path}: a file is in the way; name a folder")
    if is_result_folder(path):
        raise ValueError(
            f"--out {path}: holds results; name another folder, such as {path / 'csv'}"
        )


def is_result_folder(path: Path) -> bool:
    """Whether a command of Orcast's wrote this folder, whole or not."""
    return any((path / name).is_file() for name in MARKERS)


def _head(path: Path) -> bytes:
    """How a file begins, unpacked where it is compressed."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head[:2] != b"\x1f\x8b":
        return head
    try:
        with gzip.open(path) as packed:
            return packed.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""
