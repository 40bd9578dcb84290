"""Forecast against a recorded vLLM run, and what each part of the model is worth.

    python -m tests.benchmarks.accuracy [RECORDING]

RECORDING is a folder with profile/, workload.jsonl and run/requests.jsonl (default: the RTX 4090
recording beside the checkout). Prints one Markdown table; every row leaves out or changes one part.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.profiles.llmservingsim import import_llmservingsim
from orcast import simulate
from scenarios import library
from sim.latency.table_folder import write_table

RECORDING = Path(__file__).parents[2] / ".." / "shared" / "data" / "vllm-rtx4090"
Rows = list[tuple[Any, ...]]


def log_blended(rows: Rows, axis: int) -> Rows:
    """Points in between, blended in logarithms along one axis: what linear look-ups then see."""
    lines: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        lines.setdefault((*row[:axis], *row[axis + 1 : -1]), []).append(row)
    more = []
    for points in lines.values():
        points = sorted((row for row in points if row[axis] > 0), key=lambda row: row[axis])
        for one, other in pairwise(points):
            for share in np.linspace(0, 1, 9)[1:-1]:
                x = round(float(one[axis] ** (1 - share) * other[axis] ** share))
                if one[axis] < x < other[axis]:
                    at = np.log(x / one[axis]) / np.log(other[axis] / one[axis])
                    time_us = float(one[-1] ** (1 - at) * other[-1] ** at)
                    more.append((*one[:axis], x, *one[axis + 1 : -1], time_us))
    known = {row[:-1] for row in rows}
    return rows + [row for row in {r[:-1]: r for r in more}.values() if row[:-1] not in known]


def with_log_blending(parts: dict[str, Rows]) -> dict[str, Rows]:
    changed = dict(parts)
    for name, axes in {
        "linear": [1], "logits": [1], "prefill_attention": [0], "decode_attention": [0, 1]
    }.items():  # fmt: skip
        for axis in axes:
            changed[name] = log_blended(changed[name], axis)
    return changed


def without_floor_per_sequence(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Decode attention by total context alone, as if a sequence cost nothing of its own."""
    changed = dict(parts)
    one = sorted((c, t) for n, c, t in parts["decode_attention"] if n == 1)
    contexts, times = [c for c, _ in one], [t for _, t in one]
    slope = times[-1] / contexts[-1]
    changed["decode_attention"] = [
        (n, c, float(np.interp(n * c, contexts, times)) if n * c <= contexts[-1] else slope * n * c)
        for n, c, _ in parts["decode_attention"]
    ]
    return changed


def main() -> None:
    recording = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDING
    if not recording.is_dir():
        sys.exit(f"no recording at {recording}")
    meta, parts = import_llmservingsim(recording / "profile", library.model("llama-3.1-8b"))
    plain = {name: rows for name, rows in parts.items() if name != "mixed_attention"}
    variants: list[tuple[str, dict[str, Any], Callable[[], dict[str, Rows]]]] = [
        ("as shipped", {}, lambda: parts),
        ("without the prefix cache", {"engine.enable_prefix_caching": False}, lambda: parts),
        (
            "KV cache of 3,400 blocks, not 2,588",
            {"engine.num_gpu_blocks_override": 3400},
            lambda: parts,
        ),
        ("without padding to graph sizes", {"engine.cudagraph_capture_sizes": []}, lambda: parts),
        ("with the bound of the longest sequence", {"latency.skew": True}, lambda: parts),
        ("prompts and decodes in separate launches", {}, lambda: plain),
        ("blending logarithms instead of times", {}, lambda: with_log_blending(plain)),
        ("no cost per decoding sequence", {}, lambda: without_floor_per_sequence(plain)),
        ("other policy: prefills first (`paged`)", {"engine.scheduler": "paged"}, lambda: parts),
    ]  # fmt: skip
    lines = (recording / "run" / "requests.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    queued, first, last, tokens = (
        np.array([row[name] for row in rows])
        for name in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")
    )
    measured = _times(first - queued, last - queued, tokens)
    print(
        "| variant | TTFT mean / p99 | TPOT mean / p99 | E2E mean / p99 "
        "| worst of 15 | per request E2E |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, settings, make) in enumerate(variants):
            table = Path(folder) / str(number)
            write_table(table, meta, make())
            run = simulate(
                "scenarios/validation/vllm-replay.yaml",
                {
                    "model": "llama-3.1-8b",
                    "hardware.gpu": "rtx-4090",
                    "latency.table": str(table),
                    "workload.trace": str(recording / "workload.jsonl"),
                    "engine.num_gpu_blocks_override": 2588,
                    "engine.max_num_batched_tokens": 2048,
                    **settings,
                },
            )
            requests = run.records.requests
            predicted = _times(
                requests["first_token_s"] - requests["arrival_s"],
                requests["finished_s"] - requests["arrival_s"],
                tokens,
            )
            _print(name, predicted, measured)


def _times(ttft: np.ndarray, e2e: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"ttft": ttft, "tpot": (e2e - ttft) / np.maximum(tokens - 1, 1), "e2e": e2e}


def _print(name: str, predicted: dict[str, np.ndarray], measured: dict[str, np.ndarray]) -> None:
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


if __name__ == "__main__":
    main()
