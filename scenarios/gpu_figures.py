"""A GPU's figures in the units of data sheets, under the keys of a scenario's `hardware.gpu`."""

from __future__ import annotations

from typing import Any

from scenarios.gpu_library import FIGURES
from sim.model.hardware import Gpu

# Label and unit of each figure.
FIELDS = {
    "name": ("GPU", ""),
    "memory_gb": ("Memory", "GB"),
    "memory_bandwidth_gb_per_s": ("Bandwidth", "GB/s"),
    "bf16_tflops": ("16 bits", "TFLOP/s"),
    "fp8_tflops": ("fp8", "TFLOP/s"),
    "int8_tops": ("int8", "TOP/s"),
    "fp4_tflops": ("fp4", "TFLOP/s"),
    "host_link_gb_per_s": ("Host link", "GB/s"),
    "link_gb_per_s": ("Link", "GB/s"),
    "link_path": ("Link's path", ""),
    "all_reduce_gb_per_s": ("All-reduces", ""),
    "link_latency_us": ("Link latency", "µs"),
    "inter_node_link_gb_per_s": ("Between nodes", "GB/s"),
    "inter_node_link_latency_us": ("Latency between nodes", "µs"),
    "idle_watts": ("Idle", "W"),
    "peak_watts": ("Peak", "W"),
    "price_usd_per_hour": ("Price", "$/h"),
}


def gpu_figures(gpu: Gpu) -> dict[str, Any]:
    """What `hardware.gpu` would say of it; rates and power are None where it has none."""
    found: dict[str, Any] = {"name": gpu.name}
    for key, (section, inner, factor) in FIGURES.items():
        value = getattr(gpu if section is None else gpu.interconnect, inner)
        found[key] = None if value is None else value / factor
    found["int8_tops"] = found["int8_tops"] or found["fp8_tflops"]  # as products run
    links = gpu.interconnect
    if not links.peer_access:
        found["link_path"] = "through the host's memory"
    elif links.peer_links:
        found["link_path"] = f"{links.peer_links} links to peers, which share it"
    if links.measured:
        among = ", ".join(
            f"{beta / 1e9:.3g} GB/s among {ranks}" for ranks, beta, _ in links.measured
        )
        found["all_reduce_gb_per_s"] = f"{among}, measured"
    found["architecture"] = gpu.architecture or "unknown: Hopper's kernels are assumed"
    return found | {"source": gpu.source}
