"""A table's parts as lines, its host, and whether it is of the model that is asked for."""

from __future__ import annotations

import numpy as np

from sim.latency.grid import Line
from sim.latency.protocol import HostOverhead
from sim.latency.table_data import LatencyTable, Part
from sim.model.spec import ModelSpec


def one_line(part: Part, axis: str) -> Line:
    """A part of a single axis, in ascending order."""
    order = np.argsort(part.coordinates[axis])
    return Line(part.coordinates[axis][order].tolist(), part.time_s[order].tolist())


def measured_host(table: LatencyTable) -> HostOverhead:
    """The table's host time as a straight line over sequences. ValueError where it has none."""
    if "host" not in table.parts:
        raise ValueError("the table has no host overhead measured")
    part = table.parts["host"]
    seqs, times_s = part.coordinates["sequences"], part.time_s
    slope, start = 0.0, float(times_s.mean())
    if len(np.unique(seqs)) > 1:
        slope, start = (float(value) for value in np.polyfit(seqs, times_s, 1))
    return HostOverhead(max(0.0, start), max(0.0, slope), "measured, in the table")


def check_shape(table: LatencyTable, model: ModelSpec) -> None:
    """A table is of one model shape; ValueError naming the first figure that differs."""
    ours = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
    }
    for key, value in ours.items():
        measured = table.meta["model"][key]
        if measured != value:
            raise ValueError(
                f"the table was measured for a model with {key} {measured}, "
                f"{model.name} has {value}"
            )
