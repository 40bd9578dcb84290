"""Ranges of numbers, as the axes of a sweep are given: ``1..64:+8``, ``1..256:x2``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from scenarios.errors import InputError

MOST_VALUES = 100_000  # of one axis: beyond that it is a slip

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(.*))?")


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
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.logarithmic:
            return (
                f"{self.low}..{self.high} are {self.high - self.low + 1:,} values, more than "
                f"{MOST_VALUES:,}; take fewer, e.g. :lin5 or :x2, or sampling latin_hypercube, "
                "which draws from them"
            )
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


def values_of_range(text: str, *, source: str) -> tuple[list[Any], Span | None] | None:
    """The values of a range, and its span where it does not say how many they are.

    None for a text that is no range. Raises InputError, naming `source`, for a range of nothing.
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    low_text, high_text, how = found.groups()
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
