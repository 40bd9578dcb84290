"""``python -m tests.attack.kills --count 200``: commands killed, or denied their files, any time.

Every command is killed so many times, half of them at one of its changes of files, half at any
moment; after each, what lay there is whole, and after every tenth the command is run again and has
to leave the bytes that it leaves undisturbed, and nothing beside them. Then each of its changes of
files fails once, and its files are not let grow beyond some sizes: one line, and nothing changed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.attack.commands import SMALL_SIZING
from tests.attack.forked import content, forked
from tests.attack.kinds import BASE, write_yaml
from tests.orcast.command_line import orcast
from tests.sim.latency.tables import small_table_folder
from tests.sim.workload.test_trace_formats import SERVING_SIM

AGAIN = 10  # kills, and then the command is run to its end
SIZES = (0, 100, 4096, 50_000)  # bytes beyond which no file may grow


@dataclass(frozen=True, slots=True)
class Target:
    """A command, and whether what it leaves says how long it took."""

    arguments: tuple[str, ...]
    out: str


def _asked(*settings: str) -> tuple[str, ...]:
    return tuple(part for one in settings for part in ("--set", one))


TARGETS = {
    "run": Target(
        ("run", "small.yaml", "-q", *_asked("latency.source=auto"), "--out", "out"), "out"
    ),
    "sweep": Target(
        (*("sweep", "small.yaml", "--axis", "engine.max_num_seqs=2,3,4,5"),
         *("--jobs", "1", "--json", "--out", "out")),
        "out",
    ),
    "plan": Target(
        (*("plan", "small.yaml", "--gpu", "h100-sxm", "--ttft", "2000", "--tpot", "100"),
         *("--percentile", "90", "--jobs", "1", "--out", "out")),
        "out",
    ),
    "size": Target(("size", "size.yaml", "--jobs", "1", "--out", "out"), "out"),
    "calibrate": Target(
        (*("calibrate", "refine", "table", "rows.jsonl", "--out", "out"),
         *_asked("model=llama-3.1-8b", "hardware.gpu=h100-sxm")),
        "out",
    ),
    "export": Target(("export", "made", "csv", "--out", "out"), "out"),
    "export trace": Target(("export", "made", "trace", "--out", "out.json.gz"), "out.json.gz"),
}  # fmt: skip


def prepared(folder: Path) -> None:
    """The files that the commands read; a run to be exported."""
    write_yaml(folder / "small.yaml", BASE)
    write_yaml(folder / "size.yaml", SMALL_SIZING)
    (folder / "rows.jsonl").write_text(SERVING_SIM)
    small_table_folder(folder / "table")
    made = orcast("run", "small.yaml", "-q", "--out", "made")
    assert made.status == 0, made


def _shown(out: Path) -> dict[str, bytes]:
    if out.is_file():
        return {out.name: out.read_bytes()}
    return content(out)


def _took_away(out: Path) -> None:
    for path in (out, *out.parent.glob(f".{out.name}.*"), out.parent / ".cache"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _strangers(folder: Path, known: set[str], out: str) -> list[str]:
    """What lies in the folder that was not there before, and in hidden files below it."""
    hidden = [str(path) for path in folder.rglob("*") if path.name.startswith(".")]
    return sorted({path.name for path in folder.iterdir()} - known - {out}) + sorted(
        path for path in hidden if path.endswith((".partial", ".old", ".lock"))
    )


class Disturbed:
    """One command and what became of it."""

    def __init__(self, name: str, folder: Path, rng: Random) -> None:
        self.target, self.folder, self.rng = TARGETS[name], folder, rng
        self.name, self.faults = name, list[str]()
        self.known = {path.name for path in folder.iterdir()} | {".cache"}
        self.out = folder / self.target.out
        _took_away(self.out)
        assert orcast(*self.target.arguments).status == 0  # all is imported before it is forked
        _took_away(self.out)
        first = forked(self.target.arguments)
        assert first.outcome is not None and first.outcome.status == 0, first
        self.calls, self.seconds = first.calls, first.seconds
        self.right = _shown(self.out)
        self.restarts = 0

    def fault(self, words: str) -> None:
        self.faults.append(f"{self.name}: {words}")
        print(self.faults[-1], flush=True)

    def again(self, after: str) -> None:
        """Run to the end: the same bytes, nothing else."""
        self.restarts += 1
        ended = forked(self.target.arguments)
        if ended.outcome is None or ended.outcome.status != 0:
            return self.fault(f"{after}, and does not run again: {ended}")
        found = _shown(self.out)
        if found != self.right:
            parts = [
                key for key in found.keys() | self.right if found.get(key) != self.right.get(key)
            ]
            self.fault(f"{after}: other bytes when run again: {sorted(parts)}")
        if left := _strangers(self.folder, self.known, self.target.out):
            self.fault(f"{after}: left over: {left}")
        return None

    def killed(self, count: int) -> None:
        for number in range(count):
            if number % AGAIN == AGAIN // 2 or number % AGAIN == 0:
                _took_away(self.out)  # else over the result of before
            if number % 2:
                after_s = self.rng.uniform(0, self.seconds)
                told = f"killed after {after_s:.3f} s"
                forked(self.target.arguments, killed_after_s=after_s)
            else:
                at = self.rng.randrange(1, self.calls + 1)
                told = f"killed at change {at} of {self.calls}"
                forked(self.target.arguments, killed_at=at)
            shown = {key: data for key, data in _shown(self.out).items() if "/." not in f"/{key}"}
            if damaged := [key for key, data in shown.items() if not self._whole(key, data)]:
                self.fault(f"{told}: damaged: {damaged}")
            if number % AGAIN == AGAIN - 1 or number == count - 1:
                self.again(told)

    def _whole(self, key: str, data: bytes) -> bool:
        """As it is in the end; what a sweep knows so far is longer from kill to kill."""
        if key in self.right:
            return data == self.right[key]
        with suppress(ValueError):
            json.loads(data)
            return True
        return False

    def denied(self) -> int:
        """Every change of a file fails once, and sizes are limited."""
        before = _shown(self.out)
        ways: list[dict[str, int]] = [
            {"fails_at": at, "with_errno": number}
            for at in range(1, self.calls + 1)
            for number in (errno.ENOSPC, errno.EACCES, errno.EIO)[at % 3 :][:1]
        ]
        ways += [{"longest_file": size} for size in SIZES]
        for way in ways:
            _took_away(self.out)
            ended = forked(self.target.arguments, **way)  # type: ignore[arg-type]
            met = ended.outcome
            assert met is not None
            if met.status == 0:
                if _shown(self.out) != before:
                    self.fault(f"{way}: said to be done, other bytes")
            elif met.status != 2 or met.stderr.count("\n") != 1 or len(met.stderr) > 300:
                self.fault(f"{way}: status {met.status}: {met.stderr[:300]}")
            elif not any(name in met.stderr for name in ("out", "small.yaml", "size.yaml", "made")):
                self.fault(f"{way}: names nothing: {met.stderr}")
            kept = self.target.out if self.name == "sweep" else "-"  # its points so far
            if met.status and (left := _strangers(self.folder, self.known, kept)):
                self.fault(f"{way}: left over: {left}")
        _took_away(self.out)
        return len(ways)


def page_killed(count: int, folder: Path, rng: Random) -> list[str]:
    """`orcast ui` killed while it answers: its port is free at once, no file was touched."""
    import http.client

    from orcast.ui_cli import what_if

    what_if("small.yaml", [])
    faults = []
    before = content(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for number in range(count):
        child = os.fork()
        if child == 0:
            _serve_page(port)
        try:
            _reached(port)
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            asked.request("GET", rng.choice(("/", "/_dash-layout", "/_dash-dependencies")))
            if rng.random() < 0.5:
                status = asked.getresponse().status
                if status != 200:
                    faults.append(f"ui: kill {number}: answered {status}")
            time.sleep(rng.uniform(0, 0.02))
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        asked.close()
        if content(folder) != before:
            faults.append(f"ui: kill {number}: files changed")
    return faults


def _serve_page(port: int) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    with suppress(BaseException):
        orcast("ui", "small.yaml", "--port", str(port))
    os._exit(1)


def _reached(port: int) -> None:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise TimeoutError(f"no page at port {port}")


def main() -> int:
    """Exit status 1 where a kill or a failing call did damage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="kills of each command")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", action="append", help="run, sweep, plan, size, …, ui")
    asked = parser.parse_args()
    faults: list[str] = []
    here = Path.cwd()
    with TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name).resolve()
        os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
        os.chdir(folder)
        prepared(folder)
        for command in asked.only or [*TARGETS, "ui"]:
            rng = Random(f"{command}:{asked.seed}")
            if command == "ui":
                faults += page_killed(asked.count, folder, rng)
                print(f"ui: {asked.count} kills", flush=True)
                continue
            one = Disturbed(command, folder, rng)
            one.killed(asked.count)
            denied = one.denied()
            faults += one.faults
            print(
                f"{command}: {asked.count} kills, {one.restarts} times run again; {denied} times "
                f"denied a file ({one.calls} changes of files, {one.seconds:.2f} s)",
                flush=True,
            )
        os.chdir(here)
    print(f"{len(faults)} faults")
    for fault in faults:
        print(fault)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
