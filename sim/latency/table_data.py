"""A latency table in memory: measured points by part, in seconds, whole model.

The folder on disk (`sim.latency.table_folder`) has one CSV a part and times in µs; nothing past the
loader knows microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# part -> the columns that say what was measured; all parts have time_us besides.
PART_COLUMNS: dict[str, tuple[str, ...]] = {
    "linear": ("operation", "tokens"),
    "logits": ("operation", "sequences"),
    "prefill_attention": ("new_tokens", "cached_tokens"),
    "decode_attention": ("sequences", "context_tokens"),
    # Of layers that look back on `reach` tokens at most; 1: a state, which its own token updates.
    "bounded_prefill": ("reach", "new_tokens", "cached_tokens"),
    "bounded_decode": ("reach", "sequences", "context_tokens"),
    "mixed_attention": ("new_tokens", "cached_tokens", "sequences", "context_tokens"),
    "decode_skew": ("sequences", "context_tokens", "longest_tokens"),
    "moe": ("tokens", "experts"),
    "communication": ("operation", "ranks", "bytes"),
    "host": ("sequences",),
    "swap": ("blocks",),  # over the host link
    "copy": ("blocks",),  # on the device, for copy-on-write; not priced by the simulator
}
REQUIRED_PARTS = ("linear", "logits", "prefill_attention", "decode_attention")
# In a model whose layers all look back on some tokens these stand for attention to every token.
BOUNDED_PARTS = {"prefill_attention": "bounded_prefill", "decode_attention": "bounded_decode"}
BASES = ("measured", "estimated", "analytic")  # what a time may rest on, the best first
# What a table that was measured here says of its own errors, and from where on that is a doubt
# about every forecast with it: held-out points or whole iterations off by more at the median,
# repeats of one point further apart. Interpolation between good points errs by a few per cent.
HELD_OUT_DOUBT = 0.10
SPREAD_DOUBT = 0.10
CONTENTION_DOUBT = 1.1  # time by the clock over the processor's own, of a table of a processor
# Further times of one measurement: the same batch with equal contexts.
EXTRA_TIMES = {"decode_skew": ("time_at_mean_us", "time_at_longest_us")}


@dataclass(frozen=True, slots=True)
class Part:
    """Points of one part: integer coordinates [n] by column, and times [n] in seconds.

    ``operation`` names are kept apart: they have points of their own.
    """

    coordinates: Mapping[str, np.ndarray]
    time_s: np.ndarray
    operation: np.ndarray | None = None
    extra_s: Mapping[str, np.ndarray] = field(default_factory=dict)

    def at(self, reach: int) -> Part:
        """Of layers that look back on so many tokens."""
        rows = self.coordinates["reach"] == reach
        coordinates = {
            key: values[rows] for key, values in self.coordinates.items() if key != "reach"
        }
        return Part(coordinates, self.time_s[rows])

    def operations(self) -> dict[str, Part]:
        """One part per operation, in order of first appearance."""
        if self.operation is None:
            return {"": self}
        parts = {}
        for name in dict.fromkeys(self.operation.tolist()):
            rows = self.operation == name
            coordinates = {key: values[rows] for key, values in self.coordinates.items()}
            parts[name] = Part(coordinates, self.time_s[rows])
        return parts


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """All measured parts of one model on one GPU at one tensor-parallel degree.

    ``meta`` is meta.yaml as read; ``source`` says in a few words what was measured where.
    """

    meta: Mapping[str, Any]
    parts: Mapping[str, Part]

    @property
    def source(self) -> str:
        return str(self.meta["source"])

    @property
    def origins(self) -> Mapping[str, str]:
        """Of parts that a composed table tells apart: measured, estimated or analytic."""
        return {
            name: str(told["origin"])
            for name, told in _mapping(self.meta.get("parts")).items()
            if "origin" in _mapping(told)
        }

    @property
    def basis(self) -> str:
        """What its least known part rests on; whoever tells no parts apart measured them."""
        return max(self.origins.values(), key=BASES.index, default="measured")

    @property
    def label(self) -> str:
        """What it is, and which parts of it are not measured, in one line."""
        if not self.origins:
            return f"table: {self.source}"
        kinds: dict[str, list[str]] = {kind: [] for kind in BASES}
        for name, origin in self.origins.items():
            kinds[origin].append(name.replace("_", " "))
        whole = "measured kernels" if kinds["measured"] else "kernels"
        told = [f"{kind}: {', '.join(kinds[kind])}" for kind in BASES[1:] if kinds[kind]]
        return "; ".join([f"{whole}: {self.meta.get('kernels', self.source)}", *told])

    @property
    def doubts(self) -> list[str]:
        """What its own head says against it, a sentence each: errors held out, repeats apart."""
        found = []
        if (contention := _figure(self.meta, "contention")) > CONTENTION_DOUBT:
            found.append(
                f"the processor was shared while it was measured: work took {contention:.2f} times "
                "as long by the clock"
            )
        whole = _mapping(_mapping(self.meta.get("whole_iterations")).get("held_out"))
        if (error := _figure(whole, "median")) > HELD_OUT_DOUBT:
            found.append(
                f"whole iterations that it had not seen are off by {error:.0%} at the median"
            )
        for name, told in _mapping(self.meta.get("parts")).items():
            facts, part = _mapping(told), str(name).replace("_", " ")
            error = _figure(_mapping(facts.get("held_out")), "median")
            if error > HELD_OUT_DOUBT:
                found.append(f"{part}: points held out are off by {error:.0%} at the median")
            if (spread := _figure(facts, "spread_median")) > SPREAD_DOUBT:
                found.append(f"{part}: repeats of one point lie {spread:.0%} apart")
        return found

    @property
    def tensor_parallel(self) -> int:
        return int(self.meta["tensor_parallel"])

    @property
    def block_size(self) -> int | None:
        size = self.meta.get("block_size")
        return None if size is None else int(size)

    @property
    def corrects_skew(self) -> bool:
        """Whether the correction for uneven contexts belongs to these times.

        Times of eager kernels are 2-3 % above those of a compiled engine under CUDA graphs, about
        as much as uneven contexts add. A table that knows only one of the two would be off by the
        other: then neither is corrected.
        """
        return "decode_skew" in self.parts and self.meta.get("launch") != "eager"


def _mapping(told: Any) -> Mapping[str, Any]:
    """Of a head that people may have written: what is no mapping tells nothing."""
    return told if isinstance(told, Mapping) else {}


def _figure(told: Mapping[str, Any], name: str) -> float:
    value = told.get(name)
    return abs(float(value)) if isinstance(value, int | float) else 0.0
