"""Tiers of memory behind the prefix cache: what a scenario says of each, and what is assumed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scenarios.schema.section import NotNegative, Positive, Section

# GB/s that are read and written for each GPU, and the latency of an access in µs. NVMe: a drive's
# sequential rates, Samsung PM9A3 U.2 (announced May 2020: 6.5 and 3.5 GB/s). Shared: 200 Gbit/s of
# network for each GPU at the rate that Mooncake's transfer engine reached on four such links (its
# README: 87 GB/s). Latencies are assumed: a read of flash, a look-up over the network.
TIER_DEFAULTS = {"nvme": (6.5, 3.5, 80.0), "shared": (21.75, 21.75, 300.0)}


class KvTier(Section):
    """A tier of memory behind the prefix cache."""

    # host memory, behind the GPU's host link; NVMe behind that; a store that all replicas share
    kind: Literal["host", "nvme", "shared"]
    # for each GPU; of a shared store all of it
    size_gib: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    # for each GPU; by default 6.5 from NVMe and 21.75 from a shared store
    read_gb_per_s: Positive | None = None
    write_gb_per_s: Positive | None = None  # by default 3.5 to NVMe and 21.75 to a shared store
    latency_us: NotNegative | None = None  # of an access; by default host 0, NVMe 80, shared 300
    ttl_s: Positive | None = None  # what nobody asks for that long is dropped

    @model_validator(mode="after")
    def _host_has_the_link(self) -> Self:
        if self.kind == "host" and (self.read_gb_per_s or self.write_gb_per_s):
            raise ValueError(
                "host memory is as fast as the GPU's host link: set hardware.gpu={like: NAME, "
                "host_link_gb_per_s: N}"
            )
        return self

    @property
    def read_rate(self) -> float | None:
        """In GB/s, beyond the host link; None: that alone."""
        return self.read_gb_per_s or (None if self.kind == "host" else TIER_DEFAULTS[self.kind][0])

    @property
    def write_rate(self) -> float | None:
        return self.write_gb_per_s or (None if self.kind == "host" else TIER_DEFAULTS[self.kind][1])

    @property
    def latency_s(self) -> float:
        if self.latency_us is not None:
            return self.latency_us / 1e6
        return 0.0 if self.kind == "host" else TIER_DEFAULTS[self.kind][2] / 1e6


def tiers_refused(tiers: list[KvTier]) -> str | None:
    """Why these cannot be the tiers of an engine, first to last."""
    order = ["host", "nvme", "shared"]
    kinds = [tier.kind for tier in tiers]
    if len(set(kinds)) < len(kinds) or sorted(kinds, key=order.index) != kinds:
        return f"kv_tiers {', '.join(kinds)}: at most one of each kind, in order {', '.join(order)}"
    return None
