"""The forecast against the engine over many scenarios: ``python -m tests.benchmarks.validation``.

    python -m tests.benchmarks.validation --table calibrate/tables/h200-sxm/llama-3.1-8b --out FILE

Serves each variation of one scenario for real and forecasts it from a table that never saw it. One
Markdown row a variation, with the differences of mean and p99 TTFT, TPOT, E2E and of throughput in
per cent, and the mean absolute E2E error of a request. ``--scenario
scenarios/validation/tiny-cpu.yaml`` tries it without a GPU. Needs the core dependencies besides
torch and Triton.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orcast.validate_cli import ask_engine, load_model_of, question_of

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "validation" / "llama-8b-h200.yaml"

# Named by what is varied; every load is relative to the scenario's own.
VARIATIONS: dict[str, list[str]] = {
    "static, steady": ["engine.scheduler=static", "engine.max_num_seqs=32"],
    "orca, steady": ["engine.scheduler=orca"],
    "paged, steady": ["engine.scheduler=paged"],
    "chunked, steady": [],
    "chunked, bursty": ["workload.arrivals.process=gamma", "workload.arrivals.burstiness=0.25"],
    "chunked, saturated": ["workload.arrivals={process: all_at_once}"],
    "chunked, small cache": ["workload.arrivals={process: all_at_once}", "{small}"],
    "paged, small cache, swap": [
        "workload.arrivals={process: all_at_once}",
        "engine.scheduler=paged",
        "engine.preemption=swap",
        "{small}",
    ],
    "chunked, shared prefixes": ["workload.shared_prefixes={num_prefixes: 8, tokens: {prefix}}"],
}
METRICS = ("ttft", "tpot", "e2e")


def validate(
    scenario: Path, name: str, table: Path, model: Any, *, small: int, prefix: int
) -> dict[str, Any]:
    """One variation: what `orcast validate --json` says."""
    settings = [
        setting.replace("{small}", f"engine.num_gpu_blocks_override={small}").replace(
            "{prefix}", str(prefix)
        )
        for setting in VARIATIONS[name]
    ]
    question = question_of(str(scenario), settings)
    _, validation, _, _ = ask_engine(question, model, table, eos=False)
    return validation.as_dict()


def row(name: str, figures: dict[str, Any]) -> tuple[str, list[float]]:
    """A Markdown row, and the differences in it."""
    differences = [
        figures["metrics"][metric][statistic]["diff_pct"]
        for statistic in ("mean", "p99")
        for metric in METRICS
    ]
    differences.append(figures["throughput"]["output"]["diff_pct"])
    own = figures["per_request"]["e2e_mape_pct"]
    cells = " | ".join(f"{value:+.1f}" for value in differences)
    return f"| {name} | {cells} | {own:.1f} |", differences


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Validate variation after variation; gives the names of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--small", type=int, default=3000, help="KV blocks of a small cache")
    parser.add_argument("--prefix", type=int, default=256, help="tokens of a shared prefix")
    parser.add_argument("--only", help="variations whose names contain this")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    options = parser.parse_args(arguments)
    names = [name for name in VARIATIONS if not options.only or options.only in name]
    model = load_model_of(question_of(str(options.scenario), []))
    results: dict[str, Any] = {}
    means, failed = [], []
    print("| scenario | mean TTFT | TPOT | E2E | p99 TTFT | TPOT | E2E | tokens/s | per request |")
    print("|---|" + "--:|" * 8)
    for name in names:
        try:
            results[name] = validate(
                options.scenario, name, options.table, model, small=options.small,
                prefix=options.prefix,
            )  # fmt: skip
        except Exception as error:  # the next one may do better
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            failed.append(name)
        else:
            line, differences = row(name, results[name])
            print(line, flush=True)
            means += [abs(value) for value in (*differences[:3], differences[6])]
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if means:
        median = statistics.median(means)
        print(f"\nMedian of the mean figures' absolute differences: {median:.2f} %")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
