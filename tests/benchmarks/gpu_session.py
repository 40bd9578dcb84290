"""All that needs a GPU, in three commands: ``python -m tests.benchmarks.gpu_session first OUT``.

For a machine that is lent for ten minutes at a time, bare every time, and hands back few files:
each command ends within nine minutes and leaves at most eight files in OUT, no folders.

``first``
    ``canary`` (one launch of each kernel in bf16 against its reference, one captured graph: 45 s),
    ``check`` (the kernel tests, ``pytest -m gpu``: 90 s), ``benchmark`` (the table of ratios:
    2 min → ``benchmark.csv``), ``tables`` (of Llama-3.1-8B: 3 min), ``engine`` (how fast it serves,
    synchronous and asynchronous: the rest → ``engine.json``)
``second --from OUT``
    the stages of the first that failed, were cut short or never began, then ``longer`` (the table
    once more with more time, and how far the two lie apart → ``repeat.json``) and ``end_to_end``
    (random iterations against the table → ``end_to_end.csv``)
``third --from OUT``
    ``validate`` (forecast against engine over nine scenarios → ``validation.json``) and, where time
    is left, ``numerics`` and ``tune`` (→ CSV files of those names)
``before``
    what needs no GPU: ``emulated`` (deviations of emulated attention → ``emulated.csv``)

Stages separated by commas are a command too, ``tables --models qwen3-8b,qwen3-0.6b --from OUT`` for
instance; ``--limits tables=7m`` says how long one may take.

Every stage is a process of its own (`gpu_stages`), which is ended with all it started when its time
is up: what one does to the GPU or to its memory the next does not see. ``meta.json`` says from the
beginning what became of each stage; ``log.txt`` has what they printed. Results are written as they
come. ``tables.tar.gz`` holds ``tables/GPU/MODEL``, journals of tables that were not finished (the
same stage goes on from them), ``longer/MODEL`` while it is made and ``repeated/MODEL``, the shorter
one; it is packed anew every 15 s. ``tar -xzf tables.tar.gz -C calibrate tables`` puts tables where
the forecaster looks for them.

``triton.tar.gz`` has the compiled kernels; the next command on such a machine takes them over. They
cannot be compiled where there is no GPU: Triton keys them by its own library, which differs between
versions of Python, and by the folder they are in.

``--from`` names the folder of an earlier command's results (its ``tables.tar.gz``,
``triton.tar.gz`` and, for ``second``, ``meta.json``); OUT itself is one if it has them. So a
command that was ended from outside is given again with the same OUT, or with ``--from`` where that
is empty: ``meta.json`` also says what became of the stages before. An archive that cannot be read
is told and done without.

Every stage but ``validate`` needs PyTorch, Triton, NumPy, pandas, SciPy and PyYAML (``check``
pytest besides). For ``validate``, and for anything else a machine without a network lacks, carry
wheels along (those from pytest on are for ``check``, and let it use several processors):

    pip download --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 \\
        --no-deps -d wheels simpy pydantic pydantic-core annotated-types typing-inspection plotly \\
        narwhals typing-extensions pytest pluggy iniconfig packaging pygments pytest-xdist execnet
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site   # there

A stage whose packages are missing does not begin, and ``meta.json`` names them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.gpu_stages import ROOT, STAGES, Run, has, require_model

# What each stage may take (s); None: what is left. Later stages' times are kept for them.
COMMANDS: dict[str, dict[str, float | None]] = {
    "before": {"emulated": None},
    "first": {"canary": 45, "check": 90, "benchmark": 120, "tables": 180, "engine": None},
    "second": {"longer": None, "end_to_end": 75},
    "third": {"validate": None, "numerics": None, "tune": None},
}
LIMIT_S = 540.0
LEAST_S = 10.0  # a stage with less does not begin
ENGINE_S = 100.0  # the rest of the first command, when it is repaired in the second
EVERY_S = 15.0  # between two packings of what a stage has measured
POLL_S = 0.5
COOLING_S = 20.0  # of all stages of a command
GONE_S = 10.0  # for a stage that was killed to be gone; one that waits for its GPU stays
MODELS = ("llama-3.1-8b",)
MEASURING = ("tables", "longer")

META, ARCHIVE, KERNELS = "meta.json", "tables.tar.gz", "triton.tar.gz"
PACKED = ("tables", "repeated", "longer")  # folders of the archive
MOST_BYTES = 15 * 2**20  # of an archive that is handed back

NEEDED = ("torch", "triton", "numpy", "scipy", "pandas", "yaml")
BESIDES = {
    "check": ("pytest",),
    "validate": ("simpy", "pydantic", "plotly", "pyarrow", "rich", "typer"),
}
Result = dict[str, Any]


def pack(archive: Path, root: Path, names: Sequence[str], *, most_bytes: int = MOST_BYTES) -> None:
    """Put folders of `root` into an archive, over what it held; nothing where they are too large.

    Stages write meanwhile: a file that goes or shrinks as it is read leaves the archive as it was.
    """
    unfinished = archive.with_name(f".{archive.name}.new")
    try:
        with tarfile.open(unfinished, "w:gz", compresslevel=6) as packed:
            for name in names:
                if (root / name).is_dir():
                    packed.add(root / name, arcname=name)
        if unfinished.stat().st_size <= most_bytes:
            unfinished.replace(archive)
    except OSError as error:
        print(f"{archive.name}: {error}; packed again later", file=sys.stderr)
    finally:
        unfinished.unlink(missing_ok=True)


def unpack(archive: Path, root: Path, names: Sequence[str]) -> None:
    """Lay out those folders of an archive."""
    with tarfile.open(archive) as packed:
        wanted = [one for one in packed.getmembers() if one.name.split("/")[0] in names]
        # Python 3.11 has the filter from 3.11.4 on; what is wanted was chosen by name anyway.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        packed.extractall(root, members=wanted, **safely)


def missing_packages(stage: str) -> list[str]:
    """What the stage imports and this Python lacks."""
    return [name for name in (*NEEDED, *BESIDES.get(stage, ())) if not has(name)]


def plan(command: str, earlier: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The stages of a command, and how long each may take.

    `earlier`: what became of stages until now, for the second.
    """
    if command not in COMMANDS:
        return dict.fromkeys(command.split(","))
    if command != "second":
        return dict(COMMANDS[command])
    told = earlier or {}
    broken = {
        name: ENGINE_S if limit_s is None else limit_s
        for name, limit_s in COMMANDS["first"].items()
        if name not in told or told[name].get("error") or told[name].get("failed")
    }
    return {**broken, **COMMANDS["second"]}


class Session:
    """One command: its stages, one after the other, and what is told of them and earlier ones."""

    def __init__(
        self,
        run: Run,
        command: str,
        stages: Mapping[str, float | None],
        limit_s: float,
        *,
        earlier: Mapping[str, Result] | None = None,
    ) -> None:
        self.run, self.planned, self.limit_s = run, dict(stages), limit_s
        self.began_s = time.monotonic()
        self.kernels = Path(
            os.environ.get("TRITON_CACHE_DIR") or Path(tempfile.gettempdir()) / "orcast-triton"
        )
        self.stages: dict[str, Result] = {name: {"error": "not begun"} for name in stages}
        self.meta: dict[str, Any] = {
            "command": command,
            "began_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "limit_s": limit_s,
            "stages": self.stages,
            "earlier": dict(earlier or {}),
        }
        self._packed: tuple[Any, ...] = ()

    @property
    def left_s(self) -> float:
        return self.limit_s - (time.monotonic() - self.began_s)

    def finish(self) -> bool:
        """Run all stages; True if all went well. meta.json is there from the beginning."""
        self.write()
        with (self.run.folder / "log.txt").open("ab") as log:
            for name in self.planned:
                self._stage(name, log)
                print(f"{name}: {self.stages[name]}", flush=True)
        self.meta["duration_s"] = round(time.monotonic() - self.began_s, 1)
        self.write()
        return not any(told.get("error") or told.get("failed") for told in self.stages.values())

    def write(self) -> None:
        """What is known, to meta.json."""
        path = self.run.folder / META
        new = path.with_name(".meta.json.new")
        new.write_text(json.dumps(self.meta, indent=1))
        new.replace(path)

    def _limit_of(self, name: str) -> float:
        """Seconds of a stage: its own, of what is left beside those of the stages after it."""
        names = list(self.planned)
        after = names[names.index(name) + 1 :]
        kept_s = sum(self.planned[other] or 0.0 for other in after)
        own_s = self.planned[name]
        return min(self.left_s, max(LEAST_S, self.left_s - kept_s) if own_s is None else own_s)

    def _stage(self, name: str, log: IO[bytes]) -> None:
        lacking, limit_s = missing_packages(name), self._limit_of(name)
        if lacking:
            self.stages[name] = {"error": f"not begun: no package {', '.join(lacking)} here"}
            return self.write()
        if limit_s < LEAST_S:
            self.stages[name] = {"error": f"not begun: {max(0.0, limit_s):.0f} s were left"}
            return self.write()
        began_s = time.monotonic()
        ended, last = "interrupted", ""
        try:
            log.write(f"\n== {name}, {limit_s:.0f} s at most\n".encode())
            log.flush()
            start = log.tell()
            ended = self._watch(name, limit_s, log)
            last = _last_line(self.run.folder / "log.txt", start)
        finally:
            told = self._told(name)
            if ended != "status 0" and not told.get("error") and not told.get("failed"):
                told["error"] = f"{ended}: {last}" if last else ended
            told["limit_s"] = round(limit_s, 1)
            told["duration_s"] = round(time.monotonic() - began_s, 1)
            self.stages[name] = told
            self._pack(kernels=True)
            self.write()

    def _watch(self, name: str, limit_s: float, log: IO[bytes]) -> str:
        """Start a stage and wait for its end or its limit; says how it ended."""
        until_s, next_s = time.monotonic() + limit_s, time.monotonic() + EVERY_S
        with self._started(name, limit_s, log) as process:
            self.stages[name] = {"error": "interrupted", "process": process.pid}
            self.write()  # should this process be killed
            while time.monotonic() < until_s:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(max(0.0, min(POLL_S, until_s - time.monotonic())))
                    return f"status {status}"
                if time.monotonic() >= next_s:
                    next_s = time.monotonic() + EVERY_S
                    so_far = self._told(name)
                    self.stages[name] = {"error": "interrupted", "process": process.pid, **so_far}
                    self.write()
                    self._pack()
            return f"stopped after {limit_s:.0f} s"

    @contextlib.contextmanager
    def _started(
        self, name: str, limit_s: float, log: IO[bytes]
    ) -> Iterator[subprocess.Popen[bytes]]:
        measuring = sum(stage in MEASURING for stage in self.planned) or 1
        told = dataclasses.replace(
            self.run, limit_s=limit_s, ends_at=time.time() + limit_s,
            cooling_s=COOLING_S / measuring,
        )  # fmt: skip
        command = [sys.executable, "-m", "tests.benchmarks.gpu_stages", name, told.settings()]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(self.kernels),
            "TRITON_STORE_BINARY_ONLY": "1",  # nobody reads what lies between source and binary
        }
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, process_group=0, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            # What it started holds the GPU too, and may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GONE_S)

    def _told(self, name: str) -> Result:
        """What a stage has told of itself, and of where it runs."""
        results = {}
        for key in (name, "environment"):
            path = self.run.result / f"{key}.json"
            results[key] = json.loads(path.read_text()) if path.is_file() else {}
        if results["environment"]:
            self.meta["environment"] = results["environment"]
        return dict(results[name])

    def _pack(self, *, kernels: bool = False) -> None:
        """Tables and journals, where there is anything new; with `kernels`, those too."""
        work = self.run.work
        files = [path for name in PACKED for path in (work / name).rglob("*") if path.is_file()]
        with contextlib.suppress(FileNotFoundError):  # a table was put in its place just now
            state = tuple((path, path.stat().st_size) for path in sorted(files))
            if state != self._packed:
                self._packed = state
                pack(self.run.folder / ARCHIVE, work, PACKED)
        if kernels and self.kernels.is_dir():
            pack(self.run.folder / KERNELS, self.kernels.parent, [self.kernels.name])


def _last_line(log: Path, start: int) -> str:
    """Of what a stage printed from `start` on."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 4000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", help=f"{', '.join(COMMANDS)}, or stages: {', '.join(STAGES)}")
    default = Path(os.environ.get("OUT", "gpu-results"))
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--from", dest="earlier", type=Path, help="an earlier command's results")
    parser.add_argument("--models", default=",".join(MODELS), help="names or config.json files")
    parser.add_argument("--limit", default=f"{LIMIT_S:.0f}s", help="of the whole command")
    parser.add_argument("--limits", default="", help="of stages: check=60s,tables=4m")
    parser.add_argument("--budget", default="0s", help="of tables (default: by their limit)")
    parser.add_argument("--known", type=Path, default=ROOT / "calibrate" / "tables")
    parser.add_argument("--reference", type=Path, help="folder of other stacks' tables")
    parser.add_argument("--tests", type=Path, help="of check (default: all of the kernels)")
    parser.add_argument("--scenario", type=Path, help="of validate (default: the benchmark's own)")
    parser.add_argument("--variations", default="", help="of it, whose names contain this")
    parser.add_argument("--requests", type=int, default=0, help="of the engine's workload")
    parser.add_argument("--longest", type=int, default=0, help="prompt of it, in tokens")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    earlier = folder if options.earlier is None else options.earlier.resolve()
    try:
        told = _told_in(earlier)
        if options.earlier is not None and not any(
            (earlier / name).is_file() for name in (META, ARCHIVE, KERNELS)
        ):
            raise ValueError(f"--from {earlier}: no results of an earlier command")
        if options.command == "second" and told is None:
            raise ValueError(f"--from {earlier}: no {META} of the first command that can be read")
        stages = plan(options.command, told)
        for name in stages:
            _require_stage(name)
        stages |= {name: limit_s for name, limit_s in _limits(options.limits) if name in stages}
        limit_s, budget_s = _seconds(options.limit), _seconds(options.budget)
        models = options.models.split(",")
        for model in models:
            require_model(model)
        # Stages run in another folder than whoever gave the path.
        models = [str(Path(one).resolve()) if one.endswith(".json") else one for one in models]
        for name in ("reference", "tests", "scenario"):
            path = getattr(options, name)
            if path is not None and not path.exists():
                raise ValueError(f"--{name} {path}: no such file or folder")
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for number in (signal.SIGTERM, signal.SIGHUP):  # told in meta.json
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="orcast-", ignore_cleanup_errors=True) as work:
        given = {"folder": folder, "work": Path(work), "models": models}
        for name in ("known", "reference", "tests", "scenario"):
            if getattr(options, name) is not None:
                given[name] = getattr(options, name).resolve()
        for name in ("variations", "requests", "longest", "device"):
            given[name] = getattr(options, name)
        run = Run(limit_s=limit_s, budget_s=budget_s, **given)
        session = Session(run, options.command, stages, limit_s, earlier=told)
        for source in dict.fromkeys((earlier, folder)):
            _bring(source / ARCHIVE, Path(work), PACKED)
            _bring(source / KERNELS, session.kernels.parent, [session.kernels.name])
        return 0 if session.finish() else 1


def _told_in(folder: Path) -> dict[str, Result] | None:
    """What became of stages, by the meta.json there; None where there is none to be read."""
    try:
        meta = json.loads((folder / META).read_text())
        return {**meta.get("earlier", {}), **meta["stages"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if (folder / META).exists():
            print(f"{folder / META}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _bring(archive: Path, root: Path, names: Sequence[str]) -> None:
    """Unpack it if it is there. One that was cut on its way is told, and done without."""
    if not archive.is_file():
        return
    try:
        unpack(archive, root, names)
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        print(f"{archive}: {type(error).__name__}: {error}; done without", file=sys.stderr)


def _limits(text: str) -> Iterator[tuple[str, float]]:
    """``check=60s,tables=4m``: stages, which may be of another command, and seconds."""
    for part in filter(None, text.split(",")):
        name, equals, limit = part.partition("=")
        if not equals:
            raise ValueError(f"--limits {part}: expected STAGE=TIME, e.g. check=60s")
        _require_stage(name)
        yield name, _seconds(limit)


def _require_stage(name: str) -> None:
    if name not in STAGES:
        raise ValueError(f"no stage {name!r}; there are {', '.join((*COMMANDS, *STAGES))}")


def _seconds(text: str) -> float:
    """``90s``, ``8m`` or a number of seconds."""
    units = {"s": 1.0, "m": 60.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError:
        raise ValueError(f"{text!r}: expected a time, e.g. 90s or 8m") from None


if __name__ == "__main__":
    sys.exit(main())
