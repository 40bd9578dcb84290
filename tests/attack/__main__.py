"""``python -m tests.attack --seconds 3600 --seed 7``: hostile inputs until the time is over.

``--count 200 --kind model`` takes so many of one kind; ``--only model:7:12`` repeats one and
leaves its files, with the command, in a folder that it names.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from tests.attack.judged import ENDED, all_kinds, attacked

MEMORY_BYTES = 8 << 30


def _each(count: int, kinds: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for number in range(count):
        for kind in kinds:
            yield number, kind


def main() -> int:
    """Exit status 1 where any input was met badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--count", type=int, default=10**9, help="of each kind, at most")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--kind", action="append", help="scenario, overrides, model, …")
    parser.add_argument("--only", help="KIND:SEED:NUMBER of one input")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    until = time.monotonic() + asked.seconds
    tried: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    with TemporaryDirectory(prefix="attack-results-") as results:
        kinds = all_kinds(Path(results))
        if asked.only:
            kept = Path(mkdtemp(prefix="attack-"))
            found = attacked(kinds[asked.only.split(":")[0]], asked.only, kept=kept)
            print(found or "kept the rule")
            return int(found is not None)
        for number, kind in _each(asked.count, tuple(asked.kind or kinds)):
            if time.monotonic() > until:
                break
            name = f"{kind}:{asked.seed}:{number}"
            tried[kind] += 1
            ENDED.clear()
            found = attacked(kinds[kind], name)
            answered[kind] += ENDED[0]
            if found:
                faults[kind] += 1
                print(f"{name}  {found}", flush=True)
    print(f"{tried.total():,} inputs, {faults.total():,} met badly")
    for kind, count in tried.items():
        print(f"  {kind}: {count:,}, {answered[kind]:,} answered, {faults[kind]:,} met badly")
    return int(faults.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
