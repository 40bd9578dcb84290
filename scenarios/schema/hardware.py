"""Which GPUs, how a model is spread over them, and which of its experts tokens are sent to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from scenarios.schema.section import NotNegative, Positive, Section


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


class OwnGpu(Section):
    """A GPU that the library does not have, by the figures of its data sheet.

    ``like`` takes another's (a name of the library or a YAML file) and changes what is said;
    without it memory, bandwidth, rate and price are needed. Rates are dense, links one direction.
    """

    like: str | None = None
    name: str | None = None
    memory_gb: Positive | None = None  # of 10^9 bytes, as a process sees them
    memory_bandwidth_gb_per_s: Positive | None = None
    bf16_tflops: Positive | None = None
    fp8_tflops: Positive | None = None
    int8_tops: Positive | None = None
    fp4_tflops: Positive | None = None
    host_link_gb_per_s: Positive | None = None
    link_gb_per_s: Positive | None = None
    link_latency_us: Positive | None = None
    inter_node_link_gb_per_s: Positive | None = None
    inter_node_link_latency_us: Positive | None = None
    # whose kernels' shares of the peaks the roofline takes
    architecture: str | None = None
    idle_watts: Positive | None = None  # of the board, without work
    peak_watts: Positive | None = None  # of the board, at its limit
    price_usd_per_hour: Positive | None = None


def _kind_of_gpu(given: Any) -> str:
    return "<figures>" if isinstance(given, OwnGpu | Mapping) else "<name>"


GpuChoice = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[OwnGpu, Tag("<figures>")],
    Discriminator(_kind_of_gpu),
]


class Hardware(Section):
    """Which GPU, and how a model is spread over several; the degrees multiply, but for
    expert_parallel beside data_parallel, and decode_context_parallel, which multiplies nothing.

    ``link`` lies between GPUs of one node of ``gpus_per_node``, ``inter_node_link`` between nodes.
    """

    # a name or alias of the library, a YAML file, or figures of its own
    gpu: GpuChoice
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1, le=256)] = 1
    # engines of their own, each with a scheduler and a cache, behind cluster.router
    # `data_parallel`; a mixture's step together and share out its experts
    data_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    # with data_parallel, tensor_parallel × data_parallel: experts are over all GPUs of the ranks
    expert_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    # groups of tensor-parallel ranks that experts are dealt out to: tensor_parallel for vLLM's
    # --enable-expert-parallel beside data parallel 1, TensorRT-LLM's moe_expert_parallel_size
    experts_over: Annotated[int, Field(ge=1, le=64)] = 1
    # tensor-parallel ranks that share out a sequence's tokens where they would hold the same keys
    # and values, vLLM's --decode-context-parallel-size; takes no more GPUs
    decode_context_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    sequence_parallel: SequenceParallel | None = None
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] = 8
    link: Link | None = None
    inter_node_link: Link | None = None

    @property
    def gpu_given(self) -> str | dict[str, Any]:
        """What `scenarios.library.gpu` takes."""
        if isinstance(self.gpu, OwnGpu):
            return self.gpu.model_dump(exclude_none=True)
        return self.gpu

    @model_validator(mode="after")
    def _experts_lie_one_way(self) -> Self:
        if self.experts_over > 1 and self.expert_parallel > 1:
            raise ValueError(
                "experts_over deals experts out to the ranks of tensor_parallel, expert_parallel "
                "to ranks that have sequences of their own: keep one of them"
            )
        if self.tensor_parallel % self.experts_over:
            raise ValueError(
                f"experts_over {self.experts_over} does not divide tensor_parallel "
                f"{self.tensor_parallel}"
            )
        return self


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
