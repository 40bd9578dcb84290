"""Hostile input of every command beyond scenarios: recordings, sizings, studies, options, and
paths that are no plain files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from typer.main import get_command

from orcast.cli import app
from scenarios.schema.sizing import Sizing
from tests.attack.drawn import TEXTS, mutated, odd, paths, valid
from tests.attack.kinds import BASE, Attack, bent, write_yaml
from tests.sim.latency.tables import small_table_folder
from tests.sim.workload.test_trace_formats import BAILIAN, BURSTGPT_2, SERVING_SIM, SGLANG, TIMED

RECORDINGS = {**TIMED, "bailian": BAILIAN, "burstgpt": BURSTGPT_2, "sharegpt": SERVING_SIM}
RECORDINGS |= {"sglang": SGLANG}


def argument(value: Any) -> str:
    """A value as a command line can hold it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:100_000]


def _bent_rows(text: str, rng: Random) -> str:
    """A recording with something changed in its rows, its table or its tree."""
    try:
        return json.dumps(mutated(json.loads(text), rng))
    except ValueError:
        lines = text.splitlines()
    at = rng.randrange(len(lines))
    try:
        lines[at] = json.dumps(mutated(json.loads(lines[at]), rng))
    except ValueError:
        cells = next(csv.reader([lines[at]]))
        cells[rng.randrange(len(cells))] = str(odd(rng))
        row = io.StringIO()
        csv.writer(row).writerow(cells)
        lines[at] = row.getvalue().rstrip("\r\n")
    if rng.random() < 0.2:
        lines *= 3
    return rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines)


def recording(folder: Path, rng: Random) -> Attack:
    """A trace or a benchmark's result of any format, changed; described, replayed, planned for or
    held against."""
    name = rng.choice(list(RECORDINGS))
    file = folder / rng.choice(("rows.jsonl", "rows.json", "rows.csv", "rows"))
    text = RECORDINGS[name]
    for _ in range(rng.choice((1, 1, 2))):
        text = _bent_rows(text, rng)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2:
        bent(file, rng)
    if rng.random() < 0.1:
        file.write_bytes(gzip.compress(file.read_bytes()))
    said: tuple[str, ...] = ()
    if rng.random() < 0.3:
        said = ("--format", rng.choice((*RECORDINGS, "auto", *TEXTS)).replace("\x00", ""))
    if rng.random() < 0.2:
        field = rng.choice(("arrival", "prompt", "output", "session", "x"))
        said += ("--column", f"{field}={argument(rng.choice((*TEXTS, 'when_ms', 'timestamp')))}")
    if rng.random() < 0.2:
        said += ("--unit", rng.choice(("s", "ms", "us", "ns", "date", "h", "")))
    out = ("--out", str(folder / "out"))
    names = (file.name, "--column", "--format", "--unit", "trace")
    how = rng.randrange(6)
    if how < 2:
        return Attack(("trace", str(file), *said, *rng.choice(((), ("--json",), out))), names)
    if how < 4:
        speed = ("--speed", rng.choice(("1", "1e6", "1e-6", "nan", "inf")))
        few = ("--set", "latency.source=roofline")
        more = (*said, *rng.choice(((), speed)))
        return Attack(("replay", str(file), "-q", *few, *more, *out), (*names, "--speed"))
    table = small_table_folder(folder / "own-table")
    if how == 4:
        refine = ("calibrate", "refine", str(table), str(file), *out, "--set", "model=llama-3.1-8b")
        refine += ("--set", "hardware.gpu=h100-sxm")
        return Attack((*refine, *rng.choice(((), ("--until", "2")))), (*names, "own-table"))
    content = json.loads(json.dumps(BASE))
    content["workload"] = {"trace": file.name, "stop": 20}
    scenario = write_yaml(folder / "hostile.yaml", content)
    return Attack(("run", str(scenario), "-q", *out), (*names, "hostile.yaml"))


SIZING = tuple(paths(Sizing))
SMALL_SIZING: dict[str, Any] = {
    "name": "small",
    "budget": {"flops": 1e20},
    "law": "chinchilla",
    "shape": {"vocab_size": 32000, "head_dim": 64, "kv_heads": 8},
    "training": {"gpu": "h100-sxm", "gpus": 8, "mfu": 0.4, "sequence_length": 2048},
}

# Else every GPU and degree is served by for seven models, which is an honest minute's work.
FEW_SERVED: dict[str, Any] = {
    "gpus": ["h100-sxm"],
    "tensor_parallel": [1],
    "engine": {"max_num_seqs": 64},
    "lengths": BASE["workload"]["lengths"],
}


def sizing(folder: Path, rng: Random) -> Attack:
    """A sizing with fields set, changed or taken away; its runs as a CSV file."""
    content = json.loads(json.dumps(SMALL_SIZING))
    for _ in range(rng.choice((1, 1, 2, 3))):
        path, annotation, limits = rng.choice(SIZING)
        section = content
        for key in path[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[path[-1]] = valid(annotation, rng, limits) if rng.random() < 0.7 else odd(rng)
    if isinstance(content.get("serving"), dict):
        content["serving"] = json.loads(json.dumps(FEW_SERVED)) | content["serving"]
        content.setdefault("over_training", {"sizes": [0.5]})
    if rng.random() < 0.2:
        content = mutated(content, rng)
    if rng.random() < 0.2:
        rows = ["parameters,tokens,loss", "1e6,1e8,3.5", "1e7,1e9,2.9", "1e8,1e10,2.5"]
        at = rng.randrange(len(rows))
        rows[at] = rows[at].replace(rng.choice(rows[at].split(",")), argument(odd(rng))[:200])
        (folder / "runs.csv").write_text("\n".join(rows * rng.choice((1, 4))), "utf-8")
        content["law"] = {"form": "chinchilla", "runs": "runs.csv", "bootstrap": 5}
    file = write_yaml(folder / "hostile.yaml", content)
    if rng.random() < 0.1:
        bent(file, rng)
    arguments = ("size", str(file), "--jobs", "1")
    out = rng.choice((("--json",), ("--out", str(folder / "out"))))
    return Attack((*arguments, *out), ("hostile.yaml", "runs.csv"))


STUDIED = ("workload.num_requests", "engine.max_num_seqs", "workload.arrivals.request_rate", "x.y")


def study(folder: Path, rng: Random) -> Attack:
    """Axes of a sweep and options of a plan, drawn."""
    content = json.loads(json.dumps(BASE))
    names = ("hostile.yaml", "--axis", "--set", "slo", "--rate", "--users", "--prices", "odd.yaml")
    out = ("--out", str(folder / "out"), "--jobs", "1")
    if rng.random() < 0.5:
        content["sweep"] = odd(rng) if rng.random() < 0.3 else {}
        if isinstance(content["sweep"], dict):
            given = valid(list[float], rng) if rng.random() < 0.5 else odd(rng)
            content["sweep"]["axes"] = {rng.choice(STUDIED): given}
        if rng.random() < 0.3:
            content.pop("sweep")
        file = write_yaml(folder / "hostile.yaml", content)
        axes: list[str] = []
        for _ in range(rng.choice((0, 1, 1, 2))):
            low, high, step = (argument(odd(rng, depth=3))[:12] for _ in range(3))
            texts = (f"{low}..{high}:{step}", f"{low},{high}", f"{low}..{high}", "1,2", *TEXTS)
            axes += ["--axis", argument(f"{rng.choice(STUDIED)}={rng.choice(texts)}")]
        curve = ("--rate-curve",) if rng.random() < 0.1 else ()
        return Attack(("sweep", str(file), *axes, *curve, *out), names)
    content["slo"] = {"ttft_ms": 2000, "tpot_ms": 100}
    content["plan"] = {"candidates": {"gpus": ["h100-sxm"], "max_gpus": 1}}
    if rng.random() < 0.7:
        content["plan"] = mutated(content["plan"], rng)
    file = write_yaml(folder / "hostile.yaml", content)
    more: list[str] = []
    for name in ("rate", "users", "think-time", "ttft", "tpot", "e2e", "percentile"):
        if rng.random() < 0.15:
            more += [
                f"--{name}",
                rng.choice(("1", "0", "-1", "nan", "inf", "1e300", "1e-300", "5")),
            ]
    if rng.random() < 0.2:
        prices = rng.choice(({"h100-sxm": odd(rng)}, odd(rng)))
        more += ["--prices", str(write_yaml(folder / "odd.yaml", prices))]
    return Attack(("plan", str(file), *more, *out), names)


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
    for name in inner or ():
        yield from commands(inner[name], (*words, name))


SLOW = {("ui",), ("validate",), ("calibrate", "run")}  # serve or measure until they are ended
COMMANDS = tuple(pair for pair in commands(get_command(app)) if pair[0] not in SLOW)
NAMES = ("small.yaml", "quickstart", "gpt2", "h100-sxm", "budget-1e22", "llama-3.1-8b", "csv", "-")


def options(folder: Path, rng: Random) -> Attack:
    """Any command with any of its options, their values drawn without knowing what they mean."""
    write_yaml(folder / "small.yaml", BASE)
    words, command = rng.choice(COMMANDS)
    given: list[str] = []
    for option in command.params:
        needed = option.required and rng.random() < 0.9
        if option.name in ("help", "open_", "ray", "jobs") or not (needed or rng.random() < 0.3):
            continue
        value = argument(odd(rng, depth=3)) if rng.random() < 0.6 else rng.choice(NAMES)
        if option.name == "out":
            value = rng.choice(("out", "out/deeper", ".", "", "/dev/null/x", "small.yaml", value))
        if option.param_type_name == "argument":
            given.append(f"./{value}" if value.startswith("-") and value != "-" else value)
        elif getattr(option, "is_flag", False):
            given.append(option.opts[0])
        else:
            given += [option.opts[0], value]
    if not {"--out"} & set(given) and any(option.name == "out" for option in command.params):
        given += ["--out", str(folder / "out")]
    if words in (("plan",), ("size",), ("sweep",)):
        given += ["--jobs", "1"]
    if words == ("size",):
        given += ["--set", "serving=null"]
    if words[0] in ("run", "replay", "plan", "sweep"):
        given += ["--set", "workload.num_requests=5", "--set", "latency.source=roofline"]
    return Attack((*words, *given), ("",), out="nothing")


PLACES: dict[str, Callable[[Path], None]] = {
    "a named pipe": lambda at: os.mkfifo(at),
    "a folder": lambda at: at.mkdir(),
    "a device that never ends": lambda at: at.symlink_to("/dev/zero"),
    "the empty device": lambda at: at.symlink_to("/dev/null"),
    "a link to itself": lambda at: at.symlink_to(at.name),
    "a link to nothing": lambda at: at.symlink_to("nothing"),
    "a socket": lambda at: _socket(at),
    "an empty file": lambda at: at.write_bytes(b"") and None,
    "a sparse file of 100 GB": lambda at: _sparse(at, 100 * 10**9),
    "bytes": lambda at: at.write_bytes(bytes(range(256)) * 5) and None,
    "UTF-16": lambda at: at.write_bytes("name: x".encode("utf-16")) and None,
    "memory of a process": lambda at: at.symlink_to("/proc/self/mem"),
}


def _socket(at: Path) -> None:
    here = Path.cwd()
    os.chdir(at.parent)  # its address may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
        os.rename("socket", at.name)  # which may be longer still
    finally:
        os.chdir(here)


def _sparse(at: Path, size: int) -> None:
    with at.open("wb") as file:
        file.truncate(size)


def place(folder: Path, rng: Random) -> Attack:
    """A path that is anything but the file that a command expects there."""
    kind = rng.choice(list(PLACES))
    name = rng.choice(("odd.yaml", "odd.json", "odd.csv", "odd", "odd é\n.yaml", "o" * 250))
    table = small_table_folder(folder / "own-table")
    at = folder / name
    where = rng.randrange(6)
    if where < 5 and rng.random() < 0.15:
        at = table / rng.choice(sorted(path.name for path in table.iterdir()))
        at.unlink()
    PLACES[kind](at)
    scenario = json.loads(json.dumps(BASE))
    told: tuple[str, ...] = ()
    if at.parent == table or where == 0:
        scenario["latency"] = {"table": str(table if at.parent == table else at)}
    elif where == 1:
        scenario["workload"] = {"trace": str(at)}
    elif where == 2:
        scenario["model"] = str(at)
    elif where == 3:
        scenario["hardware"] = {"gpu": str(at)}
    elif where == 4:
        told = rng.choice(
            (
                *(("run", str(at)), ("sweep", str(at)), ("plan", str(at)), ("size", str(at))),
                *(("report", str(at)), ("compare", str(at), str(at)), ("trace", str(at))),
                *(("replay", str(at)), ("export", str(at), "csv"), ("show", "model", str(at))),
                *(("show", "gpu", str(at)), ("show", "scenario", str(at))),
                *(("show", "table", str(at)), ("calibrate", "check", str(at)), ("ui", str(at))),
                ("calibrate", "import", "vidur", str(at), "--model", "gpt2", "--out", "out"),
                (
                    "calibrate",
                    "import",
                    "llmservingsim",
                    str(at),
                    "--model",
                    "gpt2",
                    "--out",
                    "out",
                ),
                ("calibrate", "refine", str(table), str(at), "--out", "out"),
                ("plan", "plan-any", "--prices", str(at)),
                ("init", str(at), "--model", "gpt2", "--gpu", "l40s", "--rate", "1"),
            )
        )
        return Attack(told, (str(at), at.name, repr(at.name)[1:-1]), out="nothing")
    file = write_yaml(folder / "hostile.yaml", scenario)
    if where == 5:
        return Attack(("run", str(file), "-q", "--out", str(at)), ("--out", at.name), out="nothing")
    return Attack(("run", str(file), "-q", "--out", str(folder / "out")), ("hostile.yaml", at.name))


KINDS = {
    "recording": recording,
    "sizing": sizing,
    "study": study,
    "options": options,
    "place": place,
}
