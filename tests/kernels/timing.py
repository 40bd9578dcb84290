"""Timing kernels on a GPU: graph replays over rotating inputs, ceilings, rows of a table."""

from __future__ import annotations

import csv
import dataclasses
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton

Call = Callable[[], object]


@dataclass(slots=True)
class Row:
    """One line of the table; times in µs, ``spread`` is (p90 − p10) ÷ median of our replays."""

    operation: str
    shape: str
    ours_us: float
    spread: float
    torch_us: float | None = None
    torch_kernel: str = ""
    share: float | None = None
    share_of: str = ""
    reference_us: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """torch ÷ ours: above 1, ours is faster."""
        return None if self.torch_us is None else self.torch_us / self.ours_us

    def line(self) -> str:
        """The row for the terminal."""
        ratio = "" if self.ratio is None else f"{self.ratio:5.2f}x {self.torch_kernel}"
        share = "" if self.share is None else f"{self.share:6.1%} {self.share_of}"
        other = "" if self.reference_us is None else f"reference {self.reference_us:.1f}"
        head = f"{self.operation:24} {self.shape:24} {self.ours_us:10.1f} us"
        return f"{head} {ratio:26} {share:14} {other} {self.note}".rstrip()


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device was measured to do: bytes read plus written a second, operations a second."""

    copy_bytes_per_s: float
    matrix_flops_per_s: float


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Random bf16 data on the GPU; zeros would run faster."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def rotations(bytes_per_call: int) -> int:
    """Input sets that together exceed three L2 caches, at most 64."""
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, max(1, -(-3 * l2_bytes // max(1, bytes_per_call))))


def time_us(calls: list[Call], *, replays: int = 15) -> tuple[float, float]:
    """Median time of one call and its spread; the calls are captured in one graph, ten at least."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    repeated = calls * -(-10 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in repeated:
            call()
    times_us = []
    for replay in range(replays + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times_us.append(start.elapsed_time(end) * 1000 / len(repeated))
    median = statistics.median(times_us)
    tenths = statistics.quantiles(times_us, n=10)
    return median, (tenths[-1] - tenths[0]) / median


def measure_ceilings() -> Ceilings:
    """A 2 GiB device-to-device copy, and an 8192³ bf16 product of random data."""
    source, target = normal(1 << 30), normal(1 << 30)
    copy_us, _ = time_us([partial(target.copy_, source)])
    moved_bytes = 2 * source.numel() * source.element_size()
    a, b = normal(8192, 8192), normal(8192, 8192)
    product_us, _ = time_us([partial(torch.matmul, a, b)])
    return Ceilings(moved_bytes / copy_us * 1e6, 2 * 8192**3 / product_us * 1e6)


def compare(
    operation: str,
    shape: str,
    make: Callable[[], tuple[Call, dict[str, Call]]],
    *,
    ceilings: Ceilings,
    moved_bytes: int = 0,
    flops: int = 0,
    note: str = "",
) -> Row:
    """Time ours and torch's alternatives over rotating inputs; keep torch's fastest.

    Args:
        make: draws one set of inputs; gives our call and torch's calls by name.
        moved_bytes: the fewest bytes a call moves; the share is of copy bandwidth.
        flops: if given, the share is of the matrix rate instead.
    """
    sets = [make() for _ in range(rotations(moved_bytes) if moved_bytes else 2)]
    ours_us, spread = time_us([ours for ours, _ in sets])
    row = Row(operation, shape, ours_us, spread, note=note)
    for name in sets[0][1]:
        try:
            theirs_us, _ = time_us([others[name] for _, others in sets])
        except RuntimeError as error:  # a backend that does not take this shape
            row.note += f" {name}: {str(error).splitlines()[0][:60]}"
            torch.cuda.synchronize()
            continue
        row.note += f" {name} {theirs_us:.1f} us"
        if row.torch_us is None or theirs_us < row.torch_us:
            row.torch_us, row.torch_kernel = theirs_us, name
    if flops:
        row.share, row.share_of = flops / ours_us * 1e6 / ceilings.matrix_flops_per_s, "matrix"
    elif moved_bytes:
        row.share = moved_bytes / ours_us * 1e6 / ceilings.copy_bytes_per_s
        row.share_of = "copy"
    return row


def environment() -> dict[str, str]:
    """GPU, driver, clocks and versions, for the head of a table."""
    query = "driver_version,clocks.sm,clocks.max.sm,power.limit"
    answer = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = answer.stdout.strip().splitlines() if answer.returncode == 0 else []
    driver, *clocks = [value.strip() for value in lines[0].split(",")] if lines else ["unknown"]
    return {
        "gpu": torch.cuda.get_device_name(0),
        "driver": driver,
        "sm clock, max, power limit": ", ".join(clocks),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
    }


def write_csv(rows: list[Row], path: Path) -> None:
    """Every field of every row, and the ratio."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [field.name for field in dataclasses.fields(Row)]
        writer.writerow([*names, "ratio"])
        for row in rows:
            writer.writerow([*(getattr(row, name) for name in names), row.ratio])
