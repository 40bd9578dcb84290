"""vLLM serves a tiny model for real, and Orcast schedules the same: where do they part?

    python -m tests.vllm.runs                                               the runs that are kept
    python -m tests.vllm.runs --python .venv-vllm/bin/python --seed 7                 serve others
    python -m tests.vllm.runs --python .venv-vllm/bin/python --keep              renew those kept

Prints a row for each mode. Exits with 1 where a schedule is not equal. `--figures FOLDER` writes
runs.html, which docs/images/vllm-runs.png is a picture of (1200 x 430 pixels).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.vllm import served
from tests.vllm.compare import orcast_differs
from tests.vllm.figure import figure
from tests.vllm.served import Served
from tests.vllm.traffic import Traffic, draw

MODES = {"synchronous": False, "asynchronous": True}
SERVE = Path(__file__).with_name("serve.py")
_NS_PER_MS = 1e6


def serve(python: str, mode: str, *, seed: int, count: int) -> Served:
    """A run of so many requests, those of a seed the same in both modes.

    `python`: one that has vLLM. Raises RuntimeError with what that says where it cannot serve.
    """
    traffic: Traffic = draw(Random(f"{seed}"), async_scheduling=MODES[mode], count=count)
    ended = subprocess.run(
        [python, "-P", str(SERVE)],
        input=json.dumps(traffic.for_vllm()) + "\n",
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError("vLLM did not serve:\n" + ended.stderr[-4000:])
    return Served.from_vllm(traffic, json.loads(ended.stdout))


@dataclass(frozen=True, slots=True)
class Compared:
    """What a run was, and where Orcast's schedule parts from it, in words; None where nowhere.

    hits: admissions that found a prefix in the cache. woken, launches: as in `Chain`.
    ends_after_ms: from a step's result to the end of the step, and what 99 of 100 stay below.
    """

    requests: int
    steps: int
    in_flight: int
    preemptions: int
    hits: int
    seconds: float
    woken: int
    launches: int
    ends_after_ms: tuple[float, float]
    difference: str | None

    @classmethod
    def of(cls, run: Served) -> Compared:
        """Asks Orcast."""
        schedule, chain = run.schedule(), run.chain
        after = sorted(
            end - (run.turns[turn].result or end)
            for turn, end in zip(chain.collected, chain.ends, strict=True)
        )
        return cls(
            requests=len(run.requests),
            steps=len(schedule.steps),
            in_flight=run.batches_in_flight,
            preemptions=sum(len(step.preempted) for step in schedule.steps),
            hits=sum(tokens > 0 for step in schedule.steps for tokens in step.hits.values()),
            seconds=chain.ends[-1] / 1e9,
            woken=len(chain.woken),
            launches=len(chain.launches),
            ends_after_ms=(
                after[len(after) // 2] / _NS_PER_MS,
                after[len(after) * 99 // 100] / _NS_PER_MS,
            ),
            difference=orcast_differs(run.workload(), schedule),
        )


def show(runs: Mapping[str, Served]) -> bool:
    """Print a row for each mode; returns whether all are equal."""
    titles = (
        "", "requests", "seconds", "steps", "in flight", "preemptions", "prefix hits",
        "steps equal", "arrivals that wake", "launches", "end after result: p50", "p99",
    )  # fmt: skip
    print(f"| {' | '.join(titles)} |\n|---|{'--:|' * (len(titles) - 1)}")
    differences = {}
    for mode, run in runs.items():
        one = Compared.of(run)
        differences[mode] = one.difference
        p50, p99 = one.ends_after_ms
        cells = (
            mode, one.requests, f"{one.seconds:.1f}", f"{one.steps:,}", one.in_flight,
            one.preemptions, one.hits, "all" if one.difference is None else "not all",
            one.woken, one.launches, f"{p50:.2f} ms", f"{p99:.2f} ms",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
    for mode, said in differences.items():
        if said is not None:
            print(f"\n{mode}: {said}")
    return not any(differences.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vllm.runs", description=__doc__)
    parser.add_argument("--python", help="one that has vLLM: serve, and compare that")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and the limits")
    parser.add_argument("--count", type=int, default=600, help="requests of each mode")
    parser.add_argument("--keep", action="store_true", help="renew the runs that are kept")
    parser.add_argument("--figures", type=Path, help="write runs.html to this folder")
    options = parser.parse_args()
    if options.python is None:
        runs = served.read()
    elif shutil.which(options.python) is None:
        parser.error(f"there is no {options.python}: `make serve-vllm` installs it")
    else:
        runs = {
            mode: serve(options.python, mode, seed=options.seed, count=options.count)
            for mode in MODES
        }
    if options.python is not None and options.keep:
        served.write(runs)
    if options.figures is not None:
        options.figures.mkdir(parents=True, exist_ok=True)
        figure(options.figures / "runs.html", runs)
    return int(not show(runs))


if __name__ == "__main__":
    sys.exit(main())
