"""Joules of a forecast and what they cost: the figures of `summary["energy"]`, all estimated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from scenarios import library
from scenarios.forecast.deployment import Deployment, group_scenarios, served_model
from scenarios.forecast.expert_counts import expert_routing
from scenarios.forecast.latency_source import parallelism_of
from sim.model.power import Draw, PoweredEngine, draw_of, prompt_pairs
from sim.model.work import ModelWork
from sim.records import Records
from sim.scratch import Rows


def engines(deployment: Deployment, beside: Path | None) -> Iterator[PoweredEngine]:
    """The engine of each group of the cluster, in their order; one where it has none."""
    scenario = deployment.scenario
    if not deployment.groups:
        work = ModelWork(
            deployment.model,
            deployment.parallelism,
            routing=deployment.routing,
            kv_cache_dtype=scenario.engine.kv_cache_dtype,
        )
        dtype = deployment.model.weight_dtype
        yield PoweredEngine(deployment.gpu, deployment.parallelism, work, dtype)
        return
    for _, mine, _ in group_scenarios(scenario):
        model = served_model(mine, beside=beside).with_experts_over(mine.hardware.experts_over)
        parallelism = parallelism_of(mine.hardware)
        work = ModelWork(
            model,
            parallelism,
            routing=expert_routing(mine.experts, model, beside=beside),
            kv_cache_dtype=mine.engine.kv_cache_dtype,
        )
        gpu = library.gpu(mine.hardware.gpu_given, beside=beside)
        yield PoweredEngine(gpu, parallelism, work, model.weight_dtype)


def replica_watts(deployment: Deployment, records: Records) -> float | None:
    """Mean draw of one of equal replicas in a run, all its GPUs; None where power is not known."""
    iterations, (engine, *_) = records.iterations, engines(deployment, None)
    ends_s = iterations["start_s"] + iterations["duration_s"]
    replicas = int(iterations["replica"].max(initial=0)) + 1
    up_s = replicas * float(ends_s.max(initial=0.0))
    draw = draw_of(engine, iterations, prefill_pairs=prompt_pairs(records.requests), up_s=up_s)
    return (
        None if draw is None or up_s <= 0 else engine.parallelism.num_gpus * draw.joules / draw.up_s
    )


def unit_watts(deployment: Deployment, records: Records) -> float | None:
    """Mean draw of all engines of a cluster's groups together; None where power is not known."""
    ends_s = records.iterations["start_s"] + records.iterations["duration_s"]
    up_s = [float(ends_s.max(initial=0.0))] * deployment.num_replicas
    found = energy(deployment, records, up_s=up_s, input_tokens=0.0, output_tokens=0.0)
    return None if found is None else float(found["mean_watts"])


def idle_watts(deployment: Deployment) -> float | None:
    """Of one engine without work, or of all of a cluster's groups; None where it is not known."""
    every = zip(
        engines(deployment, None), [one.replicas for one in deployment.groups] or [1], strict=True
    )
    each = [
        None
        if engine.gpu.idle_watts is None
        else number * engine.parallelism.num_gpus * engine.gpu.idle_watts
        for engine, number in every
    ]
    known = [watts for watts in each if watts is not None]
    return sum(known) if len(known) == len(each) else None


def energy(
    deployment: Deployment,
    records: Records,
    *,
    up_s: Sequence[float],
    input_tokens: float,
    output_tokens: float,
    beside: Path | None = None,
) -> dict[str, float | bool] | None:
    """Energy of a whole run; `up_s` are the seconds that each replica was switched on.

    None where nobody knows the power of one of its GPUs, or where nothing was switched on.
    """
    iterations = records.iterations
    longest_s = max(up_s, default=0.0)
    if "alone_s" in iterations:  # a GPU that is shared computes for one at a time
        iterations = {**iterations, "duration_s": iterations["alone_s"]}
        up_s = _shared_out(deployment, iterations, up_s)
    group_of = deployment.group_of(iterations["replica"])
    replica_group = deployment.group_of(np.arange(len(up_s)))
    pairs, prefilled = prompt_pairs(records.requests), float(iterations["prefill_tokens"].sum())
    draws: list[Draw] = []
    for number, engine in enumerate(engines(deployment, beside)):
        own = Rows(iterations, group_of == number)
        share = float(own["prefill_tokens"].sum()) / prefilled if prefilled else 0.0
        mine_s = float(sum(up for up, at in zip(up_s, replica_group, strict=True) if at == number))
        draw = draw_of(engine, own, prefill_pairs=share * pairs, up_s=mine_s)
        if draw is None:
            return None
        draws.append(draw)
    on_s = sum(draw.up_s for draw in draws)
    if on_s <= 0:
        return None
    joules, busy_s = sum(draw.joules for draw in draws), sum(draw.busy_s for draw in draws)
    tokens = input_tokens + output_tokens
    found: dict[str, float | bool] = {
        "estimated": True,
        "mean_watts": joules / longest_s,
        "joules": joules,
        "busy_share": busy_s / on_s,
        "computing_share": sum(draw.computing_s for draw in draws) / on_s,
    }
    if tokens:
        found["joules_per_token"] = joules / tokens
    if output_tokens:
        found["joules_per_output_token"] = joules / output_tokens
    price = deployment.scenario.electricity
    found |= {"usd_per_kwh": price.usd_per_kwh, "pue": price.pue}
    found["usd_per_hour"] = price.usd(joules / longest_s * 3600.0)
    if output_tokens:
        found["usd_per_million_output_tokens"] = 1e6 * price.usd(joules / output_tokens)
    return found


def _shared_out(
    deployment: Deployment, iterations: Mapping[str, np.ndarray], up_s: Sequence[float]
) -> list[float]:
    """Seconds of a GPU for each replica; those on one GPU have them as they made use of it."""
    computed_s = np.bincount(
        iterations["replica"], iterations["duration_s"], minlength=len(up_s)
    ).tolist()
    on = [group.shared_gpu for group in deployment.groups for _ in range(group.replicas)]
    found = []
    for number, name in enumerate(on):
        beside = [other for other, its in enumerate(on) if name and its == name]
        whole_s = sum(computed_s[other] for other in beside)
        share = 1.0 / len(beside) if beside else 1.0
        found.append(
            max(up_s[other] for other in beside) * computed_s[number] / whole_s
            if whole_s > 0
            else share * up_s[number]
        )
    return found
