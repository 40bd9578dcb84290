"""Ask a scenario's question: simulate it, and say what the answer rests on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.deployment import Composer, Deployment, deploy
from scenarios.errors import InputError
from scenarios.schema import Scenario
from sim.latency.protocol import LatencyModel
from sim.metrics import summarize
from sim.records import Records
from sim.simulation import simulate


@dataclass(frozen=True, slots=True)
class Forecast:
    """A finished simulation: its records, their summary, and the scenario as it was resolved."""

    deployment: Deployment
    records: Records
    summary: dict[str, Any]

    @property
    def scenario(self) -> dict[str, Any]:
        """The resolved scenario, defaults included, as plain YAML-ready data."""
        return self.deployment.scenario.model_dump(mode="json")


def forecast(
    scenario: Scenario,
    *,
    origin: Path | None = None,
    compose: Composer | None = None,
    leap: bool = True,
    check: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Forecast:
    """Simulate `scenario`; `progress` is told how many of all requests have ended.

    Raises InputError for a scenario that cannot be simulated.
    """
    started_s = time.perf_counter()
    deployment = deploy(scenario, origin=origin, compose=compose)
    workload = deployment.workload
    total = len(workload)
    records = simulate(
        workload,
        deployment.config,
        deployment.latency,
        scheduler=scenario.engine.scheduler,
        num_blocks=deployment.memory.num_gpu_blocks,
        replicas=scenario.cluster.replicas,
        leap=leap,
        check=check,
        progress=None if progress is None else lambda ended: progress(ended, total),
    )
    if records.requests["rejected"].all():
        raise InputError(_nothing_fits(deployment, origin))
    if workload.request_ids is not None:
        # Half a surrogate pair, which JSON can hold, is no text that could be written to a file.
        ids = np.array(
            [name.encode("utf-8", "replace").decode("utf-8") for name in workload.request_ids]
        )
        records.requests["request_id"] = ids[records.requests["request"]]
    if workload.labels is not None:
        classes = np.array([name.encode("utf-8", "replace").decode() for name in workload.labels])
        records.requests["request_class"] = classes[records.requests["request"]]
    summary = summarize(records, deployment.slo)
    wall_s = time.perf_counter() - started_s
    summary |= {
        "simulated_requests_per_s": total / wall_s,
        "wall_s": wall_s,
        "mode": "leap" if leap else "step",
        "num_gpu_blocks": deployment.memory.num_gpu_blocks,
        "latency": {
            "source": scenario.latency.source,
            "measured": deployment.latency.measured,
            "label": deployment.latency.label,
            "host_overhead": _host_overhead(deployment.latency),
        },
        "time_parts_s": {
            part: float(seconds.sum())
            for part, seconds in deployment.latency.parts_s(records.iterations).items()
        },
        "memory_bytes": _memory_bytes(deployment),
    }
    summary["warnings"] = _warnings(deployment, summary)
    return Forecast(deployment, records, summary)


def _host_overhead(latency: LatencyModel) -> str | None:
    """Host time per iteration in words, so that it is never taken for granted."""
    host = getattr(latency, "host", None)
    if host is None:
        return None
    return (
        f"{host.per_iteration_s * 1e6:g} µs per iteration and {host.per_sequence_s * 1e6:g} µs "
        f"per sequence, {host.source}"
    )


def _memory_bytes(deployment: Deployment) -> dict[str, int]:
    memory = deployment.memory
    return {
        "usable": memory.usable_bytes,
        "weights": memory.weight_bytes,
        "activations": memory.activation_bytes,
        "reserve": memory.reserve_bytes,
        "kv_cache": memory.num_gpu_blocks * memory.bytes_per_block,
    }


def _nothing_fits(deployment: Deployment, origin: Path | None) -> str:
    workload, memory, config = deployment.workload, deployment.memory, deployment.config
    smallest = int((workload.prompt_tokens + workload.output_tokens).argmin())
    lengths = (workload.prompt_tokens, workload.max_tokens, workload.output_tokens)
    prompt, limit, output = (int(column[smallest]) for column in lengths)
    needs = f"needs {prompt + output} tokens"
    if deployment.scenario.engine.scheduler in ("static", "dynamic", "orca"):
        needs = f"has {config.reserved_tokens(prompt, limit, output)} tokens reserved"
    return (
        f"{origin or 'scenario'}: workload: no request can be served: the smallest {needs}, "
        f"the KV cache holds {memory.slots} and max_model_len is "
        f"{config.max_model_len}; raise engine.gpu_memory_utilization or "
        "engine.num_gpu_blocks_override, use more GPUs, or shorten the requests"
    )


def _warnings(deployment: Deployment, summary: dict[str, Any]) -> list[str]:
    warnings = list(deployment.notes)
    if summary["rejected"]:
        warnings.append(
            f"{summary['rejected']} requests were rejected: each is larger than the KV cache "
            f"({deployment.memory.slots} tokens, as the policy reserves them) or than "
            f"max_model_len ({deployment.config.max_model_len})"
        )
    if summary["extrapolated_share"] > 0.5:
        warnings.append(
            f"{summary['extrapolated_share']:.0%} of the time lies outside the measured range"
        )
    return warnings
