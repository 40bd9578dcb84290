"""`orcast list`: what can be named in a scenario."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import typer

from scenarios.quantity import MISSING, plain

app = typer.Typer(
    name="list",
    help="List what can be named: models, GPUs, scenarios, policies, latency sources.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON list.")]
MatchArgument = Annotated[
    str, typer.Argument(metavar="[TEXT]", help="Only those that have this in their line.")
]

Row = Mapping[str, Any]
LONG = {"also", "description"}  # what is wrapped
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


@app.command()
def models(text: MatchArgument = "", as_json: JsonOption = False) -> None:
    """Models by name, with their parameters and the ids they also go by."""
    from scenarios import library
    from scenarios.model_library import IDS_FILE
    from scenarios.yaml_file import read_yaml

    ids = read_yaml(IDS_FILE)
    rows = []
    for name in library.model_names():
        model = library.model(name)
        rows.append(
            {
                "name": name,
                "parameters": model.num_parameters,
                "active": model.num_activated_parameters,
                "also": [given for given, meant in ids.items() if meant == name],
            }
        )
    _show(rows, text, as_json)


@app.command()
def gpus(text: MatchArgument = "", as_json: JsonOption = False) -> None:
    """GPUs by name, with memory, rates, price, and whether kernels were measured on them."""
    from calibrate.profiles.kernel_tables import is_measured
    from scenarios import library
    from scenarios.gpu_figures import FIELDS, gpu_figures

    keys = ("name", "memory_gb", "memory_bandwidth_gb_per_s", "bf16_tflops", "fp8_tflops",
            "peak_watts", "price_usd_per_hour")  # fmt: skip
    rows = []
    for name in library.gpus():
        figures = gpu_figures(library.gpu(name))
        kernels = "measured" if is_measured(name) else "analytic"
        rows.append({key: figures[key] for key in keys} | {"kernels": kernels})
    heads = {key: "\n".join(FIELDS[key]).strip() for key in keys}
    _show(rows, text, as_json, heads)


@app.command()
def scenarios(text: MatchArgument = "", as_json: JsonOption = False) -> None:
    """Scenarios that can be run by name; those for sweeps and plans say so."""
    from scenarios import library

    rows = []
    for name in library.scenario_names():
        content = library.read_yaml(library.scenario_path(name))
        kinds = [kind for kind in ("sweep", "plan") if kind in content]
        rows.append(
            {
                "name": name,
                "for": ", ".join(["run", *kinds]),
                "description": " ".join(str(content.get("description", "")).split()),
            }
        )
    _show(rows, text, as_json)


@app.command()
def policies(text: MatchArgument = "", as_json: JsonOption = False) -> None:
    """Schedulers, orders of the queue, routers: what they do, and the key that takes their name."""
    from typing import get_args

    from scenarios.schema.engine import Engine
    from sim.cluster.routers import ROUTERS
    from sim.schedulers import SCHEDULERS

    rows = [
        {"key": key, "name": name, "description": _first_line(what)}
        for key, named in (("engine.scheduler", SCHEDULERS), ("cluster.router", ROUTERS))
        for name, what in named.items()
    ]
    rows += [
        {"key": f"engine.{key}", "name": name, "description": ORDERS[name]}
        for key in ("scheduling_policy", "preemption")
        for name in get_args(Engine.model_fields[key].annotation)
    ]
    _show(rows, text, as_json)


ORDERS = {
    "fcfs": "First come, first served.",
    "priority": "The class's priority, then who came first.",
    "earliest_deadline": "The class's deadline to the first token.",
    "shortest_prompt": "The shortest prompt first.",
    "shortest_job": "The fewest tokens to compute in all, as if output lengths were known.",
    "fair": "The class that has been served least.",
    "recompute": "A preempted sequence's cache is dropped and computed again.",
    "swap": "A preempted sequence's cache waits in host memory.",
}


@app.command()
def sources(text: MatchArgument = "", as_json: JsonOption = False) -> None:
    """Where iteration times can come from: values of latency.source."""
    from scenarios.schema.latency import Latency

    rows = []
    for block in (inspect.getdoc(Latency) or "").splitlines():
        if block.startswith("``"):
            name, _, said = block.removeprefix("``").partition("``: ")
            rows.append({"name": name, "description": said.replace("``", "")})
        elif rows and block.strip():
            rows[-1]["description"] += f" {block.strip()}"
    _show(rows, text, as_json)


def _first_line(what: Any) -> str:
    return (inspect.getdoc(what) or "").partition("\n")[0]


def _show(
    rows: Iterable[Row], text: str, as_json: bool, heads: Mapping[str, str] | None = None
) -> None:
    """A table, or JSON; InputError where nothing has `text` in it."""
    from scenarios.errors import InputError

    rows = list(rows)
    wanted = text.lower()
    found = [row for row in rows if wanted in json.dumps(list(row.values())).lower()]
    if not found:
        raise InputError(f"{text}: none of the {len(rows)} has this in its line")
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numbers = {key for row in found for key, value in row.items() if isinstance(value, int | float)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in found[0]:
        side = SIDES[key in numbers]
        head = (heads or {}).get(key, key.replace("_", " "))
        table.add_column(head, justify=side, no_wrap=key not in LONG, overflow="fold")
    for row in found:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console(highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, int) and value >= 1e6:
        return f"{value / 1e9:.3g}B"
    return plain(value) if isinstance(value, float) else MISSING if value is None else str(value)
