"""GPUs and the links between them: datasheet figures, as data.

Peaks are *dense* tensor-core rates with float32 accumulation, never the doubled figures for
structured sparsity. ``memory_bytes`` is what the driver lets a process see, a little below the
number on the box. Bandwidths are per direction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sim.model.kernel_rates import ARCHITECTURES, ASSUMED, KernelRates

# Rates of types that not every GPU's tensor cores have.
_SOME_HAVE = ("float8_flops_per_s", "int8_flops_per_s", "float4_flops_per_s")
_POWER = ("idle_watts", "peak_watts")


@dataclass(frozen=True, slots=True)
class Interconnect:
    """Links of one GPU to its peers, per direction: inside the node and between nodes.

    ``latency_s`` is one hop between two GPUs, software of the collective included, launch of its
    kernel excluded (see ``sim.latency.communication``). Without `peer_access` every message goes
    through the host's memory, and both figures are of that path as measured. `peer_links`: links to
    so many peers, one each, share ``bytes_per_s`` (0: a switch gives all of it to any pair).
    `measured`: (ranks, bytes/s, seconds) of all-reduces in a node, the β and α of their ring.
    """

    bytes_per_s: float
    latency_s: float
    inter_node_bytes_per_s: float
    inter_node_latency_s: float
    peer_access: bool = True
    peer_links: int = 0
    measured: tuple[tuple[int, float, float], ...] = ()

    def measured_among(self, ranks: int) -> tuple[float, float] | None:
        """(bytes/s, seconds) of an all-reduce over so many GPUs, where it was measured."""
        return {number: (beta, alpha) for number, beta, alpha in self.measured}.get(ranks)

    def bytes_per_s_among(self, ranks: int, efficiency: float) -> float:
        """What each of so many GPUs of a node sends to the others, at a share of its peak."""
        measured = self.measured_among(ranks)
        if measured is not None:
            return measured[0]
        if not self.peer_access:
            return self.bytes_per_s
        used = min(ranks - 1, self.peer_links) / self.peer_links if self.peer_links else 1.0
        return self.bytes_per_s * used * efficiency

    def given(self, bytes_per_s: float, latency_s: float) -> "Interconnect":
        """The same with the link in a node as somebody measured it."""
        return replace(
            self, bytes_per_s=bytes_per_s, latency_s=latency_s, peer_access=True, peer_links=0,
            measured=(),
        )  # fmt: skip

    @property
    def between_nodes(self) -> "Interconnect":
        """The links as a chain of GPUs across nodes sees them: its slowest hop sets the pace."""
        return Interconnect(
            bytes_per_s=min(self.bytes_per_s, self.inter_node_bytes_per_s),
            latency_s=max(self.latency_s, self.inter_node_latency_s),
            inter_node_bytes_per_s=self.inter_node_bytes_per_s,
            inter_node_latency_s=self.inter_node_latency_s,
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, name: str) -> "Interconnect":
        """Validate outside input; raises ``ValueError`` with one line naming ``name`` and key."""
        keys = [field.name for field in fields(cls)]
        required = [key for key in keys if key.endswith("_s")]
        _check_keys(mapping, allowed=keys, required=required, name=name)
        peer_access, peer_links = mapping.get("peer_access", True), mapping.get("peer_links", 0)
        if not isinstance(peer_access, bool):
            raise ValueError(f"{name}: peer_access must be true or false, not {peer_access!r}")
        if type(peer_links) is not int or peer_links < 0:
            raise ValueError(f"{name}: peer_links must be a number of links, not {peer_links!r}")
        return cls(
            **{key: _positive(mapping[key], key, name) for key in required},
            peer_access=peer_access,
            peer_links=peer_links,
            measured=_all_reduces(mapping.get("measured", {}), name=f"{name}.measured"),
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator; rates are ``None`` for types that its tensor cores do not have.

    ``architecture`` says which kernels' shares of its peaks are known (`sim.model.kernel_rates`);
    ``None`` where nobody measured any. Watts are of the board, without work and at its limit;
    ``None`` where nobody published them.
    """

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    bfloat16_flops_per_s: float
    float8_flops_per_s: float | None
    host_link_bytes_per_s: float
    price_usd_per_hour: float
    source: str
    interconnect: Interconnect
    int8_flops_per_s: float | None = None
    float4_flops_per_s: float | None = None
    architecture: str | None = None
    idle_watts: float | None = None
    peak_watts: float | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, name: str) -> "Gpu":
        """Validate outside input; raises ``ValueError`` with one line naming ``name`` and key."""
        allowed = [field.name for field in fields(cls) if field.name != "name"]
        optional = (*_SOME_HAVE, *_POWER, "architecture")
        required = [key for key in allowed if key not in optional]
        _check_keys(mapping, allowed=allowed, required=required, name=name)
        if not isinstance(mapping["source"], str) or not mapping["source"].strip():
            raise ValueError(f"{name}: source must be a text saying where the figures are from")
        architecture = mapping.get("architecture")
        if architecture is not None and architecture not in ARCHITECTURES:
            raise ValueError(
                f"{name}: unknown architecture {architecture!r}; "
                f"allowed: {', '.join(ARCHITECTURES)}, or none"
            )
        rates, watts = (
            {
                key: None if mapping.get(key) is None else _positive(mapping[key], key, name)
                for key in keys
            }
            for keys in (_SOME_HAVE, _POWER)
        )
        _check_watts(watts["idle_watts"], watts["peak_watts"], name)
        return cls(
            name=name,
            memory_bytes=int(_positive(mapping["memory_bytes"], "memory_bytes", name)),
            float8_flops_per_s=rates["float8_flops_per_s"],
            int8_flops_per_s=rates["int8_flops_per_s"],
            float4_flops_per_s=rates["float4_flops_per_s"],
            source=mapping["source"],
            architecture=architecture,
            idle_watts=watts["idle_watts"],
            peak_watts=watts["peak_watts"],
            interconnect=Interconnect.from_mapping(
                mapping["interconnect"], name=f"{name}.interconnect"
            ),
            **{
                key: _positive(mapping[key], key, name)
                for key in (
                    "memory_bytes_per_s",
                    "bfloat16_flops_per_s",
                    "host_link_bytes_per_s",
                    "price_usd_per_hour",
                )
            },
        )

    @property
    def kernel_rates(self) -> KernelRates:
        """What kernels reach of its peaks."""
        return ASSUMED if self.architecture is None else ARCHITECTURES[self.architecture]

    def peak_flops_per_s(self, dtype: str) -> float:
        """Dense peak for weights of ``dtype``.

        Without tensor cores for them, weights are unpacked and multiplied in 16 bits; weights that
        alone are quantised (int4, int8_wo) always are. MXFP4 weights meet activations of 8 bits
        (tcgen05's mixed products, which run at float8's rate).
        """
        return self._few_bits_flops_per_s(dtype) or self.bfloat16_flops_per_s

    def computes_in_few_bits(self, dtype: str) -> bool:
        """Whether products with weights of ``dtype`` are of 8 or 4 bits."""
        return self._few_bits_flops_per_s(dtype) is not None

    def unpacks(self, dtype: str) -> bool:
        """Whether weights of few bits are unpacked in front of their products."""
        if dtype in ("nvfp4", "mxfp4"):
            return self.float4_flops_per_s is None
        return dtype in ("int4", "int8_wo")

    def _few_bits_flops_per_s(self, dtype: str) -> float | None:
        if self.unpacks(dtype):
            return None
        rates = {
            "float8": self.float8_flops_per_s,
            "int8": self.int8_flops_per_s or self.float8_flops_per_s,
            "nvfp4": self.float4_flops_per_s,
            "mxfp4": self.float8_flops_per_s,
        }
        return rates.get(dtype)


def _check_watts(idle_watts: float | None, peak_watts: float | None, name: str) -> None:
    if (idle_watts is None) != (peak_watts is None):
        missing = "idle_watts" if idle_watts is None else "peak_watts"
        raise ValueError(f"{name}: {missing} is missing: power takes both, or neither")
    if idle_watts is not None and peak_watts is not None and idle_watts > peak_watts:
        raise ValueError(f"{name}: idle_watts {idle_watts:g} exceeds peak_watts {peak_watts:g}")


def _all_reduces(given: Any, *, name: str) -> tuple[tuple[int, float, float], ...]:
    """All-reduces by ranks, as {2: {bytes_per_s: …, latency_s: …}}."""
    if not isinstance(given, Mapping) or not all(type(ranks) is int for ranks in given):
        raise ValueError(f"{name}: must be a mapping of ranks to figures, not {given!r}")
    keys = ["bytes_per_s", "latency_s"]
    found: list[tuple[int, float, float]] = []
    for ranks, figures in given.items():
        _check_keys(figures, allowed=keys, required=keys, name=f"{name}.{ranks}")
        beta, alpha = (_positive(figures[key], key, f"{name}.{ranks}") for key in keys)
        found.append((ranks, beta, alpha))
    return tuple(found)


def _check_keys(mapping: Any, *, allowed: list[str], required: list[str], name: str) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{name}: must be a mapping of figures, not {mapping!r}")
    for key in mapping:
        if key not in allowed:
            raise ValueError(f"{name}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in mapping:
            raise ValueError(f"{name}: {key} is missing")


def _positive(value: Any, key: str, name: str) -> float:
    """A positive finite number. Text is tried too: YAML 1.1 reads 3e12 (no sign, no point) so."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name}: {key} must be a positive finite number, not {value!r}")
    return number
