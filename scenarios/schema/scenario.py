"""The scenario: what a YAML file may say, checked strictly before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from scenarios.schema.cluster import Cluster
from scenarios.schema.electricity import Electricity
from scenarios.schema.engine import Engine
from scenarios.schema.frontend import Frontend
from scenarios.schema.generations import filled_whole
from scenarios.schema.hardware import Experts, Hardware
from scenarios.schema.latency import Latency
from scenarios.schema.plan import Plan
from scenarios.schema.section import NotNegative, Percentile, Positive, Section
from scenarios.schema.speculation import Speculation
from scenarios.schema.sweep import Sweep
from scenarios.schema.workload import Workload


class Slo(Section):
    """Service-level objective: the share `percentile` of requests keeps each limit."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2el_ms: Positive | None = None
    percentile: Percentile = 99.0


class Metrics(Section):
    """What is kept of a run, and what of it counts.

    `warmup_s` and `cooldown_s`: seconds after the first arrival, and before the last, whose
    requests the summary's `steady_state` leaves out; its other figures are of the whole run.
    `records` on disk: requests and iterations are written to a temporary file as they come, and
    read from there column by column, for runs whose records are larger than the memory."""

    warmup_s: NotNegative | Literal["auto"] = 0.0  # auto: found from the answers' times (MSER-5)
    cooldown_s: NotNegative = 0.0
    records: Literal["memory", "disk"] = "memory"


class Scenario(Section):
    """One question: this load, on this engine, on this hardware."""

    name: str
    description: str = ""
    model: str
    hardware: Hardware
    experts: Experts | None = None
    engine: Engine = Engine()
    frontend: Frontend = Frontend()
    latency: Latency = Latency()
    workload: Workload
    cluster: Cluster = Cluster()
    slo: Slo = Slo()
    metrics: Metrics = Metrics()
    electricity: Electricity = Electricity()
    speculation: Speculation | None = None
    sweep: Sweep | None = Field(default=None, exclude=True)  # many runs; a single one ignores it
    plan: Plan | None = None  # what `orcast plan` is asked; other commands leave it aside

    @model_validator(mode="wrap")
    @classmethod
    def _gpu_sizes_the_batch(cls, given: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, Mapping):
            return read(given)
        scenario, knobs = read(filled_whole(given)), given.get("engine", {})
        if isinstance(knobs, Mapping):  # what was filled in was not given
            scenario.engine.model_fields_set.intersection_update(knobs)
        return scenario

    @model_validator(mode="after")
    def _samples_can_be_served(self) -> Self:
        samples, beam = self.workload.samples, self.workload.beam_search
        if samples is not None:
            asked, most = "samples.n", samples.most
        elif beam is not None:
            asked, most = "beam_search.width", beam.width
        else:
            return self
        scheduler = self.engine.scheduler
        for group in self.cluster.groups:
            if group.role != "both" and group.engine.get("scheduler", scheduler) == "paged":
                raise ValueError(
                    f"workload.{asked}: moving several sequences from a prefill to a decode pool "
                    "is not modelled under scheduler paged, only under chunked"
                )
        if scheduler not in ("paged", "chunked"):
            raise ValueError(
                f"workload.{asked} needs engine.scheduler paged or chunked: slots that "
                f"{scheduler} reserves for one sequence cannot be shared"
            )
        if scheduler == "chunked":
            if beam is not None:
                raise ValueError(
                    f"workload.{asked} needs engine.scheduler paged: under chunked, as in vLLM V1, "
                    "every sequence is a request of its own and none can fork"
                )
            return self
        if most > self.engine.max_num_seqs:
            raise ValueError(
                f"workload.{asked} {most} is above engine.max_num_seqs {self.engine.max_num_seqs}: "
                "under paged all sequences of a request run together"
            )
        if self.speculation is not None:
            raise ValueError(
                f"workload.{asked}: speculation in several sequences is not modelled under paged, "
                "only in samples under chunked"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_slots(self) -> Self:
        workload, engine, hardware = self.workload, self.engine, self.hardware
        for name, value in (
            ("adapters", workload.adapters),
            ("structured_output", workload.structured_output),
        ):
            if value and (hardware.pipeline_parallel > 1 or hardware.data_parallel > 1):
                raise ValueError(f"workload.{name} over pipeline stages or ranks is not modelled")
        ranks = workload.adapters.values()
        if engine.max_loras is not None and len(ranks) > engine.max_loras:
            raise ValueError(
                f"workload.adapters: {len(ranks)} adapters and engine.max_loras {engine.max_loras}:"
                " requests that wait for a slot are not modelled"
            )
        if engine.max_lora_rank is not None and ranks and max(ranks) > engine.max_lora_rank:
            raise ValueError(
                f"workload.adapters: rank {max(ranks)} is above engine.max_lora_rank "
                f"{engine.max_lora_rank}"
            )
        return self

    @model_validator(mode="after")
    def _stages_move_no_blocks(self) -> Self:
        asked = {
            "workload.samples": self.engine.scheduler == "paged" and self.workload.samples,
            "workload.beam_search": self.workload.beam_search,
            f"engine.{self.engine.says_tiers}": self.engine.tiers,
            "latency.swapped_block_us": self.latency.swapped_block_us,
        }
        for name, value in asked.items():
            if value and self.hardware.pipeline_parallel > 1:
                raise ValueError(f"{name} over pipeline stages is not modelled")
        return self
