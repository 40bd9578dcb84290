"""One command measures a device's latency tables: ``orcast calibrate run``.

On a machine that lacks the simulator's dependencies the same is
``python -m calibrate.measure --model-config CONFIG.json --out DIR --budget 8m``.

Three rounds go over all parts, a share of the budget each, so that what drifts over minutes
(clocks, temperature, other work on the machine) does not end up in one part. Everything measured is
in ``DIR.partial`` at once; DIR appears when the table is whole.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calibrate.device.clocks import ClockLog
from calibrate.device.environment import (
    CalibrationError,
    device_id,
    device_name,
    environment,
    require_device,
)
from calibrate.device.timer import Timer, measure_ceilings
from calibrate.device.yardstick import measure_yardstick
from calibrate.engine.iteration_graphs import CAPTURE_SIZES
from calibrate.measure.batches import Lengths
from calibrate.measure.breakdown import by_block_size, flash_against_standard, operator_classes
from calibrate.measure.journal import Journal, writing
from calibrate.measure.measured_table import MeasuredTable, write_measured
from calibrate.measure.measuring import Measuring, failed
from calibrate.measure.parts import Bench, benches
from calibrate.measure.random_work import RandomWork
from calibrate.measure.rig import Rig
from calibrate.measure.setting import DTYPES, Setting, reachable
from calibrate.measure.shared_parts import take_over
from calibrate.measure.target import check_target, partial_folder, put_in_place
from calibrate.tables.meta import model_shape
from kernels.model_config import ModelConfig
from sim.model.config import read_config

ROUNDS = 3
# Shares of the measuring time; parts that a model or device lacks leave theirs to the others.
SHARES = {
    "linear": 3.0,
    "prefill_attention": 3.0,
    "decode_attention": 3.5,
    "moe": 2.5,
    "decode_skew": 1.2,
    "logits": 1.0,
    "swap": 0.5,
    "copy": 0.3,
    "host": 0.4,
    "service": 4.0,
    "held_out": 0.8,
}
LAST_SHARE = 0.08  # of the budget, for operator classes and attention's two ways
HELD_OUT = 8  # points of each part that no table holds


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a calibration is: what is measured now, points so far, seconds spent and allowed."""

    part: str
    points: int
    elapsed_s: float
    budget_s: float

    @property
    def left_s(self) -> float:
        return max(0.0, self.budget_s - self.elapsed_s)


def calibrate(
    setting: Setting, *, threads: int = 1, progress: Callable[[Progress], None] | None = None
) -> Path:
    """Measure the latency table of a model on this machine into the folder ``setting.out``.

    Args:
        threads: of a CPU's operations. More than one wait for each other, for tens of ms where
            other processes want the processor too.
        progress: called after every measurement.

    An interrupted calibration of the same setting goes on where it stopped. Returns the folder.
    Raises CalibrationError in clear words: no GPU, out of memory, a full disk, a device that fails.
    """
    before = torch.get_num_threads()
    try:
        if setting.device == "cpu":
            torch.set_num_threads(threads)
        return _Calibration(setting, progress or (lambda state: None)).finish()
    finally:
        torch.set_num_threads(before)
        if setting.device == "cuda":
            gc.collect()  # the next model needs the memory
            torch.cuda.empty_cache()


class _Calibration:
    """One calibration under way."""

    def __init__(self, given: Setting, progress: Callable[[Progress], None]) -> None:
        self.began_s = time.monotonic()
        self.given, self.progress = given, progress
        if given.dtype not in DTYPES:
            raise CalibrationError(f"--dtype {given.dtype}: allowed: {', '.join(DTYPES)}")
        if not given.budget_s > 0:
            raise CalibrationError(f"--budget: must be above zero, got {given.budget_s:g} s")
        try:
            self.spec = read_config(given.config, name=given.name)
            self.config = ModelConfig.from_hugging_face(given.config)
        except (ValueError, KeyError) as error:
            raise CalibrationError(f"{given.name}: the kernels cannot run it: {error}") from None
        self.partial = partial_folder(given.out)
        check_target(given.out)
        self.timer = Timer(require_device(given.device))
        self.environment = environment(self.timer.device)
        self.limits = given.limits or reachable(given, self.config, self.timer.device)
        self.clocks = ClockLog(device_id(self.timer.device), wanted=self.timer.on_gpu)
        self.captured = ()
        if self.timer.on_gpu:
            self.captured = tuple(s for s in CAPTURE_SIZES if s <= self.limits.max_seqs)
        self.journal = Journal(
            self.partial / "journal.jsonl", self._owner(), fastest=not self.timer.on_gpu
        )

    def finish(self) -> Path:
        """Measure, write, put in place."""
        try:
            self._ceilings()
            rig = self._rig()
            parts = benches(rig, captured=self.captured)
            self._take_over(parts)
            self._rounds(rig, parts)
            self._comparisons(rig)
            return self._write(parts)
        finally:
            self.journal.close()

    # -- before measuring -------------------------------------------------------------------------

    def _owner(self) -> dict[str, Any]:
        """What must be equal for an interrupted calibration to be gone on with."""
        given = self.given
        versions = {
            key: self.environment.get(key) for key in ("device", "torch", "triton", "threads")
        }
        return {
            "model": model_shape(self.spec),
            "dtype": given.dtype,
            "block_size": given.block_size,
            "linear_backend": given.products,
            "limits": dataclasses.asdict(self.limits),
            "seed": given.seed,
            **versions,
        }

    def _ceilings(self) -> None:
        if "ceilings" in self.journal.records:
            return
        self._tell("ceilings")
        dtype = DTYPES[self.given.dtype]
        try:
            found = measure_ceilings(self.timer, dtype=dtype)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise failed("ceilings", (), error) from None
        self.journal.record("ceilings", dataclasses.asdict(found))
        if self.timer.on_gpu:
            torch.cuda.empty_cache()

    def _rig(self) -> Rig:
        self._tell("weights")
        try:
            return Rig(
                self.config,
                timer=self.timer,
                limits=self.limits,
                block_size=self.given.block_size,
                dtype=DTYPES[self.given.dtype],
                seed=self.given.seed,
                linear_backend=self.given.products,
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise CalibrationError(
                f"out of memory: {self.given.name} with a cache of {self.limits.cache_tokens} "
                f"tokens does not fit on {device_name(self.timer.device)} ({text})"
            ) from None

    def _take_over(self, parts: Sequence[Bench]) -> None:
        if self.given.share is None:
            return
        setting = {"dtype": self.given.dtype, "block_size": self.given.block_size}
        told = take_over(
            self.journal, parts, self.given.share, environment=self.environment, setting=setting
        )
        for text in told:
            self.journal.record("taken_over", {"text": text})

    # -- measuring --------------------------------------------------------------------------------

    def _rounds(self, rig: Rig, parts: Sequence[Bench]) -> None:
        measuring = Measuring(
            self.journal, self.timer, self.clocks, target=self.given.target, on_point=self._tell,
            cooling_s=self.given.cooling_s,
        )  # fmt: skip
        began_s = time.monotonic()
        end_s = self.began_s + self.given.budget_s * (1.0 - LAST_SHARE)
        self.clocks.sample(now=True)
        names = [bench.name for bench in parts]
        total = sum(SHARES[name] for name in (*names, "service", "held_out"))
        spent_s = dict.fromkeys((*names, "service", "held_out"), 0.0)
        random = RandomWork(rig, measuring, self.given.seed, captured=self.captured)

        for turn in range(1, ROUNDS + 1):
            yardstick = measure_yardstick(self.timer.device)
            self.journal.record("yardstick", dataclasses.asdict(yardstick))
            for name in spent_s:
                allowed_s = SHARES[name] / total * max(0.0, end_s - began_s) * turn / ROUNDS
                from_s = time.monotonic()
                until_s = min(from_s + allowed_s - spent_s[name], end_s)
                if name == "service":
                    random.service(until_s)
                elif name == "held_out":
                    random.held_out(parts, until_s, most=-(-HELD_OUT * turn // ROUNDS))
                else:
                    bench = next(bench for bench in parts if bench.name == name)
                    measuring.run(bench, until_s, takes=turn)
                    self._part_on_disk(bench)
                spent_s[name] += time.monotonic() - from_s

    def _part_on_disk(self, bench: Bench) -> None:
        """The part's CSV as far as it is known, for whoever looks before the end."""
        table = MeasuredTable.of(self.journal, [bench], rig_config=self.config, given=self._facts())
        with writing(self.partial):
            table.write_part(self.partial, bench.name)

    def _comparisons(self, rig: Rig) -> None:
        """Operator classes, attention's two ways, and what launching one by one costs."""
        records = self.journal.records
        tokens = min(512 if not self.timer.on_gpu else 2048, self.limits.max_tokens)
        self._tell("operator classes")
        try:
            if self.timer.on_gpu and "eager_launch" not in records:
                call = rig.iteration(Lengths((16,), ((16, 0),)))
                eager = self.timer.measure([call], mode="eager").time_us
                graph = self.timer.measure([call]).time_us
                self.journal.record("eager_launch", {"eager_us": eager, "graph_us": graph})
            if self._late():
                return
            if "operator_classes" not in records and not self.config.num_experts:
                self.journal.record("operator_classes", operator_classes(rig, tokens))
            if self._late():
                return
            if "flash" not in records:
                longest = min(8192, self.limits.max_tokens)
                lengths = [
                    size for size in (128, 256, 512, 1024, 2048, 4096, 8192) if size <= longest
                ]
                if not self.timer.on_gpu:
                    lengths = [size for size in lengths if size <= 512]
                for row in flash_against_standard(rig, lengths):
                    self.journal.record("flash", row)
            if self._late():
                return
            if "block_sizes" not in records:
                for row in by_block_size(rig):
                    self.journal.record("block_sizes", row)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.journal.record("skipped", {"text": "operator classes: out of memory"})
        except RuntimeError as error:
            raise failed("operator classes", (), error) from None

    def _late(self) -> bool:
        """Whether the table has to be written now."""
        if time.monotonic() - self.began_s < self.given.most_s:
            return False
        text = "operator classes and attention's two ways, or some of them: no time was left"
        self.journal.record("skipped", {"text": text})
        return True

    # -- writing ----------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What meta.yaml says besides measurements."""
        given = self.given
        device = self.environment["device"]
        backend = "Triton" if self.timer.on_gpu else "plain PyTorch"
        when = time.strftime("%Y-%m-%d")
        return {
            "source": (
                f"{given.name} on {given.gpu or device}, Orcast's kernels ({backend}), measured "
                f"{when} with torch {self.environment['torch']}"
                + (f", triton {self.environment['triton']}" if self.timer.on_gpu else "")
            ),
            "measured_by": "orcast calibrate",
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "gpu": given.gpu or device,
            "model": model_shape(self.spec),
            "dtype": given.dtype,
            "kv_cache_dtype": "auto",
            "tensor_parallel": 1,
            "block_size": given.block_size,
            "linear_backend": given.products,
            "launch": "graph" if self.timer.on_gpu else "eager",
            "cudagraph_capture_sizes": list(self.captured),
            "environment": self.environment,
            "limits": dataclasses.asdict(self.limits),
            "budget_s": given.budget_s,
        }

    def _write(self, parts: Sequence[Bench]) -> Path:
        self._tell("writing")
        facts = self._facts()
        facts["duration_s"] = round(time.monotonic() - self.began_s, 1)
        facts["resumed"] = self.journal.resumed
        facts["clocks"] = self.clocks.summary()
        table = MeasuredTable.of(
            self.journal, parts, rig_config=self.config, given=facts, spec=self.spec,
            limits=self.limits,
        )  # fmt: skip
        with writing(self.partial):
            write_measured(self.partial, table)
            self.journal.close()
            return put_in_place(self.partial, self.given.out)

    def _tell(self, part: str) -> None:
        points = sum(len(points.takes) for points in self.journal.parts.values())
        elapsed_s = time.monotonic() - self.began_s
        self.progress(Progress(part, points, elapsed_s, self.given.budget_s))
