"""What training takes as rows of tables: `orcast show training`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reports.size.text import days, memory
from scenarios.quantity import plain

Figures = dict[str, Any]
Rows = list[tuple[str, ...]]
GIB = 2**30
_CLASSES = ("Class", "FLOPs", "of all", "Time, ms", "of all")
_LAYOUTS = (
    "Fastest: TP", "PP", "SP", "DP", "EP", "Micro-batches", "GiB each", "Step", "tokens/s", "MFU",
)  # fmt: skip


def training_tables(figures: Figures) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Head and rows of every table there is something for, in reading order."""
    if "layouts" in figures:
        yield _LAYOUTS, [_layout(one) for one in figures["layouts"]]
    yield ("Memory of a device", "GiB"), _sizes(figures["memory_bytes"])
    yield (
        ("Inputs of all layers", "GiB"),
        [("L b s h x 2", f"{figures['checkpoints_bytes'] / GIB:,.2f}")],
    )
    sent = {name: value for name, value in figures["sent_bytes"].items() if value}
    if sent:
        yield ("Sent by a device", "MB"), [(name, f"{sent[name] / 1e6:,.1f}") for name in sent]
    for kind, tensors in figures.get("tensors", {}).items():
        yield (kind, "GiB", "Shape"), _tensors(tensors)
    yield (
        ("FLOPs of a token", "GFLOP"),
        [
            (key.replace("_", " "), f"{value / 1e9:,.2f}")
            for key, value in figures["flops_per_token"].items()
        ],
    )
    if "step" in figures:
        step = figures["step"]
        parts = [
            (what, f"{1e3 * seconds:,.2f}") for what, seconds in step["seconds_by_part"].items()
        ]
        parts.insert(1, ("  of it attention", f"{1e3 * step['attention_s']:,.2f}"))
        yield ("A step", "ms"), [*parts, ("in all", f"{1e3 * step['step_s']:,.2f}")]
        yield _CLASSES, [_class(kind, one) for kind, one in step["classes"].items()]


def step_words(figures: Figures) -> str:
    """A step in a sentence."""
    step = figures["step"]
    return (
        f"A step of {step['tokens']:,} tokens takes {plain(step['step_s'])} s on "
        f"{figures['devices']:,} x {figures['gpu']}: {step['tokens_per_s']:,.0f} tokens/s, "
        f"{step['mfu']:.1%} of the peak by 6 N ({step['mfu_with_attention']:.1%} with attention); "
        f"a trillion tokens take {days(1e12 / step['tokens_per_s'] / 86400)}. Analytic, unmeasured."
    )


def _sizes(figures: dict[str, float]) -> Rows:
    return [(name, f"{value / GIB:,.2f}") for name, value in figures.items()]


def _tensors(tensors: list[Figures]) -> Rows:
    return [(one["name"], f"{one['bytes'] / GIB:,.4f}", one["shape"]) for one in tensors]


def _class(kind: str, one: Figures) -> tuple[str, ...]:
    return (
        kind,
        f"{one['flops']:.3g}",
        f"{one['flop_share']:.2%}",
        f"{1e3 * one['seconds']:,.2f}",
        f"{one['time_share']:.1%}",
    )


def _layout(one: Figures) -> tuple[str, ...]:
    degrees = ("tensor", "pipeline", "sequence", "data", "expert", "micro_batches")
    return (
        *(f"{one[name]:,}" for name in degrees),
        memory(one["memory_bytes"]).split()[0] if one["memory_bytes"] >= GIB else "< 1",
        f"{plain(one['step_s'])} s",
        f"{one['tokens_per_s']:,.0f}",
        f"{one['mfu']:.1%}",
    )
