"""Tokens that engines' start-up logs say their KV cache holds, against the memory budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.benchmarks.accuracy.data import folder
from tests.sim.kv.test_logged_capacity import error_of, logs


def main(sources: Sequence[str]) -> None:
    """A row a log. The budget rests on model, GPU and engine alone, whatever the latency source."""
    folder("kv-capacity.csv")
    print("| deployment | engine | logged tokens | budget, error |")
    print("|---|---|--:|--:|")
    errors = [error_of(log) for log in logs()]
    for log, error in zip(logs(), errors, strict=True):
        print(f"| {log['deployment']} | {log['engine']} | {log['kv_tokens']} | {error:+.1%} |")
    within = np.sum(np.abs(errors) <= 0.03)
    print(f"\nWithin 3 %: {within} of {len(errors)}; median {np.median(np.abs(errors)):.1%}.\n")
