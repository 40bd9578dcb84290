"""Latency tables that a scenario asks for by its model and GPU: composed once, kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarios.schema.scenario import Scenario
    from sim.latency.table_data import LatencyTable
    from sim.model.hardware import Gpu
    from sim.model.spec import ModelSpec


def compose(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> LatencyTable | None:
    """The table that a scenario with latency source ``auto`` or ``aiconfigurator`` asks for.

    None where ``auto`` finds nothing measured. Composed once, and kept on disk.
    """
    from calibrate.profiles.kernel_tables import package_version
    from calibrate.tables.kept_tables import kept_table

    latency, degree = scenario.latency, scenario.hardware.tensor_parallel
    described = {
        "source": latency.source,
        "package": package_version(),
        "model": repr(model),
        "gpu": repr(gpu),
        "tensor_parallel": str(degree),
        "expert_ranks": str(_expert_ranks(scenario)),
        "kv_cache_dtype": scenario.engine.kv_cache_dtype,
        "backend": str(latency.backend),
        "version": str(latency.version),
    }
    return kept_table(described, lambda: _composed(scenario, model, gpu))


def _composed(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> LatencyTable | None:
    from calibrate.profiles.aiconfigurator import import_aiconfigurator, measured_or_analytic
    from sim.latency.table_folder import table_of

    latency = scenario.latency
    given: dict[str, Any] = {
        "version": latency.version,
        "tensor_parallel": scenario.hardware.tensor_parallel,
        "expert_ranks": _expert_ranks(scenario),
        "kv_cache_dtype": scenario.engine.kv_cache_dtype,
    }
    if latency.source == "aiconfigurator":
        backend = latency.backend or "vllm"
        return table_of(*import_aiconfigurator(gpu.name, model, backend=backend, **given))
    found = measured_or_analytic(gpu, model, backend=latency.backend, **given)
    return None if found is None else table_of(*found)


def _expert_ranks(scenario: Scenario) -> int:
    """GPUs of data-parallel ranks that share a mixture's experts out."""
    hardware = scenario.hardware
    return hardware.expert_parallel if hardware.data_parallel > 1 else 1
