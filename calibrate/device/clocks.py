"""What the GPU's clocks did while something was measured, from nvidia-smi where there is one."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

# Bits of clocks_event_reasons.active (NVML) that make a time worthless, and one that is normal:
# under sustained matrix products every GPU reaches its power limit.
THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake",
}
POWER_CAP = 0x04
FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw")
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # new and old name


@dataclass(frozen=True, slots=True)
class Clocks:
    """One sample: MHz, °C, W, and the reasons why the clock is held down (a bit set)."""

    sm_mhz: float
    max_sm_mhz: float
    memory_mhz: float
    temperature_c: float
    power_w: float
    reasons: int

    @property
    def throttled(self) -> str:
        """Why times measured now are not the GPU's; empty where they are."""
        return ", ".join(text for bit, text in THROTTLED.items() if self.reasons & bit)


@dataclass(slots=True)
class ClockLog:
    """Samples taken at most every ``interval_s``; without nvidia-smi it stays empty.

    A slow nvidia-smi is asked more rarely: asking takes a twentieth of the time at most. With an
    interval of 0 it is asked every time.
    """

    gpu: str | None = None  # a UUID or index for nvidia-smi; the first GPU by default
    wanted: bool = True  # False for a device that has no clocks to ask for
    interval_s: float = 2.0
    samples: list[Clocks] = field(default_factory=list)
    _query: str | None = field(default=None, repr=False)
    _last_s: float = field(default=float("-inf"), repr=False)
    _answer_s: float = field(default=0.0, repr=False)  # how long the last answer took

    def __post_init__(self) -> None:
        if not self.wanted or shutil.which("nvidia-smi") is None:
            return
        for reasons in REASONS:  # a driver knows one of the two names
            query = ",".join((*FIELDS, reasons))
            if self._ask(query) is not None:
                self._query = query
                return

    @property
    def watching(self) -> bool:
        return self._query is not None

    def sample(self, *, now: bool = False) -> Clocks | None:
        """The clocks, asked for anew where the last answer is old or ``now`` is set."""
        if self._query is None:
            return None
        began_s = time.monotonic()
        pause_s = self.interval_s and max(self.interval_s, 20 * self._answer_s)
        if not now and began_s - self._last_s < pause_s:
            return self.samples[-1] if self.samples else None
        clocks = self._ask(self._query)
        self._last_s = time.monotonic()
        self._answer_s = self._last_s - began_s
        if clocks is not None:
            self.samples.append(clocks)
        return clocks

    def summary(self) -> dict[str, Any] | None:
        """For the record: what the clocks were, and how often they were held down."""
        if not self.samples:
            return None
        sm = [clocks.sm_mhz for clocks in self.samples]
        return {
            "samples": len(sm),
            "sm_mhz": {
                "min": min(sm),
                "median": statistics.median(sm),
                "max": max(sm),
                "limit": self.samples[-1].max_sm_mhz,
            },
            "memory_mhz": statistics.median(clocks.memory_mhz for clocks in self.samples),
            "hottest_c": max(clocks.temperature_c for clocks in self.samples),
            "most_power_w": max(clocks.power_w for clocks in self.samples),
            "at_power_cap": sum(bool(c.reasons & POWER_CAP) for c in self.samples),
            "throttled": sum(bool(c.throttled) for c in self.samples),
        }

    def _ask(self, query: str) -> Clocks | None:
        lines = nvidia_smi(query, gpu=self.gpu)
        if not lines:
            return None
        cells = lines[0]
        if len(cells) != len(FIELDS) + 1 or not cells[-1].lower().startswith("0x"):
            return None
        try:
            reasons = int(cells[-1], 16)
        except ValueError:
            return None
        sm, most, memory, temperature, power = (_number(cell) for cell in cells[:-1])
        return Clocks(sm, most, memory, temperature, power, reasons)


def nvidia_smi(query: str, *, gpu: str | None = None) -> list[list[str]] | None:
    """Rows that nvidia-smi answers to ``--query-gpu``, cells stripped; None where it fails."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    if gpu is not None:
        command.append(f"--id={gpu}")
    try:
        answer = subprocess.run(  # noqa: S603 - no shell, and nothing in it is from outside
            command, capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]


def _number(text: str) -> float:
    """A figure, or NaN for what this GPU does not report ("[N/A]")."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
