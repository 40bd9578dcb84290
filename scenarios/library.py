"""The library: scenarios, models and GPUs that can be named instead of described."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from scenarios.errors import InputError, did_you_mean
from sim.model.config import read_config
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

ROOT = Path(__file__).parent
GPUS_FILE = ROOT / "gpus.yaml"
NOT_SCENARIOS = {"models", "sizing"}  # folders
DEEPEST = 100  # levels of a file that is blamed for something else


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that also reads 1e-3 as the number it is, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


class PlainNumberError(yaml.constructor.ConstructorError):
    """A number that YAML 1.1 reads otherwise than people do."""


def _plain_number(loader: Loader, node: yaml.ScalarNode) -> int | float:
    """YAML 1.1 reads 010 as eight and 1:30 as ninety; nobody who writes them means that."""
    if ":" in node.value or re.match(r"[-+]?0_?\d", node.value):
        raise PlainNumberError(
            None,
            None,
            f"{node.value} is read in base 8 or 60: write a plain number, or put it in quotes",
            node.start_mark,
        )
    if node.tag.endswith(":int"):
        return int(loader.construct_yaml_int(node))
    return float(loader.construct_yaml_float(node))


for kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _plain_number)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file safely; InputError with line and column where it is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = _too_deep(text)
        problem = f"nested more than {DEEPEST} levels deep: close open brackets, or indent less"
        if mark is None:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            problem = getattr(error, "problem", None) or "cannot be parsed"
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {problem}") from None
    except ValueError as error:  # a date such as 2024-13-01, a number too long
        raise InputError(f"{path}: not valid YAML: {error}") from None


def _too_deep(text: str) -> Any:
    """The mark where a text that cannot be read goes too deep; None if its error is another.

    PyYAML's and libyaml's parsers give up at depths and with words of their own. PyYAML's tells one
    level after the other, without a limit; libyaml's looks a thousand brackets ahead.
    """
    depth = 0
    with suppress(yaml.YAMLError):
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                return event.start_mark
    return None


def scenario_names() -> list[str]:
    """Scenarios that can be named; those of a folder as ``validation/tiny-cpu``."""
    return sorted(_scenarios())


def scenario_path(name: str) -> Path:
    """The file of a scenario given by path or by library name."""
    given = Path(name)
    library = _scenarios()
    if given.is_file():
        return given
    if name in library:  # before a folder of that name, which may hold its runs
        return library[name]
    if given.exists():
        raise InputError(f"{name}: a folder, expected a scenario file")
    folders = {PurePosixPath(one).parent.as_posix() for one in library}
    plain = name.removesuffix(".yaml")
    meant = plain if PurePosixPath(plain).parent.as_posix() in folders else given.stem
    raise InputError(f"{name}: no such scenario file; {did_you_mean(meant, library)}")


def _scenarios() -> dict[str, Path]:
    """Files of the library's scenarios by name; models, GPUs and sizings are none."""
    files = [path for path in ROOT.glob("*.yaml") if path != GPUS_FILE]
    files += [path for path in ROOT.glob("*/*.yaml") if path.parent.name not in NOT_SCENARIOS]
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(files)}


def gpus() -> dict[str, Any]:
    """Figures of every GPU by name, as written in gpus.yaml."""
    figures: dict[str, Any] = read_yaml(GPUS_FILE)
    return figures


def gpu(name: str) -> Gpu:
    """A GPU of the library."""
    known = gpus()
    if name not in known:
        raise InputError(f"unknown GPU {name!r}; {did_you_mean(name, known)}")
    return Gpu.from_mapping(known[name], name=name)


def model_names() -> list[str]:
    """Models that can be named."""
    return sorted(path.stem for path in (ROOT / "models").glob("*.json"))


def model(name: str, *, beside: Path | None = None) -> ModelSpec:
    """A model by library name, or from a Hugging Face ``config.json`` or the folder it lies in.

    A relative path is looked up in the current folder, then in `beside`.
    """
    path = model_path(name, beside=beside)
    config = model_config(path)
    beside_it = path.with_name("hf_quant_config.json")
    quantised = None
    if path.name == "config.json" and beside_it.is_file():
        quantised = model_config(beside_it)
    try:
        return read_config(config, name=model_name(path), quantised=quantised)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def model_path(name: str, *, beside: Path | None = None) -> Path:
    """The file that describes a model given by library name or path."""
    names = model_names()
    if name in names:
        return ROOT / "models" / f"{name}.json"
    path = find_file(name, beside=beside)
    if path is not None and path.is_dir():
        path = path / "config.json"
    if path is None or not path.is_file():
        raise InputError(
            f"unknown model {name!r}, nor is it a file; {did_you_mean(name, names)} "
            "or the path of a Hugging Face config.json"
        )
    return path


def model_name(path: Path) -> str:
    """What to call the model that `path` describes: its file, or the folder of a config.json."""
    label = path.parent.name if path.name == "config.json" else path.stem
    return label or path.stem


def model_config(path: Path) -> dict[str, Any]:
    """A model's Hugging Face config as it is in the file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise InputError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise InputError(f"{path}: a JSON {kind}, expected a model's config object")
    return config


def find_file(name: str, *, beside: Path | None) -> Path | None:
    """`name` relative to the current folder or else to `beside`; None if neither exists."""
    for base in (Path(), *([] if beside is None else [beside])):
        if (base / name).exists():
            return base / name
    return None
