"""The library's models: by name, by Hugging Face id, or from a configuration of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from scenarios.errors import InputError, did_you_mean, reading
from scenarios.yaml_file import LARGEST, find_file, read_yaml
from sim import plain_file
from sim.model.config import read_config
from sim.model.spec import ModelSpec, Sampling

FOLDER = Path(__file__).parent / "models"
IDS_FILE = FOLDER / "ids.yaml"
TRUNCATED_FILE = FOLDER / "truncated.yaml"


def model_names() -> list[str]:
    """Models that can be named; each also goes by its ids."""
    return list(_names_in(FOLDER, FOLDER.stat().st_mtime_ns))


@lru_cache(maxsize=1)  # a sweep asks at every point
def _names_in(folder: Path, _: int) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


@cache
def model_ids() -> dict[str, str]:
    """Names by Hugging Face id (in lower case), and by other names that people use."""
    found: dict[str, str] = read_yaml(IDS_FILE)
    return {given.lower(): name for given, name in found.items()}


def is_model(name: str) -> bool:
    """Whether a model goes by this name or id."""
    return name in model_names() or name.lower() in model_ids()


def model(name: str, *, beside: Path | None = None) -> ModelSpec:
    """A model by library name, or from a Hugging Face ``config.json`` or the folder it lies in.

    A relative path is looked up in the current folder, then in `beside`.
    """
    path = model_path(name, beside=beside)
    beside_it = path.with_name("hf_quant_config.json")
    if path.name == "config.json" and beside_it.is_file():
        found = _read(path, _text(path), beside_it, _text(beside_it))
    else:
        found = _read(path, _text(path))
    return replace(found, sampling=_sampling(path))


@lru_cache(maxsize=64)  # a plan asks for one model at every point
def _read(
    path: Path, text: str, beside_it: Path | None = None, quantised: str | None = None
) -> ModelSpec:
    """The model that a file of this text describes, with ModelOpt's file beside it."""
    config = _parsed(path, text)
    parsed = None if beside_it is None or quantised is None else _parsed(beside_it, quantised)
    with reading(path):
        return read_config(config, name=model_name(path), quantised=parsed)


def _sampling(path: Path) -> Sampling:
    """How a model's tokens are chosen where requests do not say, as `generation_config.json` has.

    vLLM takes a temperature below 1e-5 for greedy, a top-k above 0 or a top-p below 1 for a filter.
    """
    if path.parent == FOLDER:
        return "truncated" if path.stem in _truncated() else "random"
    beside_it = path.with_name("generation_config.json")
    if path.name != "config.json" or not beside_it.is_file():
        return "random"
    asked = model_config(beside_it)
    numbers = {
        name: asked[name]
        for name in ("temperature", "top_k", "top_p")
        if isinstance(asked.get(name), int | float)
    }
    if numbers.get("temperature", 1.0) < 1e-5:
        return "greedy"
    filters = numbers.get("top_k", 0) > 0 or numbers.get("top_p", 1.0) < 1.0
    return "truncated" if filters else "random"


@cache
def _truncated() -> frozenset[str]:
    return frozenset(read_yaml(TRUNCATED_FILE))


def model_path(name: str, *, beside: Path | None = None) -> Path:
    """The file that describes a model given by library name, Hugging Face id or path.

    A folder of that id in the current one comes before the library's.
    """
    names = model_names()
    if name in names:
        return FOLDER / f"{name}.json"
    path = find_file(name, beside=beside)
    known = model_ids().get(name.lower(), name.lower())
    if path is None and known in names:
        return FOLDER / f"{known}.json"
    if path is not None and path.is_dir():
        path = path / "config.json"
    if path is None or not path.is_file():
        raise InputError(
            f"unknown model {name!r}, nor is it a file; {_meant(name, names)} "
            "or the path of a Hugging Face config.json"
        )
    return path


def model_name(path: Path) -> str:
    """What to call the model that `path` describes: its file, or the folder of a config.json."""
    label = path.parent.name if path.name == "config.json" else path.stem
    return label or path.stem


def model_config(path: Path) -> dict[str, Any]:
    """A model's Hugging Face config as it is in the file."""
    return _parsed(path, _text(path))


def _text(path: Path) -> str:
    try:
        return plain_file.read_text(path, most_bytes=LARGEST)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise InputError(f"{path}: a JSON {kind}, expected a model's config object")
    return config


def _meant(name: str, names: list[str]) -> str:
    """The nearest name, told by id where an id was asked for."""
    if "/" in name:
        close = get_close_matches(name.lower(), model_ids(), n=1, cutoff=0.6)
        if close:
            return f"did you mean {close[0]!r}? (ids of the library's models)"
    return did_you_mean(name, names)
