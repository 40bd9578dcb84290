"""A real engine recorded, refined on, forecast and served: the whole loop, here.

    python -m tests.vllm.whole_loop --python .venv-vllm/bin/python [--rounds 5] [--out DIR]

`vllm serve` computes a tiny model on this processor. A light load is recorded, by `vllm bench
serve` and in the engine's own log, and from nothing but that recording `orcast calibrate refine`
finds the engine's constants, of an analytic model that knows nothing of this machine. Three other
loads are then served, and forecast: twice the rate; longer prompts that begin alike; a cache so
small that requests are preempted. Writes a page, README.md; exits with 1 where the median of the
rounds is off by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calibrate.recordings.iteration_log import read_iteration_log
from calibrate.recordings.measurement import Measurement, read_measurement, simulated
from orcast import simulate
from scenarios.forecast.deployment import deploy
from scenarios.schema.load import load_scenario
from sim.latency.table import TableLatency
from tests.vllm.server import LIMITS, Client, Server, prepare

TARGET = 0.05
FIGURES = ("mean E2E", "mean TPOT", "throughput")


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the server: `bench serve` options, and its cache in blocks."""

    name: str
    words: str
    rate: float
    requests: int
    prompt: int
    output: int
    prefix: int = 0
    blocks: int = 512
    spread: float = 0.5  # of lengths about their means

    def options(self, seed: int) -> list[object]:
        return [
            "--request-rate", self.rate, "--num-prompts", self.requests, "--seed", seed,
            "--random-input-len", self.prompt, "--random-output-len", self.output,
            "--random-range-ratio", self.spread, "--random-prefix-len", self.prefix,
        ]  # fmt: skip


# Of few requests at a time and of many lengths: what a token costs by its context is told apart.
LIGHT = Load("light", "the recording", rate=8, requests=200, prompt=220, output=48, spread=0.9)
LOADS = (
    Load("twice", "twice the rate", rate=16, requests=240, prompt=120, output=48),
    Load("shared", "longer prompts that begin alike", 8, 120, prompt=160, output=48, prefix=256),
    Load("small", "a small cache, preemptions", 12, 160, prompt=120, output=96, blocks=40),
)


def scenario_of(folder: Path, load: Load) -> Path:
    """The deployment of the server, as a user would write it down."""
    path = folder / f"{load.name}.yaml"
    content: dict[str, Any] = {
        "name": load.name,
        "model": str(folder / "model" / "config.json"),
        "hardware": {"gpu": "cpu"},
        "engine": {
            "generation": "vllm-sync",  # vLLM on a processor does not schedule ahead
            "num_gpu_blocks_override": load.blocks,
            **LIMITS,
        },
        "latency": {"source": "roofline"},
        "workload": {"trace": str(folder / f"{load.name}-workload.jsonl")},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def workload_of(folder: Path, load: Load, result: Path) -> None:
    """The requests of a bench result, with tokens that are alike where prompts began alike."""
    served = json.loads(result.read_text())
    start_s = np.array(served["start_times"])
    following = LIMITS["max_model_len"]  # a token of its own for whatever is not shared
    lines = []
    for row in np.argsort(start_s, kind="stable").tolist():
        count = served["input_lens"][row]
        own = count - load.prefix
        tokens = [*range(load.prefix), *range(following, following + own)]
        following += own
        lines.append(
            json.dumps(
                {
                    "input_toks": count,
                    "output_toks": served["output_lens"][row],
                    "arrival_time_ns": int((start_s[row] - start_s.min()) * 1e9),
                    "input_tok_ids": tokens,
                }
            )
        )
    (folder / f"{load.name}-workload.jsonl").write_text("\n".join(lines) + "\n")


def figures(run: Measurement) -> dict[str, float]:
    """Means over the requests, and output tokens per second of the whole run."""
    ends_s = run.arrival_s + run.e2e_s
    return {
        "mean E2E": float(run.e2e_s.mean()),
        "mean TPOT": float(np.nanmean(run.tpot_s)),
        "throughput": float(run.output_tokens.sum() / (ends_s.max() - run.arrival_s.min())),
    }


def forecast(folder: Path, load: Load, table: Path) -> tuple[Measurement, dict[str, Any]]:
    """What a client of this load would see, and the run's summary."""
    run = simulate(str(scenario_of(folder, load)), {"latency": {"table": str(table)}})
    return simulated(load.name, run.records.requests, run.records.preemptions), run.summary


def iteration_bias(folder: Path, load: Load, table: Path, log: Path) -> tuple[float, int]:
    """Median of forecast over measured duration, iteration by iteration, less one; how many."""
    scenario, origin = load_scenario(
        str(scenario_of(folder, load)), [f"latency={json.dumps({'table': str(table)})}"]
    )
    latency = deploy(scenario, origin=origin).latency
    assert isinstance(latency, TableLatency)
    slots = load.blocks * LIMITS["block_size"]
    found = read_iteration_log(log, slots=slots)
    if found is None:
        return float("nan"), 0
    told_s = np.array([latency.iteration_s(found.batch(row)) for row in range(len(found))])
    return float(np.median(told_s / found.duration_s) - 1), len(found)


def one_round(
    folder: Path, servers: dict[int, Server], client: Client, seed: int
) -> dict[str, dict[str, float]]:
    """Record, refine, forecast, serve: relative errors by load and figure."""

    def served(load: Load) -> tuple[Path, Path]:
        server = servers[load.blocks]
        before = server.log.stat().st_size
        result = client.bench(server.port, load.name, load.options(seed))
        workload_of(folder, load, result)
        part = folder / f"{load.name}-iterations.log"
        with server.log.open("rb") as log:
            log.seek(before)
            part.write_bytes(log.read())
        return result, part

    light, log = served(LIGHT)
    table = folder / f"table-{seed}"
    trace = folder / f"{LIGHT.name}-workload.jsonl"
    subprocess.run(
        [sys.executable, "-m", "orcast", "calibrate", "refine", scenario_of(folder, LIGHT), light,
         "--log", log, "--out", table, "--set", f"workload.trace={trace}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    errors = {}
    for load in LOADS:
        result, log = served(load)
        measured = read_measurement(result)
        told, summary = forecast(folder, load, table)
        ours, theirs = figures(told), figures(measured)
        errors[load.name] = {name: ours[name] / theirs[name] - 1 for name in FIGURES}
        errors[load.name]["preemptions"] = float(summary["preemptions"])
        errors[load.name]["bias"], _ = iteration_bias(folder, load, table, log)
        print(f"  {load.words}: " + ", ".join(
            f"{name} {errors[load.name][name]:+.1%}" for name in (*FIGURES, "bias")
        ), flush=True)  # fmt: skip
    return errors


def page(rounds: list[dict[str, dict[str, float]]], table: Path) -> tuple[str, bool]:
    """The page, and whether every median is within the target."""
    refined = yaml.safe_load((table / "meta.yaml").read_text())["refined"]
    lines = [
        "# A real engine, recorded, refined on, forecast and served",
        "",
        f"vLLM served a tiny model on this processor, {len(rounds)} rounds. Each recorded a light "
        "load, refined an analytic model on nothing but that, and forecast three other loads. "
        "Medians of the rounds, and the range of all; errors are forecast over measurement, less "
        "one. The bias is that of iterations' durations, as the engine logged them.",
        "",
        "| load | mean E2E | mean TPOT | throughput | iterations' bias | preemptions |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    good = True
    for load in LOADS:
        cells = []
        for name in (*FIGURES, "bias"):
            values = np.array([one[load.name][name] for one in rounds])
            middle = float(np.median(values))
            cells.append(f"{middle:+.1%} ({values.min():+.1%} … {values.max():+.1%})")
            good &= name == "bias" or abs(middle) <= TARGET
        preempted = np.median([one[load.name]["preemptions"] for one in rounds])
        lines.append(f"| {load.words} | {' | '.join(cells)} | {preempted:.0f} |")
    lines += ["", "Constants of the last round:", "", "| constant | value | ± |", "|---|--:|--:|"]
    for name, found in (refined["constants"] | refined.get("front_end", {})).items():
        lines.append(f"| {name} | {found['value']:.3g} | {found['uncertainty']:.2g} |")
    return "\n".join(lines) + "\n", good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vllm.whole_loop", description=__doc__)
    parser.add_argument("--python", required=True, help="one that has vLLM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/check-vllm"))
    options = parser.parse_args()
    if shutil.which(options.python) is None:
        parser.error(f"there is no {options.python}: `make check-vllm` installs it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    folder = options.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = shutil.which(options.python)
    assert python is not None
    python = str(Path(python).absolute())
    environment = prepare(folder, python)
    servers: dict[int, Server] = {}
    client = None
    rounds = []
    try:
        for blocks in sorted({load.blocks for load in (LIGHT, *LOADS)}):
            servers[blocks] = Server.start(folder, python, environment, blocks)
        client = Client(folder, python, environment)
        for server in servers.values():
            server.wait()
        for load in (LIGHT, *LOADS):  # once for nothing: what is loaded late is loaded then
            client.bench(
                servers[load.blocks].port, "warm-up", [*load.options(0)[:2], "--num-prompts", 8]
            )
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            rounds.append(one_round(folder, servers, client, options.seed + number))
    finally:
        if client is not None:
            client.stop()
        for server in servers.values():
            server.stop()
    text, good = page(rounds, folder / f"table-{options.seed + len(rounds) - 1}")
    (folder / "README.md").write_text(text)
    print(text + f"\n{folder / 'README.md'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
