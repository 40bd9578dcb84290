"""Where every part of an iteration's time comes from, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scenarios.forecast.deployment import Deployment
from scenarios.forecast.front_end import described, fitted_front_end
from sim.latency import communication, roofline
from sim.latency.beside import BesideLatency
from sim.latency.block_moves import BlockMoves
from sim.latency.lockstep_table import LockstepTable
from sim.latency.overlapped import OverlappedLatency
from sim.latency.pipeline import PipelineLatency
from sim.latency.protocol import LatencyModel
from sim.latency.roofline import RooflineLatency
from sim.latency.table import TableLatency
from sim.model.hardware import Gpu
from sim.speculation.latency import SpeculativeLatency

_TABLE_PARTS = {
    "linear": "Linear layers, norms, activations",
    "logits": "Output head and sampling",
    "prefill_attention": "Attention of prompts",
    "decode_attention": "Attention of decodes",
    "bounded_prefill": "Windows, states and the like, of prompts",
    "bounded_decode": "Windows, states and the like, of decodes",
    "mixed_attention": "Attention of mixed batches",
    "decode_skew": "Attention over uneven contexts",
    "moe": "Experts",
    "communication": "All-reduce",
    "swap": "Swapped blocks",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """A part of the latency, whether somebody measured it, and where it comes from."""

    part: str
    measured: bool
    source: str


def latency_origins(deployment: Deployment) -> Iterator[Origin]:
    """Every part of the latency of each group, and the front end before it."""
    if deployment.front_end is not None:
        fitted = fitted_front_end(deployment.latency)
        words = described(deployment.scenario, deployment.front_end, fitted)
        yield Origin("Front end", False, words)
    given = deployment.scenario.latency.efficiencies
    if not deployment.groups:
        yield from _origins(deployment.latency, deployment.gpu, given)
        return
    told: list[Origin] = []
    for group in deployment.groups:
        for origin in _origins(group.latency, deployment.gpu, given):
            part = f"{group.name}: {origin.part}" if len(deployment.groups) > 1 else origin.part
            told.append(Origin(part, origin.measured, origin.source))
    yield from told


def _origins(latency: LatencyModel, gpu: Gpu, given: Mapping[str, float]) -> Iterator[Origin]:
    if isinstance(latency, BesideLatency | BlockMoves | OverlappedLatency):
        yield from _origins(latency.inner, gpu, given)
        return
    if isinstance(latency, SpeculativeLatency):
        yield from _origins(latency.target, gpu, given)
        drafting = latency.drafting
        yield Origin("Drafting", drafting.measured, drafting.label)
        return
    if isinstance(latency, PipelineLatency):
        yield from _origins(latency.stages[0], gpu, given)
        yield Origin("Sends between stages", False, _links(gpu))
        return
    if isinstance(latency, RooflineLatency):
        yield from _analytic(latency, given)
    elif isinstance(latency, TableLatency):
        yield from _tabulated(latency, gpu)
    else:
        yield Origin("Iteration", latency.measured, latency.label)
    host = getattr(latency, "host", None)
    if host is not None:
        yield Origin(
            "Host",
            host.source.startswith("measured"),
            f"{host.per_iteration_s * 1e6:g} µs per iteration, {host.per_sequence_s * 1e6:g} µs "
            f"per sequence: {host.source}",
        )


def _analytic(latency: RooflineLatency, given: Mapping[str, float]) -> Iterator[Origin]:
    gpu, model = latency.gpu, latency.model

    rates, few_bits = latency.rates, gpu.computes_in_few_bits(model.weight_dtype)
    products = rates.products_of(few_bits=few_bits)
    experts = rates.experts_of(few_bits=few_bits)
    known = "assumed" if gpu.architecture is None else f"{gpu.architecture} kernels"

    def share(name: str, value: float, otherwise: str = known) -> str:
        return f"{value:g} ({'given' if name in given else otherwise})"

    peak = f"{gpu.peak_flops_per_s(model.weight_dtype) / 1e12:,.0f} TFLOP/s {model.weight_dtype}"
    bandwidth = f"{gpu.memory_bytes_per_s / 1e12:g} TB/s"
    sheet = f"datasheet figures of {gpu.name} ({gpu.source})"
    yield Origin(
        "Matrix products",
        False,
        f"analytic: {peak} × {share('gemm_efficiency', products.efficiency)}, or {bandwidth} × "
        f"{share('memory_efficiency', products.memory_efficiency)}; {sheet}",
    )
    if model.moe is not None:
        yield Origin(
            "Experts",
            False,
            f"analytic: {peak} × {share('moe_efficiency', experts.efficiency)}, or {bandwidth} × "
            f"{share('memory_efficiency', experts.memory_efficiency)}",
        )
    yield Origin(
        "Attention",
        False,
        f"analytic: {gpu.bfloat16_flops_per_s / 1e12:,.0f} TFLOP/s × "
        f"{share('attention_efficiency', rates.attention.efficiency)}, or {bandwidth} × "
        f"{share('attention_memory_efficiency', rates.attention.memory_efficiency)}",
    )
    yield Origin(
        "Norms, activations, sampling",
        False,
        f"analytic: bytes at {bandwidth} × "
        f"{share('memory_efficiency', rates.products.memory_efficiency)}",
    )
    if latency.parallelism.gpus_per_step > 1:
        link = given.get("link_efficiency", communication.LINK_EFFICIENCY)
        yield Origin(
            "Communication",
            False,
            f"{_links(gpu)}, bandwidth × {share('link_efficiency', link, 'assumed')}",
        )
    yield Origin(
        "Swapped blocks",
        False,
        f"analytic: {gpu.host_link_bytes_per_s / 1e9:g} GB/s × {roofline.HOST_LINK_EFFICIENCY:g}",
    )


def _tabulated(latency: TableLatency, gpu: Gpu) -> Iterator[Origin]:
    table = latency.table
    described = table.meta.get("parts")
    facts = described if isinstance(described, Mapping) else {}
    for name, title in _TABLE_PARTS.items():
        if name in table.parts:
            points = len(table.parts[name].time_s)
            found = facts.get(name)
            if isinstance(found, Mapping) and "origin" in found:
                yield Origin(title, found["origin"] == "measured", _origin_of(found, points))
            else:
                yield Origin(title, True, f"{table.source}: {points:,} points{_facts(found)}")
    for line in table.meta.get("estimated") or ():
        part, _, how = str(line).partition(": ")
        yield Origin(f"{_TABLE_PARTS.get(part, part)}, in part", False, how or part)
    if not latency.refinement.is_nothing:
        yield Origin("Beyond single kernels", True, _refined(table.meta["refined"]))
    if latency.parallel and "communication" not in table.parts:
        shares = isinstance(latency, LockstepTable)
        yield Origin("Exchange between ranks" if shares else "All-reduce", False, _links(gpu))
    if "swap" not in table.parts:
        yield Origin(
            "Swapped blocks",
            False,
            f"analytic: {gpu.host_link_bytes_per_s / 1e9:g} GB/s × "
            f"{roofline.HOST_LINK_EFFICIENCY:g}",
        )


def _origin_of(found: Mapping[str, Any], points: int) -> str:
    """What a composed table says of a part: measured, estimated or analytic, by whom and how."""
    how = f"; {found['how']}" if "how" in found else ""
    return f"{found['origin']}, {found['by']}: {points:,} points{how}"


def _refined(found: Mapping[str, Any]) -> str:
    """Constants that were fitted to a recording, in words."""
    told = []
    for name, one in found["constants"].items():
        value = one["value"] if isinstance(one, Mapping) else one
        spread = one.get("uncertainty") if isinstance(one, Mapping) else None
        told.append(f"{name} {value:g}" + (f" ± {spread:g}" if spread is not None else ""))
    until = found.get("until_s")
    when = "" if until is None else f"the first {until:g} s of "
    return f"fitted to {when}{found.get('fitted_on', 'a recording')}: {', '.join(told)}"


def _facts(found: Any) -> str:
    """What a table's meta.yaml says of how well a part was measured."""
    if not isinstance(found, Mapping):
        return ""
    told = []
    spread, errors = found.get("spread_median"), found.get("held_out")
    if isinstance(spread, int | float):
        told.append(f"median spread {spread:.1%}")
    if isinstance(errors, Mapping) and isinstance(errors.get("median"), int | float):
        told.append(f"median error on held-out points {errors['median']:.1%}")
    if isinstance(found.get("taken_over_from"), str):
        told.append(f"taken over from {found['taken_over_from']}")
    return "".join(f", {text}" for text in told)


def _links(gpu: Gpu) -> str:
    links = gpu.interconnect
    if links.measured:
        figures = "; ".join(
            f"{ranks} ranks {rate / 1e9:g} GB/s and {seconds * 1e6:g} µs"
            for ranks, rate, seconds in links.measured
        )
        return f"analytic (α–β) with published all-reduces of {gpu.name}: {figures}"
    if not links.peer_access:
        return (
            f"analytic (α–β): through the host's memory, {links.bytes_per_s / 1e9:g} GB/s and "
            f"{links.latency_s * 1e6:g} µs a hop (figures of {gpu.name}, without peer access)"
        )
    return (
        f"analytic (α–β): {links.bytes_per_s / 1e9:g} GB/s and {links.latency_s * 1e6:g} µs a hop "
        f"in a node, {links.inter_node_bytes_per_s / 1e9:g} GB/s and "
        f"{links.inter_node_latency_s * 1e6:g} µs between nodes (figures of {gpu.name})"
    )
