"""Values that nobody thought of, and scenarios drawn from the schema itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from random import Random
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from scenarios.schema.scenario import Scenario

TEXTS = (
    *("", " ", "\x00", "a\x00b", "\n", "a\nb", "é", "日本語", "\U0001f600", "\u202e", "\x1b[31m"),
    *("null", "~", "true", "1e400", "-0", ".inf", ".nan", "0x10", "1:30", "2024-13-01", "{", "]"),
    *("..", ".", "/", "/dev/null", "/etc/passwd", "../" * 20, "a" * 300, "x" * 5000, "%s%n"),
    *("<script>alert(1)</script>", "'; --", "{0}", "${HOME}", "=1+1", "*a", "&a", "a.b[0]"),
    *("1..5", "1..1e9:+1", "0..1:x2", "1..9:log", "auto", "all", "-", "--set", "[bold]", "[/x]"),
)
NUMBERS: tuple[int | float, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63)),
    *(10**18, 10**30, 10**400, 1e-9, 1e-30, 5e-324, 0.1, 0.5, 0.999, 1.0, 1.5, 1e3, 1e9, 1e15),
    *(1e30, 1.7e308, math.inf, -math.inf, math.nan, -0.0),
)


def odd(rng: Random, depth: int = 0) -> Any:
    """Any value that YAML or JSON can hold."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD7FF)))) for _ in "abc")
    if kind == 7:
        return [odd(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 5, 200)))]
    if kind == 8:
        return {str(rng.choice(TEXTS)): odd(rng, depth + 1) for _ in range(rng.randrange(4))}
    nested: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((1, 5, 50, 200))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def valid(annotation: Any, rng: Random, limits: tuple[Any, ...] = ()) -> Any:
    """A value of an annotated type, most often at or near a bound; sections key by key."""
    if hasattr(annotation, "__metadata__"):
        found = [
            bound
            for one in annotation.__metadata__
            for bound in (one, *getattr(one, "metadata", ()))
            if isinstance(bound, Ge | Gt | Le | Lt)
        ]
        return valid(annotation.__origin__, rng, (*limits, *found))
    if get_origin(annotation) is Literal:
        return rng.choice(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {
            name: valid(field.annotation, rng, tuple(field.metadata))
            for name, field in annotation.model_fields.items()
            if field.is_required() or rng.random() < 0.25
        }
    if annotation in (int, float):
        return _number(annotation, rng, limits)
    plain = {str: TEXTS, bool: (True, False), type(None): (None,)}
    if annotation in plain:
        return rng.choice(plain[annotation])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple) and inner:
        return [valid(inner[0], rng) for _ in range(rng.choice((0, 1, 2, 3)))]
    if origin is dict:
        keys = [rng.choice(("a", "b", *TEXTS)) for _ in range(rng.randrange(3))]
        return {key: valid(inner[1], rng) for key in keys}
    return valid(rng.choice(inner), rng, limits) if inner else odd(rng)


def _number(kind: type, rng: Random, limits: tuple[Any, ...]) -> int | float:
    lows = [one.ge for one in limits if isinstance(one, Ge)]
    lows += [one.gt for one in limits if isinstance(one, Gt)]
    highs = [one.le for one in limits if isinstance(one, Le)]
    highs += [one.lt for one in limits if isinstance(one, Lt)]
    low: Any = max(lows, default=0)
    high: Any = min(highs, default=1e6)
    tried = rng.choice((low, low + 1, high, 10 ** rng.uniform(-6, 12), rng.randrange(1, 64)))
    within = min(max(tried, low), high)
    return int(within) if kind is int else float(within)


def paths(model: type[BaseModel] = Scenario, at: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of the schema: its path, its annotation, its bounds."""
    for name, field in model.model_fields.items():
        yield (*at, name), field.annotation, tuple(field.metadata)
        for option in (field.annotation, *get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel) and len(at) < 5:
                yield from paths(option, (*at, name))


PATHS = tuple(paths())


def setting(rng: Random) -> tuple[tuple[str, ...], Any]:
    """A field of the schema and a value for it, of its type or of any."""
    path, annotation, limits = rng.choice(PATHS)
    return path, valid(annotation, rng, limits) if rng.random() < 0.7 else odd(rng)


def mutated(content: Any, rng: Random) -> Any:
    """`content` with one value somewhere inside changed, taken away, doubled or renamed."""
    content = copy.deepcopy(content)
    holder, key = None, None
    inner = content
    while isinstance(inner, dict | list) and inner and (holder is None or rng.random() < 0.8):
        holder = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        inner = holder[key]
    if holder is None:
        return odd(rng)
    how = rng.randrange(6)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[str(rng.choice(TEXTS))] = holder.pop(key)
    elif how == 2 and isinstance(inner, int | float) and not isinstance(inner, bool):
        changed = (-inner, inner * 10**6, inner * 10**9, str(inner), [inner], inner % 7 / 3)
        holder[key] = rng.choice(changed)
    else:
        holder[key] = odd(rng)
    return content
