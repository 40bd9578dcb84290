"""Laws that are verified explicitly: they hold under ``python -O``, and a broken one is said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import orcast
from sim.conservation import ConservationError, conserved, hold

ROOT = Path(__file__).parents[2]
SABOTAGE = """
import orcast
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from sim.conservation import ConservationError
from sim.kv.cache import BlockAllocator
assert False, "python -O leaves this out"
free = BlockAllocator.free
def lossy(self, table, *rest, **more):
    free(self, list(table)[:-1], *rest, **more)
BlockAllocator.free = lossy
scenario, origin = load_scenario(
    "quickstart", ["workload.num_requests=20", "engine.num_gpu_blocks_override=500",
                   "latency.source=roofline"]
)
try:
    forecast(scenario, origin=origin, check=True)
except ConservationError as error:
    print("told:", error)
"""


def test_a_lost_block_is_told_without_asserts() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", SABOTAGE], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("told: "), done.stdout + done.stderr


def test_records_that_break_a_law_are_refused() -> None:
    records = orcast.simulate("quickstart", {"workload.num_requests": 30}).records
    laws = conserved(records)
    assert (laws["requests"], laws["answered"], laws["rejected"]) == (30, 30, 0)
    assert laws["tokens_emitted"] == laws["tokens_returned"]

    def tampered(table: str, column: str, row: int, value: float) -> None:
        columns = dict(getattr(records, table))
        columns[column] = columns[column].copy()
        columns[column][row] = value
        with pytest.raises(ConservationError):
            conserved(replace(records, **{table: columns}))

    tampered("requests", "finished_s", 3, np.nan)
    tampered("requests", "rejected", 3, True)
    tampered("requests", "request", 3, 4)
    tampered("requests", "output_tokens", 3, 10**9)
    tampered("iterations", "kv_free_tokens", 3, 1)


def test_a_law_that_holds_is_silent() -> None:
    hold(True)
    with pytest.raises(ConservationError, match="lost"):
        hold(False, "a block is lost")


def test_every_run_says_that_nothing_was_lost() -> None:
    summary = orcast.simulate("preemption", {"workload.num_requests": 40}).summary
    laws = summary["conservation"]
    assert laws["requests"] == laws["answered"] + laws["rejected"] == 40
