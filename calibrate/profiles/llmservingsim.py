"""Import a profile of LLMServingSim: per-layer kernel times of a vLLM engine, in µs.

    meta.yaml                    what was measured, where and when
    tpN/dense.csv                layer,tokens,time_us
    tpN/per_sequence.csv         layer,sequences,time_us        vocabulary projection and sampler
    tpN/attention.csv            prefill_chunk,kv_prefill,n_decode,kv_decode,time_us
    tpN/skew.csv                 batches of uneven contexts, and the same with equal ones
    tpN/moe.csv                  tokens,activated_experts,time_us

A layer's time is multiplied by how often it runs in the model. The folder's own fit of the skew
(``skew_fit.csv``) is not needed: the table keeps the measurements it was fitted to.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from calibrate.tables.meta import model_shape
from sim import plain_file
from sim.latency.table_folder import TableError
from sim.model.spec import ModelSpec

ONCE = {"embedding", "final_layernorm"}
TWICE_A_LAYER = {"layernorm"}

Rows = list[tuple[Any, ...]]


def import_llmservingsim(
    folder: Path, model: ModelSpec, *, gpu: str | None = None, tensor_parallel: int = 1
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """The profile's meta.yaml entries and parts, for `sim.latency.table_folder.write_table`.

    Raises TableError for a folder that lacks a file, a column or a tensor-parallel degree.
    """
    import yaml

    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder, expected an LLMServingSim profile")
    meta_path = folder / "meta.yaml"
    if not meta_path.is_file():
        raise TableError(f"{meta_path}: missing; expected an LLMServingSim profile folder")
    try:
        profile = plain_file.load_yaml(plain_file.read_text(meta_path), yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TableError(f"{meta_path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(profile, dict):
        raise TableError(f"{meta_path}: expected a mapping")
    degrees = sorted(
        int(path.name[2:])
        for path in folder.glob("tp[0-9]*")
        if path.is_dir() and path.name[2:].isdigit()
    )
    if tensor_parallel not in degrees:
        there = ", ".join(map(str, degrees)) or "none"
        raise TableError(f"{folder}: no tp{tensor_parallel}; tensor-parallel degrees: {there}")
    part = folder / f"tp{tensor_parallel}"

    layers = model.num_layers
    linear = [
        (layer, tokens, time_us * _times(layer, layers))
        for layer, tokens, time_us in _read(part / "dense.csv", "layer", "tokens")
    ]
    parts: dict[str, Rows] = {"linear": linear}
    parts["logits"] = _read(part / "per_sequence.csv", "layer", "sequences")
    parts |= _attention(part / "attention.csv", layers)
    skew = part / "skew.csv"
    if skew.is_file():
        parts["decode_skew"] = _skew(skew, layers)
    if model.moe is not None:
        experts = _read(part / "moe.csv", "tokens", "activated_experts")
        sparse = layers - model.num_dense_layers
        parts["moe"] = [(tokens, count, time_us * sparse) for tokens, count, time_us in experts]

    card = gpu or str(profile.get("hardware") or profile.get("gpu"))
    engine = profile.get("engine_effective") or {}
    return {
        "source": (
            f"{profile.get('model', model.name)} on {profile.get('gpu', card)}, "
            f"vLLM {profile.get('vllm_version', '?')} kernels profiled by LLMServingSim "
            f"{str(profile.get('profiled_at', 'at an unknown time'))[:10]}, "
            f"tensor parallel {tensor_parallel}"
        ),
        "gpu": card,
        "model": model_shape(model),
        "profiled_gpu": str(profile.get("gpu") or profile.get("hardware") or card),
        "profiled_model": str(profile.get("model") or model.name),
        "dtype": str(profile.get("variant", model.dtype)),
        "kv_cache_dtype": str(engine.get("kv_cache_dtype", "auto")),
        "tensor_parallel": tensor_parallel,
        "block_size": int(engine.get("block_size", 16)),
        "launch": "eager" if engine.get("enforce_eager", True) else "graph",
        "imported_from": "llmservingsim",
        "host_overhead_us": None,
    }, parts


def _times(layer: str, num_layers: int) -> int:
    """How often a profiled layer runs in one pass through the model."""
    if layer in ONCE:
        return 1
    return 2 * num_layers if layer in TWICE_A_LAYER else num_layers


def _attention(path: Path, layers: int) -> dict[str, Rows]:
    parts: dict[str, Rows] = {
        "prefill_attention": [],
        "decode_attention": [],
        "mixed_attention": [],
    }
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    for new, cached, sequences, context, time_us in _read(path, *columns):
        if not sequences:
            parts["prefill_attention"].append((new, cached, time_us * layers))
        elif not new:
            parts["decode_attention"].append((sequences, context, time_us * layers))
        else:
            row = (new, cached, sequences, context, time_us * layers)
            parts["mixed_attention"].append(row)
    for name in ("prefill_attention", "decode_attention"):
        if not parts[name]:
            raise TableError(f"{path}: no point with {name.partition('_')[0]} alone")
    if not parts["mixed_attention"]:
        del parts["mixed_attention"]
    return parts


def _skew(path: Path, layers: int) -> Rows:
    """Batches of a few long contexts and many short ones, decodes alone.

    Beside a prompt the prompt's own work fills what unevenness leaves idle, and the difference of
    two such times is mostly noise: those rows are left out.
    """
    columns = ("pc", "n", "kv_mean", "kv_big")
    rows: dict[tuple[int, ...], list[tuple[float, ...]]] = {}
    for row in _read(path, *columns, times=("t_skew_us", "t_mean_us", "t_max_us")):
        prompt, count, mean, longest, *times = row
        if not prompt:
            rows.setdefault((count, mean, longest), []).append(tuple(times))
    # Rounding lets some points coincide: their mean is one point.
    return [
        (*key, *(sum(column) / len(column) * layers for column in zip(*values, strict=True)))
        for key, values in rows.items()
    ]


def _read(path: Path, *columns: str, times: tuple[str, ...] = ("time_us",)) -> Rows:
    """Rows of the named columns, then times in µs; TableError naming the line otherwise."""
    if not path.is_file():
        raise TableError(f"{path}: missing; an LLMServingSim profile has it")
    with plain_file.lines_of(path) as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        for column in (*columns, *times):
            if column not in header:
                raise TableError(f"{path}:1: no column {column!r}")
        rows = []
        for line, row in enumerate(reader, start=2):
            # Later profiler versions measure more than one kernel or rank layout per file.
            layouts = (_number(path, line, c, row.get(c) or "1") for c in ("decode_q_len", "ep"))
            if any(layout != 1 for layout in layouts):
                continue
            key = [row[c] if c == "layer" else _number(path, line, c, row[c]) for c in columns]
            rows.append((*key, *(_number(path, line, time, row[time]) for time in times)))
    if not rows:
        raise TableError(f"{path}: no points")
    return rows


def _number(path: Path, line: int, column: str, text: str | None) -> Any:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TableError(f"{path}:{line}: {column} is {text!r}, expected a number from 0")
    return value if column.endswith("_us") else round(value)
