"""The least that serving can cost: a deployment that always has work waiting.

All requests arrive at once, and the rate is taken over the time from the first request's end to
the last one's start in a batch, when as many run as fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from scenarios.errors import InputError
from scenarios.forecast.deployment import Deployment
from scenarios.forecast.forecast import forecast
from scenarios.forecast.latency_source import Composer
from scenarios.plan.candidates import Candidate
from scenarios.plan.exploration import undeployable
from scenarios.schema.scenario import Scenario
from scenarios.schema.workload import Arrivals, LengthPair
from scenarios.sizing.serving_price import RuledOut, ServingCost


def floors(
    candidates: list[Candidate],
    *,
    compose: Composer | None = None,
    origin: Path | None = None,
) -> Iterator[ServingCost | RuledOut]:
    """Each candidate kept busy. Of a GPU that holds the model somehow, degrees too small for it are
    left out; of any other, the largest degree says why."""
    for _, group in groupby(candidates, key=lambda one: one.gpu):
        found = [_floor(one, compose=compose, origin=origin) for one in group]
        held = [one for one in found if not _too_small(one)]
        yield from held or found[-1:]


def _too_small(one: ServingCost | RuledOut) -> bool:
    return isinstance(one, RuledOut) and one.status in ("refused", "memory", "cache")


def _floor(
    candidate: Candidate, *, compose: Composer | None, origin: Path | None
) -> ServingCost | RuledOut:
    gpu, degree = candidate.gpu, candidate.gpus_per_replica
    if candidate.scenario is None:
        return RuledOut(gpu, degree, "refused", candidate.refused)
    try:
        return _saturated(candidate, candidate.scenario, compose=compose, origin=origin)
    except InputError as error:
        refusal = undeployable(error, origin)
        if refusal is None:
            raise
        return RuledOut(gpu, degree, *refusal)


def _saturated(
    candidate: Candidate, scenario: Scenario, *, compose: Composer | None, origin: Path | None
) -> ServingCost | RuledOut:
    at_once = scenario.workload.model_copy(update={"arrivals": Arrivals(process="all_at_once")})
    scenario = scenario.model_copy(update={"workload": at_once})
    result = forecast(scenario, origin=origin, compose=compose)
    slots, longest = result.deployment.memory.slots, _longest(scenario.workload.lengths)
    if slots < longest:
        reason = f"the KV cache holds {slots:,} tokens, one request may need {longest:,}"
        return RuledOut(candidate.gpu, candidate.gpus_per_replica, "cache", reason)
    summary, requests = result.summary, result.records.requests
    prompt = float(requests["prompt_tokens"].mean())
    output = float(requests["output_tokens"].mean())
    output_per_s = _steady_output_per_s(result.records.iterations, requests)
    requests_per_s = output_per_s / output
    return ServingCost(
        gpu=candidate.gpu,
        tensor_parallel=candidate.gpus_per_replica,
        usd_per_hour=candidate.price_usd_per_hour,
        requests_per_s=requests_per_s,
        tokens_per_s=requests_per_s * (prompt + output),
        output_tokens_per_s=output_per_s,
        median_tpot_ms=float(summary["median_tpot_ms"] or 0.0),
        load_share=1.0,
        breaks="",
        kv_cache_tokens=slots,
        weight_bytes=result.deployment.memory.weight_bytes,
        basis=str(summary["latency"]["basis"]),
        warnings=tuple(summary["warnings"]),
        full_watts=summary.get("energy", {}).get("mean_watts"),
        idle_watts=_idle_watts(result.deployment),
    )


def _idle_watts(deployment: Deployment) -> float | None:
    each = deployment.gpu.idle_watts
    return None if each is None else each * deployment.parallelism.num_gpus


def _longest(lengths: LengthPair | None) -> int:
    """Tokens that one request may need, as far as the distributions say."""
    assert lengths is not None
    return sum(
        int(one.max or one.tokens or max(one.values or [0]))
        for one in (lengths.prompt, lengths.output)
    )


def _steady_output_per_s(
    iterations: Mapping[str, np.ndarray], requests: Mapping[str, np.ndarray]
) -> float:
    """Output tokens per second while work is waiting."""
    first_end_s = np.nanmin(requests["finished_s"])
    steady = (iterations["start_s"] >= first_end_s) & (iterations["waiting"] > 0)
    if not steady.any():  # everything fits at once: the whole run
        steady = np.ones(len(steady), dtype=bool)
    return float(iterations["emitted"][steady].sum() / iterations["duration_s"][steady].sum())
