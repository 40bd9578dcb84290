"""What our kernels would take by their compiled code: a model, never a measurement.

``python -m tests.benchmarks.cost_model`` prints, for sm_90, a line a compiled configuration:
programs that share a multiprocessor (registers, shared memory and warps allow so many), bytes that
their pipelines keep in flight there, and the share of the memory rate that these bytes allow, since
a byte takes LATENCY_S to come (Little's law). Of products it adds the time of shapes by
`kernels.tile_time`. The guard in ``tests/kernels/test_cost_model.py`` keeps what is compiled from
getting worse than ``compiled.csv`` beside it says; ``--write`` writes that file anew.

The constants are assumptions until a GPU has run the session: `fitted` takes its times and gives
the one factor that scales predictions to them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.gpu import Gpu
from kernels.linear import choose_tiles
from kernels.tile_time import product_s, rates

ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "tests" / "kernels" / "compiled.csv"
REGISTERS, WARPS = 65_536, 64  # of a multiprocessor
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
LATENCY_S = 1.0e-6  # assumed, of a load from memory under load
# What tells configurations of a kernel apart; counts of a batch are not compiled in.
NAMES = (
    "HEAD_DIM", "ROPE_DIM", "GROUP", "QUERY_LEN", "KV_BLOCK", "WINDOW", "SOFTCAP", "SINKS", "SPLIT",
    "GATED", "SWAP", "SPLITS", "BIAS", "SCALED", "BY_BLOCK", "TMA", "STORE_TMA", "WARP_SPECIALIZE",
    "BLOCK_M", "BLOCK_N", "BLOCK_K", "NUM_EXPERTS", "TOP_K", "ACTIVATION", "DRAWN", "CANDIDATES",
    "BITS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """One compiled configuration on one multiprocessor."""

    arch: int
    kernel: str
    configuration: str
    registers: int
    shared_bytes: int
    programs: int  # that share a multiprocessor
    in_flight_bytes: int  # of all of them; 0 where no pipeline loads ahead

    @property
    def memory_share(self) -> float:
        """Of the memory rate, by the bytes in flight on all multiprocessors; 1 at most."""
        on = Gpu("", (self.arch // 10, 0), MULTIPROCESSORS[self.arch])
        needed = rates(on).memory_bytes_per_s * LATENCY_S
        return min(1.0, self.in_flight_bytes * on.multiprocessors / needed)


def cost(compiled: dict[str, Any]) -> Cost:
    """From what the recorder says of one compiled kernel (``ahead_of_time/recorder.py``)."""
    arch, warps = compiled["arch"], compiled["num_warps"]
    registers, shared = compiled["registers"], compiled["shared_bytes"]
    # A warp's registers are dealt in units of 256.
    of_program = math.ceil(registers * 32 / 256) * 256 * warps
    limits = [REGISTERS // max(of_program, 1), WARPS // warps, 32]
    limits.append(SHARED_BYTES[arch] // (shared + 1024))  # one KiB is the system's
    programs = max(0, min(limits))
    ahead = compiled["async_copies"] + compiled["tma_loads"] > 0
    constants = compiled["constants"]
    told = [f"{name}={constants[name]}" for name in NAMES if name in constants]
    told += [f"warps={warps}", f"stages={compiled['num_stages']}"]
    return Cost(
        arch=arch,
        kernel=compiled["kernel"],
        configuration=" ".join(told),
        registers=registers,
        shared_bytes=shared,
        programs=programs,
        in_flight_bytes=programs * shared if ahead else 0,
    )


def worst_by_name(costs: list[Cost]) -> dict[tuple[str, str, str], Cost]:
    """By architecture, kernel and configuration; of several alike the one with most registers."""
    found: dict[tuple[str, str, str], Cost] = {}
    for one in sorted(costs, key=lambda one: (one.registers, one.shared_bytes)):
        found[str(one.arch), one.kernel, one.configuration] = one
    return found


FIELDS = ("arch", "kernel", "configuration", "registers", "shared_bytes", "programs")


def read(path: Path = COMPILED) -> dict[tuple[str, str, str], dict[str, int]]:
    """Registers, shared bytes and programs of each configuration as they were accepted."""
    with path.open() as file:
        return {
            (line["arch"], line["kernel"], line["configuration"]): {
                name: int(line[name]) for name in FIELDS[3:]
            }
            for line in csv.DictReader(file)
        }


def write(costs: list[Cost], path: Path = COMPILED) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(FIELDS)
        for _, one in sorted(worst_by_name(costs).items()):
            out.writerow([getattr(one, name) for name in FIELDS])


def worse(costs: list[Cost], accepted: dict[tuple[str, str, str], dict[str, int]]) -> list[str]:
    """What got worse: fewer programs on a multiprocessor, or an eighth more registers."""
    lines = []
    for name, one in worst_by_name(costs).items():
        was = accepted.get(name)
        if was is None:
            continue
        if one.programs < was["programs"] or one.registers > was["registers"] * 1.125 + 4:
            now = {field: getattr(one, field) for field in was}
            lines.append(f"{' '.join(name)}: was {was}, is {now}")
    return lines


def chosen_product_us(tokens: int, out_features: int, in_features: int, on: Gpu) -> float:
    """Microseconds of ``linear`` with the tiles that it chooses, by `product_s`."""
    tiles = choose_tiles(tokens, out_features, on, in_features=in_features)
    shape = {"block_m": tiles.block_m, "block_n": tiles.block_n, "splits": tiles.splits}
    return product_s(tokens, out_features, in_features, on=on, **shape) * 1e6


def fitted(predicted_us: list[float], measured_us: list[float]) -> tuple[float, float]:
    """The factor that scales predictions to times (geometric mean), and their spread about it.

    For the times of one GPU session. Spread: e to the standard deviation of the ratios' logarithms.
    """
    ratios = [math.log(m / p) for p, m in zip(predicted_us, measured_us, strict=True)]
    mean = sum(ratios) / len(ratios)
    variance = sum((one - mean) ** 2 for one in ratios) / max(1, len(ratios) - 1)
    return math.exp(mean), math.exp(variance**0.5)


def compiled(arch: int) -> list[dict[str, Any]]:
    """Compile every configuration that ships, in a process of its own."""
    script = ROOT / "tests" / "kernels" / "ahead_of_time" / "compile_all.py"
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, str(script), str(arch)], env=environment, cwd=ROOT, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return [json.loads(line) for line in run.stdout.splitlines()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {COMPILED.name} anew")
    given = parser.parse_args(arguments)
    costs = []
    for arch in MULTIPROCESSORS if given.write else (90,):
        costs += [cost(one) for one in compiled(arch)]
    if given.write:
        write(costs)
        return 0
    print("predicted from compiled code, not measured")
    for one in costs:
        share = f"{one.memory_share:4.0%} of memory" if one.in_flight_bytes else ""
        print(f"{one.kernel:28} {one.programs} an SM {one.registers:4} {share} {one.configuration}")
    on = Gpu("sm_90", (9, 0), MULTIPROCESSORS[90])
    for tokens in (16, 64, 128, 512, 8192):
        for out_features, in_features in ((4096, 4096), (6144, 4096), (4096, 14_336)):
            time_us = chosen_product_us(tokens, out_features, in_features, on)
            print(f"linear {tokens} x {in_features} -> {out_features}: {time_us:.1f} us predicted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
