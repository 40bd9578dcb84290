"""H100 in an open loop: what each load point's client saw, from defaults alone.

What is set is what a user knows: model, GPU, degrees, limits and load. `max_num_seqs` is 128 in all
of these recordings. Prompts repeat, so all of a prompt but its last block is cached. Arrivals are
called constant, which for their client (kubernetes-sigs/inference-perf, `ConstantLoadTimer`) means
exponential intervals, stretched to sum up to the duration: a Poisson process of so many requests.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np

from scenarios.errors import InputError
from tests.benchmarks.accuracy.data import folder
from tests.benchmarks.accuracy.sources import forecast_of, latency

BLOCK_SIZE = 16
MAX_NUM_SEQS = 128
PEERS = {
    "blis_trained": "BLIS, trained",
    "blis_roofline": "BLIS, roofline",
    "vidur": "vidur",
    "llm_optimizer": "llm-optimizer",
    "aiconfigurator": "aiconfigurator",
}
FIGURES = ("E2E", "between tokens", "TTFT", "E2E, p99")


def main(sources: Sequence[str]) -> None:
    """A row a load point, their medians, and the peers' published errors of mean E2E."""
    with (folder("vllm-h100-open-loop") / "points.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for source in sources:
        print(f"`latency.source: {source}`; error of the mean of each figure, and of E2E's p99\n")
        print("| load point | E2E | between tokens | TTFT | E2E, p99 | published: E2E |")
        print("|---|--:|--:|--:|--:|---|")
        errors = []
        for row in rows:
            name = f"{row['model']} × {row['tensor_parallel']}, {row['request_rate']}/s"
            try:
                error = _forecast(row, source) / _measured(row) - 1
            except InputError as refusal:
                print(f"| {name} | {refusal} | | | | |")
                continue
            errors.append(error)
            cells = " | ".join(f"{value:+.1%}" for value in error)
            published = (
                f"{peer} {float(row[f'error_pct_{key}']):+.0f} %"
                for key, peer in PEERS.items()
                if row[f"error_pct_{key}"]
            )
            print(f"| {name}, {row['prompt_tokens']} tokens | {cells} | {', '.join(published)} |")
        median = np.median(np.abs(errors), axis=0)
        print(f"| **median of {len(errors)}, absolute** | ", end="")
        print(" | ".join(f"**{value:.1%}**" for value in median), "| |\n")


def _measured(row: dict[str, str]) -> np.ndarray:
    mean, ttft, p99 = (float(row[name]) for name in ("mean_e2el_ms", "mean_ttft_ms", "p99_e2el_ms"))
    return np.array([mean, (mean - ttft) / (int(row["output_tokens"]) - 1), ttft, p99])


def _forecast(row: dict[str, str], source: str) -> np.ndarray:
    summary = forecast_of(_scenario(row, source)).summary
    mean, ttft, p99 = (summary[name] for name in ("mean_e2el_ms", "mean_ttft_ms", "p99_e2el_ms"))
    return np.array([mean, (mean - ttft) / (int(row["output_tokens"]) - 1), ttft, p99])


def _scenario(row: dict[str, str], source: str) -> dict[str, Any]:
    prompt, rate = int(row["prompt_tokens"]), float(row["request_rate"])
    return {
        "name": "open-loop",
        "model": row["model"],
        "hardware": {"gpu": "h100-sxm", "tensor_parallel": int(row["tensor_parallel"])},
        "engine": {
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": int(row["max_num_batched_tokens"]),
            "block_size": BLOCK_SIZE,
        },
        "latency": latency(source),
        "workload": {
            "arrivals": {"process": "poisson", "request_rate": rate},
            "lengths": {
                "prompt": {"distribution": "fixed", "tokens": prompt},
                "output": {"distribution": "fixed", "tokens": int(row["output_tokens"])},
            },
            "shared_prefixes": {
                "num_prefixes": int(row["distinct_prompts"]),
                "tokens": (prompt - 1) // BLOCK_SIZE * BLOCK_SIZE,
            },
            "num_requests": round(rate * float(row["duration_s"])),
        },
    }
