"""How fast the forecast is: one Markdown table, all of it measured in one go on this machine.

    python -m tests.benchmarks.speed [--quick] [--trace FILE]

Every run is a fresh process that writes its whole run folder, records and report included. Wall
time, CPU time and peak memory are the operating system's figures for that process; `simulation` is
the part of it from reading the scenario to its summary. Runs of up to 100,000 requests are
repeated three times, and the median by wall time counts. `--quick` leaves the million out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
AZURE_TRACE = ROOT / "../shared/data/azure/AzureLLMInferenceTrace_conv.csv"
POLICIES = ("static", "dynamic", "orca", "paged", "chunked")
REPEATS = 3
REPEAT_UP_TO = 100_000  # requests


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process. Times in seconds."""

    requests: int
    iterations: int
    simulation_s: float
    wall_s: float
    cpu_s: float
    peak_bytes: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.wall_s


def run_once(*arguments: str) -> Run:
    """``orcast run ARGUMENTS`` in a process of its own; raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "stdout"
        command = [sys.executable, "-m", "orcast.cli", "run", *arguments, "--json"]
        started_s = time.perf_counter()
        with printed.open("wb") as stdout:
            process = subprocess.Popen(
                [*command, "--out", f"{folder}/run"],
                cwd=ROOT,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {' '.join(command)}")
        summary = json.loads(printed.read_bytes())
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return Run(
        requests=summary["completed"] + summary["rejected"],
        iterations=summary["iterations"],
        simulation_s=summary["wall_s"],
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * unit_bytes,
    )


def median_run(*arguments: str) -> Run:
    """The median by wall time of a few runs, or the only one where it is long."""
    runs = [run_once(*arguments)]
    if runs[0].requests <= REPEAT_UP_TO:
        runs += [run_once(*arguments) for _ in range(REPEATS - 1)]
    return sorted(runs, key=lambda run: run.wall_s)[len(runs) // 2]


def rows(trace: Path, *, quick: bool) -> Iterator[str]:
    """The lines of the table, each as soon as it has been measured."""
    yield (
        "| run | requests | iterations | requests/s | wall s | CPU s | simulation s "
        "| peak MiB | leap over step |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    if trace.is_file():
        settings = ("azure-conversation", "--set", f"workload.trace={trace.resolve()}")
        yield from both_clocks("Azure conversation trace", *settings)
    for count in (10_000, 100_000, *(() if quick else (1_000_000,))):
        yield row("`million`, Poisson", median_run("million", *requests(count)))
    for policy in POLICIES:
        settings = ("million", *requests(20_000), "--set", f"engine.scheduler={policy}")
        yield from both_clocks(f"`million`, `{policy}`", *settings)


def both_clocks(name: str, *arguments: str) -> Iterator[str]:
    """A row in leap mode and a row in step mode; the ratio is of their simulation times."""
    leapt, stepped = median_run(*arguments), median_run(*arguments, "--step")
    yield row(f"{name}, leap", leapt, f"{stepped.simulation_s / leapt.simulation_s:.1f}×")
    yield row(f"{name}, step", stepped)


def requests(count: int) -> tuple[str, str]:
    return "--set", f"workload.num_requests={count}"


def row(name: str, run: Run, ratio: str = "") -> str:
    return (
        f"| {name} | {run.requests:,} | {run.iterations:,} | {run.requests_per_s:,.0f} "
        f"| {run.wall_s:.2f} | {run.cpu_s:.2f} | {run.simulation_s:.2f} "
        f"| {run.peak_bytes / 2**20:,.0f} | {ratio} |"
    )


def machine() -> str:
    """CPU, cores, memory and Python, in a sentence."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {cores} cores, {memory_gib:.0f} GiB; "
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="leave out the million requests")
    parser.add_argument("--trace", type=Path, default=AZURE_TRACE, help="the Azure trace")
    given = parser.parse_args()
    for line in rows(given.trace, quick=given.quick):
        print(line, flush=True)
    print(f"\n{machine()}")
    if not given.trace.is_file():
        print(f"No trace at {given.trace}: its row is left out.", file=sys.stderr)


if __name__ == "__main__":
    main()
