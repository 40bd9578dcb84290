"""Forecasts against measurements, a table a data set: `python -m tests.benchmarks.accuracy`.

    python -m tests.benchmarks.accuracy [PART...] [--source SOURCE]... [--every N] [--keep FILE]

PART is one of those below, by default all of them. SOURCE is a latency source that the parts
`open-loop` and `silicon` are forecast with, by default `auto`, which is what
scenarios default to, and `roofline`. N takes every Nth point of each group of `silicon`, without
its decisions. FILE keeps the forecasts of `silicon`, so that a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.accuracy import ablation, kv_capacity, open_loop, recordings, silicon
from tests.benchmarks.accuracy.data import PUBLIC
from tests.benchmarks.accuracy.sources import SOURCES

PARTS: dict[str, tuple[str, str, Callable[[Sequence[str]], None]]] = {
    "recordings": ("Recorded runs", "recordings", recordings.main),
    "ablation": ("What each part is worth", "recordings", ablation.main),
    "open-loop": ("H100, open loop", "open-loop", open_loop.main),
    "kv-capacity": ("KV caches as logged", "kv-capacity", kv_capacity.main),
    "silicon": ("Measured serving points", "silicon", silicon.main),
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    asked.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    asked.add_argument("--source", action="append", default=[])
    asked.add_argument("--every", type=int, default=1)
    asked.add_argument("--keep", type=Path)
    given = asked.parse_args()
    for part in given.parts:
        if part not in PARTS:
            asked.error(f"unknown part {part!r}; there are: {', '.join(PARTS)}")
    for part in given.parts or PARTS:
        title, data, show = PARTS[part]
        print(f"## {title}\n\nData: {PUBLIC[data]}.\n", flush=True)
        sources = given.source or SOURCES
        if part == "silicon":
            silicon.main(sources, every=given.every, keep=given.keep)
        else:
            show(sources)


if __name__ == "__main__":
    main()
