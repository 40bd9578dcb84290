"""Recorded vLLM runs against forecasts from the cards' kernel profiles, request by request.

Nothing is fitted to a run: model, GPU, limits and (where its log has it) the size of the KV cache
are set, and the card's profile is the latency table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.profiles.llmservingsim import import_llmservingsim
from orcast import simulate
from scenarios import library
from sim.latency.table_folder import write_table
from tests.benchmarks.accuracy.data import folder

MODEL = "llama-3.1-8b"
WORKLOAD = "vllm-rtx4090/workload.jsonl"
REPLAY = "scenarios/validation/vllm-replay.yaml"

Rows = list[tuple[Any, ...]]
Parts = Mapping[str, Rows]
Times = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Recording:
    """A run of the workload: its folder, its card, the limits of the engine that served it."""

    name: str
    folder: str
    gpu: str
    limits: Mapping[str, int]

    def profile(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        """meta.yaml and parts of a table of the card's kernels."""
        return import_llmservingsim(folder(self.folder) / "profile", library.model(MODEL))

    def measured(self) -> Times:
        """What the engine noted of each request, in seconds."""
        lines = (folder(self.folder) / "run" / "requests.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        queued, first, last, tokens = (
            np.array([row[name] for row in rows])
            for name in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")
        )
        return _times(first - queued, last - queued, tokens)

    def forecast(
        self, meta: dict[str, Any], parts: Parts, settings: Mapping[str, Any] | None = None
    ) -> Times:
        """The same of the forecast from this table."""
        with tempfile.TemporaryDirectory() as table:
            write_table(Path(table), meta, dict(parts))
            run = simulate(
                REPLAY,
                {
                    "model": MODEL,
                    "hardware.gpu": self.gpu,
                    "latency.table": table,
                    "workload.trace": str(folder(WORKLOAD)),
                    **{f"engine.{name}": value for name, value in self.limits.items()},
                    **(settings or {}),
                },
            )
        requests = run.records.requests
        arrived = requests["arrival_s"]
        return _times(
            requests["first_token_s"] - arrived,
            requests["finished_s"] - arrived,
            requests["output_tokens"],
        )


RTX_4090 = Recording(
    "RTX 4090",
    "vllm-rtx4090",
    "rtx-4090",
    {"num_gpu_blocks_override": 2588, "max_num_seqs": 256, "max_num_batched_tokens": 2048},
)
RECORDINGS = (
    RTX_4090,
    Recording(
        "RTX PRO 6000",
        "vllm-rtxpro6000",
        "rtx-pro-6000",
        {"max_num_seqs": 128, "max_num_batched_tokens": 2048},
    ),
)


def main(sources: Sequence[str]) -> None:
    """A row a recording; the latency source is always the card's own profile."""
    print_head("recording")
    for recording in RECORDINGS:
        print_row(recording.name, recording.forecast(*recording.profile()), recording.measured())
    print()


def print_head(what: str) -> None:
    print(
        f"| {what} | TTFT mean / p99 | TPOT mean / p99 | E2E mean / p99 "
        "| worst of 15 | per request E2E |"
    )
    print("|---|---|---|---|---|---|")


def print_row(name: str, predicted: Times, measured: Times) -> None:
    cells, worst = [], 0.0
    for metric in ("ttft", "tpot", "e2e"):
        one, other = (
            np.array([times[metric].mean(), *np.percentile(times[metric], (50, 90, 95, 99))])
            for times in (predicted, measured)
        )
        off = (one / other - 1) * 100
        cells.append(f"{off[0]:+.1f} % / {off[-1]:+.1f} %")
        worst = max(worst, float(np.abs(off).max()))
    mape = float(np.abs(predicted["e2e"] / measured["e2e"] - 1).mean() * 100)
    print(f"| {name} | {' | '.join(cells)} | {worst:.1f} % | {mape:.1f} % |")


def _times(ttft: np.ndarray, e2e: np.ndarray, tokens: np.ndarray) -> Times:
    return {"ttft": ttft, "tpot": (e2e - ttft) / np.maximum(tokens - 1, 1), "e2e": e2e}
