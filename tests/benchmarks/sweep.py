"""How fast a sweep is, and what more workers are worth: one Markdown table, measured in one go.

    python -m tests.benchmarks.sweep [--requests N] [--jobs 1,2]

`orcast sweep scenarios/batch-and-block.yaml` (8 batch sizes x 6 block sizes x 3 seeds) in fresh
processes and folders, once for each number of workers: wall time, report included, CPU time of the
whole process tree, and speed-up over the first. The tables have to be equal to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.speed import ROOT, machine


def rows(jobs: list[int], requests: int, rounds: int) -> Iterator[str]:
    """The lines of the table, each as soon as it has been measured; the best of `rounds` counts."""
    yield "| jobs | points | wall s | CPU s | points/s | speed-up | CPU per wall |"
    yield "|--:|--:|--:|--:|--:|--:|--:|"
    first_s: float | None = None
    written: bytes | None = None
    for number in jobs:
        runs = [sweep(number, requests) for _ in range(rounds)]
        points, wall_s, cpu_s, table = min(runs, key=lambda run: run[1])
        first_s = first_s or wall_s
        written = written or table
        if any(run[3] != written for run in runs):
            raise SystemExit(f"the table of {number} jobs is another one")
        yield (
            f"| {number} | {points} | {wall_s:.1f} | {cpu_s:.1f} | {points / wall_s:.1f} "
            f"| {first_s / wall_s:.2f}× | {cpu_s / wall_s:.2f} |"
        )


def sweep(jobs: int, requests: int) -> tuple[int, float, float, bytes]:
    """Points, wall time, CPU time and the table of one whole sweep."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "orcast.cli", "sweep", "batch-and-block", "--json"]
        command += ["--jobs", str(jobs), "--out", f"{folder}/sweep"]
        command += ["--set", f"workload.num_requests={requests}"]
        started_s, before = time.perf_counter(), os.times()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        wall_s, after = time.perf_counter() - started_s, os.times()
        cpu_s = (after.children_user - before.children_user) + (
            after.children_system - before.children_system
        )
        table = (Path(folder) / "sweep/sweep.parquet").read_bytes()
    return json.loads(done.stdout)["computed"], wall_s, cpu_s, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--requests", type=int, default=5000, help="in each point (5000)")
    parser.add_argument("--jobs", default="1,2", help="numbers of workers (1,2)")
    parser.add_argument("--rounds", type=int, default=1, help="of each; the fastest counts (1)")
    given = parser.parse_args()
    for line in rows([int(text) for text in given.jobs.split(",")], given.requests, given.rounds):
        print(line, flush=True)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
