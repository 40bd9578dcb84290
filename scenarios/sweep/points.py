"""The points of a sweep: every setting of its axes, once for each seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import InputError
from scenarios.schema.load import (
    apply_overrides,
    forget_replaced_source,
    parse_scenario,
    parse_sweep,
    read_content,
    set_value,
)
from scenarios.schema.paths import is_inside, keys_of
from scenarios.schema.scenario import Scenario
from scenarios.schema.sweep import Sweep
from scenarios.sweep.axes import SAME, Axis, axes_from_mapping, merged

MOST_POINTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Point:
    """One run: the setting it belongs to, its seed, and its scenario; or why it has none."""

    setting: int
    values: dict[str, Any]  # by path of the axes
    seed: int
    scenario: Scenario | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """What a sweep asks: the scenario it varies, and all its points in the order of the table."""

    name: str
    description: str
    origin: Path
    content: dict[str, Any]  # the scenario as it was given, with its overrides
    section: Sweep
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]

    @property
    def scenario(self) -> Scenario:
        """The scenario of the first point that has one."""
        found = next(point.scenario for point in self.points if point.scenario is not None)
        assert found is not None
        return found


def load_study(name: str, overrides: Iterable[str] = (), axes: Iterable[Axis] = ()) -> Study:
    """Read a scenario with its sweep section; `axes` take the place of its own, or add to them.

    Raises InputError before anything runs: for what no point can be made of, an axis that does not
    exist, or a scenario that is refused at every point.
    """
    content, path = read_content(name)
    axes = list(axes)
    overridden = apply_overrides(content, overrides)
    section = parse_sweep(content, origin=str(path), overridden=overridden)
    content.pop("sweep", None)
    own = axes_from_mapping(section.axes, source=f"{path}: sweep.axes")
    every = merged(merged([], own, source=f"{path}: sweep.axes"), axes, source=f"{path}: sweep")
    if not every:
        raise InputError(
            f"{path}: no axes; add a section sweep, or e.g. --axis engine.max_num_seqs=16..256:x2"
        )
    _check_overrides(overridden, every)
    workload = content.get("workload")
    first = workload.get("seed", 0) if isinstance(workload, dict) else 0
    seeds = section.seeds_from(first if isinstance(first, int) and first >= 0 else 0)
    settings = _settings(every, section)
    if len(settings) * len(seeds) > MOST_POINTS:
        raise InputError(
            f"{path}: {len(settings):,} settings x {len(seeds)} seeds are more than "
            f"{MOST_POINTS:,} points; take fewer values, or sampling latin_hypercube"
        )
    points = tuple(_points(content, every, settings, seeds, str(path), overridden))
    if all(point.scenario is None for point in points):
        raise InputError(_blamed(points[0].refusal, axes, path))
    return Study(
        name=str(content.get("name")),
        description=str(content.get("description") or ""),
        origin=path,
        content=content,
        section=section,
        axes=tuple(every),
        seeds=seeds,
        points=points,
    )


def _blamed(refusal: str, axes: Iterable[Axis], file: Path) -> str:
    """A refusal with who gave what is wrong: ``--axis`` where an axis set it, or the file."""
    if refusal.startswith("--"):
        return refusal
    given = [path for axis in axes for path in axis.paths]
    if any(is_inside(refusal.partition(": ")[0], path) for path in given):
        return f"--axis {refusal}"
    return f"{file}: {refusal}"


def _check_overrides(overridden: Iterable[str], axes: Iterable[Axis]) -> None:
    for path in overridden:
        for axis in axes:
            for theirs in axis.paths:
                if is_inside(path, theirs):
                    raise InputError(
                        f"--set {path}: {theirs} is an axis, which gives it its values"
                    )


def _settings(axes: list[Axis], section: Sweep) -> list[tuple[tuple[Any, ...], ...]]:
    """A level of every axis, for each setting."""
    if section.sampling == "latin_hypercube":
        assert section.points is not None
        rng = np.random.default_rng(section.sampling_seed)
        shares = latin_hypercube(rng, section.points, len(axes))
        drawn = [tuple(a.drawn(s) for a, s in zip(axes, row, strict=True)) for row in shares]
        unique = {json.dumps(setting, sort_keys=True, default=str): setting for setting in drawn}
        return list(unique.values())
    for axis in axes:
        if axis.span is not None and not axis.span.is_listed:
            raise InputError(f"sweep: {axis.name}: {axis.span.must_say_how_many}")
    number = 1
    for axis in axes:
        number *= len(axis.levels)
    if number > MOST_POINTS:
        raise InputError(
            f"sweep: {number:,} combinations are more than {MOST_POINTS:,}; take fewer values, "
            "or sampling latin_hypercube"
        )
    return list(product(*(axis.levels for axis in axes)))


def latin_hypercube(rng: np.random.Generator, points: int, axes: int) -> list[list[float]]:
    """`points` rows of `axes` shares in [0, 1): each axis has one point in each of its `points`
    equal parts (McKay, Beckman and Conover, Technometrics 21, 1979)."""
    columns = [(rng.permutation(points) + rng.random(points)) / points for _ in range(axes)]
    shares: list[list[float]] = np.column_stack(columns).tolist()
    return shares


def _points(
    content: dict[str, Any],
    axes: list[Axis],
    settings: list[tuple[tuple[Any, ...], ...]],
    seeds: tuple[int, ...],
    origin: str,
    overridden: set[str],
) -> Iterator[Point]:
    for number, setting in enumerate(settings):
        values = {
            path: value
            for axis, level in zip(axes, setting, strict=True)
            for path, value in zip(axis.paths, level, strict=True)
        }
        changed = {path: value for path, value in values.items() if value != SAME}
        for seed in seeds:
            own = copy.deepcopy(content)
            try:
                for path, value in changed.items():
                    set_value(own, keys_of(path), value, source=f"--axis {path}")
                set_value(own, ("workload", "seed"), seed, source="sweep.seeds")
                forget_replaced_source(own, {*overridden, *changed})
                scenario = parse_scenario(own, origin=origin, overridden=overridden)
            except InputError as error:
                why = str(error).removeprefix(f"{origin}: ")
                yield Point(number, values, seed, None, refusal=why)
            else:
                yield Point(number, values, seed, scenario)
