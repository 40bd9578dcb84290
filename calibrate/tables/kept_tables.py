"""Composed tables kept on disk, so that the next run of a deployment reads one small file.

They lie in ``$XDG_CACHE_HOME/orcast/tables`` (``~/.cache/orcast/tables`` without it), one ``.npz``
a deployment, under a name made of all that went into them: whoever changes the package, the model,
the GPU or this code gets another file. Deleting any or all of them is safe at any time. A file that
cannot be read is composed anew, a folder that cannot be written is done without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sim.latency.table_data import LatencyTable, Part

_META = "meta"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile)


def kept_table(
    described: Mapping[str, str], compose: Callable[[], LatencyTable | None]
) -> LatencyTable | None:
    """The table of this description, from the disk or else from `compose`; None is kept too."""
    path = kept_folder() / f"{_name(described)}.npz"
    try:
        return _read(path)
    except _UNREADABLE:
        table = compose()
    with suppress(OSError):  # a run needs no cache
        _write(path, table)
    return table


def kept_folder() -> Path:
    """Where composed tables are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "orcast" / "tables"


def _name(described: Mapping[str, str]) -> str:
    told = {**described, "code": _code()}
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:40]


@cache
def _code() -> str:
    """What composes a table: once a process, not once a point of a plan."""
    code = sha256()
    here = Path(__file__).parents[2]
    for folder in ("calibrate/profiles", "calibrate/tables", "sim/latency", "sim/model"):
        for path in sorted((here / folder).glob("*.py")):
            code.update(path.read_bytes())
    return code.hexdigest()


def _read(path: Path) -> LatencyTable | None:
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    meta = json.loads(found.pop(_META).tobytes())
    if meta is None:
        return None
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, values in found.items():
        part, _, column = name.partition("/")
        parts.setdefault(part, {})[column] = values
    return LatencyTable(meta, {name: _part(columns) for name, columns in parts.items()})


def _part(columns: dict[str, np.ndarray]) -> Part:
    time_s, operation = columns.pop("time_s"), columns.pop("operation", None)
    return Part(columns, time_s, operation)


def _write(path: Path, table: LatencyTable | None) -> None:
    meta: Any = None if table is None else dict(table.meta)
    arrays: dict[str, Any] = {_META: np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)}
    for name, part in () if table is None else table.parts.items():
        assert not part.extra_s, "composed parts have one time a point"
        columns = {**part.coordinates, "time_s": part.time_s}
        if part.operation is not None:
            columns["operation"] = part.operation
        arrays |= {f"{name}/{column}": values for column, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)  # whole or not at all, whoever else writes it
    finally:
        partial.unlink(missing_ok=True)
