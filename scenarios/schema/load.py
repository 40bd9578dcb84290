"""A scenario file and ``--set`` overrides -> a validated `Scenario`."""

from __future__ import annotations

import copy
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scenarios.errors import InputError, did_you_mean
from scenarios.library import (
    PlainNumberError,
    load_yaml,
    read_yaml,
    read_yaml_input,
    scenario_path,
)
from scenarios.schema.paths import is_inside, keys_of, written
from scenarios.schema.scenario import Scenario
from scenarios.schema.sweep import Sweep

STDIN, MAPPING = "standard input", "scenario"
_DRAWN = {"arrivals", "lengths", "classes", "num_requests", "shared_prefixes", "sessions"}
_RECORDED = {"trace", "format", "start", "stop", "class_column", "columns", "tokenizer"}
# Keys of a workload that say where requests come from, and those that they put an end to.
REPLACES = {
    "trace": _DRAWN,
    "lengths": _RECORDED | {"classes"},
    "classes": _RECORDED | {"lengths"},
}

Parsed = TypeVar("Parsed", bound=BaseModel)

_CHOICE = re.compile(r"(constrained-)?(int|float|str|bool)|.*[\[(].*")  # pydantic's, in locations
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def load_scenario(name: str, overrides: Iterable[str] = ()) -> tuple[Scenario, Path]:
    """Read the scenario `name` (path or library name) and apply ``PATH=VALUE`` overrides.

    ``-`` is standard input, whose relative paths are the current folder's. Returns it with the file
    it came from. Raises InputError, one line naming file and YAML path.
    """
    content, path = read_content(name)
    overridden = apply_overrides(content, overrides)
    forget_replaced_source(content, overridden)
    return parse_scenario(content, origin=str(path), overridden=overridden), path


def read_content(name: str) -> tuple[dict[str, Any], Path]:
    """What the scenario `name` (path, library name, or `-`) says, and the file it came from."""
    path = Path(STDIN) if name == "-" else scenario_path(name)
    content = read_yaml_input(path) if name == "-" else read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of keys such as model, hardware, workload")
    return content, path


def load_mapping(
    scenario: Mapping[str, Any], overrides: Iterable[str] = ()
) -> tuple[Scenario, Path]:
    """The same of a whole scenario as Python has it; relative paths are the current folder's."""
    content = copy.deepcopy(dict(scenario))
    overridden = apply_overrides(content, overrides)
    forget_replaced_source(content, overridden)
    return parse_scenario(content, origin=MAPPING, overridden=overridden), Path(MAPPING)


def apply_overrides(content: dict[str, Any], overrides: Iterable[str]) -> set[str]:
    """Set ``PATH=VALUE`` in `content`, values in YAML syntax; returns the paths that were set."""
    paths = set()
    for override in overrides:
        path, equals, text = override.partition("=")
        try:
            keys = keys_of(path.strip()) if equals else []
        except ValueError:
            keys = []
        if not keys:
            raise InputError(f"--set {override}: expected PATH=VALUE, e.g. engine.max_num_seqs=64")
        try:
            value = load_yaml(text)
        except PlainNumberError as error:
            raise InputError(f"--set {override}: {error.problem}") from None
        except (yaml.YAMLError, ValueError, RecursionError):  # a date such as 2024-13-01
            raise InputError(f"--set {override}: the value is not valid YAML") from None
        set_value(content, keys, value, source=f"--set {override}")
        paths.add(written(keys))
    return paths


def forget_replaced_source(content: dict[str, Any], overridden: Collection[str]) -> None:
    """What was given over a scenario's own replaces it: a table or an efficiency the latency
    source, a trace the drawn requests, and lengths or classes a trace."""
    workload = content.get("workload")
    if isinstance(workload, dict):
        for given, replaced in REPLACES.items():
            if f"workload.{given}" in overridden and workload.get(given) is not None:
                kept = {path.split(".")[1] for path in overridden if path.startswith("workload.")}
                for key in replaced - kept:
                    workload.pop(key, None)
    latency = content.get("latency")
    told = any(path == "latency.table" or path.endswith("_efficiency") for path in overridden)
    if told and isinstance(latency, dict) and "latency.source" not in overridden:
        latency.pop("source", None)


def set_value(
    content: dict[str, Any], keys: Sequence[str | int], value: Any, *, source: str
) -> None:
    """Set what lies at the path `keys`; InputError, naming `source`, where no section is.

    Sections come to be where there are none, items of lists do not.
    """
    place: Any = content
    for position, key in enumerate(keys):
        wanted, kind = (list, "a list") if isinstance(key, int) else (dict, "a section with keys")
        here = written(keys[:position])
        if not isinstance(place, wanted):
            raise InputError(f"{source}: {here} is {_SHORT.repr(place)}, not {kind}")
        inner: Any = place  # of that kind
        if isinstance(key, int) and key >= len(inner):
            raise InputError(f"{source}: {here} has {len(inner)} items, counted from 0: no [{key}]")
        if position == len(keys) - 1:
            inner[key] = value
            return
        if isinstance(key, str) and inner.get(key) is None:
            inner[key] = [] if isinstance(keys[position + 1], int) else {}
        place = inner[key]


def parse_scenario(
    content: dict[str, Any], *, origin: str, overridden: Iterable[str] = ()
) -> Scenario:
    """Validate `content`; InputError names `origin`, or ``--set`` where an override is at fault."""
    return parse_as(Scenario, content, origin=origin, overridden=overridden)


def parse_as(
    schema: type[Parsed], content: dict[str, Any], *, origin: str, overridden: Iterable[str] = ()
) -> Parsed:
    """Validate `content` against any schema, with the same refusals."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _refused(error.errors(), origin, overridden, schema) from None


def parse_sweep(content: dict[str, Any], *, origin: str, overridden: Iterable[str] = ()) -> Sweep:
    """Validate the sweep section of `content` alone: the rest may be whole only with its axes."""
    try:
        return Scenario.model_validate(content).sweep or Sweep()
    except ValidationError as error:
        details = [one for one in error.errors() if one["loc"][:1] == ("sweep",)]
        if details:
            raise _refused(details, origin, overridden, Scenario) from None
        return Sweep.model_validate(content.get("sweep") or {})


def _refused(
    details: list[ErrorDetails],
    origin: str,
    overridden: Iterable[str],
    schema: type[BaseModel],
) -> InputError:
    first = details[0]
    path = _yaml_path(first)
    source = _blamed(path, origin, overridden)
    others = {_yaml_path(one) for one in details} - {path}
    more = f" (and {len(others)} more)" if others else ""
    where = f"{source}: {path}" if path else source
    return InputError(f"{where}: {_explain(first, schema)}{more}")


def _blamed(path: str, origin: str, overridden: Iterable[str]) -> str:
    """Who gave what is wrong at `path`: the file, ``--set``, or for a whole section maybe both."""
    given = set(overridden)
    if any(is_inside(path, setting) for setting in given):
        return "--set"
    inside = sorted(setting for setting in given if not path or is_inside(setting, path))
    return f"{origin} with --set {inside[0]}" if inside else origin


def _yaml_path(error: ErrorDetails) -> str:
    path, parts = "", list(error["loc"])
    if parts and isinstance(parts[-1], str) and _CHOICE.fullmatch(parts[-1]):
        parts.pop()  # not a key: which of several types was tried
    for part in parts:
        if isinstance(part, str) and part.startswith("<"):
            continue  # which of several kinds it was taken for
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _explain(error: ErrorDetails, schema: type[BaseModel]) -> str:
    # A short form: a YAML file of a few lines can hold a list of a million items.
    given, context = _SHORT.repr(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            section = _section(error["loc"][:-1], schema)
            return f"unknown key; {did_you_mean(error['loc'][-1], section.model_fields)}"
        case "missing":
            return "missing"
        case "literal_error":
            names = _literals(error["loc"], schema)
            hint = did_you_mean(given.strip("'"), names)
            return f"{given} is not known; {hint}"
        case "value_error":
            return str(context["error"])
        case "model_type":
            return f"{given}: expected a section with keys"
        case "finite_number":
            return f"{given}: expected a finite number"
    expected = _EXPECTED.get(error["type"])
    if expected is None:  # a type that no scenario has yet, in pydantic's words
        return f"{given}: {error['msg'].replace('Input should be', 'expected')}"
    limits = {name: f"{n:.15g}" for name, n in context.items() if isinstance(n, int | float)}
    return f"{given}: expected {expected.format(**limits)}"


# By pydantic's type of error, in words of our own: its wording changes with its releases.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "greater than or equal to {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "less than or equal to {le}",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} item(s)",
    "string_too_short": "at least {min_length} character(s)",
}


def _section(location: tuple[int | str, ...], schema: type[BaseModel]) -> type[BaseModel]:
    """The section that a location lies in, through lists and mappings of sections."""
    section = schema
    for key in location:
        # A key that is no field names an entry of a mapping, whose section was found before.
        if isinstance(key, str) and key in section.model_fields:
            section = next(_sections(section.model_fields[key].annotation), section)
    return section


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value so annotated may hold, itself or as items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for option in get_args(annotation):
        yield from _sections(option)


def _literals(location: tuple[int | str, ...], schema: type[BaseModel]) -> list[str]:
    """What is allowed at a location: in the innermost field that it lies in."""
    for end in range(len(location), 0, -1):
        field = _section(location[: end - 1], schema).model_fields.get(str(location[end - 1]))
        if field is not None:
            return list(_names(field.annotation))
    return []


def _names(annotation: Any) -> Iterator[str]:
    """The names that an annotation allows, through its alternatives and items."""
    for option in get_args(annotation):
        if get_origin(annotation) is Literal:
            yield str(option)
        else:
            yield from _names(option)
