"""Latency tables on disk: a folder with meta.yaml and one CSV a part, times in µs.

    meta.yaml      schema_version, source, gpu, tensor_parallel, dtype, model (its shape), …
    linear.csv     operation,tokens,time_us
    …              see `sim.latency.table_data.PART_COLUMNS`

Times are of the whole model (all its layers), so that an iteration is a sum of look-ups. A
``spread_us`` column is welcome anywhere and not read here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim import plain_file
from sim.latency.table_data import (
    BOUNDED_PARTS,
    EXTRA_TIMES,
    PART_COLUMNS,
    REQUIRED_PARTS,
    LatencyTable,
    Part,
)

SCHEMA_VERSION = 1
META_KEYS = ("schema_version", "source", "gpu", "model", "dtype", "tensor_parallel")
SHAPE_KEYS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
)
LARGEST = 2**40  # of tokens, sequences, bytes
_LONGEST_S = 3600.0  # no part of an iteration takes an hour: a wrong unit does


class TableError(ValueError):
    """A table that cannot be used; one line naming file, row and remedy."""


def read_table(folder: Path | str) -> LatencyTable:
    """Read and check a table. Raises TableError for whatever is wrong with it."""
    folder = Path(folder)
    meta = _read_meta(folder)
    parts = {}
    for name in PART_COLUMNS:
        path = folder / f"{name}.csv"
        if path.is_file():
            parts[name] = _read_part(path, name)
        elif name in REQUIRED_PARTS and not _is_bounded(folder, name):
            raise TableError(f"{path}: missing; a table needs {', '.join(REQUIRED_PARTS)}")
    for one, other in (
        ("bounded_prefill", "bounded_decode"),
        ("bounded_decode", "bounded_prefill"),
    ):
        if one in parts and other not in parts:
            raise TableError(f"{folder / other}.csv: missing; {one}.csv is there")
    if meta["model"].get("num_experts") and "moe" not in parts:
        raise TableError(f"{folder / 'moe.csv'}: missing; the model has experts")
    return LatencyTable(meta, parts)


def _is_bounded(folder: Path, name: str) -> bool:
    """Whether another part stands for attention to every token, in a model without any."""
    return name in BOUNDED_PARTS and (folder / f"{BOUNDED_PARTS[name]}.csv").is_file()


def _read_meta(folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / "meta.yaml"
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder, expected a latency table")
    if not path.is_file():
        raise TableError(f"{path}: missing; this folder is not a latency table")
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        meta = plain_file.load_yaml(plain_file.read_text(path), loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TableError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(meta, dict):
        raise TableError(f"{path}: expected a mapping with {', '.join(META_KEYS)}")
    for key in META_KEYS:
        if key not in meta:
            raise TableError(f"{path}: {key} is missing")
    if meta["schema_version"] != SCHEMA_VERSION:
        raise TableError(
            f"{path}: schema_version {meta['schema_version']!r} is not known; "
            f"this Orcast reads version {SCHEMA_VERSION}"
        )
    degree = meta["tensor_parallel"]
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise TableError(f"{path}: tensor_parallel is {degree!r}, expected a whole number from 1")
    model = meta["model"]
    if not isinstance(model, dict):
        raise TableError(f"{path}: model is {model!r}, expected its shape: {', '.join(SHAPE_KEYS)}")
    for key in SHAPE_KEYS:
        if key not in model:
            raise TableError(f"{path}: model.{key} is missing")
        size = model[key]
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= LARGEST:
            raise TableError(
                f"{path}: model.{key} is {str(size)[:40]!r}, expected a whole number from 1"
            )
    host = meta.get("host_overhead_us")
    if host is not None:
        if not isinstance(host, dict) or set(host) != {"per_iteration", "per_sequence"}:
            raise TableError(f"{path}: host_overhead_us needs per_iteration and per_sequence")
        for key, value in host.items():
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise TableError(f"{path}: host_overhead_us.{key} is {value!r}, expected µs >= 0")
    return meta


def _read_part(path: Path, name: str) -> Part:
    columns = PART_COLUMNS[name]
    times = ("time_us", *EXTRA_TIMES.get(name, ()))
    try:
        reader = csv.reader(plain_file.lines_of(path))
        header = next(reader, [])
        rows = list(reader)
    except UnicodeDecodeError:
        raise TableError(f"{path}: not a text file in UTF-8") from None
    except csv.Error as error:  # a cell too long, line ends of another century
        raise TableError(f"{path}: not CSV: {error}") from None
    missing = [column for column in (*columns, *times) if column not in header]
    if missing:
        other = [column for column in header if column.startswith("time_")]
        hint = f"; it has {other[0]}: times are in µs" if "time_us" in missing and other else ""
        raise TableError(f"{path}:1: no column {missing[0]!r}{hint}")
    if not rows:
        raise TableError(f"{path}: no points")
    positions = {column: header.index(column) for column in (*columns, *times)}
    seen: dict[tuple[object, ...], int] = {}
    keys: list[tuple[Any, ...]] = []
    values: list[list[float]] = []
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise TableError(f"{path}:{line}: {len(row)} cells, the header has {len(header)}")
        key = tuple(
            row[positions[column]]
            if column == "operation"
            else _whole(path, line, column, row[positions[column]])
            for column in columns
        )
        if key in seen:
            raise TableError(f"{path}:{line}: the same point as line {seen[key]}; keep one of them")
        seen[key] = line
        keys.append(key)
        values.append([_time_s(path, line, column, row[positions[column]]) for column in times])
    coordinates = {
        column: np.array([key[i] for key in keys], dtype=np.int64)
        for i, column in enumerate(columns)
        if column != "operation"
    }
    operation = np.array([key[0] for key in keys]) if columns[0] == "operation" else None
    measured = np.array(values).T
    extra = dict(zip(times[1:], measured[1:], strict=True))
    return Part(coordinates, measured[0], operation, extra)


def _whole(path: Path, line: int, column: str, text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 <= number <= LARGEST and number == int(number)):
        raise TableError(
            f"{path}:{line}: {column} is {text[:40]!r}, expected a whole number from 0 to "
            f"{LARGEST:g}"
        )
    return int(number)


def _time_s(path: Path, line: int, column: str, text: str) -> float:
    try:
        time_s = float(text) / 1e6
    except ValueError:
        time_s = math.nan
    if not math.isfinite(time_s) or time_s < 0:
        raise TableError(f"{path}:{line}: {column} is {text[:40]!r}, expected microseconds from 0")
    if time_s > _LONGEST_S:
        raise TableError(f"{path}:{line}: {column} is {text[:40]}, over an hour; the unit is µs")
    return time_s


def table_of(meta: Mapping[str, Any], parts: Mapping[str, Iterable[Sequence[Any]]]) -> LatencyTable:
    """The table that `write_table` would write and `read_table` read back, without the disk."""
    made = {}
    for name, given in parts.items():
        columns = PART_COLUMNS[name]
        by_column = list(zip(*given, strict=True))
        named = dict(zip(columns, by_column, strict=False))
        operation = named.pop("operation", None)
        times = [np.array(column, dtype=float) / 1e6 for column in by_column[len(columns) :]]
        made[name] = Part(
            {key: np.array(values, dtype=np.int64) for key, values in named.items()},
            times[0],
            None if operation is None else np.array(operation),
            dict(zip(EXTRA_TIMES.get(name, ()), times[1:], strict=True)),
        )
    return LatencyTable({"schema_version": SCHEMA_VERSION, **meta}, made)


def rows_of(table: LatencyTable) -> dict[str, list[tuple[Any, ...]]]:
    """The parts as `write_table` takes them: what `table_of` was given."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name, part in table.parts.items():
        columns = [
            part.operation if column == "operation" else part.coordinates[column]
            for column in PART_COLUMNS[name]
        ]
        times = [part.time_s, *(part.extra_s[each] for each in EXTRA_TIMES.get(name, ()))]
        listed = [np.asarray(column).tolist() for column in columns if column is not None]
        listed += [(np.asarray(times_s) * 1e6).tolist() for times_s in times]
        found[name] = list(zip(*listed, strict=True))
    return found


# -- writing ----------------------------------------------------------------------------------


def write_table(
    folder: Path,
    meta: Mapping[str, Any],
    parts: Mapping[str, Iterable[Sequence[object]]],
) -> None:
    """Write a table: `parts` has rows in the order of the part's columns, then its times in µs.

    The folder must be fresh; whoever calls this renames it when it is whole.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        header = (*PART_COLUMNS[name], "time_us", *EXTRA_TIMES.get(name, ()))
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for row in sorted(rows, key=lambda row: tuple(row)[: len(PART_COLUMNS[name])]):
                writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    text = yaml.safe_dump({"schema_version": SCHEMA_VERSION, **meta}, sort_keys=False)
    (folder / "meta.yaml").write_text(text, encoding="utf-8")
