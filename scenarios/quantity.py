"""Numbers with units, as people read them, and as few characters of JSON as they need."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

GAP = "\u00a0"  # a number and its unit stay on one line
MISSING = "–"  # an en dash, where there is no figure


def figure_of(summary: Mapping[str, Any], key: str) -> float | None:
    """The finite number under `key`, or None where it is absent, None or not a number."""
    value = summary.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if math.isfinite(value) else None


def plain(value: float | None, digits: int = 3) -> str:
    """`value` with thousands separators and at least `digits` significant digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    whole, _, fraction = f"{value:,.{decimals}f}".partition(".")
    return f"{whole}.{fraction}" if fraction.strip("0") else whole


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else f"{round(value):,}"


def money(value: float | None) -> str:
    """US dollars, to the cent or to three digits where that is finer."""
    if value is None:
        return MISSING
    return f"${value:,.2f}" if value >= 1 else f"${plain(value)}"


def milliseconds(value_ms: float | None) -> str:
    """A duration given in milliseconds, in the unit that reads best."""
    if value_ms is None or not math.isfinite(value_ms):
        return MISSING
    return f"{plain(value_ms)}{GAP}ms" if abs(value_ms) < 10_000 else seconds(value_ms / 1e3)


def alike(values_ms: Sequence[float | None]) -> list[str]:
    """Durations given in milliseconds, all in seconds where one of them is 10 s or more."""
    known = [abs(value) for value in values_ms if value is not None and math.isfinite(value)]
    unit, size_ms = ("s", 1e3) if max(known, default=0.0) >= 10_000 else ("ms", 1.0)
    shown = [plain(None if value is None else value / size_ms) for value in values_ms]
    return [text if text == MISSING else f"{text}{GAP}{unit}" for text in shown]


def seconds(value_s: float | None) -> str:
    """A duration given in seconds: `840 ms`, `12.3 s`, `4 min 5 s`, `2 h 3 min`."""
    if value_s is None or not math.isfinite(value_s):
        return MISSING
    if abs(value_s) < 1:
        return f"{plain(value_s * 1e3)}{GAP}ms"
    if abs(value_s) < 120:
        return f"{plain(value_s)}{GAP}s"
    whole_minutes, rest_s = divmod(round(value_s), 60)
    if whole_minutes < 60:
        rest = f"{GAP}{rest_s}{GAP}s" if rest_s else ""
        return f"{whole_minutes}{GAP}min{rest}"
    hours, minutes = divmod(whole_minutes, 60)
    return f"{hours:,}{GAP}h" + (f"{GAP}{minutes}{GAP}min" if minutes else "")


def percent(share: float | None) -> str:
    """A share of one as a percentage; never rounded up to 100 % or down to 0 %."""
    if share is None or not math.isfinite(share):
        return MISSING
    decimals = 1
    while decimals < 4 and 0 < share < 1 and round(share * 100, decimals) in (0.0, 100.0):
        decimals += 1
    return f"{share * 100:.{decimals}f}".rstrip("0").rstrip(".") + f"{GAP}%"


def compact(values: npt.ArrayLike, digits: int = 4) -> list[float | int | None]:
    """`values` rounded to `digits` significant digits as a JSON list; None where not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    size = np.abs(np.where(finite & (numbers != 0), numbers, 1.0))
    scale = 10.0 ** (digits - 1 - np.floor(np.log10(size)))
    rounded = np.round(np.where(finite, numbers, 0.0) * scale) / scale
    listed: list[Any] = rounded.tolist()
    return [
        (int(value) if value.is_integer() else value) if known else None
        for value, known in zip(listed, finite.tolist(), strict=True)
    ]


def compact_axis(values: npt.ArrayLike) -> list[float | int | None]:
    """Axis positions rounded to a millionth of the axis' length, so that neighbours stay apart."""
    numbers = np.asarray(values, dtype=np.float64)
    span = float(np.max(np.abs(numbers))) if numbers.size else 0.0
    decimals = 6 - math.floor(math.log10(span)) if span > 0 else 6
    listed: list[Any] = np.round(numbers, max(decimals, 0)).tolist()
    return [int(value) if value.is_integer() else value for value in listed]


def printable(text: object) -> str:
    """A text whose control characters do nothing to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
