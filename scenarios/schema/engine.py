"""The serving engine's knobs, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from scenarios.schema.generations import BY_GENERATION, Generation, filled
from scenarios.schema.names import PolicyName
from scenarios.schema.section import Count, Fraction, NotNegative, Positive, Section, Tokens
from scenarios.schema.tiers import KvTier, tiers_refused


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

    # a name for a set of knobs, each of which may be given besides; by default `vllm`, or the one
    # that has the scheduler that is named
    generation: Generation = BY_GENERATION
    # one of these, or of a package that brings its own
    scheduler: Annotated[PolicyName, WrapValidator(_or_installed)] = BY_GENERATION
    # the queue's order; priorities, deadlines and clients are those of the workload's classes
    scheduling_policy: Literal[
        "fcfs", "priority", "earliest_deadline", "shortest_prompt", "shortest_job", "fair"
    ] = "fcfs"
    # the host decides the next iteration while the device computes this one
    async_scheduling: bool = BY_GENERATION
    # whether one of the KV blocks never holds a token, as vLLM's block 0
    null_block: bool = BY_GENERATION
    # what an engine keeps from its KV cache: since 0.21 the pool of CUDA graphs, which before came
    # on top of gpu_memory_utilization; under V0 the CUDA context
    memory_profile: Literal["vllm-0.21", "vllm-v1", "vllm-v0"] = BY_GENERATION
    # whose sampler filters by top-k and top-p, and is tried out then: flashinfer's keeps 14 B a
    # logit; PyTorch's sorts them and keeps 38
    sampler: Literal["pytorch", "flashinfer"] = "pytorch"
    max_num_waiting: Annotated[int, Field(ge=1, le=2**31)] | None = None  # beyond: refused
    # sequences that wait or run; an arrival with which there would be more is refused
    max_num_queued_reqs: Annotated[int, Field(ge=0, le=2**31)] | None = None
    max_queue_time_s: Positive | None = None  # until the first iteration; beyond: gives up
    # what the defaults below are by, under generation `vllm`: vllm serve, or its class LLM
    usage_context: Literal["openai_api_server", "llm_class"] = "openai_api_server"
    # by default 256; under generation `vllm` by the GPU
    max_num_seqs: Annotated[int, Field(ge=1, le=2**17)] = BY_GENERATION
    # by default 8192; under generation `vllm` by the GPU
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=2**22)] = BY_GENERATION
    block_size: Annotated[int, Field(ge=1, le=4096)] = 16
    gpu_memory_utilization: Fraction = 0.9
    num_gpu_blocks_override: Annotated[int, Field(ge=1, le=2**24)] | None = None
    # each GPU's KV cache, whatever gpu_memory_utilization leaves: vLLM's --kv-cache-memory-bytes
    kv_cache_memory_gib: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    max_model_len: Tokens | None = None
    enable_prefix_caching: bool = True
    # whether every layer keeps every token, as without vLLM's hybrid KV cache manager
    disable_hybrid_kv_cache_manager: bool = False
    # what the matrices are served in; by default as the checkpoint has them
    weight_dtype: Literal[
        "auto", "bf16", "fp16", "fp8", "int4", "int8", "fp4", "nvfp4", "mxfp4"
    ] = "auto"
    # what has a scale where weights are fp8: by default as in the checkpoint, else a tensor
    float8_scales: Literal["tensor", "channel", "block"] | None = None
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8"] = "auto"
    long_prefill_token_threshold: Annotated[int, Field(ge=0)] = 0
    # whether a prompt is admitted only where all of it fits, and not merely its first chunk
    scheduler_reserve_full_isl: bool = True
    preemption: Literal["recompute", "swap"] = "recompute"
    swap_space_gib: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 4.0
    # host memory for blocks that the prefix cache gives up, in GiB for each GPU
    kv_offloading_size_gib: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    # memory behind the prefix cache, tier by tier, in place of kv_offloading_size_gib
    kv_tiers: list[KvTier] = Field(default_factory=list)
    # what is computed goes to every tier at once, or on to the next when one gives it up
    kv_tier_writes: Literal["back", "through"] = "back"
    # whether a prompt's blocks are fetched only where that is faster than computing them again
    kv_tier_reads: Literal["faster", "always"] = "faster"
    watermark: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.01
    reservation: Literal["max_tokens", "max_model_len", "pow2", "oracle"] = "max_tokens"
    # where a reservation of `orca` lies: in one piece (buddy allocator, or the first hole that is
    # large enough), or in blocks wherever they are free; by default buddy under generation `orca`
    placement: Literal["anywhere", "buddy", "first_fit"] = BY_GENERATION
    preferred_batch_sizes: list[Count] = Field(default_factory=list)
    # batches are padded up to these ([]: to none); by default those of the latency table, or else
    # vLLM's up to max_cudagraph_capture_size
    cudagraph_capture_sizes: list[Count] | None = None
    # under generation `vllm` by the GPU; none: no batch is padded where no sizes are given
    max_cudagraph_capture_size: Annotated[int, Field(ge=1, le=2**17)] | None = None
    max_queue_delay_ms: NotNegative = 0.0
    # slots in GPU memory for workload.adapters, by default one for each, of the largest rank
    max_loras: Annotated[int, Field(ge=1, le=2**14)] | None = None
    max_lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None

    @property
    def tiers(self) -> list[KvTier]:
        """Of memory behind the prefix cache, however they are said."""
        if self.kv_offloading_size_gib:
            return [KvTier(kind="host", size_gib=self.kv_offloading_size_gib)]
        return self.kv_tiers

    @property
    def says_tiers(self) -> str:
        """The knob that says them."""
        return "kv_offloading_size_gib" if self.kv_offloading_size_gib else "kv_tiers"

    def _check_tiers(self) -> None:
        if self.kv_offloading_size_gib and self.kv_tiers:
            raise ValueError(
                "kv_offloading_size_gib and kv_tiers both say what lies behind the prefix cache; "
                "keep one"
            )
        if self.tiers and not self.enable_prefix_caching:
            raise ValueError(
                f"{self.says_tiers} needs enable_prefix_caching: what is offloaded could not be "
                "found again"
            )
        if self.tiers and self.scheduler not in ("paged", "chunked"):
            raise ValueError(
                f"{self.says_tiers} needs scheduler paged or chunked: {self.scheduler} reserves "
                "slots and has no prefix cache"
            )
        if (refused := tiers_refused(self.kv_tiers)) is not None:
            raise ValueError(refused)

    @property
    def kv_cache_bytes(self) -> int | None:
        """What each GPU gives to the KV cache, where that is said."""
        given = self.kv_cache_memory_gib
        return None if given is None else int(given * 2**30)

    @model_validator(mode="before")
    @classmethod
    def _generation_fills_in(cls, given: Any) -> Any:
        return filled(given) if isinstance(given, Mapping) else given

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
        if self.num_gpu_blocks_override and self.kv_cache_memory_gib:
            raise ValueError(
                "num_gpu_blocks_override and kv_cache_memory_gib both say how large the KV cache "
                "is; keep one"
            )
        if self.scheduler == "paged" and self.preemption == "swap" and not self.swap_space_gib:
            raise ValueError("preemption swap needs swap_space_gib above 0: there is nowhere to go")
        self._check_tiers()
        too_large = [n for n in self.preferred_batch_sizes if n > self.max_num_seqs]
        if too_large:
            raise ValueError(
                f"preferred_batch_sizes: {too_large[0]} is above max_num_seqs {self.max_num_seqs}"
            )
        return self
