"""What each part of the model is worth, on the recorded run of an RTX 4090.

Every row leaves out or changes one part, and shows how far the forecast is off then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tests.benchmarks.accuracy.recordings import RTX_4090, Rows, print_head, print_row


def log_blended(rows: Rows, axis: int) -> Rows:
    """Points in between, blended in logarithms along one axis: what linear look-ups then see."""
    lines: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        lines.setdefault((*row[:axis], *row[axis + 1 : -1]), []).append(row)
    more = []
    for points in lines.values():
        points = sorted((row for row in points if row[axis] > 0), key=lambda row: row[axis])
        for one, other in pairwise(points):
            for share in np.linspace(0, 1, 9)[1:-1]:
                x = round(float(one[axis] ** (1 - share) * other[axis] ** share))
                if one[axis] < x < other[axis]:
                    at = np.log(x / one[axis]) / np.log(other[axis] / one[axis])
                    time_us = float(one[-1] ** (1 - at) * other[-1] ** at)
                    more.append((*one[:axis], x, *one[axis + 1 : -1], time_us))
    known = {row[:-1] for row in rows}
    return rows + [row for row in {r[:-1]: r for r in more}.values() if row[:-1] not in known]


def with_log_blending(parts: dict[str, Rows]) -> dict[str, Rows]:
    changed = dict(parts)
    for name, axes in {
        "linear": [1], "logits": [1], "prefill_attention": [0], "decode_attention": [0, 1]
    }.items():  # fmt: skip
        for axis in axes:
            changed[name] = log_blended(changed[name], axis)
    return changed


def without_floor_per_sequence(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Decode attention by total context alone, as if a sequence cost nothing of its own."""
    changed = dict(parts)
    one = sorted((c, t) for n, c, t in parts["decode_attention"] if n == 1)
    contexts, times = [c for c, _ in one], [t for _, t in one]
    slope = times[-1] / contexts[-1]
    changed["decode_attention"] = [
        (n, c, float(np.interp(n * c, contexts, times)) if n * c <= contexts[-1] else slope * n * c)
        for n, c, _ in parts["decode_attention"]
    ]
    return changed


def main(sources: Sequence[str]) -> None:
    """A row a variant; the latency source is the card's own profile, as it is or changed."""
    meta, parts = RTX_4090.profile()
    plain = {name: rows for name, rows in parts.items() if name != "mixed_attention"}
    variants: list[tuple[str, dict[str, Any], Callable[[], dict[str, Rows]]]] = [
        ("as shipped", {}, lambda: parts),
        ("without the prefix cache", {"engine.enable_prefix_caching": False}, lambda: parts),
        (
            "KV cache of 3,400 blocks, not 2,588",
            {"engine.num_gpu_blocks_override": 3400},
            lambda: parts,
        ),
        ("without padding to graph sizes", {"engine.cudagraph_capture_sizes": []}, lambda: parts),
        ("with the bound of the longest sequence", {"latency.skew": True}, lambda: parts),
        ("prompts and decodes in separate launches", {}, lambda: plain),
        ("blending logarithms instead of times", {}, lambda: with_log_blending(plain)),
        ("no cost per decoding sequence", {}, lambda: without_floor_per_sequence(plain)),
        ("other policy: prefills first (`paged`)", {"engine.scheduler": "paged"}, lambda: parts),
    ]  # fmt: skip
    measured = RTX_4090.measured()
    print_head("variant")
    for name, settings, make in variants:
        print_row(name, RTX_4090.forecast(meta, make(), settings), measured)
    print()
