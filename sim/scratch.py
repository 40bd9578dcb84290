"""A file for what need not be in memory while a run goes on, and tables of columns in it.

The file has no name: it is gone when its last user is, however that comes about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from weakref import finalize

import numpy as np

Table = MutableMapping[str, np.ndarray]
WINDOW = 1 << 17  # rows that are in memory at once, of a table that is not


class Scratch:
    """Bytes are added at the end and found again by where they are; nothing is overwritten."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where there is room, by default where temporary files are."""
        self._file = TemporaryFile(dir=folder, prefix="orcast-", buffering=0)  # noqa: SIM115
        finalize(self, self._file.close)
        self._end = 0
        self._lock = Lock()  # of where the file is read or written next

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Where it begins."""
        rest = memoryview(data)
        with self._lock:
            began = self._end
            self._file.seek(began)
            while len(rest):
                rest = rest[self._file.write(rest) :]
            self._end += len(data)
        return began

    def read(self, offset: int, dtype: np.dtype, count: int) -> np.ndarray:
        """So many values that begin there."""
        found = np.empty(count, dtype)
        rest = found.view(np.uint8).data
        with self._lock:
            self._file.seek(offset)
            while len(rest):
                rest = rest[self._file.readinto(rest) :]
        return found


class StoredColumns(Table):
    """Columns of numbers, or short texts, in a `Scratch`, each read anew when it is asked for."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        # Of each column where its parts begin, and how many values they have.
        self._parts: dict[str, list[tuple[int, int]]] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Further rows; the first ones say which columns there are."""
        for name, values in rows.items():
            if name not in self._parts:
                self._parts[name], self._dtypes[name] = [], values.dtype
            assert values.dtype == self._dtypes[name], "a column is of one type"
            data = np.ascontiguousarray(values).view(np.uint8).data
            self._parts[name].append((self._scratch.write(data), len(values)))

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Of all columns the values from row `start` to `stop` - 1."""
        return {name: self._read(name, start, stop) for name in self._parts}

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        dtype, found, first = self._dtypes[name], [], 0
        for offset, count in self._parts[name]:
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                at = offset + low * dtype.itemsize
                found.append(self._scratch.read(at, dtype, high - low))
            first += count
        return np.concatenate(found) if found else np.empty(0, dtype)

    def num_rows(self) -> int:
        return max((sum(count for _, count in each) for each in self._parts.values()), default=0)

    def __getitem__(self, name: str) -> np.ndarray:
        parts, dtype = self._parts[name], self._dtypes[name]
        whole, first = np.empty(sum(count for _, count in parts), dtype), 0
        for offset, count in parts:
            whole[first : first + count] = self._scratch.read(offset, dtype, count)
            first += count
        return whole

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        assert values.dtype.kind in "ifbU", f"column {name} is of {values.dtype}"
        self._dtypes[name] = values.dtype
        data = np.ascontiguousarray(values).view(np.uint8).data
        self._parts[name] = [(self._scratch.write(data), len(values))]

    def __delitem__(self, name: str) -> None:
        del self._parts[name], self._dtypes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class Rows(Mapping[str, np.ndarray]):
    """Some rows of a table, each column picked when it is asked for."""

    def __init__(self, columns: Mapping[str, np.ndarray], chosen: np.ndarray) -> None:
        self._columns, self._chosen = columns, chosen

    def __getitem__(self, name: str) -> np.ndarray:
        picked: np.ndarray = self._columns[name][self._chosen]
        return picked

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def joined(parts: Iterable[dict[str, np.ndarray]], scratch: Scratch | None) -> Table:
    """A table of rows that come part by part: on disk, or of the one part that there is."""
    if scratch is None:
        (whole,) = parts
        return whole
    table = StoredColumns(scratch)
    for part in parts:
        table.append(part)
    return table


def windows(columns: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
    """A table in pieces that fit in memory: itself, where it is there already."""
    if not isinstance(columns, StoredColumns):
        yield columns
        return
    for start in range(0, columns.num_rows(), WINDOW):
        yield columns.rows(start, start + WINDOW)
