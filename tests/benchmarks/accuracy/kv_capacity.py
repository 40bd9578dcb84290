"""Tokens that engines' start-up logs say their KV cache holds, against the memory budget."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import numpy as np

from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.schema.load import parse_scenario
from tests.benchmarks.accuracy.data import folder

GIB = 2**30


def main(sources: object = None) -> None:
    """A row a log; what the budget rests on is the scenario alone, whatever the latency source."""
    with folder("kv-capacity.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print("| deployment | engine | logged | budget | error |")
    print("|---|---|--:|--:|--:|")
    errors = []
    for row in rows:
        logged, name = int(row["kv_tokens"]), f"{row['deployment']} | {row['engine']}"
        try:
            tokens = _budgeted(row)
        except InputError as error:
            print(f"| {name} | {logged:,} | {str(error).partition(': ')[2]} | |")
            continue
        errors.append(abs(tokens / logged - 1))
        print(f"| {name} | {logged:,} | {tokens:,} | {tokens / logged - 1:+.1%} |")
    within = sum(error <= 0.03 for error in errors)
    print(f"\nWithin 3 %: {within} of {len(rows)}; median {np.median(errors):.1%}.\n")
