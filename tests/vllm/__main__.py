"""Orcast's schedules of random workloads, held against vLLM's step by step.

    python -m tests.vllm --python .venv-vllm/bin/python --count 1000 --seed 7 --mode asynchronous
    python -m tests.vllm record      renew the recorded schedules, which `make test` compares with

Prints how many are equal in each mode, and where some of those part that are not. Exits with 1
where fewer than 99.5 % are equal.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from random import Random

from tests.vllm import recorded
from tests.vllm.compare import Vllm, orcast_differs
from tests.vllm.schedule import Schedule
from tests.vllm.workloads import MODES, Workload, draw

REQUIRED = 0.995
PROCESSES = 2
RECORDED = 45  # workloads a mode
RECORDED_SEED = 0
MOST_STEPS = 300  # of a recorded one, so that the file stays small


@dataclass(slots=True)
class Tally:
    """What came of one mode. Counts are by whether scheduling is asynchronous."""

    drawn: Counter[bool] = field(default_factory=Counter)
    equal: Counter[bool] = field(default_factory=Counter)
    preempting: int = 0  # workloads
    differences: list[tuple[int, str]] = field(default_factory=list)  # by the workload's number

    @property
    def share(self) -> float:
        return self.equal.total() / self.drawn.total()

    def add(self, other: Tally) -> None:
        self.drawn += other.drawn
        self.equal += other.equal
        self.preempting += other.preempting
        self.differences += other.differences


def drawn(mode: str, seed: int, number: int) -> Workload:
    """The workload of that number; the same one always."""
    return draw(mode, Random(f"{seed} {mode} {number}"))


def compare(python: str, modes: Sequence[str], seed: int, numbers: Sequence[int]) -> list[Tally]:
    """Workloads of these numbers in each mode, one process's share."""
    with Vllm(python) as vllm:
        return [_tally(vllm, mode, seed, numbers) for mode in modes]


def _tally(vllm: Vllm, mode: str, seed: int, numbers: Sequence[int]) -> Tally:
    tally = Tally()
    for number in numbers:
        workload = drawn(mode, seed, number)
        schedule = vllm.schedule(workload)
        said = orcast_differs(workload, schedule)
        tally.drawn[workload.async_scheduling] += 1
        tally.equal[workload.async_scheduling] += said is None
        tally.preempting += any(step.preempted for step in schedule.steps)
        if said is not None:
            tally.differences.append((number, said))
    return tally


def record(python: str) -> None:
    """Renew the recorded schedules."""
    with Vllm(python) as vllm:
        modes = [(mode, list(_short(vllm, mode))) for mode in MODES]
    recorded.write(modes)
    size = recorded.FILE.stat().st_size
    print(f"{recorded.FILE.name}: {sum(len(of) for _, of in modes)} schedules, {size} bytes")


def _short(vllm: Vllm, mode: str) -> Iterator[tuple[Workload, Schedule]]:
    found = number = 0
    while found < RECORDED:
        workload = drawn(mode, RECORDED_SEED, number)
        schedule = vllm.schedule(workload)
        number += 1
        if len(schedule.steps) <= MOST_STEPS:
            found += 1
            yield workload, schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vllm", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("compare", "record"), default="compare")
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="one that has vLLM")
    parser.add_argument("--count", type=int, default=1000, help="workloads of each mode")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", action="append", choices=MODES, help="again for another; all")
    parser.add_argument("--number", type=int, help="only the workload of this number")
    parser.add_argument("--show", type=int, default=2, help="differences of each mode")
    options = parser.parse_args()
    if shutil.which(options.python) is None:
        parser.error(f"there is no {options.python}: `make test-vllm` installs it")
    if options.action == "record":
        record(options.python)
        return 0
    modes = options.mode or list(MODES)
    numbers = range(options.count) if options.number is None else [options.number]
    tallies = {mode: Tally() for mode in modes}
    with ProcessPoolExecutor(PROCESSES) as processes:
        shares = [numbers[first::PROCESSES] for first in range(PROCESSES)]
        jobs = [
            processes.submit(compare, options.python, modes, options.seed, share)
            for share in shares
            if share
        ]
        for job in jobs:
            for mode, tally in zip(modes, job.result(), strict=True):
                tallies[mode].add(tally)
    show(tallies, options.show)
    return int(any(tally.share < REQUIRED for tally in tallies.values()))


def show(tallies: dict[str, Tally], differences: int) -> None:
    """The table, and where some of those part that are not equal."""
    print(
        f"{'mode':<14}{'equal':>14}{'':>9}{'synchronous':>16}{'asynchronous':>16}{'preempting':>12}"
    )
    for mode, tally in tallies.items():
        row = f"{mode:<14}{tally.equal.total():>6} of {tally.drawn.total():<4}{tally.share:>9.2%}"
        for asynchronous in (False, True):
            row += f"{tally.equal[asynchronous]:>9} of {tally.drawn[asynchronous]:<4}"
        print(f"{row}{tally.preempting:>12}")
    for mode, tally in tallies.items():
        for number, said in sorted(tally.differences)[:differences]:
            print(f"\n{mode}, workload {number}: {said}")


if __name__ == "__main__":
    sys.exit(main())
