"""The latency sources that are compared, and a forecast under each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from orcast.composed import compose
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.schema.latency import Latency
from scenarios.schema.load import parse_scenario
from scenarios.schema.scenario import Scenario
from sim.latency.table_data import LatencyTable
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

# `aiconfigurator` has no default for the host: hidden where vLLM decides an iteration ahead, about
# 1.8 ms an iteration where it does not. The other sources are asked with nothing but their names.
HIDDEN_HOST_US = 400
SYNCHRONOUS_HOST_US = 1800

_tables: dict[Any, LatencyTable] = {}


def known_sources() -> tuple[str, ...]:
    """The measured source that scenarios default to, and the analytic one."""
    known = get_args(Latency.model_fields["source"].annotation)
    return ("auto" if "auto" in known else "aiconfigurator"), "roofline"


def latency(
    source: str, *, backend: str | None = None, asynchronous: bool = True
) -> dict[str, Any]:
    """A scenario's section ``latency``; `backend` is the engine whose kernels ran, where known."""
    section: dict[str, Any] = {"source": source}
    if source == "aiconfigurator":
        host_us = HIDDEN_HOST_US if asynchronous else SYNCHRONOUS_HOST_US
        section["host_overhead"] = {"per_iteration_us": host_us}
    if source != "roofline" and backend is not None:
        section["backend"] = backend
    return section


def forecast_of(content: Mapping[str, Any]) -> Forecast:
    """The forecast of a scenario given as plain data. Raises InputError."""
    scenario = parse_scenario(dict(content), origin=str(content["name"]))
    return forecast(scenario, compose=_composed)


def _composed(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> LatencyTable:
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
