"""Import vidur's profiling CSVs: times of one layer's operations, in ms.

    mlp.csv         n_head, n_kv_head, n_embd, n_expanded_embd, use_gated_mlp, num_tokens,
                    num_tensor_parallel_workers, time_stats.OPERATION.median, …
    attention.csv   n_embd, n_q_head, n_kv_head, block_size, num_tensor_parallel_workers,
                    batch_size, prefill_chunk_size, kv_cache_size, is_prefill, time_stats.…
    all_reduce.csv  num_workers, devices_per_node, collective, size (bytes), time_stats.…

(microsoft/vidur, ``data/profiling/compute/GPU/MODEL`` and ``data/profiling/network/NODE``; put the
files of one model and GPU into one folder.) vidur measures no vocabulary projection: it is
estimated from the up projection at the same number of rows, by size, and the table says so.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.tables.meta import model_shape
from sim import plain_file
from sim.latency.table_folder import TableError
from sim.model.spec import ModelSpec

# Once a layer; a model without the second norm has no times of it.
OPERATIONS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)
ONCE = ("emb",)
NEEDED = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_act", "mlp_down_proj")

Row = dict[str, Any]
Rows = list[tuple[Any, ...]]


def import_vidur(
    folder: Path,
    model: ModelSpec,
    *,
    gpu: str | None = None,
    tensor_parallel: int = 1,
    block_size: int = 16,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """meta.yaml entries and parts of a table, for `sim.latency.table_folder.write_table`.

    Only rows of this model's shape, this tensor-parallel degree and this KV block size count.
    Raises TableError for missing files, columns or points and for bad cells, naming file and row.
    """
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder, expected vidur's mlp.csv and attention.csv")
    model.check_tensor_parallel(tensor_parallel)
    if model.moe is not None or model.mla is not None:
        raise TableError(f"{model.name}: vidur profiles dense models with ordinary attention only")
    degree = {"num_tensor_parallel_workers": tensor_parallel, "n_embd": model.hidden_size}
    parts = _linear(folder / "mlp.csv", model, degree) | _attention(
        folder / "attention.csv", model, {**degree, "block_size": block_size}
    )
    if tensor_parallel > 1:
        parts["communication"] = _all_reduce(folder / "all_reduce.csv", tensor_parallel)
    return {
        "source": f"{model.name} on {gpu or folder.name}, profiled by vidur, "
        f"tensor parallel {tensor_parallel}",
        "gpu": gpu or folder.name,
        "model": model_shape(model),
        "dtype": model.dtype,
        "tensor_parallel": tensor_parallel,
        "block_size": block_size,
        "launch": "eager",
        "imported_from": "vidur",
        "estimated": ["logits: from the up projection at the same rows, by size"],
        "host_overhead_us": None,
    }, parts


def _linear(path: Path, model: ModelSpec, degree: dict[str, Any]) -> dict[str, Rows]:
    shape = degree | {
        "n_head": model.num_attention_heads,
        "n_kv_head": model.num_kv_heads,
        "n_expanded_embd": model.intermediate_size,
        "use_gated_mlp": str(model.gated_mlp),
    }
    rows = _read(path, ("num_tokens",), shape)
    linear: Rows = []
    for name in (*OPERATIONS, *ONCE):
        times = _medians(rows, name, "num_tokens")
        if not times and name in NEEDED:
            raise TableError(f"{path}: no median of {name} with {_text(shape)}")
        count = 1 if name in ONCE else model.num_layers
        linear += [(name, tokens, ms * 1e3 * count) for (tokens,), ms in times.items()]
    tensor_parallel = degree["num_tensor_parallel_workers"]
    up = next(o for o in model.linear_operations(tensor_parallel) if o.kind == "gate_up")
    ratio = model.logits_operation(tensor_parallel).out_features / up.out_features
    logits: Rows = [
        ("lm_head (estimated)", count, ms * 1e3 * ratio)
        for (count,), ms in _medians(rows, "mlp_up_proj", "num_tokens").items()
    ]
    return {"linear": linear, "logits": logits}


def _attention(path: Path, model: ModelSpec, degree: dict[str, Any]) -> dict[str, Rows]:
    shape = degree | {"n_q_head": model.num_attention_heads, "n_kv_head": model.num_kv_heads}
    columns = ("batch_size", "prefill_chunk_size", "kv_cache_size")
    rows = _read(path, columns, shape)
    saved = _medians(rows, "attn_kv_cache_save", *columns)
    parts: dict[str, Rows] = {"prefill_attention": [], "decode_attention": []}
    for name, part in (("attn_prefill", "prefill_attention"), ("attn_decode", "decode_attention")):
        for (batch, chunk, cached), ms in _medians(rows, name, *columns).items():
            time_us = (ms + saved.get((batch, chunk, cached), 0.0)) * 1e3 * model.num_layers
            if chunk == 0 and part == "decode_attention":
                # What a decode attends to includes the token it computes.
                parts[part].append((batch, cached + 1, time_us))
            elif chunk > 0 and batch == 1 and part == "prefill_attention":
                parts[part].append((chunk, cached, time_us))
        if not parts[part]:
            raise TableError(f"{path}: no median of {name} with {_text(shape)}")
    return parts


def _all_reduce(path: Path, ranks: int) -> Rows:
    """Within one node. The file has the same ranks spread over more nodes, too."""
    wanted = {"num_workers": ranks, "devices_per_node": ranks, "collective": "all_reduce"}
    points = _medians(_read(path, ("size",), wanted), "all_reduce", "size")
    if not points:
        raise TableError(f"{path}: no median of all_reduce with {_text(wanted)}")
    return [("all_reduce", ranks, size, ms * 1e3) for (size,), ms in points.items()]


def _read(path: Path, columns: tuple[str, ...], wanted: dict[str, Any]) -> list[Row]:
    """Rows whose cells are as wanted: their whole numbers of `columns` and all medians."""
    if not path.is_file():
        raise TableError(f"{path}: missing; a vidur profile has it")
    with plain_file.lines_of(path) as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        for column in (*columns, *wanted):
            if column not in header:
                raise TableError(f"{path}:1: no column {column!r}")
        rows: list[Row] = []
        there: dict[str, set[str]] = {}
        for line, cells in enumerate(reader, start=2):
            if None in cells or None in cells.values():
                raise TableError(f"{path}:{line}: not as many cells as the header has")
            other = [column for column, value in wanted.items() if cells[column] != str(value)]
            if other:
                there.setdefault(other[0], set()).add(cells[other[0]])
                continue
            row: Row = {column: round(_number(path, line, column, cells)) for column in columns}
            for column in header:
                # An empty cell says that the operation was not measured at this point.
                if column.endswith(".median") and cells[column].lower() not in ("", "nan"):
                    row[column] = _number(path, line, column, cells)
            rows.append(row)
    if not rows:
        # Of the column at which the best rows failed.
        failed = [column for column in wanted if column in there][-1:]
        hint = "".join(f"; {column} there: {', '.join(sorted(there[column]))}" for column in failed)
        raise TableError(f"{path}: no row with {_text(wanted)}{hint}")
    return rows


def _medians(rows: list[Row], operation: str, *columns: str) -> dict[tuple[int, ...], float]:
    """Milliseconds by point; the median where a point was measured more than once.

    Some exports write 0 for "not measured": no kernel takes no time.
    """
    points: dict[tuple[int, ...], list[float]] = {}
    for row in rows:
        value = row.get(f"time_stats.{operation}.median")
        if value:
            points.setdefault(tuple(row[column] for column in columns), []).append(value)
    return {point: float(np.median(values)) for point, values in points.items()}


def _number(path: Path, line: int, column: str, cells: dict[str, str]) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TableError(f"{path}:{line}: {column} is {cells[column]!r}, expected a number from 0")
    return value


def _text(wanted: dict[str, Any]) -> str:
    return ", ".join(f"{column} {value}" for column, value in wanted.items())
