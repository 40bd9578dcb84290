"""All-reduces as the simulator has them, against the published ones of the tables' package.

    python -m tests.benchmarks.links

For every GPU of the library that the package aiconfigurator-core (extra `tables`) measured in a
node: the faster of NCCL's and of vLLM's own kernel in a graph, messages of 16 KiB to 256 MiB in 16
bits. Prints one Markdown table; asserts nothing. B200 and L40S have their α and β from these very
timings; all others do not.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from scenarios import library
from sim.latency.communication import all_reduce_s

SYSTEMS = {
    "rtx_pro_6000_server": "rtx-pro-6000",  # a board with peer access; ours is the one without
    "l40s": "l40s",
    "a100_sxm": "a100-80gb",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200",
}
SMALLEST, LARGEST = 2**14, 2**28  # bytes


def fastest(system: Path) -> dict[int, dict[int, float]]:
    """Ranks -> bytes -> seconds of the fastest all-reduce in a folder of the package."""
    found: dict[int, dict[int, float]] = {}
    for path in sorted(system.glob("comm/*/*/*_perf.parquet")):
        if path.name not in ("nccl_perf.parquet", "custom_allreduce_perf.parquet"):
            continue
        if path.parts[-3] not in ("nccl", "vllm"):
            continue
        for row in pq.read_table(path).to_pylist():
            if row.get("op_name", "all_reduce") != "all_reduce":
                continue
            if (row.get("nccl_dtype") or row.get("allreduce_dtype")) not in ("half", "bfloat16"):
                continue
            size = 2 * int(row["message_size"])  # of elements
            if SMALLEST <= size <= LARGEST and not str(row.get("backend")).endswith("eager"):
                sizes = found.setdefault(int(row["num_gpus"]), {})
                sizes[size] = min(sizes.get(size, np.inf), float(row["latency"]) / 1e3)
    return found


def main() -> None:
    package = find_spec("aiconfigurator_core")
    if package is None or package.origin is None:
        raise SystemExit("the package aiconfigurator-core is not installed: extra `tables`")
    data = Path(package.origin).parent / "systems" / "data"
    print("| GPU | ranks | messages | mean error | mean off | furthest off |")
    print("|---|--:|--:|--:|--:|--:|")
    for system, name in SYSTEMS.items():
        links = library.gpu(name).interconnect
        for ranks, sizes in sorted(fastest(data / system).items()):
            measured_s = np.array([sizes[size] for size in sorted(sizes)])
            ours_s = all_reduce_s(np.array(sorted(sizes), dtype=float), ranks, links)
            off = ours_s / measured_s - 1
            print(
                f"| {name} | {ranks} | {len(off)} | {off.mean():+.0%} | {abs(off).mean():.0%} "
                f"| {off[abs(off).argmax()]:+.0%} |"
            )


if __name__ == "__main__":
    main()
