"""Whether plans that give candidates up early choose as exhaustive search does; what each costs.

    python -m tests.benchmarks.plans [--questions 10] [--seed 23]

Each question is drawn: how much load, how strict an objective, how long prompts and answers are,
which GPUs and how many together. It is asked twice, with every candidate's goodput searched to its
end and with `plan.explore=cheapest`; what is chosen, its check and its curve have to be the same to
the byte. CPU-seconds are of one process each, without imports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from scenarios.plan.plan import plan
from scenarios.schema.load import load_scenario

GPUS = ("l40s", "a100-80gb", "h100-sxm", "h200-sxm")
ANSWERED = ("chosen", "check", "curve", "to_deploy", "nearest_miss")


def drawn(rng: np.random.Generator) -> list[str]:
    """Settings of a question to the scenario `plan-chat`."""
    gpus = [str(name) for name in rng.choice(GPUS, 3, replace=False)]
    lengths = {
        part: {
            "distribution": "lognormal",
            "mean": float(round(rng.uniform(*means))),
            "sigma": 0.6,
            "max": 8 * means[1],
        }
        for part, means in (("prompt", (100, 1200)), ("output", (20, 150)))
    }
    slo = {
        "ttft_ms": float(round(rng.uniform(150, 1500))),
        "tpot_ms": float(round(rng.uniform(12, 60))),
        "percentile": int(rng.choice([50, 90, 95])),
    }
    given = {
        "workload.lengths": lengths,
        "slo": slo,
        "plan.load": {"request_rate": float(round(rng.uniform(5, 150)))},
        "plan.candidates": {
            "gpus": gpus,
            "layouts": [{"tensor_parallel": 1}, {"tensor_parallel": 2}],
        },
        "plan.objectives": [],
        "plan.seeds": 3,
        "plan.requests": 100,
        "plan.tolerance": 0.1,
    }
    return [f"{path}={json.dumps(value)}" for path, value in given.items()]


def answered(settings: list[str]) -> tuple[dict[str, Any], float]:
    """A plan and its CPU-seconds."""
    scenario, origin = load_scenario("plan-chat", settings)
    began_s = time.process_time()
    return plan(scenario, origin=origin), time.process_time() - began_s


def lines(questions: int, seed: int) -> Iterator[str]:
    """A row for each question; raises AssertionError where the two answers differ."""
    rng = np.random.default_rng(seed)
    yield "| load | objective | chosen | exhaustive: CPU s | cheapest: CPU s |"
    yield "|--:|---|---|--:|--:|"
    for _ in range(questions):
        settings = drawn(rng)
        every, every_s = answered([*settings, "plan.explore=all"])
        raced, raced_s = answered([*settings, "plan.explore=cheapest"])
        for name in ANSWERED:
            same = json.dumps(every[name]) == json.dumps(raced[name])
            assert same, f"{name} differs for {' '.join(settings)}"
        given = dict(one.split("=", 1) for one in settings)
        slo, rate = json.loads(given["slo"]), json.loads(given["plan.load"])["request_rate"]
        limits = f"TTFT {slo['ttft_ms']:g} ms, TPOT {slo['tpot_ms']:g} ms, p{slo['percentile']}"
        yield f"| {rate:g} | {limits} | {every['chosen']} | {every_s:.1f} | {raced_s:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--seed", type=int, default=23)
    given = parser.parse_args()
    try:
        for line in lines(given.questions, given.seed):
            print(line, flush=True)
    except AssertionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
