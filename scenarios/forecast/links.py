"""The links between GPUs: a scenario's, or the library's, and what is assumed of them."""

from __future__ import annotations

from dataclasses import replace

from scenarios.schema.hardware import Hardware
from scenarios.schema.scenario import Scenario
from sim.latency.communication import LINK_EFFICIENCY
from sim.latency.protocol import LatencyModel
from sim.latency.table import TableLatency
from sim.model.hardware import Gpu, Interconnect

_NVLINK_BYTES_PER_S = 1e11  # the slowest of NVLinks and the like is above, the fastest PCIe below


def interconnect(hardware: Hardware, gpu: Gpu) -> Interconnect:
    """What collectives go over."""
    links = gpu.interconnect
    near, far = hardware.link, hardware.inter_node_link
    if near is not None:
        links = links.given(near.bandwidth_gb_per_s * 1e9, near.latency_us / 1e6)
    if far is not None:
        links = replace(
            links,
            inter_node_bytes_per_s=far.bandwidth_gb_per_s * 1e9,
            inter_node_latency_s=far.latency_us / 1e6,
        )
    return links


def assumed_links(scenario: Scenario, gpu: Gpu, latency: LatencyModel, *, ranks: int) -> list[str]:
    """A note where GPUs share a model over PCIe, whose paths differ from machine to machine."""
    links, hardware = gpu.interconnect, scenario.hardware
    slow = links.bytes_per_s < _NVLINK_BYTES_PER_S
    if not slow or hardware.link is not None or scenario.latency.source == "fixed":
        return []
    if isinstance(latency, TableLatency) and "communication" in latency.table.parts:
        return []
    ranks = min(ranks, hardware.gpus_per_node)
    if ranks == 1:
        return []
    way = "" if links.peer_access else " through the host's memory"
    figure = links.bytes_per_s_among(ranks, LINK_EFFICIENCY) / 1e9
    return [
        f"{ranks} GPUs over PCIe{way}: {figure:.3g} GB/s is assumed, and machines differ "
        "manifold: measure an all-reduce and give hardware.link"
    ]
