"""The axes of a sweep: which paths of a scenario take which values.

On the command line ``PATH=VALUES``, in YAML ``PATH: VALUES``. VALUES are separated by commas, each
in YAML syntax, or ranges:

    1,2,4               these
    1..8                every whole number (a Latin hypercube draws from what lies between)
    1..64:+8            1, 9, 17, … up to 64 at most
    1..256:x2           1, 2, 4, … up to 256 at most
    0.5..0.9:lin5       5 values, evenly spaced, both ends among them
    1..1000:log4        4 values, evenly spaced in their logarithm
    1..1000:log         for a Latin hypercube: drawn evenly in the logarithm

Linked axes move together: ``PATH+PATH=1:2,3:4`` is the two settings (1, 2) and (3, 4).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from scenarios.errors import InputError
from scenarios.library import Loader
from scenarios.scenario_paths import check_path

MOST_VALUES = 100_000  # of one axis: beyond that it is a slip

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(.*))?")
_BRACKETS = {"[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Span:
    """What lies between two numbers, to be drawn from; whole numbers where both ends are."""

    low: float
    high: float
    logarithmic: bool

    @property
    def is_listed(self) -> bool:
        """Whether it means each of its whole numbers where nothing is drawn."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return whole and not self.logarithmic and self.high - self.low < MOST_VALUES

    @property
    def must_say_how_many(self) -> str:
        """What is wrong with it where values are wanted."""
        return (
            f"{self.low}..{self.high}{':log' * self.logarithmic} has to say how many values, e.g. "
            f":lin5 or :log5; only sampling latin_hypercube draws from what lies between"
        )

    def at(self, share: float) -> float:
        """The value at `share` (0 to 1) of the way from low to high."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if self.logarithmic:
            value = self.low * (self.high / self.low) ** share
            return min(max(round(value), self.low), self.high) if whole else _tidy(value)
        if whole:  # every whole number has an equal share, the ends too
            return min(self.low + math.floor(share * (self.high - self.low + 1)), self.high)
        return _tidy(self.low + share * (self.high - self.low))


@dataclass(frozen=True, slots=True)
class Axis:
    """Paths that vary together, and their values: a level has one for each path.

    An axis given as an open range (``1..64``) has a `span`: a Latin hypercube draws from it.
    """

    paths: tuple[str, ...]
    levels: tuple[tuple[Any, ...], ...]
    span: Span | None = None

    @property
    def name(self) -> str:
        return " + ".join(self.paths)

    def drawn(self, share: float) -> tuple[Any, ...]:
        """The level at `share` (0 to 1) of the axis."""
        if self.span is not None:
            return (self.span.at(share),)
        return self.levels[min(int(share * len(self.levels)), len(self.levels) - 1)]


def axis_from_text(text: str) -> Axis:
    """The axis of ``--axis PATH=VALUES``. Raises InputError for what is not one."""
    name, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise InputError(
            f"--axis {text}: expected PATH=VALUES, e.g. engine.max_num_seqs=1,2,4 or 1..64:x2"
        )
    return _axis(name, values, source=f"--axis {text}")


def axes_from_mapping(given: Mapping[str, Any], *, source: str) -> list[Axis]:
    """The axes of a scenario's ``sweep.axes``; `source` says in errors where they are from."""
    return [_axis(name, values, source=f"{source}.{name}") for name, values in given.items()]


def merged(axes: Iterable[Axis], more: Iterable[Axis]) -> list[Axis]:
    """`axes`, then `more`, where an axis takes the place of an earlier one with a path of its own.

    Raises InputError for two among `more` that share a path, or paths inside one another.
    """
    result, latest = list(axes), list[Axis]()
    for axis in more:
        for other in latest:
            _refuse_overlap(axis, other)
        latest.append(axis)
        here = next((at for at, old in enumerate(result) if set(old.paths) & set(axis.paths)), None)
        result = [old for old in result if not set(old.paths) & set(axis.paths)]
        result.insert(len(result) if here is None else here, axis)
    for at, axis in enumerate(result):
        for other in result[:at]:
            _refuse_overlap(axis, other)
    return result


def _refuse_overlap(axis: Axis, other: Axis) -> None:
    for path in axis.paths:
        for theirs in other.paths:
            if f"{path}.".startswith(f"{theirs}.") or f"{theirs}.".startswith(f"{path}."):
                raise InputError(
                    f"sweep: {path} and {theirs} are on two axes at once; "
                    f"link them ({path}+OTHER=1:2,3:4) or keep one"
                )


def _axis(name: str, given: Any, *, source: str) -> Axis:
    paths = tuple(path.strip() for path in name.split("+"))
    for path in paths:
        check_path(path, source=source)
    if len(set(paths)) < len(paths):
        raise InputError(f"{source}: a path is linked to itself")
    levels, span = _levels(given, len(paths), source)
    if not levels:
        raise InputError(f"{source}: no values")
    if len(levels) > MOST_VALUES:
        raise InputError(f"{source}: {len(levels):,} values, more than {MOST_VALUES:,}")
    seen = set()
    for level in levels:
        key = json.dumps(level, sort_keys=True, default=str)
        if key in seen:
            raise InputError(f"{source}: {level_text(level)} is given twice")
        seen.add(key)
    return Axis(paths, tuple(levels), span)


def level_text(level: tuple[Any, ...]) -> str:
    """A level as it is written on the command line."""
    return ":".join(value_text(value) for value in level)


def value_text(value: Any) -> str:
    """One value in YAML's words, on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _levels(given: Any, width: int, source: str) -> tuple[list[tuple[Any, ...]], Span | None]:
    if isinstance(given, str):
        items: list[Any] = _split(given, ",", source)
        texts = True
    elif isinstance(given, list):
        items, texts = given, False
    else:
        items, texts = [given], False
    if width > 1:
        return [_linked(item, width, source) for item in items], None
    values: list[Any] = []
    span = None
    for item in items:
        found = _RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
        if found is not None:
            more, span = _range(*found.groups(), source=source)
            if span is not None and len(items) > 1 and not span.is_listed:
                raise InputError(f"{source}: {span.must_say_how_many}")
            values += more
        else:
            values.append(_value(item, source) if texts else item)
    return [(value,) for value in values], span if len(items) == 1 else None


def _linked(item: Any, width: int, source: str) -> tuple[Any, ...]:
    if isinstance(item, str):
        level = tuple(_value(part, source) for part in _split(item, ":", source))
    else:
        level = tuple(item) if isinstance(item, list) else (item,)
    if len(level) != width:
        raise InputError(
            f"{source}: {level_text(level)} has {len(level)} values for {width} linked paths; "
            "expected one each, as in a+b=1:2,3:4"
        )
    return level


def _value(text: str, source: str) -> Any:
    """One value in YAML syntax."""
    text = text.strip()
    if re.fullmatch(r"\d+(:\d+)+", text):  # YAML 1.1 would read 1:30 as 90
        raise InputError(f"{source}: {text} is for linked paths, as in a+b=1:2,3:4")
    if not text:
        raise InputError(f"{source}: a value is missing between two commas")
    if ".." in text and re.fullmatch(r"[-+\d.eE]+\.\.\S*", text):
        raise InputError(f"{source}: {text} is no range; expected e.g. 1..64:+8 or 1..64:x2")
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: a date such as 2024-13-01
        raise InputError(f"{source}: {text} is not valid YAML") from None


def _split(text: str, separator: str, source: str) -> list[str]:
    """`text` at the separators that lie outside of quotes and brackets."""
    parts, depth, quote, start = [], list[str](), "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _BRACKETS:
            depth.append(_BRACKETS[letter])
        elif depth and letter == depth[-1]:
            depth.pop()
        elif letter == separator and not depth:
            parts.append(text[start:at])
            start = at + 1
    if quote or depth:
        raise InputError(f"{source}: a {quote or depth[-1]} is missing")
    return [*parts, text[start:]]


# -- ranges -----------------------------------------------------------------------------------


def _range(
    low_text: str, high_text: str, how: str | None, *, source: str
) -> tuple[list[Any], Span | None]:
    """The values of a range; the span as well where it says not how many they are."""
    low, high = Decimal(low_text), Decimal(high_text)
    whole = all(re.fullmatch(r"[-+]?\d+", text) for text in (low_text, high_text))
    if not low < high:
        raise InputError(f"{source}: the range {low_text}..{high_text} has to go upwards")
    if how in (None, "log"):
        return _open_range(low, high, whole=whole, logarithmic=how == "log", source=source)
    step = re.fullmatch(rf"([+x])({_NUMBER})", how or "")
    spaced = re.fullmatch(r"(lin|log)(\d+)", how or "")
    if step is not None:
        size = Decimal(step[2])
        whole = whole and re.fullmatch(r"[-+]?\d+", step[2]) is not None
        return list(_stepped(low, high, step[1], size, whole=whole, source=source)), None
    if spaced is not None and 2 <= int(spaced[2]) <= MOST_VALUES:
        return _spaced(low, high, spaced[1], int(spaced[2]), whole=whole, source=source), None
    raise InputError(
        f"{source}: {low_text}..{high_text}:{how} is no range; expected :+STEP, :xFACTOR, "
        ":linCOUNT or :logCOUNT (a count of at least 2)"
    )


def _open_range(
    low: Decimal, high: Decimal, *, whole: bool, logarithmic: bool, source: str
) -> tuple[list[Any], Span]:
    if logarithmic and low <= 0:
        raise InputError(f"{source}: a logarithmic range has to begin above 0")
    if not whole:
        return [float(low), float(high)], Span(float(low), float(high), logarithmic)
    if high - low >= MOST_VALUES:  # only ever drawn from
        return [int(low), int(high)], Span(int(low), int(high), logarithmic)
    return list(range(int(low), int(high) + 1)), Span(int(low), int(high), logarithmic)


def _stepped(
    low: Decimal, high: Decimal, sign: str, size: Decimal, *, whole: bool, source: str
) -> Iterator[Any]:
    """Decimal arithmetic: 0.1..0.9:+0.1 has 0.3 in it, not 0.30000000000000004."""
    if sign == "x" and (size <= 1 or low <= 0):
        raise InputError(f"{source}: x{size} needs a factor above 1 and a range above 0")
    if sign == "+" and size <= 0:
        raise InputError(f"{source}: +{size} needs a step above 0")
    value = low
    for _ in range(MOST_VALUES + 1):
        if value > high:
            return
        yield int(value) if whole else float(value)
        value = value * size if sign == "x" else value + size


def _spaced(
    low: Decimal, high: Decimal, kind: str, number: int, *, whole: bool, source: str
) -> list[Any]:
    if kind == "log" and low <= 0:
        raise InputError(f"{source}: a logarithmic range has to begin above 0")
    values = []
    for at in range(number):
        share = at / (number - 1)
        if kind == "log":
            value = float(low) * (float(high) / float(low)) ** share
        else:
            value = float(low) + share * float(high - low)
        values.append(round(value) if whole else _tidy(value))
    if len(set(values)) < number:
        raise InputError(f"{source}: there are fewer than {number} whole numbers in that range")
    return values


def _tidy(value: float) -> float:
    """Six significant digits: what a setting needs, and a reader can take in."""
    return float(f"{value:.6g}")
