"""A model's figures (`scenarios.model_figures`) in words: facts, and a table of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scenarios.quantity import GAP, MISSING, count, plain

LAYER_HEAD = ["Layers", "Kind", "Heads", "Parameters each", "Weights each"]
CACHE_HEAD = ["Cached by", "Layers", "Bytes a token", "At most, a sequence"]
TABLES_HEAD = ["KV blocks of", "Layers", "Tables a sequence", "Blocks held at most"]


def facts_of(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values."""
    parameters, weights, cache = model["parameters"], model["weights"], model["kv_cache"]
    flops, context = model["flops_of_a_token"], count(model["kv_cache"]["context_tokens"])
    pairs = [
        ("Model", f"{model['name']} ({model['model_type']})"),
        ("Parameters", billions(parameters["total"])),
    ]
    if parameters["activated"] != parameters["total"]:
        pairs.append(("Of them a token uses", billions(parameters["activated"])))
    if parameters["vision"]:
        pairs.append(("Image tower", billions(parameters["vision"])))
    pairs += [
        ("Weights", f"{size(weights['bytes'])}, {weights['format']}"),
        ("Longest context", f"{count(model['max_model_len'])} tokens"),
        ("KV cache of a token", f"{count(cache['bytes_per_token'])}{GAP}B"),
    ]
    if cache["state_bytes_of_a_sequence"]:
        pairs.append(("States of a sequence", size(cache["state_bytes_of_a_sequence"])))
    pairs += [
        (f"Cache of {context} tokens", size(cache["bytes_of_a_sequence"])),
        ("FLOPs of a token, products", f"{plain(flops['products'] / 1e9)}{GAP}GFLOP"),
        ("Output head", f"{plain(flops['logits'] / 1e9)}{GAP}GFLOP"),
        (f"Attention at {context} tokens", f"{plain(flops['attention'] / 1e9)}{GAP}GFLOP"),
    ]
    if flops["states"]:
        pairs.append(("States", f"{plain(flops['states'] / 1e9)}{GAP}GFLOP"))
    return pairs + [("Note", note) for note in model["notes"]]


def layer_rows(model: Mapping[str, Any]) -> list[list[str]]:
    """A row for each kind of layer, as `LAYER_HEAD` names the columns."""
    return [
        [
            count(kind["layers"]),
            kind["kind"],
            "; ".join(
                f"{one['attention_heads']} x {one['head_dim']}, {one['kv_heads']} KV"
                for one in kind["heads"]
            )
            or MISSING,
            billions(kind["parameters_each"]),
            size(kind["weight_bytes_each"]),
        ]
        for kind in model["layer_kinds"]
    ]


def cache_rows(model: Mapping[str, Any]) -> list[list[str]]:
    """A row for each group of the cache, as `CACHE_HEAD` names the columns."""
    rows = [
        [
            group["kind"],
            count(group["layers"]),
            count(group["bytes_per_token"]),
            MISSING if group["window"] is None else size(group["most_bytes_of_a_sequence"]),
        ]
        for group in model["kv_cache"]["groups"]
    ]
    state = model["kv_cache"]["state_bytes_of_a_sequence"]
    return rows + ([["states", MISSING, "0", size(state)]] if state else [])


def table_rows(model: Mapping[str, Any]) -> list[list[str]]:
    """A row for each group with tables of its own in this run, as `TABLES_HEAD` names them."""
    return [
        [group["kind"], *(count(group[key]) for key in ("layers", "tables", "most_blocks"))]
        for group in model["kv_cache"].get("tables", ())
    ]


def billions(number: float) -> str:
    """Parameters."""
    if number >= 1e9:
        return f"{plain(number / 1e9, 4)}{GAP}billion"
    return f"{plain(number / 1e6, 4)}{GAP}million"


def size(number: float) -> str:
    """Bytes."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= each:
            return f"{plain(number / each)}{GAP}{unit}"
    return f"{count(number)}{GAP}B"
