"""Where an iteration's duration comes from."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from scenarios.schema.section import Efficiency, Milliseconds, NotNegative, Section


class HostOverhead(Section):
    """Host time that every iteration adds: a fixed part and a part per sequence in the batch."""

    per_iteration_us: NotNegative
    per_sequence_us: NotNegative = 0.0


class Latency(Section):
    """Where an iteration's duration comes from.

    ``roofline``: analytic, from datasheet figures and the efficiencies assumed here.
    ``table``: measured, from the table in the folder ``table``.
    ``aiconfigurator``: measured kernel times of the package aiconfigurator-core, composed for the
    model and GPU (extra ``tables``).
    ``fixed``: every iteration takes ``iteration_ms`` (textbook examples).
    """

    source: Literal["roofline", "table", "aiconfigurator", "fixed"] = "roofline"
    table: str | None = None
    skew: bool | None = None  # uneven contexts cost more; default: where tables allow it
    # eager: only decodes run in CUDA graphs, all else is launched kernel by kernel
    launch: Literal["graph", "eager"] | None = None
    backend: str | None = None  # aiconfigurator: whose kernels, e.g. trtllm, vllm, sglang
    version: str | None = None  # aiconfigurator: of that backend
    iteration_ms: Milliseconds | None = None
    gemm_efficiency: Efficiency | None = None
    attention_efficiency: Efficiency | None = None
    memory_efficiency: Efficiency | None = None
    attention_memory_efficiency: Efficiency | None = None
    moe_efficiency: Efficiency | None = None
    link_efficiency: Efficiency | None = None
    host_overhead: HostOverhead | None = None
    swapped_block_us: NotNegative | None = None  # of each block swapped, besides its bytes

    @property
    def efficiencies(self) -> dict[str, float]:
        """The assumed shares of peak rates that were given."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value
            for name, value in fields.items()
            if name.endswith("_efficiency") and value is not None
        }

    @model_validator(mode="before")
    @classmethod
    def _a_table_is_a_source(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("table") is not None:
            return {"source": "table", **given}
        return given

    @model_validator(mode="after")
    def _fits_the_source(self) -> Self:
        belongs = {
            "table": ("table",),
            "skew": ("table", "aiconfigurator"),
            "launch": ("table",),
            "backend": ("aiconfigurator",),
            "version": ("aiconfigurator",),
            "iteration_ms": ("fixed",),
            "host_overhead": ("roofline", "table", "aiconfigurator"),
            "swapped_block_us": ("roofline", "table", "aiconfigurator"),
            **dict.fromkeys(self.efficiencies, ("roofline",)),
        }
        for name, sources in belongs.items():
            if getattr(self, name) is not None and self.source not in sources:
                raise ValueError(
                    f"{name} belongs to source {' or '.join(sources)}, not {self.source}"
                )
        for name, source in {"table": "table", "iteration_ms": "fixed"}.items():
            if self.source == source and getattr(self, name) is None:
                raise ValueError(f"source {source} needs {name}")
        return self
