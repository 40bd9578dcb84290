"""What an iteration costs beyond its kernels timed alone, as only a running engine shows.

A profile times kernels one by one. Between them an engine launches, waits, copies small tensors and
computes what no profile lists, a little in every layer: more where prompts are computed (their
batches run outside full CUDA graphs) than where all sequences decode. ``orcast calibrate refine``
finds these constants from a short recording and writes them into the table:

    meta.yaml   refined: {constants: {NAME: {value, uncertainty}, …}, fitted_on, until_s, …}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sim.latency.protocol import HostOverhead
from sim.latency.table_data import LatencyTable, Part

# What the kernels' own pace scales: not links, nor the host.
_ATTENTION = (
    "prefill_attention",
    "decode_attention",
    "bounded_prefill",
    "bounded_decode",
    "mixed_attention",
    "decode_skew",
)
_KERNELS = ("linear", "logits", "moe", *_ATTENTION)


@dataclass(frozen=True, slots=True)
class Refinement:
    """Fitted constants, in seconds. `kernel_scale` stretches every kernel's time, `attention_scale`
    attention's besides; the link's and the host's are None where they were not fitted."""

    decode_gap_s: float = 0.0  # of each layer, in iterations that only decode
    prompt_gap_s: float = 0.0  # of each layer, in iterations with prompts
    kernel_scale: float = 1.0
    attention_scale: float = 1.0
    host_per_iteration_s: float | None = None
    host_per_sequence_s: float | None = None
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Refinement:
        """What a table's meta.yaml has; ValueError where that cannot be used."""
        refined = meta.get("refined")
        if refined is None:
            return cls()
        constants = refined.get("constants") if isinstance(refined, Mapping) else None
        if not isinstance(constants, Mapping):
            raise ValueError("the table's refined: expected a mapping with constants")
        values = {}
        for name in set(CONSTANTS) & set(constants):
            given = constants[name]
            value = given.get("value") if isinstance(given, Mapping) else given
            if isinstance(value, bool) or not isinstance(value, int | float):
                value = math.nan
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"the table's refined.constants.{name} is {given!r}, expected a value >= 0"
                )
            field, unit = CONSTANTS[name]
            values[field] = value * unit
        return cls(**values)

    @property
    def is_nothing(self) -> bool:
        return self == Refinement()

    def gap_s(self, num_layers: int, *, prompts: bool) -> float:
        """What all layers of one iteration cost beyond their kernels."""
        return num_layers * (self.prompt_gap_s if prompts else self.decode_gap_s)

    def host(self, otherwise: HostOverhead) -> HostOverhead:
        """The host's time as it was fitted, or else another one."""
        each = {
            "per iteration": self.host_per_iteration_s,
            "per sequence": self.host_per_sequence_s,
        }
        fitted = [how for how, seconds in each.items() if seconds is not None]
        if not fitted:
            return otherwise
        iteration_s, sequence_s = each.values()
        return HostOverhead(
            otherwise.per_iteration_s if iteration_s is None else iteration_s,
            otherwise.per_sequence_s if sequence_s is None else sequence_s,
            f"fitted to a recording, {' and '.join(fitted)}",
        )

    def paced(self, table: LatencyTable) -> LatencyTable:
        """The table with its kernels' times stretched."""
        if self.kernel_scale == self.attention_scale == 1.0:
            return table
        scale = dict.fromkeys(_KERNELS, self.kernel_scale)
        scale |= dict.fromkeys(_ATTENTION, self.kernel_scale * self.attention_scale)
        return LatencyTable(
            table.meta,
            {
                name: _stretched(part, scale[name]) if name in scale else part
                for name, part in table.parts.items()
            },
        )


# Name in a table -> field, and its unit in the field's.
CONSTANTS: dict[str, tuple[str, float]] = {
    "decode_gap_us_per_layer": ("decode_gap_s", 1e-6),
    "prompt_gap_us_per_layer": ("prompt_gap_s", 1e-6),
    "kernel_scale": ("kernel_scale", 1.0),
    "attention_scale": ("attention_scale", 1.0),
    "host_us_per_iteration": ("host_per_iteration_s", 1e-6),
    "host_us_per_sequence": ("host_per_sequence_s", 1e-6),
    "link_gb_per_s": ("link_bytes_per_s", 1e9),
    "link_us": ("link_latency_s", 1e-6),
}
assert {field for field, _ in CONSTANTS.values()} == {each.name for each in fields(Refinement)}


def _stretched(part: Part, scale: float) -> Part:
    return replace(
        part,
        time_s=part.time_s * scale,
        extra_s={name: times_s * scale for name, times_s in part.extra_s.items()},
    )
