"""Who may import whom (ARCHITECTURE.md): arrows between packages, between their rooms, and borders.

    orcast --> reports --> scenarios --> sim
       +-----> calibrate --> sim, kernels

An arrow means "may import", and whatever lies further along it; nothing else may. A folder inside a
package is a room; its ``__init__.py`` says what it may import. The files that lie beside the rooms
are the ground they all stand on.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ARROWS = {
    "orcast": {"reports", "calibrate"},
    "reports": {"scenarios"},
    "scenarios": {"sim"},
    "calibrate": {"sim", "kernels"},
    "sim": set[str](),
    "kernels": set[str](),
}
OTHERS_OF_OURS = {"tests"}  # nobody imports these
# What a package must never know, nor bring along.
FORBIDDEN = {
    "orcast": {"torch", "triton", "simpy"},
    "reports": {"torch", "triton", "simpy"},
    "scenarios": {"torch", "triton", "plotly", "simpy"},
    "calibrate": {"plotly"},
    "sim": {"torch", "triton", "yaml", "plotly", "pydantic", "typer", "rich", "pandas", "pyarrow"},
    "kernels": {"simpy", "pydantic", "plotly"},
}
CLOCKS = {"sim/engine/clock.py"}  # this alone knows SimPy
TABLES = {"sim/latency/table_folder.py"}  # a latency table's meta.yaml is read and written here
PACKED = {"sim/workload/trace_file.py"}  # what is packed with zstd, which Python has from 3.14 on
KNOWN_BY = {"yaml": TABLES, "pyarrow": PACKED}
# The GPU machine has none of these: what measures there must start without them.
NOT_ON_THE_GPU_MACHINE = {"simpy", "pydantic", "plotly"}
MEASURING = {"torch", "triton", "kernels"}
ROOMS = ("sim", "scenarios", "reports", "calibrate")  # packages with rooms
MOST_LINES = 450  # of a file there


@dataclass(frozen=True, slots=True)
class Import:
    """`module` is imported in `file`, at `line`; `late` inside a function or for types alone."""

    file: str
    line: int
    module: str
    late: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a module: at its top, in functions, for types, and through importlib."""
    file = path.relative_to(root).as_posix()
    package = list(path.relative_to(root).parts[:-1])

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, late)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = [*base, *([node.module] if node.module else [])]
            for alias in node.names:  # `from sim import batch` imports sim.batch
                yield Import(file, node.lineno, ".".join([*name, alias.name]), late)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield Import(file, node.lineno, str(first.value), late)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late = True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            late = True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)


def reachable(package: str) -> set[str]:
    """The package and all that lies along its arrows."""
    found = {package}
    for onward in ARROWS[package]:
        found |= reachable(onward)
    return found


def module_files(root: Path, package: str) -> list[Path]:
    return sorted((root / package).rglob("*.py"))


def room_of(file: str) -> str | None:
    """The room of a file, as a module: ``sim.kv`` for sim/kv/cache.py; None on the ground."""
    package, *inner = file.split("/")
    return f"{package}.{inner[0]}" if package in ROOMS and len(inner) > 1 else None


def declared_arrows(root: Path) -> dict[str, set[str]]:
    """What each room says it may import, in the last line of its ``__init__.py``'s docstring."""
    arrows = {}
    for package in ROOMS:
        for path in sorted((root / package).glob("*/__init__.py")):
            room = f"{package}.{path.parent.name}"
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found = re.search(r"^May import: (.+)\.$", said, re.MULTILINE)
            assert found, f"{path}: its docstring ends with a line 'May import: …, ….'"
            names = set() if found[1] == "nothing" else set(found[1].split(", "))
            arrows[room] = names
    return arrows


def along(arrows: dict[str, set[str]], start: str) -> set[str]:
    """All that lies along the arrows from `start`; with `start` itself only on a circle."""
    found, ahead = set[str](), list(arrows[start])
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += arrows.get(one, ())
    return found


def file_of(module: str, files: Collection[str]) -> str | None:
    """The file that an imported name lies in: a module's, or a package's ``__init__.py``."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        for candidate in (f"{name}.py", f"{name}/__init__.py"):
            if candidate in files:
                return candidate
    return None


def room_violations(root: Path, every: dict[str, list[Import]]) -> list[str]:
    """Imports between rooms of one package that no arrow allows."""
    arrows = declared_arrows(root)
    found = []
    for file, imports in every.items():
        room = room_of(file)
        allowed = {None, room} | (along(arrows, room) if room in arrows else set())
        for one in imports:
            target = file_of(one.module, every)
            if target is None or target.split("/")[0] != file.split("/")[0]:
                continue
            if room_of(target) not in allowed:
                names = ", ".join(sorted(name for name in allowed if name and name != room))
                found.append(f"{one}: {room or 'the ground'} may import {names or 'no room'}")
    return found


def circles(every: dict[str, list[Import]]) -> list[str]:
    """Files that import each other, at once or by way of others, whenever they do it."""
    graph = {
        file: {target for one in imports if (target := file_of(one.module, every))} - {file}
        for file, imports in every.items()
    }
    reach = {file: along(graph, file) for file in graph}
    on_circles = sorted(file for file in graph if file in reach[file])
    return [f"{file} imports itself by way of {', '.join(graph[file])}" for file in on_circles]


def violations(root: Path) -> list[str]:
    """Every import under `root` that goes against the rules, in words."""
    found = []
    every: dict[str, list[Import]] = {}
    for package in ARROWS:
        allowed = reachable(package)
        for path in module_files(root, package):
            each = list(imports_of(path, root))
            every[path.relative_to(root).as_posix()] = each
            for one in each:
                if one.top in (ARROWS.keys() | OTHERS_OF_OURS) - allowed:
                    found.append(f"{one}: {package} may import {', '.join(sorted(allowed))}")
                elif one.top == "simpy" and one.file not in CLOCKS:
                    found.append(f"{one}: only {', '.join(sorted(CLOCKS))} may")
                elif one.top in FORBIDDEN[package] and one.file not in KNOWN_BY.get(one.top, ()):
                    found.append(f"{one}: {package} must never know it")
    if (root / "kernels/__init__.py").exists():
        found.append("kernels/__init__.py: PyPI has a regular package of this name")
    return found + room_violations(root, every) + circles(every) + measuring_violations(every)


def measuring_violations(every: dict[str, list[Import]]) -> list[str]:
    """What measures on the GPU must start there: no module that it loads needs what is missing."""
    found = []
    for file, imports in every.items():
        measures = file.startswith("calibrate/") and any(one.top in MEASURING for one in imports)
        if not measures:
            continue
        seen, ahead = {file}, [file]
        while ahead:
            for one in every[ahead.pop()]:
                if one.late:
                    continue
                if one.top in NOT_ON_THE_GPU_MACHINE:
                    found.append(f"{one}, which {file} loads where it measures")
                parts = one.module.split(".")
                for length in range(1, len(parts) + 1):  # every package on the way is loaded too
                    candidate = file_of(".".join(parts[:length]), every)
                    if candidate is not None and candidate not in seen:
                        seen.add(candidate)
                        ahead.append(candidate)
    return found


def test_nothing_is_imported_against_the_arrows() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize("package", ARROWS)
def test_the_six_packages_are_where_the_checker_looks(package: str) -> None:
    assert module_files(ROOT, package), f"{package}/ holds no module"


@pytest.mark.parametrize("package", ROOMS)
def test_no_file_is_long(package: str) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for path in module_files(ROOT, package)
    }
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_rooms_stand_one_above_the_other() -> None:
    arrows = declared_arrows(ROOT)
    folders = {
        f"{package}.{path.name}"
        for package in ROOMS
        for path in (ROOT / package).iterdir()
        if any(path.glob("*.py"))
    }
    assert arrows.keys() == folders, "every folder with code is a room"
    for room, named in arrows.items():
        assert named <= arrows.keys(), f"{room} names a room that is not there"
        assert room not in along(arrows, room), f"{room} lies on a circle of rooms"
        assert {name.split(".")[0] for name in named} <= {room.split(".")[0]}


def test_arrows_are_followed_to_their_ends() -> None:
    assert reachable("orcast") == ARROWS.keys()
    assert reachable("reports") == {"reports", "scenarios", "sim"}
    assert reachable("calibrate") == {"calibrate", "sim", "kernels"}
    assert (reachable("sim"), reachable("kernels")) == ({"sim"}, {"kernels"})


def test_the_simulators_processes_do_import_simpy() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in module_files(ROOT, "sim")
        if any(one.top == "simpy" for one in imports_of(path, ROOT))
    }
    assert "sim/engine/clock.py" in users
    assert users <= CLOCKS


# -- the checker itself ---------------------------------------------------------------------------

PLANTED = {
    "sim/a.py": ["import scenarios", "from reports.page.page import page", "import torch as t",
                 "import yaml", "from plotly import graph_objects", "from pydantic import Field",
                 "import typer", "import simpy", "from tests.sim import serving",
                 "def f():\n    from kernels import linear", "if True:\n    import orcast.cli",
                 "import importlib\nimportlib.import_module('triton.language')"],
    "sim/latency/a.py": ["from ... import calibrate", "import simpy.core"],
    "sim/kv/a.py": ["import sim.engine.replica", "from sim.engine import replica",
                    "from sim import engine", "from ..engine.replica import Replica",
                    "def f():\n    from sim.engine.replica import Replica",
                    "import typing\nif typing.TYPE_CHECKING:\n    import sim.engine.replica",
                    "import importlib\nimportlib.import_module('sim.engine.replica')"],
    "sim/batch.py": ["from sim.kv import cache", "def f():\n    import sim.engine"],
    "sim/engine/run_log.py": ["from sim.engine import replica as one"],
    "scenarios/a.py": ["import reports", "from calibrate import engine", "import torch",
                       "import plotly.graph_objects as go", "import triton"],
    "reports/a.py": ["import orcast", "import calibrate.compare", "import simpy", "import torch"],
    "calibrate/a.py": ["import scenarios.schema.load", "import reports", "import plotly",
                       "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import orcast",
                       "import torch\nimport pydantic",
                       "import kernels.linear\nimport sim.engine.replica"],
    "kernels/a.py": ["import sim", "from sim.batch import Batch", "import calibrate",
                     "import simpy", "from pydantic import BaseModel", "import plotly"],
    "kernels/__init__.py": [""],
    "orcast/a.py": ["import torch", "import triton", "import tests"],
}  # fmt: skip

PERMITTED = {
    "sim/a.py": ["import numpy\nimport sim.batch\nfrom . import batch", "import simplejson"],
    "sim/engine/clock.py": ["import simpy"],
    "sim/latency/table_folder.py": ["import yaml"],
    "sim/engine/a.py": ["from sim.kv import cache", "import sim.batch\nimport sim.engine.run_log"],
    "sim/kv/a.py": ["from sim.kv.cache import x", "import sim.batch"],
    "scenarios/a.py": ["import yaml, pydantic\nfrom sim import metrics"],
    "reports/a.py": ["import plotly\nfrom scenarios import load\nimport sim.records"],
    "calibrate/a.py": ["import torch\nimport kernels.linear\nimport sim.batch\nimport yaml",
                       "import torch\ndef f():\n    import sim.engine.replica"],
    "kernels/a.py": ["import torch, triton\nfrom kernels import gpu"],
    "orcast/a.py": ["import calibrate, kernels, sim, scenarios, reports"],
}  # fmt: skip


def planted(root: Path, file: str, text: str) -> list[str]:
    """What the checker says of a tree with one module of this text."""
    tree = {
        "sim/engine/__init__.py": '"""Above.\n\nMay import: sim.kv.\n"""',
        "sim/engine/clock.py": "import simpy",
        "sim/engine/replica.py": "import sim.engine.clock\nimport sim.engine.run_log",
        "sim/engine/run_log.py": "",
        "sim/kv/__init__.py": '"""Below.\n\nMay import: nothing.\n"""',
        "sim/kv/cache.py": "",
        "sim/batch.py": "",
    }
    for other, content in (tree | {file: text}).items():
        path = root / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return violations(root)


@pytest.mark.parametrize(
    ("file", "text"), [(file, text) for file, texts in PLANTED.items() for text in texts]
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str) -> None:
    assert planted(tmp_path, file, text)


@pytest.mark.parametrize(
    ("file", "text"), [(file, text) for file, texts in PERMITTED.items() for text in texts]
)
def test_what_lies_along_the_arrows_is_permitted(tmp_path: Path, file: str, text: str) -> None:
    assert planted(tmp_path, file, text) == []


# -- what is really loaded ------------------------------------------------------------------------

PROGRAM = """
import sys

sys.path.insert(0, {root!r})
sys.argv = ["orcast", "run", "quickstart", "--set", "workload.num_requests=50", "--json"]
unwanted = {{"torch", "triton", "pandas", "plotly.graph_objects", "scipy", "ray"}}

from orcast.cli import main

assert not unwanted & sys.modules.keys(), f"to start: {{unwanted & sys.modules.keys()}}"
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert not unwanted & sys.modules.keys(), f"to run: {{unwanted & sys.modules.keys()}}"
assert "simpy" in sys.modules
"""


def test_neither_the_command_line_nor_a_run_loads_what_is_slow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"completed": 50')
    assert (tmp_path / "runs/quickstart/report.html").is_file()
