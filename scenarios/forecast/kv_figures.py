"""What groups of layers and tiers of KV memory held and were asked for: rows of the summary."""

from __future__ import annotations

from typing import Any

from scenarios.forecast.deployment import Deployment
from sim.kv.layout import CacheLayout
from sim.records import Columns


def kv_group_figures(layout: CacheLayout, tables: Columns) -> list[dict[str, Any]]:
    """What each group of layers keeps, and the most blocks that a replica held of it at once."""
    return [
        {
            "kind": group.label,
            "layers": group.num_layers,
            "tables": group.rule.tables,
            "window": group.rule.window or None,
            "most_blocks": int(tables["most_blocks"][tables["rule"] == rule].max()),
        }
        for rule, group in enumerate(layout.groups)
    ]


def kv_tier_figures(deployment: Deployment, tiers: Columns) -> list[dict[str, Any]]:
    """Of the device and each tier: shares are of the full blocks of all prompts admitted.

    Replicas are added up. Groups of replicas with tiers of other kinds have rows of their own.
    """
    rows: dict[str, dict[str, Any]] = {}
    asked = int(tiers["asked"][tiers["tier"] == 0].sum())
    group_of = deployment.group_of(tiers["replica"])
    for at, (group, tier) in enumerate(zip(group_of.tolist(), tiers["tier"].tolist(), strict=True)):
        config = deployment.groups[group].config if deployment.groups else deployment.config
        spec = config.kv_tiers[tier - 1] if tier else None
        kind = "device" if spec is None else spec.kind
        block_bytes = config.block_size * _bytes_per_token(deployment, group)
        own = {name: int(tiers[name][at]) for name in ("found", "passed_over", "stored", "held")}
        row = rows.setdefault(kind, _nothing(kind))
        row["found_blocks"] += own["found"]
        if spec is None:
            continue
        row["passed_over_blocks"] += own["passed_over"]
        row["stored_blocks"] += own["stored"]
        row["read_bytes"] += int(own["found"] * block_bytes)
        row["written_bytes"] += int(own["stored"] * block_bytes)
        if kind == "shared":  # one for all
            row["blocks"], row["held_blocks"] = spec.num_blocks, own["held"]
        else:
            row["blocks"] += spec.num_blocks
            row["held_blocks"] += own["held"]
    for row in rows.values():
        row["hit_rate"] = row["found_blocks"] / asked if asked else 0.0
    return list(rows.values())


def _nothing(kind: str) -> dict[str, Any]:
    blocks = ("blocks", "held_blocks", "found_blocks", "passed_over_blocks", "stored_blocks")
    names = ("found_blocks",) if kind == "device" else (*blocks, "read_bytes", "written_bytes")
    return {"kind": kind, "hit_rate": 0.0} | dict.fromkeys(names, 0)


def _bytes_per_token(deployment: Deployment, group: int) -> float:
    """Of the KV cache, all GPUs of a replica together."""
    if deployment.groups:
        return deployment.groups[group].kv_bytes_per_token
    dtype = deployment.scenario.engine.kv_cache_dtype
    return deployment.model.kv_bytes_per_token(dtype)
