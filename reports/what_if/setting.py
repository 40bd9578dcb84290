"""A setting of the knobs as a line of text, as it stands in the page's address, and as words.

``engine.max_num_seqs=64&hardware.tensor_parallel=2``: only what differs from the scenario, in the
syntax of a query, so that a link holds it. In an address, pinned settings follow as ``pin=…``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote

MOST_PINS = 4
_LONGEST = 8000  # characters of an address
_MOST_PARTS = 200
PIN = "pin"


class Knob(Protocol):
    """One value that can be turned; see `scenarios.schema.knobs`."""

    @property
    def path(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def choices(self) -> tuple[Any, ...]: ...
    @property
    def value(self) -> Any: ...
    @property
    def ordered(self) -> bool: ...
    @property
    def unit(self) -> str: ...
    def text(self, value: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """What an address asks for; `ignored` says, in words, what of it meant nothing."""

    setting: str = ""
    pins: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def opened(knobs: Sequence[Knob], query: str) -> Opened:
    """The setting and the pinned ones in an address' query, each as `written` would write it."""
    try:
        parts = _parts(query)
    except ValueError as error:
        return Opened(ignored=[str(error)])
    own = {path: text for path, text in parts if path != PIN}
    values, ignored = _values(knobs, own)
    pins: list[str] = []
    for path, text in parts:
        if path != PIN:
            continue
        try:
            pin = written(knobs, values_of(knobs, text))
        except ValueError as error:
            ignored.append(f"a pinned setting: {error}")
            continue
        if pin not in pins:
            pins.append(pin)
    if len(pins) > MOST_PINS:
        ignored.append(f"only {MOST_PINS} settings can be pinned")
    return Opened(written(knobs, values), pins[:MOST_PINS], ignored)


def values_of(knobs: Sequence[Knob], setting: str) -> dict[str, Any]:
    """Every knob's value in a setting. Raises ValueError for what no knob offers."""
    values, ignored = _values(knobs, dict(_parts(setting)))
    if ignored:
        raise ValueError(ignored[0])
    return values


def written(knobs: Sequence[Knob], values: Mapping[str, Any]) -> str:
    """The text of a setting; the same for equal settings."""
    return "&".join(
        f"{quote(knob.path, safe='')}={quote(knob.text(values[knob.path]), safe='')}"
        for knob in knobs
        if values[knob.path] != knob.value
    )


def address(setting: str, pins: Sequence[str]) -> str:
    """The query, with its question mark, of a link to a setting with others pinned."""
    parts = [setting] if setting else []
    return "?" + "&".join([*parts, *(f"{PIN}={quote(pin, safe='')}" for pin in pins)])


def words(knobs: Sequence[Knob], setting: str) -> list[str]:
    """What a setting turns, knob by knob; nothing for the scenario's own."""
    values = values_of(knobs, setting)
    return [
        f"{knob.label}: {shown(knob, values[knob.path])}"
        for knob in knobs
        if values[knob.path] != knob.value
    ]


def shown(knob: Knob, value: Any) -> str:
    """A knob's value as people read it."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:,g}" if isinstance(value, int | float) else str(value)
    unit = _ONE.get(knob.unit, knob.unit) if value == 1 else knob.unit
    return f"{text} {unit}".rstrip()


_ONE = {"GPUs": "GPU", "ranks": "rank", "stages": "stage", "sequences": "sequence"}
_ONE |= {"tokens": "token", "requests/s": "request/s"}


def _parts(query: str) -> list[tuple[str, str]]:
    if len(query) > _LONGEST:
        raise ValueError(f"the address is longer than {_LONGEST} characters")
    query = query.removeprefix("?")
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARTS)
    except ValueError:
        raise ValueError(f"the address has more than {_MOST_PARTS} parts") from None


def _values(knobs: Sequence[Knob], given: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """All knobs' values, and what of `given` is none of theirs."""
    values = {knob.path: knob.value for knob in knobs}
    by_path = {knob.path: knob for knob in knobs}
    ignored = []
    for path, text in given.items():
        knob = by_path.get(path)
        if knob is None:
            ignored.append(f"{_short(path)} is no knob of this scenario")
            continue
        named = [choice for choice in knob.choices if _means(knob, choice, text)]
        if named:
            values[path] = named[0]
        else:
            ignored.append(f"{path}={_short(text)} is not one of its choices")
    return values, ignored


def _means(knob: Knob, choice: Any, text: str) -> bool:
    if knob.text(choice) == text:
        return True
    if isinstance(choice, bool) or not isinstance(choice, int | float):
        return False
    try:
        return float(text) == choice  # 20 for 20.0
    except ValueError:
        return False


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
