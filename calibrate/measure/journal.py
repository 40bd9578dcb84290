"""What has been measured so far, on disk as soon as it is known.

A journal is a file of JSON lines: first whose measurements these are, then one line a measurement.
A process that is killed loses the line it was writing, nothing else; the next one reads what is
there and goes on.
"""

from __future__ import annotations

import errno
import json
import os
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from calibrate.device.environment import CalibrationError

Point = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Take:
    """One measurement of a point: µs as called (one layer, say), by the times the part records."""

    times_us: tuple[float, ...]
    spread: float
    repeats: int
    source: str = ""  # the table that it was taken over from


@dataclass(slots=True)
class Points:
    """The takes of one part by point.

    Of several takes the median counts, or, where others may have disturbed some, the fastest.
    """

    fastest: bool = False
    takes: dict[Point, list[Take]] = field(default_factory=dict)
    skipped: set[Point] = field(default_factory=set)  # did not fit into memory
    spent_s: float = 0.0

    def add(self, point: Point, take: Take) -> None:
        self.takes.setdefault(point, []).append(take)

    def time_us(self, point: Point, which: int = 0) -> float:
        """Of all takes."""
        times = [take.times_us[which] for take in self.takes[point]]
        return min(times) if self.fastest else statistics.median(times)

    def spread(self, point: Point) -> float:
        """The larger of the spread within takes and the distance between them, relative."""
        takes = self.takes[point]
        times = [take.times_us[0] for take in takes]
        between = (max(times) - min(times)) / statistics.median(times) if min(times) > 0 else 0.0
        return max(statistics.median(take.spread for take in takes), between)

    def taken_over_from(self) -> str:
        """The table most of the points come from; empty where they were measured here."""
        sources = [take.source for takes in self.takes.values() for take in takes]
        return max(set(sources), key=sources.count) if sources else ""


class Journal:
    """Measurements of one calibration. ``owner`` says whose: an older file of others is refused.

    Raises CalibrationError where the folder cannot be written or is full.
    """

    def __init__(self, path: Path, owner: Mapping[str, Any], *, fastest: bool = False) -> None:
        self.path, self.fastest = path, fastest
        self.parts: dict[str, Points] = {}
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.resumed = path.is_file() and path.stat().st_size > 0
        self._file: IO[str] | None = None
        if self.resumed:
            self._read(owner)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.resumed and not path.read_bytes().endswith(b"\n"):
                _cut_last_line(path)
            self._file = path.open("a", encoding="utf-8")
            if not self.resumed:
                self._write({"owner": dict(owner)})

    def of(self, part: str) -> Points:
        return self.parts.setdefault(part, Points(self.fastest))

    def add(self, part: str, point: Point, take: Take, *, spent_s: float) -> None:
        """Remember a measurement and put it on disk."""
        self._apply(part, point, take, spent_s)
        self._write(
            {
                "part": part,
                "point": list(point),
                "times_us": list(take.times_us),
                "spread": round(take.spread, 5),
                "repeats": take.repeats,
                "spent_s": round(spent_s, 4),
                **({"source": take.source} if take.source else {}),
            }
        )

    def skip(self, part: str, point: Point, reason: str) -> None:
        """Remember that a point cannot be measured here."""
        self.of(part).skipped.add(point)
        self._write({"part": part, "point": list(point), "skipped": reason})

    def record(self, kind: str, what: Mapping[str, Any]) -> None:
        """Any other result: a whole iteration, a held-out point, a warning."""
        self.records.setdefault(kind, []).append(dict(what))
        self._write({"record": kind, **what})

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a full disk; it has been told
                self._file.close()
            self._file = None

    def _apply(self, part: str, point: Point, take: Take, spent_s: float) -> None:
        points = self.of(part)
        points.add(point, take)
        points.spent_s += spent_s

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        with writing(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _read(self, owner: Mapping[str, Any]) -> None:
        lines = _lines(self.path)
        first = next(lines, {})
        theirs = first.get("owner")
        ours = json.loads(json.dumps(dict(owner)))
        if theirs != ours:
            theirs = theirs if isinstance(theirs, dict) else {}
            differs = next((key for key in ours if theirs.get(key) != ours[key]), "owner")
            raise CalibrationError(
                f"{self.path.parent}: holds an interrupted calibration of another setting "
                f"({differs} was {theirs.get(differs)!r}, now {ours.get(differs)!r}); "
                "delete that folder or name another --out"
            )
        for number, line in enumerate(lines, start=2):
            try:
                self._restore(line)
            except (KeyError, TypeError) as error:
                raise CalibrationError(
                    f"{self.path}:{number}: not a measurement ({error} is missing or no such "
                    "thing); delete that line, or the folder to begin anew"
                ) from None

    def _restore(self, line: dict[str, Any]) -> None:
        """Take over one line of what was measured before."""
        if "record" in line:
            kind = line.pop("record")
            self.records.setdefault(kind, []).append(line)
        elif "skipped" in line:
            self.of(line["part"]).skipped.add(tuple(line["point"]))
        else:
            take = Take(
                tuple(line["times_us"]), line["spread"], line["repeats"], line.get("source", "")
            )
            self._apply(line["part"], tuple(line["point"]), take, line["spent_s"])


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full or unwritable disk raises into clear words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CalibrationError(
                f"{path}: the disk is full; what was measured until now is kept. Make room and "
                "run the same command again: it goes on from there"
            ) from None
        why = os.strerror(error.errno) if error.errno else str(error)
        raise CalibrationError(f"{path}: cannot be written: {why}") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; what a killed process left of its last one is passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _cut_last_line(path: Path) -> None:
    """Drop an unfinished line, so that the next one starts at a line's start."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
