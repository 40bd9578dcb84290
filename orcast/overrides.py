"""Python values as the command line's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_settings(overrides: Mapping[str, Any] | None) -> list[str]:
    """``PATH=VALUE`` for each; JSON is YAML, so that a Python value reads back as itself."""
    return [
        f"{path}={json.dumps(value, ensure_ascii=False, default=plain)}"
        for path, value in (overrides or {}).items()
    ]


def plain(value: Any) -> Any:
    """A numpy scalar as a number, a path as text; what YAML knows as it is."""
    if isinstance(value, str | int | float | bool | list | dict | None):
        return value
    if isinstance(value, tuple):
        return list(value)
    return value.item() if hasattr(value, "item") else str(value)


def by_path(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a scenario as paths; of a section that is a mapping, what it names alone is set."""
    found: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            found[name] = value
    return found
