"""A trace file's text, the errors it can have, and the workload its rows make."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import plain_file
from sim.workload.content import PromptContent
from sim.workload.workload import Workload

STDIN = "-"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
MOST_BYTES = 8 * 2**30  # of an unpacked trace: a few KiB can unpack to any size
_PART_BYTES = 2**24
_LFS = b"version https://git-lfs.github.com/spec/"


class TraceError(ValueError):
    """A trace that cannot be read: one line, `PATH:LINE: what is wrong, what is expected`."""


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace's path and its text, read once.

    table: its requests, a mapping of columns each, where it came as no text (Parquet).
    """

    path: Path
    text: str
    labels: Sequence[str] | None = None  # the class of each row, where one is asked for
    table: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TraceFile:
        """Read a UTF-8 file (a byte-order mark is skipped).

        Raises TraceError where there is no such file, or it is unreadable, not UTF-8, or empty.
        """
        name, data = read_bytes(path)
        return cls.of_bytes(name, data)

    @classmethod
    def of_bytes(cls, path: Path, data: bytes) -> TraceFile:
        """The file `path`, whose bytes are known, unpacked if it is compressed."""
        if data[:2] == GZIP:
            data = _unpacked(path, data)
        elif data[:4] == ZSTD:
            data = _unpacked_zstd(path, data)
        if data.startswith(_LFS):
            raise TraceError(
                f"{path}:1: a Git LFS pointer, not the data; `git lfs pull` fetches the file itself"
            )
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise TraceError(
                f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8, expected a text file"
            ) from None
        if not text.strip():
            raise TraceError(f"{path}:1: the file is empty, expected a trace")
        return cls(path, text)

    def lines(self) -> list[str]:
        """The text's lines without their ends; line k of the file is item k - 1."""
        return self.text.replace("\r\n", "\n").split("\n")

    def first_line(self) -> tuple[int, str]:
        """The number of the first line that is not blank, and the line."""
        skipped = len(self.text) - len(self.text.lstrip())
        start = self.text.rfind("\n", 0, skipped) + 1
        return self.text.count("\n", 0, start) + 1, self.text[start:].split("\n", 1)[0].rstrip()

    def error(self, line: int, message: str) -> TraceError:
        """The exception for what is wrong in a line, counted from 1."""
        return TraceError(f"{self.path}:{line}: {message}")


def read_bytes(path: str | os.PathLike[str]) -> tuple[Path, bytes]:
    """A file's bytes, or those of standard input for `-`, and what to call it."""
    if str(path) == STDIN:
        return Path("standard-input"), _standard_input()
    path = Path(path)
    try:
        return path, plain_file.read_bytes(path)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file, expected a trace") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=1)
def _standard_input() -> bytes:
    """What came there; it comes once."""
    return sys.stdin.buffer.read()


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            text = _all_of(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}: a damaged gzip file ({error})") from None
    if len(text) > MOST_BYTES:
        raise TraceError(f"{path}: unpacks to more than {MOST_BYTES / 2**30:g} GiB")
    return text


def _unpacked_zstd(path: Path, data: bytes) -> bytes:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as packed:
            text = _all_of(packed)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path}: a damaged zstd file ({error!s:.120})") from None
    if len(text) > MOST_BYTES:
        raise TraceError(f"{path}: unpacks to more than {MOST_BYTES / 2**30:g} GiB")
    return text


def _all_of(packed: Any) -> bytes:
    """All that comes, or a little more than `MOST_BYTES`; who is asked for so much at once takes
    that much memory, however little comes."""
    parts, size = [], 0
    while size <= MOST_BYTES and (part := packed.read(_PART_BYTES)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class TraceRows:
    """A trace's requests in the order of the file.

    arrival_s: [n], seconds since any origin. prompt_tokens, output_tokens: [n], 0 or more.
    request_ids: a name each. content_ids: a sequence of ids each, which stand for unit_tokens
    tokens apiece and together for known_tokens (by default for whole units).
    follows: the earlier row whose answer each waits for, and think_s longer; -1 for none.
    failed: whether each is left out, though it has tokens, and `why`.
    notes: what a reader of the workload should know.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    request_ids: Sequence[str] | None = None
    content_ids: Sequence[Sequence[int]] | None = None
    unit_tokens: int = 1
    known_tokens: Sequence[int] | None = None
    follows: Sequence[int] = ()
    think_s: Sequence[float] = ()
    failed: NDArray[np.bool_] | None = None
    why: str = "failed"
    notes: tuple[str, ...] = ()
    max_concurrency: int | None = None

    def workload(self, file: TraceFile) -> Workload:
        """The rows as a workload: stably sorted by arrival, the first request at time 0.

        Rows without a prompt or without an output token (requests that failed) are left out and
        counted in the workload's notes. Raises TraceError when no row is left.
        """
        whole = (self.prompt_tokens > 0) & (self.output_tokens > 0)
        ended = whole if self.failed is None else whole & ~self.failed
        kept = np.flatnonzero(ended)
        if not len(kept):
            raise file.error(
                1,
                f"none of the {len(self.arrival_s)} requests has both prompt and output tokens, "
                "expected at least one",
            )
        reasons = {
            self.why: int((whole & ~ended).sum()),
            "no prompt or no output token (failed requests)": int((~whole).sum()),
        }
        dropped = len(self.arrival_s) - len(kept)
        told = [why for why, count in reasons.items() if count]
        if len(told) > 1:
            told = [f"{reasons[why]} {why}" for why in told]
        notes = (
            (
                f"{file.path.name}: {dropped} of {len(self.arrival_s)} requests left out: "
                + "; ".join(told),
            )
            if dropped
            else ()
        )
        order = kept[np.argsort(self.arrival_s[kept], kind="stable")]
        arrival_s = self.arrival_s[order]
        content = None
        if self.content_ids is not None:
            ids, known = self.content_ids, self.known_tokens
            content = PromptContent.from_lists(
                [ids[row] for row in order],
                unit_tokens=self.unit_tokens,
                known_tokens=None if known is None else [known[row] for row in order],
            )
        names, waits = self.request_ids, any(row >= 0 for row in self.follows)
        return Workload(
            arrival_s - arrival_s[0],
            self.prompt_tokens[order],
            self.output_tokens[order],
            content=content,
            request_ids=None if names is None else [names[row] for row in order],
            labels=None if file.labels is None else [file.labels[row] for row in order],
            name=file.path.stem,
            notes=(*notes, *(f"{file.path.name}: {note}" for note in self.notes)),
            max_concurrency=self.max_concurrency,
            follows=self._followed(order) if waits else None,
            think_s=np.array(self.think_s)[order] if waits else None,  # type: ignore[arg-type]
        )

    def _followed(self, order: NDArray[np.intp]) -> NDArray[np.int64]:
        """Whom each row of `order` follows there: what followed a row that is left out follows the
        one before that."""
        places = {row: place for place, row in enumerate(order.tolist())}
        found = []
        for row in order.tolist():
            before = self.follows[row]
            while before >= 0 and before not in places:
                before = self.follows[before]
            found.append(places.get(before, -1))
        return np.array(found, np.int64)


def shown(value: object) -> str:
    """A value from a trace as error messages quote it: one line, not long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
