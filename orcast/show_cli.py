"""`orcast show`: what a model, a GPU, a scenario or a table is taken to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orcast.options import JsonOption, SetOption
from orcast.show_training_cli import training

app = typer.Typer(
    name="show",
    help="Show what a model, a GPU, a scenario or a latency table is taken to be.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("training")(training)


@app.command("model")
def model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model of the library, its Hugging Face id, or a config.json or its folder.",
        ),
    ],
    weight_dtype: Annotated[
        str, typer.Option("--weight-dtype", metavar="TYPE", help="Serve its matrices in this.")
    ] = "auto",
    kv_cache_dtype: Annotated[
        str, typer.Option("--kv-cache-dtype", metavar="TYPE", help="Keep its cache in this.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Layers by kind, parameters, weights, KV cache by group, FLOPs of a token."""
    from scenarios import library
    from scenarios.errors import InputError
    from scenarios.model_figures import model_figures

    found = library.model(name)
    try:
        if weight_dtype != "auto":
            found = found.quantised(weight_dtype)
        figures = model_figures(found, kv_cache_dtype)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if as_json:
        print(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    from reports.run.model_rows import CACHE_HEAD, LAYER_HEAD, cache_rows, facts_of, layer_rows

    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 2))
    for key, value in facts_of(figures):
        grid.add_row(key, value)
    console.print(grid)
    for head, rows in ((LAYER_HEAD, layer_rows(figures)), (CACHE_HEAD, cache_rows(figures))):
        table = Table(*head, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)


@app.command("gpu")
def gpu(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A GPU by name or alias, or a YAML file of one.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Memory, rates, links, power, price and where they are from."""
    from scenarios import library
    from scenarios.gpu_figures import FIELDS, gpu_figures

    figures = gpu_figures(library.gpu(name))
    if as_json:
        print(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    from scenarios.quantity import MISSING, plain

    grid = Table.grid(padding=(0, 2))
    for key, value in figures.items():
        label, unit = FIELDS.get(key, (key.capitalize(), ""))
        text = value if isinstance(value, str) else MISSING if value is None else plain(value)
        grid.add_row(label, f"{text} {unit}".rstrip() if value is not None else MISSING)
    Console(highlight=False).print(grid)


@app.command("scenario")
def scenario(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A scenario file, a library name, or - for stdin.")
    ],
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """A scenario as it is resolved: every default written out, ready to be run again."""
    from scenarios.schema.load import load_scenario

    loaded, _ = load_scenario(name, set_ or [])
    content = loaded.model_dump(mode="json")
    if as_json:
        print(json.dumps(content))
    else:
        _print(content)


@app.command("table")
def table(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A latency table's folder.")],
    as_json: JsonOption = False,
) -> None:
    """What a latency table was measured on, how, and which parts it has."""
    from scenarios.errors import InputError
    from sim.latency.table_folder import read_table

    try:
        found = read_table(folder)
    except ValueError as error:
        raise InputError(str(error)) from None
    figures = {
        "label": found.label,
        "basis": found.basis,
        "parts": {name: f"{len(part.time_s)} points" for name, part in found.parts.items()},
        "meta": dict(found.meta),
    }
    if as_json:
        print(json.dumps(figures, default=str))
    else:
        _print(figures)


def _print(figures: dict[str, Any]) -> None:
    import yaml

    text = yaml.safe_dump(figures, sort_keys=False, allow_unicode=True, width=100)
    print(text, end="")
