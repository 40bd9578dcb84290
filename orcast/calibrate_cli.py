"""`orcast calibrate`: latency tables from other people's measurements, and how good they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenarios.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from scenarios.schema import Scenario
    from sim.hardware import Gpu
    from sim.latency.table_data import LatencyTable
    from sim.model_spec import ModelSpec

app = typer.Typer(help="Make latency tables and check them.", no_args_is_help=True)

FORMATS = ("llmservingsim", "aiconfigurator", "vidur")


@app.command("import")
def import_(
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(FORMATS))],
    source: Annotated[
        str, typer.Argument(help="Profile folder; for aiconfigurator a system name.")
    ],
    model: Annotated[str, typer.Option("--model", help="Library name or config.json.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The table's folder.")],
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The GPU's name, for the record.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option("--tensor-parallel", min=1)] = 1,
    backend: Annotated[str | None, typer.Option(help="aiconfigurator: whose kernels.")] = None,
    version: Annotated[str | None, typer.Option(help="aiconfigurator: of that backend.")] = None,
) -> None:
    """Turn a measured profile into a latency table."""
    from reports.writer import fresh_folder
    from scenarios import library
    from sim.latency.table_data import PART_COLUMNS
    from sim.latency.table_folder import read_table, write_table

    if format_ not in FORMATS:
        raise InputError(f"unknown format {format_!r}; {did_you_mean(format_, FORMATS)}")
    spec = library.model(model)
    try:
        meta, parts = _imported(
            format_, source, spec, gpu=gpu, tp=tensor_parallel, backend=backend, version=version
        )
        files = {"meta.yaml", "report.html", *(f"{name}.csv" for name in PART_COLUMNS)}
        with fresh_folder(out, marker="meta.yaml", files=files) as partial:
            write_table(partial, meta, parts)
            table = read_table(partial)
    except ValueError as error:
        raise InputError(str(error)) from None
    print(f"Table of {table.source}")
    for name, part in table.parts.items():
        print(f"  {name:20} {len(part.time_s):6} points")
    print(f"Written to {out}; check it with: orcast calibrate check {out}")


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="TABLE_DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Coverage, leave-one-out error, monotonicity and gaps; exit status 1 for a broken table."""
    from calibrate.check import check_table
    from sim.latency.table_folder import TableError, read_table

    try:
        result = check_table(read_table(directory))
    except TableError as error:
        raise InputError(str(error)) from None
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        print("\n".join(result.lines()))
    if result.errors:
        sys.exit(1)


def compose(scenario: Scenario, model: ModelSpec, gpu: Gpu) -> LatencyTable:
    """The table that a scenario with latency source ``aiconfigurator`` asks for."""
    from sim.latency.table_folder import table_of

    meta, parts = _imported(
        "aiconfigurator",
        gpu.name,
        model,
        gpu=gpu.name,
        tp=scenario.hardware.tensor_parallel,
        backend=scenario.latency.backend,
        version=scenario.latency.version,
        kv_cache_dtype=scenario.engine.kv_cache_dtype,
    )
    return table_of(meta, parts)


def _imported(
    format_: str,
    source: str,
    model: ModelSpec,
    *,
    gpu: str | None,
    tp: int,
    backend: str | None,
    version: str | None,
    kv_cache_dtype: str = "auto",
) -> tuple[dict[str, Any], dict[str, Any]]:
    if format_ == "aiconfigurator":
        from calibrate.import_aiconfigurator import import_aiconfigurator

        return import_aiconfigurator(
            source,
            model,
            backend=backend or "vllm",
            version=version,
            tensor_parallel=tp,
            kv_cache_dtype=kv_cache_dtype,
        )
    if backend is not None or version is not None:
        raise InputError("--backend and --version belong to the format aiconfigurator")
    if format_ == "vidur":
        from calibrate.import_vidur import import_vidur

        return import_vidur(Path(source), model, gpu=gpu, tensor_parallel=tp)
    from calibrate.import_llmservingsim import import_llmservingsim

    return import_llmservingsim(Path(source), model, gpu=gpu, tensor_parallel=tp)
