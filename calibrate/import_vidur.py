"""Import vidur's profiling CSVs (medians, in ms; one layer).

    mlp.csv         num_tokens, num_tensor_parallel_workers, n_embd, …, time_stats.OP.median
    attention.csv   batch_size, prefill_chunk_size, kv_cache_size, is_prefill, …
    all_reduce.csv  num_workers, size (bytes), time_stats.all_reduce.median

vidur measures no vocabulary projection: it is estimated from the up projection at the same number
of rows, by size, and the table says so.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.import_llmservingsim import model_shape
from sim.latency.table_folder import TableError
from sim.model_spec import ModelSpec

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

Row = dict[str, Any]
Rows = list[tuple[Any, ...]]


def import_vidur(
    folder: Path, model: ModelSpec, *, gpu: str | None = None, tensor_parallel: int = 1
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """meta.yaml entries and parts of a table, for `sim.latency.table_folder.write_table`.

    Raises TableError for missing files, columns or points, naming file and row.
    """
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder, expected vidur's mlp.csv and attention.csv")
    layers = model.num_layers
    same = {"num_tensor_parallel_workers": tensor_parallel, "n_embd": model.hidden_size}
    heads = {"n_q_head": model.num_attention_heads, "n_kv_head": model.num_kv_heads}

    mlp = _read(folder / "mlp.csv", {"num_tokens", *same}, same)
    linear: Rows = []
    for name in (*OPERATIONS, *ONCE):
        times = _medians(mlp, name, "num_tokens")
        count = 1 if name in ONCE else layers
        linear += [(name, tokens, ms * 1e3 * count) for (tokens,), ms in times.items()]
    up = _medians(mlp, "mlp_up_proj", "num_tokens")
    if not up:
        raise TableError(f"{folder / 'mlp.csv'}: no median of mlp_up_proj at {same}")
    width = next(
        o.out_features for o in model.linear_operations(tensor_parallel) if o.kind == "gate_up"
    )
    share = model.logits_operation(tensor_parallel).out_features / width

    attention = _read(
        folder / "attention.csv",
        {"batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill", *same, *heads},
        same | heads,
    )
    saved = _medians(
        attention, "attn_kv_cache_save", "batch_size", "prefill_chunk_size", "kv_cache_size"
    )
    parts: dict[str, Rows] = {
        "linear": linear,
        "logits": [
            ("lm_head (estimated)", rows, ms * 1e3 * share) for (rows,), ms in sorted(up.items())
        ],
        "prefill_attention": [],
        "decode_attention": [],
    }
    columns = ("batch_size", "prefill_chunk_size", "kv_cache_size")
    for name, part in (("attn_prefill", "prefill_attention"), ("attn_decode", "decode_attention")):
        for (batch, chunk, cached), ms in _medians(attention, name, *columns).items():
            total_us = (ms + saved.get((batch, chunk, cached), 0.0)) * 1e3 * layers
            if part == "decode_attention" and chunk == 0:
                parts[part].append((batch, max(cached, 1), total_us))
            elif part == "prefill_attention" and chunk > 0 and batch == 1:
                parts[part].append((chunk, cached, total_us))
        if not parts[part]:
            raise TableError(f"{folder / 'attention.csv'}: no median of {name} at {same | heads}")
    if tensor_parallel > 1:
        ranks = {"num_workers": tensor_parallel}
        reduced = _read(folder / "all_reduce.csv", {"size", *ranks}, ranks)
        parts["communication"] = [
            ("all_reduce", tensor_parallel, size, ms * 1e3)
            for (size,), ms in _medians(reduced, "all_reduce", "size").items()
        ]
    return {
        "source": f"{model.name} on {gpu or folder.name}, profiled by vidur, "
        f"tensor parallel {tensor_parallel}",
        "gpu": gpu or folder.name,
        "model": model_shape(model),
        "dtype": model.dtype,
        "tensor_parallel": tensor_parallel,
        "launch": "eager",
        "imported_from": "vidur",
        "estimated": ["vocabulary projection, from the up projection at the same rows"],
        "host_overhead_us": None,
    }, parts


def _read(path: Path, needed: set[str], chosen: dict[str, int]) -> list[Row]:
    """Rows whose columns have the chosen values; TableError when there are none."""
    if not path.is_file():
        raise TableError(f"{path}: missing; a vidur profile has it")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        for column in sorted(needed):
            if column not in header:
                raise TableError(f"{path}:1: no column {column!r}")
        rows: list[Row] = []
        for line, row in enumerate(reader, start=2):
            found: Row = {"path": path, "line": line}
            for column, text in row.items():
                if column in needed and column != "is_prefill":
                    found[column] = round(_number(path, line, column, text))
                elif column and column.endswith(".median") and text and text.lower() != "nan":
                    # An empty cell says that this operation was not measured at this point.
                    found[column] = _number(path, line, column, text)
            if all(found[column] == value for column, value in chosen.items()):
                rows.append(found)
    if not rows:
        wanted = ", ".join(f"{column} {value}" for column, value in chosen.items())
        raise TableError(f"{path}: no row with {wanted}")
    return rows


def _medians(rows: list[Row], operation: str, *columns: str) -> dict[tuple[int, ...], float]:
    """Milliseconds by point; the median where a point was measured more than once."""
    points: dict[tuple[int, ...], list[float]] = {}
    for row in rows:
        value = row.get(f"time_stats.{operation}.median")
        # Some exports write 0 for "not measured": no kernel takes no time.
        if value:
            points.setdefault(tuple(row[column] for column in columns), []).append(value)
    return {point: float(np.median(values)) for point, values in points.items()}


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TableError(f"{path}:{line}: {column} is {text!r}, expected a number from 0")
    return value
