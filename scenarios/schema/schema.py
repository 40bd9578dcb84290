"""The scenario schema: what a YAML file may say, checked strictly before anything runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from scenarios.schema.plan import Plan
from scenarios.schema.section import (
    Count,
    Efficiency,
    Fraction,
    Milliseconds,
    NotNegative,
    Percentile,
    Positive,
    Section,
    Tokens,
)
from scenarios.schema.sharing import BeamSearch, ParallelSampling, Sessions
from scenarios.schema.speculation import Speculation
from scenarios.schema.sweep import Sweep


class Link(Section):
    """A link between GPUs, per direction, as measured on your machine.

    The α and β of a ring all-reduce over p GPUs: ``2 (p - 1) latency + 2 (p - 1) / p bytes /
    bandwidth``. Without it the library's datasheet figures are taken, at an assumed efficiency.
    """

    bandwidth_gb_per_s: Annotated[float, Field(ge=1e-3, le=1e6, allow_inf_nan=False)]
    latency_us: NotNegative


class SequenceParallel(Section):
    """A prompt's tokens split over ranks: exchange heads for tokens, or pass keys and values on."""

    kind: Literal["ulysses", "ring"]
    degree: Annotated[int, Field(ge=1, le=1024)]


class Hardware(Section):
    """Which GPU, and how a model is spread over several; the degrees multiply.

    ``link`` lies between GPUs of one node of ``gpus_per_node``, ``inter_node_link`` between nodes.
    """

    gpu: str
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1, le=256)] = 1
    expert_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    sequence_parallel: SequenceParallel | None = None
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] = 8
    link: Link | None = None
    inter_node_link: Link | None = None


class Experts(Section):
    """Which experts of a mixture tokens are sent to; without it, every expert is as likely.

    ``counts``: tokens each expert was sent, as a list or in a CSV with the columns expert, tokens
    and maybe layer. ``placement`` says which experts share a rank of ``expert_parallel``.
    """

    routing: Literal["uniform", "zipf", "counts"] = "uniform"
    exponent: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None  # zipf
    seed: Annotated[int, Field(ge=0)] = 0  # zipf: which expert is how popular
    counts: str | Annotated[list[NotNegative], Field(min_length=1, max_length=65536)] | None = None
    placement: Literal["contiguous", "balanced"] = "contiguous"

    @model_validator(mode="after")
    def _has_its_keys(self) -> Self:
        for name, routing in {"exponent": "zipf", "counts": "counts"}.items():
            if (getattr(self, name) is not None) != (self.routing == routing):
                raise ValueError(f"{name} belongs to routing {routing}, which needs it")
        if self.placement == "balanced" and self.routing == "uniform":
            raise ValueError("placement balanced has no meaning where every expert is as likely")
        return self


def _or_installed(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A built-in policy, or one that an installed package brings."""
    try:
        return check(given)
    except ValidationError:
        from sim.schedulers.installed import installed_names

        if isinstance(given, str) and given in installed_names():
            return given
        raise


class Engine(Section):
    """The serving engine's knobs, under vLLM's names."""

    # one of these, or of a package that brings its own
    scheduler: Annotated[
        Literal["static", "dynamic", "orca", "paged", "chunked"], WrapValidator(_or_installed)
    ] = "chunked"
    # the queue's order; priorities, deadlines and clients are those of the workload's classes
    scheduling_policy: Literal[
        "fcfs", "priority", "earliest_deadline", "shortest_prompt", "shortest_job", "fair"
    ] = "fcfs"
    # the host decides the next iteration while the device computes this one
    async_scheduling: bool = False
    max_num_waiting: Annotated[int, Field(ge=1, le=2**31)] | None = None  # beyond: refused
    max_queue_time_s: Positive | None = None  # until the first iteration; beyond: gives up
    max_num_seqs: Annotated[int, Field(ge=1, le=2**17)] = 256
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=2**22)] = 8192
    block_size: Annotated[int, Field(ge=1, le=4096)] = 16
    gpu_memory_utilization: Fraction = 0.9
    num_gpu_blocks_override: Annotated[int, Field(ge=1, le=2**24)] | None = None
    max_model_len: Tokens | None = None
    enable_prefix_caching: bool = True
    weight_dtype: Literal["auto", "bf16", "fp16", "fp8", "int4"] = "auto"
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8"] = "auto"
    long_prefill_token_threshold: Annotated[int, Field(ge=0)] = 0
    preemption: Literal["recompute", "swap"] = "recompute"
    swap_space_gib: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 4.0
    # host memory for blocks that the prefix cache gives up, in GiB for each GPU
    kv_offloading_size_gib: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    watermark: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.01
    reservation: Literal["max_tokens", "max_model_len", "pow2", "oracle"] = "max_tokens"
    preferred_batch_sizes: list[Count] = Field(default_factory=list)
    # batches are padded up to these ([]: to none); by default to those of the latency table
    cudagraph_capture_sizes: list[Count] | None = None
    max_queue_delay_ms: NotNegative = 0.0

    @model_validator(mode="after")
    def _budget_covers_the_batch(self) -> Self:
        if self.scheduler == "chunked" and self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} must be at least "
                f"max_num_seqs {self.max_num_seqs}: every running sequence needs one token"
            )
        if self.async_scheduling and self.scheduler in ("static", "dynamic"):
            raise ValueError(
                "async_scheduling needs a scheduler that decides every iteration: "
                f"{self.scheduler} decides once a batch"
            )
        if self.async_scheduling and (self.max_queue_time_s or self.max_num_waiting):
            raise ValueError(
                "async_scheduling beside max_queue_time_s or max_num_waiting is not modelled: who "
                "is turned away would be known an iteration late"
            )
        if self.scheduling_policy == "fair" and self.scheduler in ("static", "dynamic"):
            raise ValueError(
                f"scheduling_policy fair needs a scheduler that admits one by one: "
                f"{self.scheduler} takes a whole batch"
            )
        if (self.num_gpu_blocks_override or 0) * self.block_size >= 2**31:
            raise ValueError(
                f"num_gpu_blocks_override {self.num_gpu_blocks_override} of block_size "
                f"{self.block_size}: the KV cache may hold at most 2^31 - 1 tokens"
            )
        if self.scheduler == "paged" and self.preemption == "swap" and not self.swap_space_gib:
            raise ValueError("preemption swap needs swap_space_gib above 0: there is nowhere to go")
        if self.kv_offloading_size_gib and not self.enable_prefix_caching:
            raise ValueError(
                "kv_offloading_size_gib needs enable_prefix_caching: what is offloaded could not "
                "be found again"
            )
        if self.kv_offloading_size_gib and self.scheduler not in ("paged", "chunked"):
            raise ValueError(
                f"kv_offloading_size_gib needs scheduler paged or chunked: {self.scheduler} "
                "reserves slots and has no prefix cache"
            )
        too_large = [n for n in self.preferred_batch_sizes if n > self.max_num_seqs]
        if too_large:
            raise ValueError(
                f"preferred_batch_sizes: {too_large[0]} is above max_num_seqs {self.max_num_seqs}"
            )
        return self


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


class Arrivals(Section):
    """When requests arrive; ``request_rate`` is in requests per second."""

    process: Literal["poisson", "gamma", "constant", "all_at_once"] = "poisson"
    request_rate: Positive | None = None
    burstiness: Positive | None = None  # gamma's shape: 1 is Poisson, below 1 burstier

    @model_validator(mode="after")
    def _has_its_rate(self) -> Self:
        if (self.process == "all_at_once") == (self.request_rate is not None):
            raise ValueError(
                "request_rate is needed"
                if self.request_rate is None
                else "request_rate has no meaning when all requests arrive at once"
            )
        if (self.process == "gamma") != (self.burstiness is not None):
            raise ValueError("burstiness belongs to process gamma, which needs it")
        return self


class Lengths(Section):
    """A distribution of token counts; which keys it needs depends on ``distribution``."""

    distribution: Literal["fixed", "uniform", "lognormal", "empirical"]
    tokens: Tokens | None = None  # fixed
    mean: Positive | None = None  # lognormal: either mean or median
    median: Positive | None = None
    # lognormal: of the logarithm
    sigma: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    min: Tokens | None = None  # uniform and lognormal
    max: Tokens | None = None
    # empirical: drawn with replacement
    values: Annotated[list[Tokens], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_its_keys(self) -> Self:
        needed, optional = {
            "fixed": ({"tokens"}, set()),
            "uniform": ({"min", "max"}, set()),
            "lognormal": ({"sigma"}, {"mean", "median", "min", "max"}),
            "empirical": ({"values"}, set()),
        }[self.distribution]
        given = {
            name
            for name in type(self).model_fields
            if name != "distribution" and getattr(self, name) is not None
        }
        if missing := sorted(needed - given):
            raise ValueError(f"{self.distribution} needs {', '.join(missing)}")
        if extra := sorted(given - needed - optional):
            raise ValueError(f"{extra[0]} has no meaning for a {self.distribution} distribution")
        if self.distribution == "lognormal" and (self.mean is None) == (self.median is None):
            raise ValueError("lognormal needs either mean or median")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} must be at most max {self.max}")
        return self


class LengthPair(Section):
    """Tokens of prompts and of outputs, drawn independently, or as listed with ``in_order``."""

    prompt: Lengths
    output: Lengths
    in_order: bool = False  # empirical values one by one instead of drawn


class RequestClass(Section):
    """One kind of request in a mixture: its part of the load and its lengths."""

    share: Positive  # in proportion to the other classes' shares
    lengths: LengthPair


class SharedPrefixes(Section):
    """Each synthetic prompt begins with one of `num_prefixes` system prompts of `tokens` tokens."""

    num_prefixes: Count
    tokens: Tokens


class Workload(Section):
    """Requests: replayed from a trace, or drawn from arrivals and lengths."""

    trace: str | None = None
    format: Literal[
        "auto", "azure", "burstgpt", "mooncake", "sharegpt", "vllm-requests", "vllm-bench"
    ] = "auto"
    time_scale: Positive = 1.0  # 0.5: twice the load
    start: Annotated[int, Field(ge=0)] = 0  # first request of the trace to take
    stop: Count | None = None  # and the one to stop before
    arrivals: Arrivals | None = None
    lengths: LengthPair | None = None
    classes: Annotated[dict[str, RequestClass], Field(min_length=1)] | None = None
    class_column: str | None = None  # of a trace: the column or key that names a request's class
    class_priority: dict[str, int] = Field(default_factory=dict)  # of each class; lower is sooner
    # of each class, to its first token; for scheduling_policy earliest_deadline
    class_deadline_ms: dict[str, Milliseconds] = Field(default_factory=dict)
    num_requests: Count | None = None
    max_tokens: Tokens | None = None  # the limit clients ask for; default: the true output length
    max_concurrency: Count | None = None
    shared_prefixes: SharedPrefixes | None = None
    sessions: Sessions | None = None
    samples: ParallelSampling | None = None
    beam_search: BeamSearch | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.lengths is not None and self.classes is not None:
            raise ValueError("lengths and classes are both given: keep one of them")
        lengths, named = self.lengths, "lengths"
        if self.classes is not None:
            lengths, named = next(iter(self.classes.values())).lengths, "classes"
        if self.trace is None and lengths is None:
            raise ValueError(
                "no requests: name a trace file (--set workload.trace=FILE) "
                "or give arrivals, lengths and num_requests"
            )
        if self.trace is not None and lengths is not None:
            raise ValueError(f"trace and {named} are both given: keep one of them")
        if lengths is not None:
            if self.arrivals is None:
                example = "{process: poisson, request_rate: 5}"
                raise ValueError(f"{named} need arrivals, e.g. {example}")
            if self.num_requests is None:
                raise ValueError(f"{named} need num_requests")
            for name in ("start", "stop", "format", "class_column"):
                # Its default may be written out: a resolved scenario is a scenario again.
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no meaning without a trace")
        elif self.num_requests is not None:
            raise ValueError("num_requests has no meaning with a trace: use start and stop")
        for name in ("shared_prefixes", "sessions"):
            if self.trace is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning with a trace")
        if self.samples is not None and self.beam_search is not None:
            raise ValueError(
                "samples and beam_search are both given: a request samples independent answers or "
                "searches for the best ones; keep one of them"
            )
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must be above start {self.start}")
        return self


class ReplicaGroup(Section):
    """Equal replicas that differ from the scenario in some values of three of its sections.

    ``role`` prefill and decode make two pools of a disaggregated deployment.
    """

    name: str = ""
    replicas: Annotated[int, Field(ge=1, le=1024)]
    role: Literal["both", "prefill", "decode"] = "both"
    hardware: dict[str, Any] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=dict)
    latency: dict[str, Any] = Field(default_factory=dict)


class KvLink(Section):
    """What KV caches travel over, out of one prefill replica."""

    bandwidth_gb_per_s: Annotated[float, Field(ge=1e-3, le=1e6, allow_inf_nan=False)]
    latency_us: NotNegative = 0.0


class Autoscaling(Section):
    """As many replicas as `target_outstanding` unfinished requests each make necessary.

    The cluster's ``replicas`` are the most there can be.
    """

    min_replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    target_outstanding: Positive
    check_every_s: Positive = 10.0
    startup_s: NotNegative = 60.0  # until a new replica serves
    cooldown_s: NotNegative = 120.0  # between the last change and a replica less


class Failure(Section):
    """A replica loses everything; its requests begin anew elsewhere."""

    replica: Annotated[int, Field(ge=0, le=1023)]  # counted from 0, group after group
    at_s: NotNegative
    recover_after_s: Positive | None = None  # none: never


class Cluster(Section):
    """How many engines, and which request goes where."""

    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    groups: list[ReplicaGroup] = Field(
        default_factory=list
    )  # instead of `replicas`, where they differ
    router: Literal[
        "round_robin",
        "random",
        "least_outstanding",
        "least_kv",
        "prefix_aware",
        "session_sticky",
    ] = "round_robin"
    kv_link: KvLink | None = None
    autoscaling: Autoscaling | None = None
    failures: list[Failure] = Field(default_factory=list)

    @property
    def num_replicas(self) -> int:
        """Replicas at most, in all groups."""
        return sum(group.replicas for group in self.groups) or self.replicas

    @property
    def is_plain(self) -> bool:
        """Equal replicas, dealt requests in turn: what needs no cluster around it."""
        return (
            self.router == "round_robin"
            and not self.groups
            and self.autoscaling is None
            and not self.failures
        )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.groups and self.replicas > 1:
            raise ValueError("replicas and groups are both given: each group has its own replicas")
        roles = {group.role for group in self.groups}
        if roles & {"prefill", "decode"}:
            if roles != {"prefill", "decode"}:
                missing = "decode" if "prefill" in roles else "prefill"
                raise ValueError(
                    f"groups: the roles are {', '.join(sorted(roles))}; disaggregation needs "
                    f"prefill and decode groups and no others ({missing} or both is wrong here)"
                )
            if self.kv_link is None:
                raise ValueError(
                    "groups: prefill and decode pools need a kv_link between them, e.g. "
                    "kv_link: {bandwidth_gb_per_s: 50, latency_us: 10}"
                )
            if self.autoscaling is not None:
                raise ValueError("autoscaling of prefill and decode pools is not modelled")
        elif self.kv_link is not None:
            raise ValueError("kv_link has no meaning without prefill and decode groups")
        if self.autoscaling is not None and self.autoscaling.min_replicas > self.num_replicas:
            raise ValueError(
                f"autoscaling: min_replicas {self.autoscaling.min_replicas} is above the "
                f"{self.num_replicas} replicas there can be"
            )
        for failure in self.failures:
            if failure.replica >= self.num_replicas:
                raise ValueError(
                    f"failures: there is no replica {failure.replica}: the last of "
                    f"{self.num_replicas} is {self.num_replicas - 1}"
                )
        return self


class Slo(Section):
    """Service-level objective: the share `percentile` of requests keeps each limit."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2el_ms: Positive | None = None
    percentile: Percentile = 99.0


class Scenario(Section):
    """One question: this load, on this engine, on this hardware."""

    name: str
    description: str = ""
    model: str
    hardware: Hardware
    experts: Experts | None = None
    engine: Engine = Engine()
    latency: Latency = Latency()
    workload: Workload
    cluster: Cluster = Cluster()
    slo: Slo = Slo()
    speculation: Speculation | None = None
    sweep: Sweep | None = Field(default=None, exclude=True)  # many runs; a single one ignores it
    plan: Plan | None = None  # what `orcast plan` is asked; other commands leave it aside

    @model_validator(mode="after")
    def _samples_can_be_served(self) -> Self:
        samples, beam = self.workload.samples, self.workload.beam_search
        if samples is not None:
            asked, most = "samples.n", samples.most
        elif beam is not None:
            asked, most = "beam_search.width", beam.width
        else:
            return self
        if most > self.engine.max_num_seqs:
            raise ValueError(
                f"workload.{asked} {most} is above engine.max_num_seqs {self.engine.max_num_seqs}: "
                "all sequences of a request run together"
            )
        if self.engine.scheduler not in ("paged", "chunked"):
            raise ValueError(
                f"workload.{asked} needs engine.scheduler paged or chunked: slots that "
                f"{self.engine.scheduler} reserves for one sequence cannot be shared"
            )
        if self.speculation is not None:
            raise ValueError(f"workload.{asked}: speculation in several samples is not modelled")
        if any(group.role != "both" for group in self.cluster.groups):
            raise ValueError(
                f"workload.{asked}: moving several samples from a prefill to a decode pool is not "
                "modelled"
            )
        return self

    @model_validator(mode="after")
    def _stages_move_no_blocks(self) -> Self:
        asked = {
            "workload.samples": self.workload.samples,
            "workload.beam_search": self.workload.beam_search,
            "engine.kv_offloading_size_gib": self.engine.kv_offloading_size_gib,
            "latency.swapped_block_us": self.latency.swapped_block_us,
        }
        for name, value in asked.items():
            if value and self.hardware.pipeline_parallel > 1:
                raise ValueError(f"{name} over pipeline stages is not modelled")
        return self
