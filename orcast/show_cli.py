"""`orcast show`: what a model or a GPU is, as figures."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(
    name="show",
    help="Show what a model or a GPU is taken to be.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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
        str | None,
        typer.Argument(
            metavar="NAME", help="A GPU of the library, an alias or a YAML file; none: all of them."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Memory, rates, links, power, price and where they are from."""
    from scenarios import library
    from scenarios.gpu_figures import FIELDS, gpu_figures

    found = [library.gpu(one) for one in ([name] if name else library.gpus())]
    if as_json:
        figures = [gpu_figures(one) for one in found]
        print(json.dumps(figures[0] if name else figures))
        return
    from rich.console import Console
    from rich.table import Table

    from reports.page.quantity import MISSING, plain

    console = Console(highlight=False)
    if name:
        grid = Table.grid(padding=(0, 2))
        for key, value in gpu_figures(found[0]).items():
            label, unit = FIELDS.get(key, (key.capitalize(), ""))
            text = value if isinstance(value, str) else MISSING if value is None else plain(value)
            grid.add_row(label, f"{text} {unit}".rstrip() if value is not None else MISSING)
        console.print(grid)
        return
    shown = ("memory_gb", "memory_bandwidth_gb_per_s", "bf16_tflops", "fp8_tflops", "fp4_tflops",
             "link_gb_per_s", "peak_watts", "price_usd_per_hour")  # fmt: skip
    heads = [f"{label}\n{unit}".rstrip() for label, unit in (FIELDS[key] for key in shown)]
    table = Table("GPU", *heads, box=None, pad_edge=False)
    for one in found:
        figures = gpu_figures(one)
        cells = [MISSING if figures[key] is None else plain(figures[key]) for key in shown]
        table.add_row(one.name, *cells)
    console.print(table)
