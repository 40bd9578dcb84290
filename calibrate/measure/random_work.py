"""What is drawn at random while a calibration measures: the engine's runs, and points held out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calibrate.measure.journal import Point
from calibrate.measure.measuring import Measuring, failed
from calibrate.measure.parts import Bench
from calibrate.measure.rig import Rig
from calibrate.measure.service import Service

MOST_ITERATIONS = 4000  # of the engine in service; every other run of it is held out
LEAST_RUNS = 4  # whatever the budget
HELD_OUT_PARTS = ("linear", "logits", "prefill_attention", "decode_attention", "moe")
MUST_HOLD = 3  # points of a grid that something can lie between


class RandomWork:
    """Runs of the engine and held-out points, drawn anew but the same for the same seed."""

    def __init__(
        self, rig: Rig, measuring: Measuring, seed: int, *, captured: Sequence[int]
    ) -> None:
        self.rig, self.measuring, self.journal = rig, measuring, measuring.journal
        self.seed, self.captured = seed, captured
        self.points_rng = np.random.default_rng([seed, 2])
        self._service: Service | None = None

    def service(self, until_s: float) -> None:
        """Let the engine serve, run by run; four of them at least."""
        lines = self.journal.records.setdefault("service", [])
        while len(lines) < LEAST_RUNS or time.monotonic() < until_s:
            if sum(len(line["iterations"]) for line in lines) >= MOST_ITERATIONS:
                return
            self._run(len(lines))

    def _run(self, index: int) -> None:
        line: dict[str, Any] = {"index": index, "held_out": index % 2 == 1, "iterations": []}
        try:
            if self._service is None:
                self._service = Service(self.rig, captured=self.captured)
            found = self._service.run(np.random.default_rng([self.seed, 1, index]))
        except (torch.OutOfMemoryError, MemoryError):
            line["skipped"] = "out of memory"
        except RuntimeError as error:
            raise failed("the engine in service", (index,), error) from None
        else:
            line["iterations"] = [
                [one.decodes, one.context_tokens, one.longest_tokens, one.prefills, one.time_us]
                for one in found
            ]
        self.measuring.clocks.sample()
        self.journal.record("service", line)
        self.measuring.on_point("the engine in service")

    def held_out(self, parts: Sequence[Bench], until_s: float, *, most: int) -> None:
        """Measure random points between those of the grids; one of every part at least."""
        for bench in parts:
            if bench.name not in HELD_OUT_PARTS or len(bench.points()) < MUST_HOLD:
                continue
            while True:
                mine = [
                    r for r in self.journal.records.get("held_out", []) if r["part"] == bench.name
                ]
                if len(mine) >= most or (mine and time.monotonic() >= until_s):
                    break
                point = self._point(bench)
                try:
                    times_us, spread, _ = self.measuring.time_us(bench, point)
                except torch.OutOfMemoryError:
                    break
                self.journal.record(
                    "held_out",
                    {
                        "part": bench.name,
                        "point": list(point),
                        "time_us": times_us[0] * bench.scale,
                        "spread": round(spread, 5),
                    },
                )
                self.measuring.on_point("held-out points")

    def _point(self, bench: Bench) -> Point:
        """Uniform in the logarithm between an axis' ends; expert counts stay on their axis."""
        while True:
            point = []
            for axis in bench.axes:
                low, high = max(1, axis[0]), axis[-1]
                drawn = int(np.exp(self.points_rng.uniform(np.log(low), np.log(high + 1))))
                point.append(min(drawn, high))
            if bench.name == "moe":
                point[1] = int(self.points_rng.choice(bench.axes[1]))
            if bench.fits(tuple(point)):
                return tuple(point)
