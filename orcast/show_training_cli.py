"""`orcast show training`: what a step of training takes on each device, and how long."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from orcast.options import JsonOption

SHOWN_LAYOUTS = 8


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
    dropout: Annotated[bool, typer.Option(help="Drop outputs, and keep the masks.")] = False,
    tensor: Annotated[int, typer.Option("--tensor-parallel", min=1)] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline-parallel", min=1)] = 1,
    sequence: Annotated[int, typer.Option("--sequence-parallel", min=1)] = 1,
    expert: Annotated[
        int, typer.Option("--expert-parallel", min=1, help="Of the data and sequence ranks.")
    ] = 1,
    data: Annotated[int, typer.Option("--data-parallel", min=1)] = 1,
    zero_stage: Annotated[int, typer.Option("--zero-stage", min=0, max=3)] = 3,
    micro_batches: Annotated[
        int, typer.Option("--micro-batches", min=1, help="Of a step, on each pipeline.")
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="GPU", help="Say how long a step takes on it.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, max=100_000, help="Find the degrees for so many of them."),
    ] = None,
    batch_tokens: Annotated[
        float, typer.Option("--batch-tokens", min=1, max=1e12, help="Tokens of a step, for --gpus.")
    ] = 4e6,
    as_json: JsonOption = False,
) -> None:
    """What training takes: memory of a device, tensors by name, bytes sent, FLOPs, step time."""
    from scenarios import library
    from scenarios.errors import InputError
    from scenarios.sizing.layer_tensors import ActivationSettings
    from scenarios.sizing.training import Degrees
    from scenarios.sizing.training_figures import tensor_figures, training_figures
    from scenarios.sizing.training_layout import layouts
    from scenarios.sizing.training_step import training_step

    found = library.model(name)
    settings = ActivationSettings(
        micro_batch, sequence_length, "layer" if checkpointing else "none", fused_attention, dropout
    )
    degrees = Degrees(tensor, pipeline, data, sequence, zero_stage, micro_batches, expert)
    more: dict[str, Any] = {}
    if gpus is not None:
        if gpu is None:
            raise InputError("--gpus needs --gpu: which GPU there are so many of")
        given = replace(Degrees(), zero_stage=zero_stage)
        if degrees != given:
            raise InputError("--gpus finds the degrees: give either it or them")
        ways = layouts(
            found,
            settings,
            library.gpu(gpu),
            gpus=gpus,
            batch_tokens=batch_tokens,
            zero_stage=zero_stage,
        )
        if not ways:
            raise InputError(
                f"{name}: no layout on {gpus:,} x {gpu} fits their memory with steps of "
                f"{batch_tokens:.3g} tokens; more GPUs, a smaller --micro-batch or larger "
                "--batch-tokens may do"
            )
        degrees = ways[0].degrees
        more["layouts"] = [one.figures() for one in ways[:SHOWN_LAYOUTS]]
    try:
        figures = training_figures(found, settings, degrees) | more
        if gpu is not None:
            step = training_step(found, settings, degrees, library.gpu(gpu))
            figures |= {"gpu": library.gpu(gpu).name, "step": step.figures()}
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    figures["tensors"] = tensor_figures(found, settings)
    if as_json:
        print(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    from reports.size.training_rows import step_words, training_tables

    console = Console(highlight=False)
    console.print(
        f"{found.name}, {figures['num_parameters']:,} parameters, on {figures['devices']} devices"
    )
    if "step" in figures:
        console.print(step_words(figures))
    for head, rows in training_tables(figures):
        table = Table(*head, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    console.print(f"\nThe pipeline idles {figures['bubble']:.1%} of the time.")
