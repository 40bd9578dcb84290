"""The paths a scenario has, such as ``engine.block_size`` or ``cluster.groups[0].replicas``:
checked, with the nearest one named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from scenarios.errors import InputError
from scenarios.schema.scenario import Scenario

_NO_SETTING = {
    "name": "it changes no answer",
    "description": "it changes no answer",
    "sweep": "it is what describes the axes",
    "workload.seed": "runs are repeated with sweep.seeds, e.g. --set sweep.seeds=5",
}


_KEY = re.compile(r"([^.\[\]]+)((?:\[\d{1,4}\])*)")


def keys_of(path: str) -> list[str | int]:
    """A path's keys in order: names in sections, places in lists. Raises ValueError for no path."""
    keys: list[str | int] = []
    for part in path.split("."):
        found = _KEY.fullmatch(part)
        if found is None:
            raise ValueError(f"{part!r} is no key")
        keys += [found[1], *(int(place) for place in re.findall(r"\d+", found[2]))]
    return keys


def is_inside(path: str, other: str) -> bool:
    """Whether `path` is `other`, or leads to a part of what is there."""
    return path == other or path.startswith((f"{other}.", f"{other}["))


def check_path(path: str, *, source: str) -> None:
    """InputError, naming `source`, unless a scenario has something at `path` that can vary."""
    kept = next((why for name, why in _NO_SETTING.items() if is_inside(path, name)), "")
    if kept:
        raise InputError(f"{source}: {path} cannot be an axis: {kept}")
    section: type[BaseModel] | None = Scenario
    annotation: Any = Scenario
    try:
        keys = keys_of(path)
    except ValueError as error:
        raise InputError(f"{source}: no such path {path!r}: {error}") from None
    for position, key in enumerate(keys):
        if isinstance(key, int):
            (annotation,) = get_args(annotation) if get_origin(annotation) is list else (None,)
        elif section is None or key not in section.model_fields:
            raise InputError(f"{source}: {_unknown(path, keys, position, section)}")
        else:
            annotation = section.model_fields[key].annotation
        if annotation is None:
            raise InputError(
                f"{source}: no such path {path!r}: {written(keys[:position])} is no list"
            )
        section = section_of(annotation)
        if section is None and _takes_any_key(annotation):
            return


def written(keys: Iterable[str | int]) -> str:
    """Keys as a path again."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return "".join(parts).removeprefix(".")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be left out; None for a plain value."""
    options = (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    )
    return next(
        (one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None
    )


def setting_paths(section: type[BaseModel] = Scenario, prefix: str = "") -> Iterator[str]:
    """Every path that leads to a value, not to a section."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if f"{prefix}{name}" in _NO_SETTING:
            continue
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from setting_paths(inner, f"{prefix}{name}.")


def _takes_any_key(annotation: Any) -> bool:
    options = (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    )
    return any(option is dict or get_origin(option) is dict for option in options)


def _unknown(
    path: str, keys: Sequence[str | int], position: int, section: type[BaseModel] | None
) -> str:
    here = written(keys[:position])
    if section is None:
        return f"{here} is a value, there is no {path}"
    known, last = list(setting_paths()), str(keys[-1])
    close = [one for one in known if one.rpartition(".")[2] == last]
    close += get_close_matches(path, known, n=1, cutoff=0.6)
    ends = {one.rpartition(".")[2]: one for one in known}
    close += [ends[end] for end in get_close_matches(last, ends, n=1, cutoff=0.6)]
    hint = f"did you mean {close[0]!r}? " if close else ""
    allowed = ", ".join(name for name in section.model_fields if name not in _NO_SETTING)
    where = f"under {here}" if here else "at the top"
    return f"no such path {path!r}; {hint}allowed {where}: {allowed}"
