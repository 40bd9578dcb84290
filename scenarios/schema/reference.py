"""The scenario's keys as a Markdown page, made from the schema itself.

``python -m scenarios.schema.reference`` prints it; a test holds the page in the documentation
against it.
"""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scenarios.schema.scenario import Scenario

_BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
_FAR = 1e5  # bounds beyond this only catch slips


EMPTY = "not empty"


def scenario_reference() -> str:
    """The page: a section for every part of a scenario, a row for every key."""
    lines = [
        "# Scenario reference",
        "",
        "<!-- Made by `python -m scenarios.schema.reference`; edit the schema, not this page. -->",
        "",
        "A scenario is one YAML file. Unknown keys are refused, and so are values of another type.",
        "Every key can be overridden on the command line with `--set PATH=VALUE`, for example",
        "`--set engine.max_num_seqs=64`; an item of a list by its place, counted from 0:",
        "`--set 'cluster.groups[1].replicas=4'`.",
        "",
    ]
    _section(Scenario, "", lines, set())
    return "\n".join(lines).rstrip() + "\n"


def _section(model: type[BaseModel], path: str, lines: list[str], seen: set[type]) -> None:
    lines += [f"## {f'`{path}`' if path else 'The whole scenario'}", ""]
    text = _plain(model.__doc__)
    if text:
        lines += [text, ""]
    comments = _comments(model)
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    inner: list[tuple[type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        inner += [(section, key) for section in _sections(field.annotation)]
        row = [f"`{name}`", _value(field), _default(field), comments.get(name, "")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    lines.append("")
    for section, key in inner:
        if section not in seen:
            seen.add(section)
            _section(section, key, lines, seen)


def _plain(text: str | None) -> str:
    """A docstring as paragraphs, double backquotes as single ones."""
    if not text:
        return ""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in paragraphs).replace("``", "`")


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """What the source says behind a field, or in comment lines above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(model).splitlines():
        comment = re.match(r"\s+# (.*)", line)
        field = re.match(r"    (\w+): .*?(?:  # (.*))?$", line)
        if comment:
            above.append(comment[1])
            continue
        if field and field[1] in model.model_fields:
            text = " ".join([*above, field[2] or ""]).strip()
            if text:
                found[field[1]] = text
        above = []
    return found


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _value(field: FieldInfo) -> str:
    bounds = [
        f"{_BOUNDS[type(item)][0]} {getattr(item, _BOUNDS[type(item)][1]):g}"
        for item in field.metadata
        if type(item) in _BOUNDS and abs(getattr(item, _BOUNDS[type(item)][1])) <= _FAR
    ]
    return " ".join([_type(field.annotation), ", ".join(bounds)]).strip()


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    names[Any] = "see above"  # of several kinds, which the section's text tells
    if annotation in names:
        return names[annotation]
    metadata = getattr(annotation, "__metadata__", None)
    if metadata is not None:
        inside = _type(annotation.__origin__)
        items = [item for each in metadata for item in getattr(each, "metadata", [each])]
        bounds = [
            f"{_BOUNDS[type(item)][0]} {getattr(item, _BOUNDS[type(item)][1]):g}"
            for item in items
            if type(item) in _BOUNDS and abs(getattr(item, _BOUNDS[type(item)][1])) <= _FAR
        ]
        lengths = [item for item in items if isinstance(item, MinLen)]
        told = [part for part in (inside, ", ".join(bounds)) if part]
        if lengths and not inside.endswith(EMPTY):
            told.append(EMPTY)
        return " ".join(told)
    parts = [_type(part) for part in arguments if part is not NoneType]
    return " or ".join(dict.fromkeys(parts)) if parts else str(annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ("", [], {}) else ""


if __name__ == "__main__":
    print(scenario_reference(), end="")
