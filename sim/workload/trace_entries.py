"""How the requests of a trace lie in its file, and what is read of each.

An `Entry` is one request: a line of CSV or JSON, an element of a JSON array, or of a list inside
one JSON object. Its fields are found by keys, or by paths of keys with dots between.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sim.workload.trace_file import TraceError, TraceFile, shown
from sim.workload.trace_formats import PER_S, Keys, Time, TraceFormat, Unit

MOST_TOKENS = 2**31 - 1
LARGEST_ID = 2**63 - 1
SEPARATORS = ",;\t|"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One request, and where it is."""

    file: TraceFile
    line: int
    row: Row
    place: str = ""  # beyond the line: an element's number
    text: bool = False  # of a CSV file: numbers are text

    def error(self, message: str) -> TraceError:
        return self.file.error(self.line, f"{self.place}{message}")

    def get(self, key: str) -> Any:
        """What is at a key, or at a path of keys; None where nothing is."""
        return inside(self.row, key)

    def first(self, keys: Keys) -> str:
        """The first of the keys that is there, else the first."""
        return next((key for key in keys if self.get(key) is not None), keys[0])

    def counts_in(self, format: TraceFormat) -> bool:
        """Whether it is not of those that the format leaves out: a warm-up's, say."""
        return format.left_out is None or self.get(format.left_out[0]) != format.left_out[1]

    def given(self, key: str) -> str:
        """What is said about a key, for an error message."""
        value = self.get(key)
        if value is not None or key in self.row:
            return f"{key} is {shown(value)}"
        return f"no {key} in {shown(list(self.row))}"

    def number(self, key: str) -> float:
        """A finite number of at least 0; a whole one as an int."""
        value = self.get(key)
        if self.text and isinstance(value, str):
            value = _number_in(value)
        if type(value) is int or type(value) is float:
            try:
                if value >= 0 and math.isfinite(value):
                    return value
            except OverflowError:
                pass
        raise self.error(f"{self.given(key)}, expected a number of at least 0")

    def tokens(self, keys: Keys) -> int:
        """A whole number of tokens."""
        key = self.first(keys)
        value = self.get(key)
        if self.text and isinstance(value, str):
            value = _number_in(value)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and 0 <= value <= MOST_TOKENS:
            return value
        raise self.error(f"{self.given(key)}, expected a whole number of at least 0")

    def date_s(self, key: str) -> float:
        """A date and time as seconds since 1970; without a time zone it is taken as UTC."""
        value = self.get(key)
        if isinstance(value, datetime):
            return _since_1970_s(value)
        try:
            return _since_1970_s(datetime.fromisoformat(str(value).strip()))
        except (ValueError, OverflowError):
            what = "a date and time like 2023-11-16 18:15:46.68"
            raise self.error(f"{self.given(key)}, expected {what}") from None

    def time(self, time: Time) -> float:
        """A time in its unit, or in s where it is a date."""
        key = self.first(time.keys)
        return self.date_s(key) if time.unit == "date" else self.number(key)

    def time_s(self, time: Time | None) -> float:
        """A time in s; NaN where it is not there."""
        if time is None or self.get(self.first(time.keys)) is None:
            return math.nan
        return self.time(time) / PER_S.get(time.unit, 1.0)

    def ids(self, key: str, *, count: int | None = None) -> list[int]:
        """A list of content ids, `count` of them where given."""
        values = self.get(key)
        if not isinstance(values, list):
            raise self.error(f"{self.given(key)}, expected a list of ids")
        if count is not None and len(values) != count:
            raise self.error(f"{len(values)} {key} for {count} tokens, expected as many")
        if values and not (
            all(type(value) is int for value in values)
            and min(values) >= 0
            and max(values) <= LARGEST_ID
        ):
            raise self.error(f"{self.given(key)}, expected whole numbers from 0 to 2^63 - 1")
        return values


def inside(row: Row, key: str) -> Any:
    """What is at a key of a row, or at a path of keys and of numbers of elements; None where
    nothing is."""
    if key in row:
        return row[key]
    value: Any = row
    parts = key.split(".")
    for at, part in enumerate(parts):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping) and at:  # a key that has dots itself
            return value.get(".".join(parts[at:]))
        else:
            return None
    return value


def _why_no_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "msg", "a number of thousands of digits"))


def json_value(file: TraceFile) -> Any:
    """The whole file as one JSON value; TraceError with the line where it is not."""
    try:
        return json.loads(file.text)
    except (ValueError, RecursionError) as error:
        line, message = getattr(error, "lineno", 1), _why_no_json(error)
        raise file.error(line, f"not JSON ({message}), expected one JSON object") from None


def json_object(file: TraceFile) -> dict[str, Any]:
    """The whole file as one JSON object."""
    value = json_value(file)
    if not isinstance(value, dict):
        raise file.error(1, f"a JSON {type(value).__name__}, expected one JSON object")
    return value


def first_row(file: TraceFile) -> Row | None:
    """The keys of a trace's first request, or of its one object; None where there are none."""
    if file.table is not None:
        return file.table[0] if file.table else {}
    _, text = file.first_line()
    start = text.lstrip()[:1]
    if start == "[":
        value = json_value(file)
        return value[0] if value and isinstance(value[0], dict) else None
    if start == "{":
        try:
            first = json.loads(text)
        except (ValueError, RecursionError):  # an object over several lines, or none at all
            first = next(json_objects(file))[1]
        return first if isinstance(first, dict) else None
    return dict.fromkeys(csv_header(text))


def entries(file: TraceFile, rows: Keys | None = None) -> Iterator[Entry]:
    """The requests of a file, in its order: those at the path `rows` of its one JSON object, its
    table's, its array's, or one a line."""
    if rows is not None:
        found = json_object(file)
        yield from _within(file, found, rows, "")
    elif file.table is not None:
        for number, row in enumerate(file.table, start=1):
            yield Entry(file, number, row)
    elif file.text.lstrip()[:1] == "[":
        yield from _elements(file)
    elif file.text.lstrip()[:1] == "{":
        yield from _lines(file)
    else:
        yield from _cells(file)


def _within(file: TraceFile, value: Any, path: Keys, place: str) -> Iterator[Entry]:
    """The elements of the lists at a path; `*` stands for each element of a list."""
    if (path and path[0] == "*") or not path:
        if not isinstance(value, list):
            raise file.error(1, f"{place} is {shown(value)}, expected a list")
        for number, one in enumerate(value):
            where = f"{place}[{number}]"
            if path:
                yield from _within(file, one, path[1:], where)
            elif not isinstance(one, dict):
                raise file.error(1, f"{where} is {shown(one)}, expected an object")
            else:
                yield Entry(file, 1, one, f"{where}: ")
        return
    inner = value.get(path[0]) if isinstance(value, dict) else None
    if inner is None:
        have = shown(list(value)) if isinstance(value, dict) else shown(value)
        raise file.error(1, f"{place or 'the object'} holds {have}, expected {path[0]}")
    yield from _within(file, inner, path[1:], f"{place}.{path[0]}".lstrip("."))


def _elements(file: TraceFile) -> Iterator[Entry]:
    """The objects of a JSON array, each with the line it begins in."""
    begin = file.text.index("[") + 1
    values = _values(file, begin, closing="]", expected="an array of objects")
    for number, (line, row) in enumerate(values):
        if not isinstance(row, dict):
            raise file.error(line, f"{shown(row)} is not a JSON object, expected objects")
        yield Entry(file, line, row, f"element {number}: ")


def _lines(file: TraceFile) -> Iterator[Entry]:
    for line, row in json_objects(file):
        if not isinstance(row, dict):
            raise file.error(line, f"{shown(row)} is not a JSON object, expected an object a line")
        yield Entry(file, line, row)


def json_objects(file: TraceFile) -> Iterator[tuple[int, Any]]:
    """The JSON values of a file, each with the line it begins in: one a line, or one after the
    other over several lines each, as the first is."""
    line, first = file.first_line()
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        if first.rstrip()[-1:] in "{[,":  # it goes on
            yield from _values(file)
            return
    for line, text in enumerate(file.lines(), start=1):
        if not text or text.isspace():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = _why_no_json(error)
            raise file.error(line, f"not JSON ({message}), expected an object a line") from None
        yield line, row


def _values(
    file: TraceFile, at: int = 0, *, closing: str = "", expected: str = "JSON objects"
) -> Iterator[tuple[int, Any]]:
    """JSON values one after the other, with or without commas, each with the line it begins in.

    They end with the text, or with `closing`, which then must come.
    """
    text, decoder = file.text, json.JSONDecoder()
    line, counted = 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", counted, at)
        counted = at
        if at >= len(text):
            if closing:
                raise file.error(line, f"the array does not end, expected {closing}")
            return
        if text[at] == closing:
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = getattr(error, "lineno", line)
            message = _why_no_json(error)
            raise file.error(where, f"not JSON ({message}), expected {expected}") from None
        yield line, value


def _cells(file: TraceFile) -> Iterator[Entry]:
    """The rows of a CSV file."""
    header_line, text = file.first_line()
    header = csv_header(text)
    separator = separator_of(text)
    for line, given in enumerate(file.lines()[header_line:], start=header_line + 1):
        if not given or given.isspace():
            continue
        cells = split_cells(given, separator)
        if len(cells) != len(header):
            raise file.error(
                line, f"{len(cells)} columns in {shown(given)}, expected {shown(','.join(header))}"
            )
        yield Entry(file, line, dict(zip(header, cells, strict=True)), text=True)


def csv_header(line: str) -> list[str]:
    """The column names in a header line, without surrounding blanks."""
    return [cell.strip() for cell in split_cells(line, separator_of(line))]


def separator_of(header: str) -> str:
    """What separates the cells of a table, by its header."""
    return max(SEPARATORS, key=header.count)


def split_cells(line: str, separator: str = ",") -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:  # a stray carriage return, an endless cell: not a row of any table
        return [line]


def unit_by_size(value: float) -> Unit | None:
    """The unit of a time since 1970, of which only one gives a year from 2001 to 2100."""
    for unit, per_s in PER_S.items():
        if 978e6 <= value / per_s < 4.1e9:
            return unit  # type: ignore[return-value]
    return None


def _number_in(text: str) -> float | None:
    try:
        if "_" in text:
            return None
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _since_1970_s(at: datetime) -> float:
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
