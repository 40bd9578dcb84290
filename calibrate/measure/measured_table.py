"""A journal of measurements -> a latency table: CSV files with spread and work, and meta.yaml."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.device.environment import CalibrationError
from calibrate.measure.batches import Lengths
from calibrate.measure.journal import Journal, Points
from calibrate.measure.parts import Bench
from calibrate.measure.rig import Limits
from calibrate.measure.service import Iteration
from calibrate.measure.whole_iterations import Company, Errors, Whole, fitted, latency_of, parts_us
from calibrate.measure.work import WorkOf
from kernels.model_config import ModelConfig
from sim.batch import Batch
from sim.latency.table import launched_one_by_one
from sim.latency.table_data import EXTRA_TIMES, PART_COLUMNS, REQUIRED_PARTS, LatencyTable
from sim.latency.table_folder import SCHEMA_VERSION, table_of
from sim.latency.table_lines import measured_host, one_line
from sim.model.spec import ModelSpec

OPERATIONS = {"linear": "pass without attention", "logits": "projection and sampling"}
COLUMNS = ("time_us", "isolated_us", "spread_us", "takes", "repeats", "flops", "bytes")
Rows = list[tuple[Any, ...]]


@dataclass(slots=True)
class MeasuredTable:
    """Everything a calibration found, ready to be written."""

    journal: Journal
    benches: Sequence[Bench]
    config: ModelConfig
    meta: dict[str, Any]
    company: Company = field(default_factory=lambda: Company({}))
    fitted: list[Whole] = field(default_factory=list)
    held_out: list[Whole] = field(default_factory=list)
    part_errors: dict[str, list[tuple[tuple[int, ...], float, float]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        journal: Journal,
        benches: Sequence[Bench],
        *,
        rig_config: ModelConfig,
        given: Mapping[str, Any],
        spec: ModelSpec | None = None,
        limits: Limits | None = None,
    ) -> MeasuredTable:
        """With `spec` and `limits` whole iterations are taken into account as well.

        Raises CalibrationError where a part that every table needs has no points.
        """
        table = cls(journal, benches, rig_config, dict(given))
        if spec is not None and limits is not None:
            for name in REQUIRED_PARTS:
                if len(journal.of(name).takes) < 2:
                    raise CalibrationError(f"{name}: too little memory to measure any of it")
            table._judge(spec, limits)
            table._tell()
        return table

    def rows(self, bench: Bench, *, isolated: bool = False) -> Rows:
        """Points, times in µs of the whole model: in company, or as measured in isolation."""
        points = self.journal.of(bench.name)
        factor, besides_us = 1.0, 0.0
        if not isolated:
            factor = self.company.factors.get(bench.name, 1.0)
            besides_us = self.company.besides_us if bench.name == "host" else 0.0
        operation = () if bench.name not in OPERATIONS else (OPERATIONS[bench.name],)
        extra = len(EXTRA_TIMES.get(bench.name, ()))

        def time_us(point: tuple[int, ...], which: int) -> float:
            own_us = points.time_us(point, which) * bench.scale
            # Where parts alone sum to more than wholes, less than nothing would be left.
            return max(besides_us + own_us * factor, 0.1 * own_us)

        return [
            (*operation, *point, *(time_us(point, which) for which in range(1 + extra)))
            for point in sorted(points.takes)
        ]

    def table(self, *, isolated: bool = False) -> LatencyTable:
        """As the simulator reads it; `isolated` leaves the factors of company out."""
        parts = {
            bench.name: self.rows(bench, isolated=isolated)
            for bench in self.benches
            if self.journal.of(bench.name).takes
        }
        return table_of(self.meta, parts)

    def write_part(self, folder: Path, name: str) -> None:
        """The part's CSV."""
        bench = next(bench for bench in self.benches if bench.name == name)
        points = self.journal.of(name)
        if not points.takes:
            return
        work_of = WorkOf(self.config, block_size=int(self.meta["block_size"]))
        header = (*PART_COLUMNS[name], *COLUMNS, *EXTRA_TIMES.get(name, ()))
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            rows, alone = self.rows(bench), self.rows(bench, isolated=True)
            for point, row, one in zip(sorted(points.takes), rows, alone, strict=True):
                at = len(PART_COLUMNS[name])
                takes, work = points.takes[point], work_of(name, point)
                cells = (
                    *row[: at + 1], one[at], one[at] * points.spread(point), len(takes),
                    sum(take.repeats for take in takes), work.flops, work.bytes, *row[at + 1 :],
                )  # fmt: skip
                writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in cells])

    # -- how good it is ---------------------------------------------------------------------------

    def _judge(self, spec: ModelSpec, limits: Limits) -> None:
        """Fit what parts cost in company, and hold the result against runs held out."""
        served = self._served()
        given = [iteration for iteration, held_out in served if not held_out]
        self.meta["prefills"] = self._how_prompts_add_up(given, spec, limits)
        alone = self._wholes(given, spec, limits, isolated=True)
        # A GPU that waits for launches says nothing about its kernels.
        self.company = fitted([whole for whole in alone if not whole.parts_us.get("launch")])
        self._part_errors(spec, limits)
        unseen = [iteration for iteration, held_out in served if held_out]
        self.fitted = self._wholes(given, spec, limits)
        self.held_out = self._wholes(unseen, spec, limits)
        self.meta["whole_iterations"] = {
            "sum_of_parts_alone": _errors(alone),
            "fitted": _errors(self.fitted),
            "held_out": _errors(self.held_out),
        }

    def _served(self) -> list[tuple[Iteration, bool]]:
        """Iterations of the engine, and whether they are held out."""
        return [
            (
                Iteration(decodes, context, longest, tuple((n, c) for n, c in prefills), time_us),
                bool(line["held_out"]),
            )
            for line in self.journal.records.get("service", [])
            for decodes, context, longest, prefills, time_us in line["iterations"]
        ]

    def _wholes(
        self,
        iterations: Sequence[Iteration],
        spec: ModelSpec,
        limits: Limits,
        *,
        isolated: bool = False,
    ) -> list[Whole]:
        """Iterations with what their parts say, the host's among them."""
        table = self.table(isolated=isolated)
        latency = latency_of(table, spec, limits)
        host = one_line(table.parts["host"], "sequences") if "host" in table.parts else None
        launches = self.journal.records.get("eager_launch") or [{"eager_us": 0.0}]
        captured = self.meta.get("cudagraph_capture_sizes") or ()
        found = []
        for iteration in iterations:
            batch = iteration.features(captured)
            parts = parts_us(latency, batch)
            waited_us = launches[0]["eager_us"] - sum(parts.values())
            if waited_us > 0.0 and launched_one_by_one(batch, max(captured, default=0)):
                parts["launch"] = waited_us
            if host is not None:
                parts["host"] = host(iteration.num_seqs) * 1e6
            found.append(Whole(iteration, parts))
        return found

    def _how_prompts_add_up(
        self, given: Sequence[Iteration], spec: ModelSpec, limits: Limits
    ) -> str:
        """Several prompts in one iteration: like one launch, or one after the other?

        Whichever is nearer to the whole iterations that are not held out.
        """
        several = [iteration for iteration in given if len(iteration.prefills) > 1]
        found = {}
        for how in ("together", "one_by_one"):
            self.meta["prefills"] = how
            wholes = self._wholes(several, spec, limits, isolated=True)
            errors = [whole.error for whole in wholes]
            found[how] = float(np.median(np.abs(errors))) if errors else 0.0
        # Without such a batch: a plain loop over sequences on a CPU, one launch on a GPU.
        if not several:
            return "one_by_one" if self.meta.get("launch") == "eager" else "together"
        return min(found, key=lambda how: found[how])

    def _part_errors(self, spec: ModelSpec, limits: Limits) -> None:
        """Held-out points of each part against its look-up, both as measured in isolation."""
        latency = latency_of(self.table(isolated=True), spec, limits)
        for line in self.journal.records.get("held_out", []):
            name, point = line["part"], tuple(line["point"])
            predicted_us = self._look_up_us(latency, name, point)
            self.part_errors.setdefault(name, []).append(
                (point, float(line["time_us"]), predicted_us)
            )

    def _look_up_us(self, latency: Any, name: str, point: tuple[int, ...]) -> float:
        if name == "moe":
            return float(latency.experts_s(*point)) * 1e6
        lengths = {
            "linear": lambda: Batch(num_tokens=point[0]),
            "logits": lambda: Batch(num_emitting=point[0]),
            "prefill_attention": lambda: Lengths(prefills=((point[0], point[1]),)).features(),
            "decode_attention": lambda: Lengths(decodes=(point[1],) * point[0]).features(),
        }[name]()
        return float(parts_us(latency, lengths)[name])

    # -- what meta.yaml says ----------------------------------------------------------------------

    def _tell(self) -> None:
        records = self.journal.records
        ceilings = records["ceilings"][0]
        self.meta["ceilings"] = {
            "copy_tb_per_s": round(ceilings["copy_bytes_per_s"] / 1e12, 5),
            "matrix_tflop_per_s": round(ceilings["matrix_flops_per_s"] / 1e12, 4),
        }
        self.meta["parts"] = {
            bench.name: self._part_facts(bench)
            for bench in self.benches
            if self.journal.of(bench.name).takes
        }
        if "host" in self.meta["parts"]:
            host = measured_host(self.table())
            self.meta["host_overhead_us"] = {
                "per_iteration": round(host.per_iteration_s * 1e6, 3),
                "per_sequence": round(host.per_sequence_s * 1e6, 4),
            }
        launch = records.get("eager_launch")
        if launch:  # where the device takes longer than its host, an upper bound: just as true
            self.meta["eager_launch_us"] = round(launch[0]["eager_us"], 1)
        if "yardstick" in records:
            lines = records["yardstick"]
            self.meta["yardstick_us"] = round(statistics.median(line["us"] for line in lines), 1)
            shared = [one for line in lines if (one := line.get("contention")) is not None]
            if shared:
                self.meta["contention"] = round(statistics.median(shared), 3)
        if "operator_classes" in records:
            self.meta["operator_classes"] = records["operator_classes"][0]
        self.meta["flash_against_standard"] = records.get("flash", [])
        self.meta["block_sizes"] = records.get("block_sizes", [])
        self.meta["taken_over"] = [line["text"] for line in records.get("taken_over", [])]
        self.meta["warnings"] = [
            line["text"] for kind in ("throttled", "skipped") for line in records.get(kind, [])
        ]

    def _part_facts(self, bench: Bench) -> dict[str, Any]:
        points: Points = self.journal.of(bench.name)
        spreads = [points.spread(point) for point in points.takes]
        errors = Errors.of([p / m - 1.0 for _, m, p in self.part_errors.get(bench.name, [])])
        facts: dict[str, Any] = {
            "points": len(points.takes),
            "takes": sum(len(takes) for takes in points.takes.values()),
            "duration_s": round(points.spent_s, 1),
            "spread_median": round(float(np.median(spreads)), 4),
            "held_out": None if errors is None else errors.as_dict(),
            "in_company": round(self.company.factors.get(bench.name, 1.0), 4),
            **({"besides_us": round(self.company.besides_us, 2)} if bench.name == "host" else {}),
            "scale": bench.scale,
            "key": list(bench.key),
        }
        if source := points.taken_over_from():
            facts["taken_over_from"] = source
        if points.skipped:
            facts["out_of_memory"] = len(points.skipped)
        return facts


def _errors(wholes: Sequence[Whole]) -> dict[str, float] | None:
    errors = Errors.of([whole.error for whole in wholes])
    return None if errors is None else errors.as_dict()


def write_measured(folder: Path, table: MeasuredTable) -> None:
    """All files of the table; meta.yaml, which makes it one, comes last."""
    import yaml

    for bench in table.benches:
        table.write_part(folder, bench.name)
    names = sorted({name for whole in table.held_out + table.fitted for name in whole.parts_us})
    with (folder / "whole.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ("held_out", "decodes", "context_tokens", "prefills", "prefill_tokens")
        writer.writerow([*head, "measured_us", "predicted_us", *(f"{name}_us" for name in names)])
        for held_out, wholes in ((1, table.held_out), (0, table.fitted)):
            for whole in wholes:
                one = whole.iteration
                prefilled = sum(new for new, _ in one.prefills)
                shape = (one.decodes, one.context_tokens, len(one.prefills), prefilled)
                times = (
                    whole.measured_us, whole.predicted_us,
                    *(whole.parts_us.get(name, 0.0) for name in names),
                )  # fmt: skip
                writer.writerow([held_out, *shape, *(f"{time_us:.6g}" for time_us in times)])
    with (folder / "held_out.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "point", "measured_us", "predicted_us"])
        for name, errors in table.part_errors.items():
            for point, measured_us, predicted_us in errors:
                shape_text = " x ".join(map(str, point))
                writer.writerow([name, shape_text, f"{measured_us:.6g}", f"{predicted_us:.6g}"])
    meta = {"schema_version": SCHEMA_VERSION, **table.meta}
    text = yaml.safe_dump(_plain(meta), sort_keys=False, allow_unicode=True)
    (folder / "meta.yaml").write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and mappings only, as YAML's safe dumper wants them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
