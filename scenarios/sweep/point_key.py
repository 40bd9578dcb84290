"""The hash of all that a point's answer depends on, under which the answer is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel

from scenarios import library
from scenarios.schema.scenario import Scenario


def point_key(scenario: Scenario, *, beside: Path | None) -> str:
    """The hash of all that an answer depends on: 32 hexadecimal digits.

    The resolved scenario without its name, the content of what it names (model, GPU, trace,
    latency table), and the code that answers.
    """
    known = {
        "scenario": scenario.model_dump(mode="json", exclude={"name", "description"}),
        "named": {path: _content(path, value, beside) for path, value in _texts(scenario)},
        "answers": forecast_version(),
    }
    if '"aiconfigurator"' in json.dumps(known["scenario"]):  # the engine's, or one of a cluster's
        known["aiconfigurator"] = _version("aiconfigurator-core")
    text = json.dumps(known, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def forecast_version() -> str:
    """A hash of the code a forecast runs through, so that a stored answer is never an old one."""
    folders = [library.ROOT.parent / name for name in ("sim", "scenarios", "calibrate")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    files += sorted(folders[0].rglob("*.json"))  # what classes of configurations default to
    digest = hashlib.sha256(f"numpy {np.__version__}".encode())
    for path in files:
        digest.update(path.relative_to(library.ROOT.parent).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _texts(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and value of every free text: it may name a file. One of several choices cannot."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, str):
            if _may_be_any_text(field.annotation):
                yield f"{prefix}{name}", value
        else:
            yield from _inside(value, f"{prefix}{name}")


def _inside(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The free texts in a section, a list or a mapping."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, BaseModel):
        yield from _texts(value, f"{path}.")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _inside(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _inside(inner, f"{path}[{number}]")


def _may_be_any_text(annotation: Any) -> bool:
    """Whether a text of any kind may stand there, itself or as one of several kinds."""
    return annotation is str or any(map(_may_be_any_text, get_args(annotation)))


def _content(path: str, value: str, beside: Path | None) -> str | None:
    """What lies behind a name, hashed; None where it is no more than a text."""
    if path in ("name", "description"):
        return None
    if path.endswith((".gpu", ".gpu.like")):
        known, name = library.gpus(), library.gpu_name(value)
        if name in known:
            return _digest(json.dumps(known[name]).encode())
    if path.endswith("model") and library.is_model(value):
        return _file_digest(library.model_path(value))
    found = library.find_file(value, beside=beside) if value else None
    if found is None:
        return None
    if found.is_dir() and path.endswith("model"):
        found = found / "config.json"
    if found.is_dir():
        inside = [one for one in sorted(found.rglob("*")) if one.is_file()]
        names = [f"{one.relative_to(found).as_posix()} {_file_digest(one)}" for one in inside]
        return _digest("\n".join(names).encode())
    return _file_digest(found) if found.is_file() else None


def _file_digest(path: Path) -> str:
    return _digest_once(path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1024)
def _digest_once(path: Path, _: tuple[int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
