"""The `plan` section of a scenario: which deployments to compare, for which load and service."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scenarios.schema.cluster import KvLink
from scenarios.schema.names import TraceFormat
from scenarios.schema.section import Milliseconds, Percentile, Positive, Section
from scenarios.schema.speculation import Speculation

Names = Annotated[list[str], Field(min_length=1)]
Degree = Annotated[int, Field(ge=1, le=4096)]
DEGREES = ("tensor_parallel", "pipeline_parallel", "expert_parallel")
Searched = Literal[
    "tensor_parallel",
    "pipeline_parallel",
    "expert_parallel",
    "weight_dtype",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "pools",
    "speculation",
]


class Load(Section):
    """The forecast load, over all replicas.

    Either `request_rate` in requests per second; or `users` who each send a request, read its
    answer and think for `think_time_s` before the next; or a `trace` whose busiest window of
    `window_s` seconds, times `growth`, has to be served.
    """

    request_rate: Positive | None = None
    users: Positive | None = None
    think_time_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    trace: str | None = None
    format: TraceFormat = "auto"
    window_s: Positive = 300.0
    growth: Positive = 1.0

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = [self.request_rate, self.users, self.trace]
        if sum(one is not None for one in origins) != 1:
            raise ValueError(
                "give request_rate, or users, or a trace whose load is to be served, one of them"
            )
        if self.users is None and self.think_time_s:
            raise ValueError("think_time_s has no meaning without users")
        if self.trace is None:
            for name in ("format", "window_s", "growth"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no meaning without a trace")
        return self


class Objectives(Section):
    """Limits that `percentile` per cent of the requests (of one class) have to keep."""

    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    e2el_ms: Milliseconds | None = None
    percentile: Percentile = 99.0
    request_class: str | None = None  # of workload.classes or class_column; default: all requests

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.ttft_ms is self.tpot_ms is self.e2el_ms is None:
            raise ValueError("no limit: give ttft_ms, tpot_ms or e2el_ms")
        return self


class Replicas(Section):
    """How many replicas a deployment may have, spare ones included."""

    min: Annotated[int, Field(ge=1, le=1024)] = 1
    max: Annotated[int, Field(ge=1, le=1024)] = 64

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must be at most max {self.max}")
        return self


class Pools(Section):
    """Prefill and decode replicas of one unit; a deployment has as many units as the load needs."""

    prefill: Annotated[int, Field(ge=1, le=64)] = 1
    decode: Annotated[int, Field(ge=1, le=64)] = 1


class Candidates(Section):
    """Every combination is a deployment to consider; what is not listed stays as the scenario's."""

    gpus: Names | None = None
    # Keys of `hardware`: tensor_parallel, pipeline_parallel, …
    layouts: Annotated[list[dict[str, Degree]], Field(min_length=1)] | None = None
    # Keys of `engine`, each with the values to try: scheduler, max_num_seqs, …
    engine: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    # null: prefill and decode together; same: the scenario's own pools
    pools: Annotated[list[Pools | Literal["same"] | None], Field(min_length=1)] | None = None
    # between pools, where cluster.kv_link says nothing: 400 Gbit/s
    kv_link: KvLink = KvLink(bandwidth_gb_per_s=50.0, latency_us=10.0)
    # sections like the scenario's; null: none; same: the scenario's own
    speculation: (
        Annotated[list[Speculation | Literal["same"] | None], Field(min_length=1)] | None
    ) = None
    replicas: Replicas = Replicas()


class Plan(Section):
    """A capacity search: the cheapest deployment that serves `load` within the objectives."""

    load: Load | None = None  # default: the workload's own request_rate
    candidates: Candidates = Candidates()
    # what else to vary, each over its usual values, or over those that `candidates` lists
    search: list[Searched] = Field(default_factory=list)
    objectives: list[Objectives] = Field(default_factory=list)  # default: the scenario's slo
    headroom: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    n_plus: Annotated[int, Field(ge=0, le=64)] = 0  # replicas that may fail: N + n_plus
    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    seeds: Annotated[int, Field(ge=3, le=64)] = 8  # independent runs of every load tried
    requests: Annotated[int, Field(ge=100, le=10**6)] = 1000  # in each of them, at least
    tolerance: Annotated[float, Field(ge=1e-3, le=0.5, allow_inf_nan=False)] = 0.02
    # `cheapest`: what cannot be the cheapest any more is given up, its goodput not searched
    explore: Literal["all", "cheapest"] = "all"
    prices: str | None = None  # YAML file {gpu: USD per hour}; default: the library's prices

    @model_validator(mode="after")
    def _spares_fit(self) -> Self:
        if self.n_plus >= self.candidates.replicas.max:
            raise ValueError(
                f"n_plus {self.n_plus} leaves no replica of candidates.replicas.max "
                f"{self.candidates.replicas.max} to serve with"
            )
        return self
