"""vLLM's schedules of some workloads of every mode, in a file: who compares needs no vLLM."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from tests.vllm.schedule import Schedule
from tests.vllm.workloads import Workload

FILE = Path(__file__).with_name("schedules.json.xz")

Recorded = tuple[Workload, Schedule]


@cache
def read() -> dict[str, list[Recorded]]:
    """All that is recorded, by mode."""
    modes: dict[str, list[Recorded]] = {}
    for line in lzma.decompress(FILE.read_bytes()).decode().splitlines():
        one = json.loads(line)
        recorded = Workload.from_json(one["workload"]), Schedule.from_json(one["schedule"])
        modes.setdefault(one["mode"], []).append(recorded)
    return modes


def write(modes: Iterable[tuple[str, Sequence[Recorded]]]) -> None:
    """Renew the file."""
    lines = [
        json.dumps(
            {"mode": mode, "workload": workload.as_json(), "schedule": schedule.as_json()},
            separators=(",", ":"),
        )
        for mode, recorded in modes
        for workload, schedule in recorded
    ]
    FILE.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
