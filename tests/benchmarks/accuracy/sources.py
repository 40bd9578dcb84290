"""The latency sources that are compared, and a forecast under each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcast.composed import compose
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.schema.load import parse_scenario
from scenarios.schema.scenario import Scenario
from sim.latency.table_data import LatencyTable
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

SOURCES = ("auto", "roofline")

_tables: dict[Any, LatencyTable | None] = {}


def latency(source: str, *, backend: str | None = None) -> dict[str, Any]:
    """A scenario's section ``latency``; `backend` is the engine whose kernels ran, where known."""
    measured = {} if source == "roofline" or backend is None else {"backend": backend}
    return {"source": source, **measured}


def forecast_of(content: Mapping[str, Any]) -> Forecast:
    """The forecast of a scenario given as plain data. Raises InputError."""
    scenario = parse_scenario(dict(content), origin=str(content["name"]))
    return forecast(scenario, compose=_composed)


def _composed(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> LatencyTable | None:
    """Tables are composed once for all loads that a deployment is measured under."""
    key = (
        scenario.latency.model_dump_json(exclude={"host_overhead"}),
        scenario.hardware.model_dump_json(),
        scenario.engine.kv_cache_dtype,
        model,
        gpu.name,
    )
    if key not in _tables:
        _tables[key] = compose(scenario, model, gpu)
    return _tables[key]
