"""One point's answer: a forecast's figures without those of the clock on the wall, or its error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.forecast.latency_source import Composer
from scenarios.forecast.requests import draw_workload
from scenarios.schema.engine import Engine
from scenarios.schema.scenario import Scenario
from scenarios.schema.workload import Workload as WorkloadSection
from sim.latency.table_data import LatencyTable
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec
from sim.workload import Workload

# Of this run on this machine, not of the deployment; or no figure.
_LEFT_OUT = {"wall_s", "simulated_requests_per_s", "mode", "warnings", "verdict"}


@dataclass(frozen=True, slots=True)
class Task:
    """A point to be answered, wherever that is done."""

    key: str
    scenario: Scenario
    origin: Path
    compose: Composer | None = None


def answer(task: Task) -> str:
    """The answer as JSON text: ``metrics`` and ``warnings``, or an ``error``.

    An error that may not come again (memory, files) is marked ``passing``.
    """
    found: dict[str, Any]
    try:
        composed = None if task.compose is None else _shared_tables(task.compose)
        run = forecast(task.scenario, origin=task.origin, compose=composed, draw=_shared_draw)
        found = {"metrics": dict(flat(run.summary)), "warnings": run.summary["warnings"]}
    except InputError as error:
        found = {"error": str(error).removeprefix(f"{task.origin}: ")}
    except (MemoryError, OSError) as error:
        found = {"error": f"{type(error).__name__}: {error}", "passing": True}
    except Exception as error:  # a point that fails must not stop the others
        found = {"error": f"{type(error).__name__}: {error}".rstrip(": ")}
    return json.dumps(found)


def failure(reason: str) -> str:
    """The answer of a point that nobody could answer; it is asked again next time."""
    return json.dumps({"error": reason, "passing": True})


def flat(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers of a summary by name, nested ones joined by dots; None where there is none."""
    for name, value in summary.items():
        if name in _LEFT_OUT and not prefix:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float) or (value is None and not prefix):
            yield f"{prefix}{name}", value


# -- what points have in common -----------------------------------------------------------------


def _shared_draw(workload: WorkloadSection, engine: Engine, beside: Path | None) -> Workload:
    """`draw_workload`, once for all points of a process that ask for the same requests."""
    return _drawn(workload.model_dump_json(), engine.enable_prefix_caching, beside)


@lru_cache(maxsize=32)
def _drawn(workload_json: str, enable_prefix_caching: bool, beside: Path | None) -> Workload:
    # Whatever else of the engine were looked at would be an AttributeError, not a stale answer.
    engine = cast(Engine, SimpleNamespace(enable_prefix_caching=enable_prefix_caching))
    # From Python's values, not from JSON: strict fields tell the two apart.
    workload = WorkloadSection.model_validate(json.loads(workload_json))
    return draw_workload(workload, engine, beside)


@lru_cache(maxsize=1)
def _shared_tables(compose: Composer) -> Composer:
    """`compose`, once for all points with the same model, hardware and latency source."""
    tables: dict[str, LatencyTable | None] = {}

    def composed(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> LatencyTable | None:
        parts = scenario.model_dump(mode="json", include={"hardware", "latency"})
        key = json.dumps([parts, scenario.engine.kv_cache_dtype, repr(model), gpu.name])
        if key not in tables:
            tables[key] = compose(scenario, model, gpu)
        return tables[key]

    return composed
