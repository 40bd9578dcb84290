"""The kinds of input that are attacked: each writes its files and says what is run on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from scenarios.model_library import FOLDER
from tests.attack.drawn import TEXTS, mutated, odd, setting
from tests.orcast.command_line import orcast
from tests.sim.latency.tables import small_table_folder

BASE: dict[str, Any] = {
    "name": "small",
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100-sxm"},
    "latency": {"source": "roofline"},
    "workload": {
        "arrivals": {"process": "poisson", "request_rate": 20.0},
        "lengths": {
            "prompt": {"distribution": "fixed", "tokens": 60},
            "output": {"distribution": "uniform", "min": 2, "max": 9},
        },
        "num_requests": 8,
    },
}
GPU = {
    **{"memory_gb": 80, "memory_bandwidth_gb_per_s": 3350, "bf16_tflops": 989},
    **{"price_usd_per_hour": 2.0, "link_gb_per_s": 450, "idle_watts": 70, "peak_watts": 700},
}
MODELS = ("llama-3.1-8b", "deepseek-v3", "gpt-oss-20b", "gemma-3-4b", "codestral-mamba-7b", "gpt2")
MODELS = tuple(name for name in MODELS if (FOLDER / f"{name}.json").is_file())


@dataclass(frozen=True, slots=True)
class Attack:
    """A command on hostile input, the names of which a refusal may give, and what may be new."""

    arguments: tuple[str, ...]
    names: tuple[str, ...]
    out: str = "out"


def write_yaml(path: Path, content: Any) -> Path:
    """`content` as a YAML file."""
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), "utf-8")
    return path


def _run(scenario: Path, folder: Path, *more: str) -> tuple[str, ...]:
    return ("run", str(scenario), "-q", "--out", str(folder / "out"), *more)


def bent(path: Path, rng: Random) -> None:
    """A file's bytes changed: cut, a bit flipped, a part twice, zeros, nothing at all."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) + 1)
    how = rng.randrange(6)
    if how == 0:
        content = content[:at]
    elif how == 1 and content:
        content[at % len(content)] ^= 1 << rng.randrange(8)
    elif how == 2:
        content[at:at] = content[at : at + 200]
    elif how == 3:
        content[at : at + 20] = bytes(20)
    elif how == 4:
        content = bytearray(rng.randbytes(rng.choice((0, 1, 100))))
    else:
        content[at:at] = rng.choice(TEXTS).encode()
    path.write_bytes(content)


def scenario(folder: Path, rng: Random) -> Attack:
    """A small scenario with some of its schema's fields set."""
    content = json.loads(json.dumps(BASE))
    for _ in range(rng.choice((1, 1, 2, 4))):
        path, value = setting(rng)
        section = content
        for key in path[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[path[-1]] = value
    if rng.random() < 0.1:
        content = mutated(content, rng)
    file = write_yaml(folder / "hostile.yaml", content)
    if rng.random() < 0.1:
        bent(file, rng)
    command = rng.choice(("run", "run", "run", "show", "sweep", "plan"))
    if command == "show":
        return Attack(("show", "scenario", str(file), "--json"), ("hostile.yaml",))
    if command == "run" or "sweep" not in str(content) or "plan" not in str(content):
        return Attack(_run(file, folder), ("hostile.yaml",))
    return Attack((command, str(file), "--out", str(folder / "out")), ("hostile.yaml",))


def overrides(folder: Path, rng: Random) -> Attack:
    """A sound scenario and ``--set`` texts."""
    file = write_yaml(folder / "hostile.yaml", BASE)
    texts = []
    for _ in range(rng.choice((1, 1, 2))):
        path, value = setting(rng)
        text = value if isinstance(value, str) else json.dumps(value)
        given = f"{'.'.join(path)}={text}"
        if rng.random() < 0.2:
            given = rng.choice((text, f"{path[0]}={text}", f".{given}", given + rng.choice(TEXTS)))
        # No command line can hold these.
        texts += ["--set", given.replace("\x00", "").encode("utf-8", "replace").decode()]
    return Attack(_run(file, folder, *texts), ("hostile.yaml", "--set", "scenario"))


def model(folder: Path, rng: Random) -> Attack:
    """A model's config.json with values changed, taken away or renamed."""
    content = json.loads((FOLDER / f"{rng.choice(MODELS)}.json").read_text("utf-8"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = mutated(content, rng)
    config = folder / "config.json"
    config.write_text(json.dumps(content), "utf-8")
    if rng.random() < 0.15:
        bent(config, rng)
    if rng.random() < 0.5:
        return Attack(("show", "model", str(config), "--json"), ("config.json",))
    file = write_yaml(folder / "hostile.yaml", BASE | {"model": str(config)})
    return Attack(_run(file, folder), ("config.json", "hostile.yaml"))


def gpu(folder: Path, rng: Random) -> Attack:
    """A GPU told in the scenario or in a file."""
    content: Any = dict(GPU)
    if rng.random() < 0.5:
        content = {"like": "h100-sxm", "memory_gb": 80}
    for _ in range(rng.choice((1, 2))):
        content = mutated(content, rng)
    given: Any = content
    if rng.random() < 0.5:
        given = str(write_yaml(folder / "own-gpu.yaml", content))
        if rng.random() < 0.2:
            bent(Path(given), rng)
    file = write_yaml(folder / "hostile.yaml", BASE | {"hardware": {"gpu": given}})
    if isinstance(given, str) and rng.random() < 0.3:
        return Attack(("show", "gpu", given, "--json"), ("own-gpu.yaml",))
    return Attack(_run(file, folder), ("own-gpu.yaml", "hostile.yaml"))


def table(folder: Path, rng: Random) -> Attack:
    """A latency table's folder with a file changed."""
    made = small_table_folder(folder / "own-table")
    file = rng.choice([made / "meta.yaml", *sorted(made.iterdir())])
    if file.suffix == ".csv" and rng.random() < 0.7:
        lines = [line.split(",") for line in file.read_text("utf-8").splitlines()]
        row = rng.choice(lines)
        cell = str(odd(rng)).replace("\n", " ")
        row[rng.randrange(len(row))] = cell.encode("utf-8", "replace").decode()
        file.write_text("\n".join(",".join(line) for line in lines), "utf-8")
    elif file.suffix == ".yaml" and rng.random() < 0.8:
        write_yaml(file, mutated(yaml.safe_load(file.read_text("utf-8")), rng))
    elif rng.random() < 0.1:
        file.unlink()
    else:
        bent(file, rng)
    if rng.random() < 0.3:
        return Attack(("show", "table", str(made), "--json"), ("own-table",))
    content = BASE | {"latency": {"source": "table", "table": str(made)}}
    file = write_yaml(folder / "hostile.yaml", content)
    return Attack(_run(file, folder), ("own-table", "hostile.yaml"))


class Results:
    """Sound folders of results, made once, of which copies are damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: tuple[str, ...] = ()

    def _make(self) -> None:
        folder = self.folder
        file = write_yaml(folder / "small.yaml", BASE)
        asked = ("--ttft", "2000", "--tpot", "100", "--percentile", "90", "--jobs", "1")
        for name, arguments in {
            "run": ("run", file, "-q"),
            "sweep": ("sweep", file, "--axis", "workload.arrivals.request_rate=5,9", "-j", "1"),
            "plan": ("plan", file, "--gpu", "h100-sxm", *asked),
        }.items():
            made = orcast(*arguments, "--out", folder / name)
            assert made.status == 0, made
        self.kinds = tuple(path.name for path in sorted(folder.iterdir()) if path.is_dir())

    def __call__(self, folder: Path, rng: Random) -> Attack:
        """A file of a folder changed; then report, compare or export it."""
        if not self.kinds:
            self._make()
        kind = rng.choice((*self.kinds, "run"))
        copied = folder / f"{kind}-copy"
        shutil.copytree(self.folder / kind, copied)
        files = [path for path in sorted(copied.iterdir()) if path.is_file()]
        file = rng.choice([path for path in files if path.suffix != ".html"])
        how = rng.random()
        if how < 0.1:
            file.unlink()
        elif file.suffix == ".json" and how < 0.8:
            content = json.loads(file.read_text("utf-8"))
            for _ in range(rng.choice((1, 1, 3))):
                content = mutated(content, rng)
            file.write_text(json.dumps(content), "utf-8")
        elif file.suffix == ".yaml" and how < 0.8:
            documents = list(yaml.safe_load_all(file.read_text("utf-8")))
            write_yaml(file, mutated(documents[0], rng))
        elif file.suffix == ".parquet" and how < 0.8:
            _other_column(file, rng)
        else:
            bent(file, rng)
        command: tuple[str, ...] = ("report", str(copied))
        if kind == "run" and rng.random() < 0.3:
            sides = [str(copied), str(self.folder / "run")]
            rng.shuffle(sides)
            command = ("compare", *sides, "--out", str(folder / "out.html"))
        elif rng.random() < 0.4:
            command = ("export", str(copied), rng.choice(("trace", "bench", "csv")))
        return Attack(command, (f"{kind}-copy",))


def _other_column(file: Path, rng: Random) -> None:
    """A column of a Parquet file left out, renamed, of another type, with gaps or odd numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pq.ParquetFile(file).read()
    at = rng.randrange(found.num_columns)
    name, rows = found.column_names[at], found.num_rows
    new = rng.choice(
        (
            *(["x"] * rows, [None] * rows, [-1] * rows, [2**62] * rows, [1e300] * rows),
            *([float("nan")] * rows, [[1]] * rows, [b"\xff"] * rows, [True] * rows),
            *([{"a": 1}] * rows, [float("inf")] * rows, ["<b>" * 9] * rows),
        )
    )
    how = rng.randrange(8)
    if how == 0:
        found = found.drop_columns([name])
    elif how == 1:
        found = found.slice(0, rng.randrange(rows + 1))
    else:
        found = found.set_column(at, name, pa.array(new))
    pq.write_table(found, file)


KINDS: dict[str, Callable[[Path, Random], Attack]] = {
    "scenario": scenario,
    "overrides": overrides,
    "model": model,
    "gpu": gpu,
    "table": table,
}
