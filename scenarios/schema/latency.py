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

    ``auto``: measured kernel times of the package aiconfigurator-core where it has them for this
    GPU, model shape and precision, analytic times part by part where not.
    ``roofline``: analytic, from datasheet figures and the efficiencies assumed here.
    ``table``: measured, from the table in the folder ``table``.
    ``aiconfigurator``: as ``auto``, but what the package does not have is an error.
    ``fixed``: every iteration takes ``iteration_ms`` (textbook examples).
    """

    # an efficiency given alone means roofline, a table alone means table
    source: Literal["auto", "roofline", "table", "aiconfigurator", "fixed"] = "auto"
    table: str | None = None
    skew: bool | None = None  # uneven contexts cost more; default: where tables allow it
    # eager: only decodes run in CUDA graphs, all else is launched kernel by kernel
    launch: Literal["graph", "eager"] | None = None
    backend: str | None = None  # auto, aiconfigurator: whose kernels: vllm, sglang, trtllm
    version: str | None = None  # of that backend
    iteration_ms: Milliseconds | None = None
    gemm_efficiency: Efficiency | None = None
    attention_efficiency: Efficiency | None = None
    memory_efficiency: Efficiency | None = None
    attention_memory_efficiency: Efficiency | None = None
    moe_efficiency: Efficiency | None = None
    link_efficiency: Efficiency | None = None
    host_overhead: HostOverhead | None = None
    swapped_block_us: NotNegative | None = None  # of each block swapped, besides its bytes
    # of an iteration with workload.adapters: launches that group sequences by adapter; an
    # assumption, eight kernels of 2.5 us
    lora_us_per_layer: NotNegative = 20.0

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
    def _what_is_given_means_a_source(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("table") is not None:
            return {"source": "table", **given}
        if any(str(name).endswith("_efficiency") and given[name] is not None for name in given):
            return {"source": "roofline", **given}
        return given

    @model_validator(mode="after")
    def _fits_the_source(self) -> Self:
        belongs = {
            "table": ("table",),
            "skew": ("auto", "table", "aiconfigurator"),
            "launch": ("table",),
            "backend": ("auto", "aiconfigurator"),
            "version": ("auto", "aiconfigurator"),
            "iteration_ms": ("fixed",),
            "host_overhead": ("auto", "roofline", "table", "aiconfigurator"),
            "swapped_block_us": ("auto", "roofline", "table", "aiconfigurator"),
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
