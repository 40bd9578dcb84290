"""The rows of a summary's tiers of KV memory, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TIER_NAMES = {
    "device": "device",
    "host": "host memory",
    "nvme": "NVMe",
    "shared": "store of all replicas",
}


def tiers_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a summary's tiers, as far as they are some."""
    rows = summary.get("kv_tiers")
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, Mapping) and str(row.get("kind")) in TIER_NAMES]
