"""How cost grows with the work: long contexts, a thousand replicas, plans, large sweeps.

    python -m tests.benchmarks.scale [ROW ...] [--quick] [--conversation FILE] [--against CHECKOUT]

Every figure is of a fresh process: CPU-seconds, children's included, and its peak memory. Rows
marked "whole" are commands from their start to their end; the others count from reading the
scenario to the summary, without Python's imports and without a report. The least of a few runs
counts where they are short, since neighbours on a shared machine can only add to a run's time.

`--against` measures another checkout of Orcast in turn with this one and prints the ratios, pair
by pair. `--conversation` is the trace of Mooncake's conversations (JSONL, 512-token blocks); where
none is given, one is drawn that is like it: as many requests, prompt tokens and repeated prefixes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).parents[2]
SHORT_S = 10.0  # rows up to here are measured a few times
REPEATS = 3
RATE = 37.9  # requests/s a replica: 80 % of what one of `million` can do
UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of a process's peak memory


@dataclass(frozen=True, slots=True)
class Measured:
    """What a row's process used."""

    cpu_s: float
    peak_bytes: int
    work: int  # requests, points or commands


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is measured and what it shall cost at most."""

    name: str
    what: str
    run: Callable[[Path], Measured]
    goal: str
    long: bool = False  # left out by --quick
    whole: bool = False  # a command, its imports included


# -- what is measured, each in a process of its own ------------------------------------------------


def forecast_of(scenario: str, *settings: str, leap: bool = True) -> Measured:
    """From reading a scenario to its summary."""
    from scenarios.forecast.forecast import forecast
    from scenarios.schema.load import load_scenario

    began_s = time.process_time()
    loaded, origin = load_scenario(scenario, list(settings))
    found = forecast(loaded, origin=origin, leap=leap)
    summary = found.summary
    return Measured(
        time.process_time() - began_s, _peak_bytes(), summary["completed"] + summary["rejected"]
    )


def million(
    requests: int, replicas: int = 1, router: str | None = None, *, on_disk: bool = False
) -> Measured:
    """The scenario `million`, cut short or on a cluster at the same load for each replica."""
    settings = [f"workload.num_requests={requests}"]
    if on_disk:
        settings.append("metrics.records=disk")
    settings.append(f"workload.arrivals.request_rate={RATE * replicas}")
    if router is not None:
        settings += [f"cluster.replicas={replicas}", f"cluster.router={router}"]
    return forecast_of("million", *settings)


def shared_prefixes(requests: int, replicas: int, trace: Path) -> Measured:
    """Conversations with prefixes in common behind the router that looks for them."""
    path = _drawn(trace.with_name(f"prefixes-{requests}.jsonl"), requests, 1500, 300 * replicas)
    return forecast_of(
        "million", "workload.arrivals=null", "workload.lengths=null", "workload.num_requests=null",
        f"workload.trace={path}", "engine.enable_prefix_caching=true",
        f"cluster.replicas={replicas}", "cluster.router=prefix_aware",
    )  # fmt: skip


def conversation(trace: Path, *, leap: bool = True) -> Measured:
    return forecast_of("azure-conversation", f"workload.trace={trace}", leap=leap)


def command(*arguments: str) -> Measured:
    """A whole command of Orcast's, its helpers included."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "orcast.cli", *arguments],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=folder,
        )  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(used.ru_utime + used.ru_stime, used.ru_maxrss * UNIT_BYTES, 1)


def sweep_page(points: int) -> Measured:
    """The table, summary and page of a sweep whose answers are all there."""
    from reports.sweep.folder import write_sweep
    from scenarios.sweep.axes import axes_from_mapping
    from scenarios.sweep.point_answer import Task, answer
    from scenarios.sweep.points import load_study
    from scenarios.sweep.sweep import run_sweep

    side = round(points**0.5)
    values = list(range(1, side + 1))
    paths = ("engine.max_num_seqs", "workload.arrivals.request_rate")
    axes = axes_from_mapping(dict.fromkeys(paths, values), source="axes")
    study = load_study("quickstart", ["workload.num_requests=50"], axes)

    def answered(tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        """One point is computed, the others differ from it: what they cost is not asked here."""
        told = json.loads(answer(tasks[0]))
        for number, task in enumerate(tasks):
            metrics = {
                name: value * (1.0 + 0.01 * (number % 97)) if isinstance(value, float) else value
                for name, value in told["metrics"].items()
            }
            yield task, json.dumps({"metrics": metrics, "warnings": []})

    result = run_sweep(study, answered)
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.process_time()
        write_sweep(Path(folder) / "sweep", result)
        return Measured(time.process_time() - began_s, _peak_bytes(), side * side)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT_BYTES


# -- a trace like Mooncake's -----------------------------------------------------------------------


def _drawn(path: Path, requests: int, mean_new_tokens: float, per_100_s: float) -> Path:
    """Conversations in blocks of 512 tokens that come in bursts every 3 s, written once.

    A good third of all requests goes on with an earlier one: its blocks again, but the last one,
    and new ones. All begin with the same block. Prompts have up to 125,000 tokens.
    """
    if path.is_file():
        return path
    rng = np.random.default_rng(23)
    sizes = np.minimum(rng.lognormal(0.0, 1.1, requests), 20.0)
    new_tokens = np.maximum(sizes / sizes.mean() * mean_new_tokens, 20).astype(int)
    output_tokens = np.clip(rng.lognormal(5.2, 1.1, requests), 1, 2000).astype(int)
    ticks = np.sort(rng.integers(0, max(int(requests / per_100_s * 100 / 3), 1), requests))
    before: list[list[int]] = []
    fresh = 1
    with path.open("w") as file:
        for number in range(requests):
            earlier: list[int] = [0]
            if before and rng.random() < 0.36:
                back = min(int(rng.exponential(400)), len(before) - 1)
                earlier = before[len(before) - 1 - back][:-1][: 120_000 // 512] or [0]
            count = int(new_tokens[number]) // 512 + 1
            ids = [*earlier, *range(fresh, fresh + count)][: 125_000 // 512]
            fresh += count
            before.append(ids)
            rest = int(new_tokens[number]) % 512 or 512
            row = {
                "timestamp": int(ticks[number]) * 3000,
                "input_length": (len(ids) - 1) * 512 + rest,
                "output_length": int(output_tokens[number]),
                "hash_ids": ids,
            }
            file.write(json.dumps(row) + "\n")
    return path


# -- the table -------------------------------------------------------------------------------------

ROWS = (
    Row("conversation", "Mooncake's conversations, 12,031 requests, prefix cache",
        conversation, "2.5 s"),
    Row("step", "the same, `--step`", lambda trace: conversation(trace, leap=False), "1.6 × leap"),
    Row("one", "`million`, 10⁵ requests", lambda _: million(100_000), "1.8 s"),
    Row("quickstart", "`orcast run quickstart`, whole",
        lambda _: command("run", "quickstart", "--out", "run"), "0.6 s", whole=True),
    Row("replicas-64", "64 replicas, `least_outstanding`, 10⁵",
        lambda _: million(100_000, 64, "least_outstanding"), "3.0 s"),
    Row("least_outstanding", "1,024 replicas, `least_outstanding`, 2·10⁵",
        lambda _: million(200_000, 1024, "least_outstanding"), "8 s, 700 MB", long=True),
    Row("least_kv", "1,024 replicas, `least_kv`, 2·10⁵",
        lambda _: million(200_000, 1024, "least_kv"), "10 s, 700 MB", long=True),
    Row("prefix_aware", "1,024 replicas, `prefix_aware`, 2·10⁵, prefixes in common",
        lambda trace: shared_prefixes(200_000, 1024, trace), "15 s, 700 MB", long=True),
    Row("replicas-256", "256 replicas, `least_outstanding`, 10⁶",
        lambda _: million(1_000_000, 256, "least_outstanding"), "40 s, 1.2 GB", long=True),
    Row("plan", "`orcast plan plan-chat`, whole",
        lambda _: command("plan", "plan-chat", "--json"), "10 s", long=True, whole=True),
    Row("sweep", "page of a sweep of 10,000 points", lambda _: sweep_page(10_000), "10 s"),
    *(Row(f"requests-1e{power}", f"`million`, 10^{power} requests",
          lambda _, count=10**power: million(count), "", long=power > 5)  # type: ignore[misc]
      for power in (4, 5, 6)),
    *(Row(f"disk-1e{power}", f"`million`, 10^{power} requests, records on disk",
          lambda _, count=10**power: million(count, on_disk=True), goal, long=True)  # type: ignore[misc]
      for power, goal in ((6, ""), (7, "250 s, 1.5 GB"))),
    *(Row(f"grow-{count}", f"{count:,} replicas, 5·10⁴ requests",
          lambda _, count=count: million(50_000, count, "least_outstanding"), "")  # type: ignore[misc]
      for count in (1, 4, 16, 64, 256, 1024)),
)  # fmt: skip
SERIES = {
    "requests": {10**power: f"requests-1e{power}" for power in (4, 5, 6)},
    "requests on disk": {10**power: f"disk-1e{power}" for power in (6, 7)},
    "replicas": {count: f"grow-{count}" for count in (1, 4, 16, 64, 256, 1024)},
}


def measure(row: Row, trace: Path, checkout: Path) -> Measured:
    """One run of a row in a process of its own, on the sources of a checkout, compiled before."""
    given = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    given |= {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(trace.parent / "compiled")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--measure", row.name, "--conversation", str(trace)],
        env=given, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{row.name}: exit status {done.returncode}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def lines(rows: Sequence[Row], trace: Path, other: Path | None) -> Iterator[str]:
    """The table, each line as soon as it has been measured; then how cost grows."""
    more = " other: CPU s | MB | ratio of CPU s | of MB |" if other is not None else ""
    yield f"| what | goal | CPU s | MB | per CPU-second |{more}"
    yield "|---|--:|--:|--:|--:|" + ("" if other is None else "--:|--:|--:|--:|")
    found: dict[str, Measured] = {}
    for row in rows:
        ours, theirs = [], []
        if row.whole:  # compiles what it imports
            measure(row, trace, ROOT)
        while not ours or (len(ours) < REPEATS and ours[0].cpu_s < SHORT_S):
            ours.append(measure(row, trace, ROOT))
            if other is not None:
                theirs.append(measure(row, trace, other))
        best = found[row.name] = min(ours, key=lambda one: one.cpu_s)
        line = f"| {row.what} | {row.goal} | {best.cpu_s:.2f} | {best.peak_bytes / 1e6:,.0f} "
        line += f"| {best.work / best.cpu_s:,.0f} |"
        if theirs:
            before = min(theirs, key=lambda one: one.cpu_s)
            pairs = list(zip(ours, theirs, strict=True))
            line += f" {before.cpu_s:.2f} | {before.peak_bytes / 1e6:,.0f} "
            line += f"| {median(a.cpu_s / b.cpu_s for a, b in pairs):.2f} "
            line += f"| {median(a.peak_bytes / b.peak_bytes for a, b in pairs):.2f} |"
        yield line
    yield from growth(found)


def growth(found: dict[str, Measured]) -> Iterator[str]:
    """By which power of the size cost grows, from each size to the next."""
    for name, sizes in SERIES.items():
        there = [(size, found[row]) for size, row in sizes.items() if row in found]
        for (small, few), (large, many) in pairwise(there):
            time_power = log(many.cpu_s / few.cpu_s) / log(large / small)
            peak_power = log(many.peak_bytes / few.peak_bytes) / log(large / small)
            yield (
                f"{name} {small:,} to {large:,}: CPU time grows with power {time_power:.2f}, "
                f"memory {peak_power:.2f}"
            )


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="leave the long ones out")
    parser.add_argument("--conversation", type=Path, help="Mooncake's trace; else one is drawn")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    if given.measure is not None:
        found = by_name[given.measure].run(given.conversation)
        print(json.dumps({name: getattr(found, name) for name in Measured.__slots__}))
        return
    if unknown := [name for name in given.rows if name not in by_name]:
        parser.error(f"no row {unknown[0]}, expected one of {', '.join(names)}")
    wanted = [by_name[name] for name in given.rows or names]
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "conversation.jsonl"
        if given.conversation is None:
            _drawn(trace, 12_031, 7_600, 334)
        else:
            trace.symlink_to(given.conversation.resolve())
        wanted = [row for row in wanted if not (given.quick and row.long)]
        for line in lines(wanted, trace, given.against):
            print(line, flush=True)
    from tests.benchmarks.speed import machine

    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
