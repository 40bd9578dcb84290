"""The axes of a sweep: which paths of a scenario take which values.

On the command line ``PATH=VALUES``, in YAML ``PATH: VALUES``. VALUES are separated by commas, each
in YAML syntax, or ranges:

    1,2,4               these
    1..8                every whole number (a Latin hypercube draws from what lies between)
    1..64:+8            1, 9, 17, … up to 64 at most
    1..256:x2           1, 2, 4, … up to 256 at most
    0.5..0.9:lin5       5 values, evenly spaced, both ends among them
    1..1000:log4        4 values, evenly spaced in their logarithm
    same,{replicas: 4}  what the scenario has anyway, or else
    1..1000:log         for a Latin hypercube: drawn evenly in the logarithm

Linked axes move together: ``PATH+PATH=1:2,3:4`` is the two settings (1, 2) and (3, 4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from scenarios.errors import InputError
from scenarios.library import load_yaml
from scenarios.schema.paths import check_path, is_inside
from scenarios.schema.value_ranges import MOST_VALUES, Span, values_of_range

SAME = "same"  # a value: whatever the scenario has there without the axis
_BRACKETS = {"[": "]", "{": "}"}


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


def merged(axes: Iterable[Axis], more: Iterable[Axis], *, source: str = "sweep") -> list[Axis]:
    """`axes`, then `more`, where an axis takes the place of an earlier one with a path of its own.

    Raises InputError for two among `more` that share a path, or paths inside one another; `source`
    says where they are from.
    """
    result, latest = list(axes), list[Axis]()
    for axis in more:
        for other in latest:
            _refuse_overlap(axis, other, source)
        latest.append(axis)
        here = next((at for at, old in enumerate(result) if set(old.paths) & set(axis.paths)), None)
        result = [old for old in result if not set(old.paths) & set(axis.paths)]
        result.insert(len(result) if here is None else here, axis)
    for at, axis in enumerate(result):
        for other in result[:at]:
            _refuse_overlap(axis, other, source)
    return result


def _refuse_overlap(axis: Axis, other: Axis, source: str) -> None:
    for path in axis.paths:
        for theirs in other.paths:
            if is_inside(path, theirs) or is_inside(theirs, path):
                raise InputError(
                    f"{source}: {path} and {theirs} are on two axes at once; "
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
        found = values_of_range(item.strip(), source=source) if isinstance(item, str) else None
        if found is not None:
            more, span = found
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
        return load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date such as 2024-13-01
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
