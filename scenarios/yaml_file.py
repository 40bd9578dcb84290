"""YAML as scenarios are written: plain numbers, no key twice, errors with line and column."""

from __future__ import annotations

import errno
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from scenarios.errors import InputError
from sim import plain_file

DEEPEST = 100  # levels of a file that is blamed for something else
LARGEST = 50_000_000  # bytes
_LOOKED_AT = 500_000  # characters, in search of what goes too deep: a few seconds of PyYAML's


_PLAIN: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that also reads 1e-3 as the number it is, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
            seen.add(key)
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
        text = plain_file.read_text(path, most_bytes=LARGEST)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    return parse_yaml(text, path)


def read_yaml_input(path: Path) -> Any:
    """The same of standard input, which errors call `path`."""
    binary = getattr(sys.stdin, "buffer", None)
    try:
        given = sys.stdin.read(LARGEST + 1) if binary is None else binary.read(LARGEST + 1)
        text = given if isinstance(given, str) else given.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text in UTF-8") from None
    if len(given) > LARGEST:
        raise InputError(f"{path}: more than {LARGEST / 1e6:g} MB")
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> Any:
    """The same of a text that came from `path`."""
    try:
        return load_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = _too_deep(text)
        problem = f"nested more than {DEEPEST} levels deep: close open brackets, or indent less"
        if mark is None:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            problem = getattr(error, "problem", None) or "cannot be parsed"
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {problem}") from None
    except ValueError as error:  # a date such as 2024-13-01, a number too long
        raise InputError(f"{path}: not valid YAML: {str(error)[:200]}") from None


def load_yaml(text: str) -> Any:
    """Python values of a YAML text. Raises yaml.YAMLError, RecursionError or ValueError."""
    return plain_file.load_yaml(text, Loader)


def load_result(path: Path) -> Any:
    """The content of a YAML file of a folder of results, as other programs read YAML.

    Raises yaml.YAMLError, RecursionError, ValueError or OSError.
    """
    return plain_file.load_yaml(plain_file.read_text(path), _PLAIN)


def _too_deep(text: str) -> Any:
    """The mark where a text that cannot be read goes too deep; None if its error is another.

    PyYAML's and libyaml's parsers give up at depths and with words of their own. PyYAML's tells one
    level after the other, without a limit; libyaml's looks a thousand brackets ahead.
    """
    depth = 0
    with suppress(yaml.YAMLError):
        for event in yaml.parse(text[:_LOOKED_AT], yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                return event.start_mark
    return None


def find_file(name: str, *, beside: Path | None) -> Path | None:
    """`name` relative to the current folder or else to `beside`; None if neither exists."""
    for base in (Path(), *([] if beside is None else [beside])):
        try:
            if (base / name).exists():
                return base / name
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # no file has such a name
                raise
    return None
