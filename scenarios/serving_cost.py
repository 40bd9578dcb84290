"""What a model costs to serve: dollars a million tokens on a GPU kept busy.

A forecast with work always waiting: all requests arrive at once, and the rate is taken over the
time from the first request's end to the last one's start in a batch, when as many run as fit.
That is the price floor of a deployment; meeting a latency objective, or idle nights, cost more.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios import library
from scenarios.deployment import Composer
from scenarios.errors import InputError
from scenarios.forecast import forecast
from scenarios.load import parse_scenario
from scenarios.sizing_schema import Serving
from sim.memory import memory_budget
from sim.model_spec import ModelSpec

REQUESTS_PER_SEQUENCE = 8  # requests for each row of the batch: rates within 2 % of 32 a row


@dataclass(frozen=True, slots=True)
class ServingCost:
    """A deployment under saturation; tokens are prompts and outputs together."""

    gpu: str
    tensor_parallel: int
    usd_per_hour: float
    requests_per_s: float
    tokens_per_s: float
    output_tokens_per_s: float
    median_tpot_ms: float
    mean_running: float
    kv_cache_tokens: int
    weight_bytes: int  # on each GPU
    measured: bool
    warnings: tuple[str, ...]

    @property
    def usd_per_million_tokens(self) -> float:
        return self.usd_per_hour / 3600 / self.tokens_per_s * 1e6

    @property
    def usd_per_million_output_tokens(self) -> float:
        return self.usd_per_hour / 3600 / self.output_tokens_per_s * 1e6

    @property
    def tokens_per_gpu_s(self) -> float:
        return self.tokens_per_s / self.tensor_parallel


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A deployment that cannot be, and why: it does not fit, or is too slow."""

    gpu: str
    tensor_parallel: int
    reason: str


def serving_cost(
    config: Mapping[str, Any],
    serving: Serving,
    *,
    name: str,
    compose: Composer | None = None,
    origin: Path | None = None,
) -> list[ServingCost | RuledOut]:
    """Every candidate deployment of the model described by a Hugging Face `config`.

    One entry for each GPU type and tensor-parallel degree tried; cheapest first, those ruled out
    last. Raises InputError for a GPU or setting that does not exist.
    """
    tried: list[ServingCost | RuledOut] = []
    # A scenario names its model by file.
    with tempfile.TemporaryDirectory(prefix="orcast-size-") as folder:
        file = Path(folder) / f"{name}.json"
        file.write_text(json.dumps(dict(config)), encoding="utf-8")
        model = library.model(str(file))
        for gpu in serving.gpus:
            tried += _on(gpu, model, file, serving, compose=compose, origin=origin)
    return sorted(
        tried,
        key=lambda one: one.usd_per_million_tokens if isinstance(one, ServingCost) else np.inf,
    )


def cheapest(tried: list[ServingCost | RuledOut]) -> ServingCost | None:
    """The first deployment that can be; None where none can."""
    return next((one for one in tried if isinstance(one, ServingCost)), None)


def _on(
    gpu: str,
    model: ModelSpec,
    file: Path,
    serving: Serving,
    *,
    compose: Composer | None,
    origin: Path | None,
) -> Iterator[ServingCost | RuledOut]:
    """The two smallest degrees that hold the model; where none does, why the largest does not."""
    too_small: RuledOut | None = None
    found = 0
    for degree in sorted(set(serving.tensor_parallel)):
        refusal = _does_not_fit(model, gpu, degree, serving)
        if refusal is not None:
            too_small = RuledOut(gpu, degree, refusal)
            continue
        cost = _saturated(gpu, degree, model, file, serving, compose=compose, origin=origin)
        if serving.tpot_ms is not None and cost.median_tpot_ms > serving.tpot_ms:
            reason = f"median TPOT {cost.median_tpot_ms:.1f} ms is above {serving.tpot_ms:g} ms"
            yield RuledOut(gpu, degree, reason)
        else:
            yield cost
        found += 1
        if found == 2:
            return
    if not found and too_small is not None:
        yield too_small


def _does_not_fit(model: ModelSpec, gpu: str, degree: int, serving: Serving) -> str | None:
    engine, lengths = serving.engine, serving.lengths
    try:
        memory = memory_budget(
            model,
            library.gpu(gpu),
            tensor_parallel=degree,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            block_size=engine.block_size,
            kv_cache_dtype=engine.kv_cache_dtype,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            num_gpu_blocks_override=engine.num_gpu_blocks_override,
        )
    except InputError:
        raise
    except ValueError as error:
        return str(error)
    longest = sum(
        int(one.max or one.tokens or max(one.values or [0]))
        for one in (lengths.prompt, lengths.output)
    )
    if memory.slots < longest:
        return f"the KV cache holds {memory.slots:,} tokens, one request may need {longest:,}"
    return None


def _saturated(
    gpu: str,
    degree: int,
    model: ModelSpec,
    file: Path,
    serving: Serving,
    *,
    compose: Composer | None,
    origin: Path | None,
) -> ServingCost:
    content = {
        "name": model.name,
        "model": str(file),
        "hardware": {"gpu": gpu, "tensor_parallel": degree},
        "engine": serving.engine.model_dump(),
        "latency": serving.latency.model_dump(),
        "workload": {
            "arrivals": {"process": "all_at_once"},
            "lengths": serving.lengths.model_dump(),
            "num_requests": max(1000, REQUESTS_PER_SEQUENCE * serving.engine.max_num_seqs),
            "seed": serving.seed,
        },
    }
    scenario = parse_scenario(content, origin=f"{origin or 'sizing'}: serving")
    result = forecast(scenario, origin=origin, compose=compose)
    summary, requests = result.summary, result.records.requests
    served = ~requests["rejected"]
    prompt = float(requests["prompt_tokens"][served].mean())
    output = float(requests["output_tokens"][served].mean())
    output_per_s, running = _steady(result.records.iterations, requests)
    requests_per_s = output_per_s / output
    return ServingCost(
        gpu=gpu,
        tensor_parallel=degree,
        usd_per_hour=result.deployment.gpu.price_usd_per_hour * degree,
        requests_per_s=requests_per_s,
        tokens_per_s=requests_per_s * (prompt + output),
        output_tokens_per_s=output_per_s,
        median_tpot_ms=float(summary["median_tpot_ms"] or 0.0),
        mean_running=running,
        kv_cache_tokens=result.deployment.memory.slots,
        weight_bytes=result.deployment.memory.weight_bytes,
        measured=bool(summary["latency"]["measured"]),
        warnings=tuple(summary["warnings"]),
    )


def _steady(
    iterations: Mapping[str, np.ndarray], requests: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Output tokens per second and mean running requests while work is waiting."""
    first_end_s = np.nanmin(requests["finished_s"])
    steady = (iterations["start_s"] >= first_end_s) & (iterations["waiting"] > 0)
    if not steady.any():  # everything fits at once: the whole run
        steady = np.ones(len(steady), dtype=bool)
    duration_s = iterations["duration_s"][steady]
    total_s = float(duration_s.sum())
    running = float((iterations["running"][steady] * duration_s).sum()) / total_s
    return float(iterations["emitted"][steady].sum()) / total_s, running
