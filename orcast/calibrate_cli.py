"""`orcast calibrate`: measure latency tables, import other people's, tell how good they are."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from orcast.needed import require_torch
from orcast.options import JsonOption
from scenarios.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from calibrate.measure.calibration import Progress
    from sim.model.spec import ModelSpec

app = typer.Typer(help="Make latency tables and check them.", no_args_is_help=True)

FORMATS = ("llmservingsim", "aiconfigurator", "vidur")


@app.command()
def run(
    model: Annotated[str, typer.Option("--model", help="Library name or config.json.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The table's folder.")],
    device: Annotated[str, typer.Option("--device", help="cuda or cpu.")] = "cuda",
    budget: Annotated[
        str | None, typer.Option("--budget", help="Such as 8m or 90s; 8m on a GPU, 1m on a CPU.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16 or float16.")] = "bfloat16",
    block_size: Annotated[int, typer.Option("--block-size", min=8, max=128)] = 16,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The GPU's library name, for the record.")
    ] = None,
    linear: Annotated[
        str | None, typer.Option("--linear", help="Dense products: triton, best or fastest.")
    ] = None,
    share: Annotated[
        Path | None,
        typer.Option("--share", metavar="DIR", help="Tables to take fitting parts over from."),
    ] = None,
) -> None:
    """Measure a model's latency table on this machine's GPU (or CPU)."""
    from scenarios import library

    require_torch("calibrating")
    if gpu is not None:
        library.gpu(gpu)
    allowed = ("triton", "best", "fastest")
    if linear is not None and linear not in allowed:
        raise InputError(f"unknown --linear {linear!r}; {did_you_mean(linear, allowed)}")
    if share is not None and not share.is_dir():
        raise InputError(f"--share {share}: no such folder; name the folder of a GPU's tables")
    path = library.model_path(model)
    name, config = library.model_name(path), library.model_config(path)
    from calibrate.device.environment import CalibrationError
    from calibrate.measure.budget import budget_seconds
    from calibrate.measure.calibration import calibrate
    from calibrate.measure.setting import Setting
    from calibrate.measure.target import partial_folder
    from reports.calibration.report import write_calibration_report

    try:
        budget_s = budget_seconds(budget or ("1m" if device == "cpu" else "8m"))
        with progress_bar(budget_s) as tell:
            setting = Setting(
                config,
                name=name,
                out=out,
                device=device,
                budget_s=budget_s,
                dtype=dtype,
                block_size=block_size,
                gpu=gpu,
                linear_backend=cast(Any, linear),
                share=share,
            )
            calibrate(setting, progress=tell)
        write_calibration_report(out)
    except (CalibrationError, ValueError) as error:
        raise InputError(str(error)) from None
    except KeyboardInterrupt:
        kept = partial_folder(out)
        print(f"stopped; what was measured is in {kept}: the same command goes on", file=sys.stderr)
        sys.exit(130)
    print(_summary(out))


@app.command()
def report(directory: Annotated[Path, typer.Argument(metavar="TABLE_DIR")]) -> None:
    """(Re)build report.html of a table that `orcast calibrate run` measured."""
    from reports.calibration.report import write_calibration_report

    try:
        print(write_calibration_report(directory))
    except ValueError as error:
        raise InputError(str(error)) from None


@contextmanager
def progress_bar(budget_s: float) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on the terminal with the time left; nothing where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:18}"),
        BarColumn(),
        TextColumn("{task.fields[points]} points, {task.fields[left]} left"),
    )
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=budget_s, points=0, left="")

        def tell(state: Progress) -> None:
            left = f"{int(state.left_s) // 60}:{int(state.left_s) % 60:02d}"
            done_s = min(state.elapsed_s, budget_s)
            bar.update(
                task, completed=done_s, description=state.part, points=state.points, left=left
            )

        yield tell


def _summary(out: Path) -> str:
    """What a calibration came to, in a few lines."""
    from sim.latency.table_folder import read_table

    meta = read_table(out).meta
    lines = [f"Table of {meta['source']}", f"  {meta['duration_s']:.0f} s, written to {out}"]
    held_out = meta["whole_iterations"]["held_out"]
    if held_out:
        lines.append(
            f"  {held_out['count']} whole iterations held out: median error "
            f"{held_out['median']:.1%}, p95 {held_out['p95']:.1%}, bias {held_out['bias']:+.1%}"
        )
    lines += [f"  warning: {text}" for text in meta["warnings"]]
    lines.append(f"Check it with: orcast calibrate check {out}; see {out / 'report.html'}")
    return "\n".join(lines)


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
    from reports.run.writer import fresh_folder
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
    for said in _unlike_profile(meta, spec, gpu):
        print(f"orcast: warning: {said}", file=sys.stderr)
    for name, part in table.parts.items():
        print(f"  {name:20} {len(part.time_s):6} points")
    print(f"Written to {out}; check it with: orcast calibrate check {out}")


def _unlike_profile(meta: Mapping[str, Any], model: ModelSpec, gpu: str | None) -> Iterator[str]:
    """Where a profile names another model or GPU than the table is to be of."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    for kind, given in (("model", model.name), ("gpu", gpu)):
        profiled = meta.get(f"profiled_{kind}")
        if not given or not profiled:
            continue
        telling = [word for word in re.split(r"[-_ /]", given) if re.search(r"\d", word)]
        if not all(plain(word) in plain(str(profiled)) for word in telling):
            yield (
                f"the profile is of {profiled}, not of {given}: its times are taken as they are, "
                "a layer for a layer"
            )


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="TABLE_DIR")],
    as_json: JsonOption = False,
) -> None:
    """Coverage, leave-one-out error, monotonicity and gaps; exit status 1 for a broken table."""
    from calibrate.tables.check import check_table
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


def _imported(
    format_: str,
    source: str,
    model: ModelSpec,
    *,
    gpu: str | None,
    tp: int,
    backend: str | None,
    version: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    if format_ == "aiconfigurator":
        from calibrate.profiles.aiconfigurator import import_aiconfigurator

        return import_aiconfigurator(
            source,
            model,
            backend=backend or "vllm",
            version=version,
            tensor_parallel=tp,
        )
    if backend is not None or version is not None:
        raise InputError("--backend and --version belong to the format aiconfigurator")
    if format_ == "vidur":
        from calibrate.profiles.vidur import import_vidur

        return import_vidur(Path(source), model, gpu=gpu, tensor_parallel=tp)
    from calibrate.profiles.llmservingsim import import_llmservingsim

    return import_llmservingsim(Path(source), model, gpu=gpu, tensor_parallel=tp)
