"""Tokens that engines' start-up logs say their KV cache holds, against the memory budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.benchmarks.accuracy.data import folder
from tests.sim.kv.test_logged_capacity import error_of, logs, may_have_either


def main(sources: Sequence[str]) -> None:
    """A row a log. The budget rests on model, GPU and engine alone, whatever the latency source."""
    folder("kv-capacity.csv")
    print("| deployment | engine | logged tokens | budget, error | with FlashInfer's sampler |")
    print("|---|---|--:|--:|--:|")
    errors, nearest = [], []
    for log in logs():
        error, other, told = error_of(log), None, ""
        if may_have_either(log):
            other = error_of(log, sampler="flashinfer")
            told = f"{other:+.1%}"
        errors.append(error)
        nearest.append(error if other is None else min(error, other, key=abs))
        named = f"{log['deployment']} | {log['engine']} | {log['kv_tokens']}"
        print(f"| {named} | {error:+.1%} | {told} |")
    within, fitting = (np.sum(np.abs(of) <= 0.03) for of in (errors, nearest))
    print(f"\nWithin 3 %: {within} of {len(errors)}; median {np.median(np.abs(errors)):.1%}.")
    print(
        f"With the sampler that fits, where a log leaves that open: {fitting} of {len(errors)}.\n"
    )
