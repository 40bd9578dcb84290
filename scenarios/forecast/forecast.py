"""Ask a scenario's question: simulate it, and say what the answer rests on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import InputError
from scenarios.forecast.basis import basis, caution, kind_of
from scenarios.forecast.deployment import Deployment, Drawer, deploy
from scenarios.forecast.energy import energy
from scenarios.forecast.front_end import described, fitted_front_end
from scenarios.forecast.kv_figures import kv_group_figures, kv_tier_figures
from scenarios.forecast.latency_source import Composer
from scenarios.forecast.queueing import by_class
from scenarios.forecast.saturation import saturation_warning
from scenarios.forecast.served import serve
from scenarios.forecast.verdict import verdict
from scenarios.schema.scenario import Scenario
from sim.cluster.plan import ClusterFacts, gpu_shares
from sim.conservation import conserved
from sim.kv.contiguous import largest_piece
from sim.latency.protocol import LatencyModel
from sim.metrics import UNANSWERED, summarize
from sim.model.expert_routing import ExpertRouting
from sim.records import Records
from sim.scratch import windows
from sim.speculation.summary import speculation_figures
from sim.steady_state import steady_state


@dataclass(frozen=True, slots=True)
class Forecast:
    """A finished simulation: its records, their summary, and the scenario as it was resolved.

    ``summary`` is the content of summary.json: vLLM's `bench serve` names, latencies in ms.
    """

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
    draw: Drawer | None = None,
    leap: bool = True,
    check: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Forecast:
    """Simulate `scenario`; `progress` is told how many of all requests have ended.

    `compose` and `draw` are those of `deploy`.

    Raises InputError for a scenario that cannot be simulated.
    """
    started_s = time.perf_counter()
    deployment = deploy(scenario, origin=origin, compose=compose, draw=draw)
    total = len(deployment.workload)
    tell = None if progress is None else lambda ended: progress(ended, total)
    records, facts = serve(deployment, leap=leap, check=check, progress=tell)
    mode = "leap" if leap else "step"
    return concluded(deployment, records, facts, origin=origin, mode=mode, since_s=started_s)


def concluded(
    deployment: Deployment,
    records: Records,
    facts: ClusterFacts | None,
    *,
    origin: Path | None,
    mode: str,
    since_s: float,
) -> Forecast:
    """What a run of `deployment` comes to; it began at `since_s` of `time.perf_counter`.

    Raises InputError where no request could be served.
    """
    scenario, workload = deployment.scenario, deployment.workload
    total = len(workload)
    if _unservable(records).all():
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
    laws = conserved(records)
    summary = summarize(records, deployment.slo) | {"conservation": laws}
    kept = scenario.metrics
    summary |= steady_state(
        records, deployment.slo, warmup_s=kept.warmup_s, cooldown_s=kept.cooldown_s
    )
    if workload.labels is not None:
        summary["classes"] = by_class(records.requests)
    wall_s = time.perf_counter() - since_s
    summary |= {
        "simulated_requests_per_s": total / wall_s,
        "wall_s": wall_s,
        "mode": mode,
        "num_gpu_blocks": deployment.memory.num_gpu_blocks,
        "latency": {
            "source": scenario.latency.source,
            "measured": deployment.latency.measured,
            "basis": basis(deployment.latency),
            "label": deployment.latency.label,
            "host_overhead": _host_overhead(deployment.latency),
        },
        "front_end": _front_end(deployment),
        "time_parts_s": _time_parts_s(deployment, records),
        "memory_bytes": _memory_bytes(deployment),
        "cost": _cost(deployment, summary, facts),
    }
    drawn = energy(
        deployment,
        records,
        up_s=_up_s(deployment, records, facts),
        input_tokens=summary["total_input_tokens"],
        output_tokens=summary["total_output_tokens"],
        beside=None if origin is None else origin.parent,
    )
    if drawn is not None:
        summary["energy"] = drawn
    if facts is not None or deployment.num_replicas > 1:
        summary["cluster"] = _cluster_figures(deployment, records, facts)
    speculation = deployment.config.speculation
    if speculation is not None:
        summary["speculation"] = speculation_figures(records.iterations, speculation)
    if deployment.memory.layout is not None and records.tables is not None:
        summary["kv_groups"] = kv_group_figures(deployment.memory.layout, records.tables)
    if records.tiers is not None:
        summary["kv_tiers"] = kv_tier_figures(deployment, records.tiers)
    if deployment.routing is not None:
        summary["experts"] = _experts(deployment, deployment.routing, records)
    waited = saturation_warning(
        records.requests,
        records.preemptions,
        closed_loop=workload.max_concurrency is not None,
    )
    summary["saturated"] = waited is not None
    unmeasured = caution(kind_of(summary["latency"]))
    cautions = [text for text in (unmeasured, waited) if text is not None]
    summary["warnings"] = [*cautions, *_warnings(deployment, summary)]
    summary["verdict"] = verdict(summary, deployment.slo)
    return Forecast(deployment, records, summary)


def _time_parts_s(deployment: Deployment, records: Records) -> dict[str, float]:
    """Seconds of all iterations by part; each group's latency model splits its own."""
    total: dict[str, float] = {}
    for iterations in windows(records.iterations):
        shares = [(deployment.latency, iterations)]
        if deployment.groups:
            group_of = deployment.group_of(iterations["replica"])
            shares = [
                (group.latency, {name: values[rows] for name, values in iterations.items()})
                for number, group in enumerate(deployment.groups)
                if (rows := group_of == number).any()
            ]
        for latency, own in shares:
            for part, seconds in latency.parts_s(own).items():
                total[part] = total.get(part, 0.0) + float(seconds.sum())
    return total


def _cluster_figures(
    deployment: Deployment, records: Records, facts: ClusterFacts | None
) -> dict[str, Any]:
    """How the work was spread: per replica busy time, requests, tokens; what came and went."""
    iterations, requests = records.iterations, records.requests
    count = deployment.num_replicas

    def per_replica(of: np.ndarray, weights: np.ndarray | None = None) -> list[float]:
        return [float(x) for x in np.bincount(of, weights, minlength=count)]

    busy_s = per_replica(iterations["replica"], iterations["duration_s"])
    up_s = _up_s(deployment, records, facts)
    shares = [busy / up if up > 0 else 0.0 for busy, up in zip(busy_s, up_s, strict=True)]
    served = ~requests["rejected"]
    found: dict[str, Any] = {
        "replicas": count,
        "router": deployment.scenario.cluster.router,
        "busy_share": shares,
        "requests": [int(x) for x in per_replica(requests["replica"][served])],
        "output_tokens": [
            int(x) for x in per_replica(iterations["replica"], iterations["emitted"])
        ],
        "replica_seconds": sum(up_s),
        # The busiest replica against the mean: 1 is perfectly even.
        "imbalance": max(busy_s) * count / sum(busy_s) if sum(busy_s) > 0 else 1.0,
    }
    if facts is not None:
        found |= {
            "retried_requests": len(facts.retries),
            "kv_transfers": facts.transfers,
            "kv_transferred_bytes": facts.transferred_bytes,
            "mean_kv_transfer_ms": (
                1e3 * facts.transfer_s / facts.transfers if facts.transfers else None
            ),
            "replicas_over_time": facts.replicas_over_time,
            "groups": [
                {"name": group.name, "role": group.role, "replicas": group.replicas}
                | ({"shared_gpu": group.shared_gpu} if group.shared_gpu else {})
                for group in deployment.groups
            ],
        }
    return found


def _up_s(deployment: Deployment, records: Records, facts: ClusterFacts | None) -> list[float]:
    """Seconds that each replica was switched on."""
    if facts is not None:
        return facts.up_s
    ends_s = records.iterations["start_s"] + records.iterations["duration_s"]
    return [float(ends_s.max(initial=0.0))] * deployment.num_replicas


def _host_overhead(latency: LatencyModel) -> str | None:
    """Host time per iteration in words, so that it is never taken for granted."""
    host = getattr(latency, "host", None)
    if host is None:
        return None
    return (
        f"{host.per_iteration_s * 1e6:g} µs per iteration and {host.per_sequence_s * 1e6:g} µs "
        f"per sequence, {host.source}"
    )


def _front_end(deployment: Deployment) -> str | None:
    """What lies between clients and engine, in words; None where nothing does."""
    if deployment.front_end is None:
        return None
    fitted = fitted_front_end(deployment.latency)
    return described(deployment.scenario, deployment.front_end, fitted)


def _memory_bytes(deployment: Deployment) -> dict[str, int]:
    memory = deployment.memory
    return {
        "usable": memory.usable_bytes,
        "weights": memory.weight_bytes,
        "activations": memory.activation_bytes,
        "reserve": memory.reserve_bytes,
        "kv_cache": memory.num_gpu_blocks * memory.bytes_per_block + memory.state_bytes,
    }


def _experts(
    deployment: Deployment, routing: ExpertRouting, records: Records
) -> dict[str, float | int | None]:
    """Experts a layer activates in an iteration, mean over iterations, and how uneven ranks are.

    None where there was no iteration.
    """
    spread = deployment.parallelism
    figures: dict[str, float | int | None] = {
        "per_layer": routing.num_experts,
        "per_token": routing.experts_per_token,
        "mean_activated": None,
        "slowest_rank_over_mean": None,
    }
    iterations = records.iterations
    met = iterations.get("all_tokens", iterations["num_tokens"])  # of all ranks that step together
    tokens, times = np.unique(met, return_counts=True)
    if not len(tokens):
        return figures
    on_slice = np.ceil(tokens / spread.sequence_parallel)
    ranks = spread.expert_parallel * deployment.model.experts_over
    even = on_slice * routing.experts_per_token / ranks
    slowest = routing.slowest_rank_load(on_slice, ranks) / np.maximum(even, 1e-300)
    return figures | {
        "mean_activated": float(np.average(routing.activated(on_slice), weights=times)),
        "slowest_rank_over_mean": float(np.average(slowest, weights=times * tokens)),
    }


def _cost(
    deployment: Deployment, summary: dict[str, Any], facts: ClusterFacts | None
) -> dict[str, float | int | None]:
    """What all replicas' GPUs cost at the prices in gpus.yaml, for as long as they were up."""
    gpus = deployment.parallelism.num_gpus
    usd_per_hour = gpus * deployment.gpu.price_usd_per_hour
    each = [(float(gpus), usd_per_hour)] * deployment.scenario.cluster.num_replicas
    if deployment.groups:
        every = [(g.gpus, g.usd_per_hour) for g in deployment.groups for _ in range(g.replicas)]
        shares = gpu_shares(deployment.groups)
        each = [
            (share * count, share * usd) for share, (count, usd) in zip(shares, every, strict=True)
        ]
    up_s = [1.0] * len(each) if facts is None else facts.up_s
    longest_s = max(up_s, default=0.0)
    rate = sum(usd * up for (_, usd), up in zip(each, up_s, strict=True))
    usd_per_hour = rate / longest_s if longest_s > 0 else 0.0
    tokens_per_hour = summary["output_throughput"] * 3600.0
    return {
        "gpus": round(sum(count for count, _ in each)),
        "usd_per_hour": usd_per_hour,
        "usd_per_million_output_tokens": (
            usd_per_hour / tokens_per_hour * 1e6 if tokens_per_hour > 0 else None
        ),
    }


def _slots(deployment: Deployment) -> int:
    """Tokens of KV cache that one request can have: a pipeline's is shared out beforehand.

    Of a buddy allocator's the largest piece.
    """
    memory, stages = deployment.memory, deployment.parallelism.pipeline_parallel
    shared = deployment.scenario.engine.scheduler == "chunked"  # whatever the stages
    blocks = memory.usable_blocks // (1 if shared else stages)
    return largest_piece(deployment.config.placement, blocks) * memory.block_size


def _whose_slots(deployment: Deployment) -> str:
    """What holds them; under a pipeline or a watermark not all of the cache is a request's."""
    stages = deployment.parallelism.pipeline_parallel
    if stages > 1:
        return f"the KV cache of each of its {stages} batches in flight holds {_slots(deployment)}"
    engine = deployment.scenario.engine
    spare = f", {engine.watermark:.0%} of it kept free," if engine.scheduler == "paged" else ""
    return f"the KV cache holds {_slots(deployment)}{spare}"


def _nothing_fits(deployment: Deployment, origin: Path | None) -> str:
    workload, config = deployment.workload, deployment.config
    smallest = int((workload.prompt_tokens + workload.output_tokens).argmin())
    lengths = (workload.prompt_tokens, workload.max_tokens, workload.output_tokens)
    prompt, limit, output = (int(column[smallest]) for column in lengths)
    needs = f"needs {prompt + output} tokens"
    if deployment.scenario.engine.scheduler in ("static", "dynamic", "orca"):
        needs = f"has {config.reserved_tokens(prompt, limit, output)} tokens reserved"
    return (
        f"{origin or 'scenario'}: workload: no request can be served: the smallest {needs}, "
        f"{_whose_slots(deployment)} and max_model_len is "
        f"{config.max_model_len}; raise engine.gpu_memory_utilization or "
        "engine.num_gpu_blocks_override, use more GPUs, or shorten the requests"
    )


def _unservable(records: Records) -> np.ndarray:
    """Which requests can never be served; those that a queue turned away could have been."""
    requests = records.requests
    found: np.ndarray = requests["rejected"].copy()
    for name in UNANSWERED:
        if name in requests:
            found &= ~requests[name]
    return found


def _warnings(deployment: Deployment, summary: dict[str, Any]) -> list[str]:
    warnings = list(deployment.notes)
    refused, gave_up = summary.get("refused", 0), summary.get("gave_up", 0)
    if refused:
        engine = deployment.scenario.engine
        limits = (
            (engine.max_num_waiting, "were waiting already"),
            (engine.max_num_queued_reqs, "unfinished are the most that there may be"),
        )
        why = " or ".join(f"{most} {words}" for most, words in limits if most is not None)
        warnings.append(f"{refused} requests were refused: {why}")
    if gave_up:
        limit_s = deployment.scenario.engine.max_queue_time_s
        warnings.append(f"{gave_up} requests gave up: they had waited for {limit_s:g} s")
    stranded = summary.get("stranded", 0)
    if stranded:
        warnings.append(
            f"{stranded} requests found no replica that served, or ever came back to serve, them"
        )
    cancelled = summary.get("cancelled", 0)
    if cancelled:
        warnings.append(f"{cancelled} requests were cancelled: their clients left")
    too_large = summary["rejected"] - refused - gave_up - stranded - cancelled
    if too_large:
        warnings.append(
            f"{too_large} requests were rejected: each is larger than the KV cache "
            f"({_slots(deployment)} tokens, as the policy reserves them) or than "
            f"max_model_len ({deployment.config.max_model_len})"
        )
    if summary["extrapolated_share"] > 0.5:
        warnings.append(
            f"{summary['extrapolated_share']:.0%} of the time lies outside the measured range"
        )
    return warnings
