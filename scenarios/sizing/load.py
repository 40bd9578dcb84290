"""A sizing file and ``--set`` overrides -> a validated `Sizing`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scenarios.errors import InputError, did_you_mean
from scenarios.library import ROOT, read_yaml
from scenarios.schema.load import apply_overrides, parse_as
from scenarios.schema.sizing import Sizing

DEFAULT = "budget-1e22"
# Two ways of saying the same thing: what is overridden takes the other's place.
_ALTERNATIVES = (("budget", "usd", "flops"), ("serving", "request_rate", "lifetime_tokens"))


def load_sizing(name: str | None, overrides: Iterable[str] = ()) -> tuple[Sizing, Path | None]:
    """Read the sizing `name` (path or library name) and apply ``PATH=VALUE`` overrides.

    Without a name it is the library's default, or, where the overrides name a model, a sizing of
    that model and nothing else. Raises InputError, one line naming file and YAML path.
    """
    settings = list(overrides)
    if name is None and any(one.partition("=")[0].strip() == "model" for one in settings):
        content: dict[str, Any] = {}
        overridden = apply_overrides(content, _law_as_section(content, settings))
        return parse_as(Sizing, content, origin="sizing", overridden=overridden), None
    path = sizing_path(name or DEFAULT)
    read = read_yaml(path)
    if not isinstance(read, dict):
        raise InputError(f"{path}: expected a mapping of keys such as budget, law, training")
    overridden = apply_overrides(read, _law_as_section(read, settings))
    for section, one, other in _ALTERNATIVES:
        for said, dropped in ((one, other), (other, one)):
            if f"{section}.{said}" in overridden and f"{section}.{dropped}" not in overridden:
                read[section].pop(dropped, None)
    return parse_as(Sizing, read, origin=str(path), overridden=overridden), path


def _law_as_section(content: dict[str, Any], settings: list[str]) -> list[str]:
    """Make room for keys of the law, which a file or an override may give by its name alone."""
    if not any(one.strip().startswith("law.") for one in settings):
        return settings
    if isinstance(content.get("law"), str):
        content["law"] = {"form": content["law"]}
    return [re.sub(r"^\s*law\s*=\s*(?=\w)", "law.form=", one, count=1) for one in settings]


def sizing_path(name: str) -> Path:
    """The file of a sizing given by path or by library name, with or without ``sizing/``."""
    given = Path(name)
    short = name.removeprefix("sizing/")
    library = {path.stem: path for path in sorted((ROOT / "sizing").glob("*.yaml"))}
    if given.is_file():
        return given
    if short in library:
        return library[short]
    if given.exists():
        raise InputError(f"{name}: a folder, expected a sizing file")
    raise InputError(f"{name}: no such sizing file; {did_you_mean(given.stem, library)}")
