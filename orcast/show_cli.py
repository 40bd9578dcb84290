"""`orcast show`: what a model, a GPU, a scenario or a table is taken to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orcast.options import JsonOption, SetOption

app = typer.Typer(
    name="show",
    help="Show what a model, a GPU, a scenario or a latency table is taken to be.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command("training")
def training(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model of the library, its Hugging Face id, or a config.json or its folder.",
        ),
    ],
    micro_batch: Annotated[int, typer.Option("-b", "--micro-batch", min=1)] = 1,
    sequence_length: Annotated[int, typer.Option("-s", "--sequence-length", min=1)] = 4096,
    checkpointing: Annotated[
        bool, typer.Option(help="Keep each layer's input alone, and compute the layer again.")
    ] = True,
    fused_attention: Annotated[bool, typer.Option(help="Keep no scores (FlashAttention).")] = True,
    tensor: Annotated[int, typer.Option("--tensor-parallel", min=1)] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline-parallel", min=1)] = 1,
    sequence: Annotated[int, typer.Option("--sequence-parallel", min=1)] = 1,
    data: Annotated[int, typer.Option("--data-parallel", min=1)] = 1,
    zero_stage: Annotated[int, typer.Option("--zero-stage", min=0, max=3)] = 3,
    micro_batches: Annotated[
        int, typer.Option("--micro-batches", min=1, help="Of a step, on each pipeline.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """What training takes: memory of a device by kind, a layer's tensors, bytes sent, FLOPs."""
    from scenarios import library
    from scenarios.errors import InputError
    from scenarios.sizing.training import ActivationSettings
    from scenarios.sizing.training_figures import (
        Degrees,
        is_plain,
        layer_activations,
        layer_weights,
        training_figures,
    )

    found = library.model(name)
    settings = ActivationSettings(
        micro_batch, sequence_length, "layer" if checkpointing else "none", fused_attention
    )
    try:
        figures = training_figures(
            found, settings, Degrees(tensor, pipeline, data, sequence, zero_stage, micro_batches)
        )
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if is_plain(found):  # others' layers have tensors of other names
        for key, tensors in (
            ("layer_weights", layer_weights(found)),
            ("layer_activations", layer_activations(found, settings)),
        ):
            figures[key] = [
                {"name": one.name, "shape": one.shape, "bytes": one.num_bytes} for one in tensors
            ]
    if as_json:
        print(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{found.name}, {figures['num_parameters']:,} parameters, on {figures['devices']} devices"
    )
    gib = 2**30
    heads: list[tuple[str, list[tuple[str, ...]]]] = [
        ("Memory of a device", _sizes(figures["memory_bytes"])),
        ("Inputs of all layers", [("L b s h x 2", f"{figures['checkpoints_bytes'] / gib:,.2f}")]),
        ("Sent by a device", _sizes(figures["sent_bytes"])),
    ]
    for key, head in (("layer_weights", "A layer's weights"), ("layer_activations", "It keeps")):
        rows: list[tuple[str, ...]] = [
            (str(one["name"]), f"{one['bytes'] / gib:,.4f}", str(one["shape"]))
            for one in figures.get(key, ())
        ]
        heads.append((head, rows))
    for head, lines in heads:
        if lines:
            shapes = ["Shape"] if len(lines[0]) > 2 else []
            table = Table(head, "GiB", *shapes, box=None, pad_edge=False)
            for line in lines:
                table.add_row(*line)
            console.print()
            console.print(table)
    flops = Table("FLOPs of a token", "GFLOP", box=None, pad_edge=False)
    for key, value in figures["flops_per_token"].items():
        flops.add_row(key.replace("_", " "), f"{value / 1e9:,.2f}")
    console.print()
    console.print(flops)
    console.print(f"\nThe pipeline idles {figures['bubble']:.1%} of the time.")


def _sizes(figures: dict[str, float]) -> list[tuple[str, ...]]:
    return [(name, f"{value / 2**30:,.2f}") for name, value in figures.items()]


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
