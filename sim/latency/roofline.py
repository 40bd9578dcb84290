"""Analytic latency for any model on any GPU: each operation at the lower of two roofs. Unmeasured.

An operation takes ``overhead + max(FLOPs / (peak x efficiency), bytes / (bandwidth x efficiency))``
(Williams, Waterman and Patterson, 2009). What kernels reach of a GPU's peaks, and what each takes
besides, goes by its architecture and was fitted to single kernels (`sim.model.kernel_rates`, which
has sources and errors). That says nothing about tile boundaries, clocks or a kernel that suits one
shape badly, so treat answers as plus or minus 20 to 30 per cent until a table has been measured.

One iteration is the sum of

    tokens     matrix products, norms, rotary, activation; experts; all-reduces   f(num_tokens)
    attention  per layer a launch; per prefill (new, cached); per decode and its context
    logits     vocabulary projection, gather, sampling                            f(num_emitting)
    host       per iteration and per sequence
    swap       bytes over the host link

One pipeline stage's share of a model is a model here (``ModelSpec.stages``); ranks that share out
tokens are `sim.latency.spread_roofline`, stages in a row `sim.latency.pipeline`.

Whatever depends on one count is tabulated in the constructor, so that ``iteration_s`` is a few
additions; beyond the tables the same formulas are evaluated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.bounded_attention import BesideAttention
from sim.latency.communication import LINK_EFFICIENCY, all_gather_s, all_reduce_s
from sim.latency.context_exchange import ContextExchange
from sim.latency.padding import padded
from sim.latency.protocol import HostOverhead, looked_up
from sim.latency.recorded_parts import RecordedParts
from sim.latency.sampling import sampling_s
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Gpu, Interconnect
from sim.model.kernel_rates import ProductRates
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, LinearOperation, ModelSpec

# Norm, rotary, activation on a handful of tokens: 1.9 to 3.3 us each on an RTX 4090, 2.4 to 3.0 on
# an RTX PRO 6000 (LLMServingSim's profiles of vLLM 0.19's layers, up to 32 tokens).
ELEMENTWISE_OVERHEAD_S = 2.5e-6
# Weight-only int4 against bf16 products of one shape (A100, TensorRT-LLM 1.0, published in the
# package aiconfigurator-core): 0.92-0.99 of bf16's rate from 256 rows, where unpacking is paid for
# and nothing gained, and 12-19 us a product more than its bytes take at 0.8 of the bandwidth.
INT4_COMPUTE_SHARE = 0.95
INT4_OVERHEAD_S = 1.2e-5
HOST_LINK_EFFICIENCY = 0.8  # pinned copies reach about 25 of 31.5 GB/s on PCIe 4.0 x16

# Host time between iterations: published engines spend 0.1 to 2 ms a step plus microseconds a
# sequence. Nobody measured it on your machine: set it, or validate against a real engine.
HOST_PER_ITERATION_S = 4.0e-4
HOST_PER_SEQUENCE_S = 3.0e-6

# Residual addition with RMSNorm twice, rotary, the KV write, the MLP's activation.
_ELEMENTWISE_KERNELS_PER_LAYER = 5


class RooflineLatency(RecordedParts):
    """Seconds of one iteration of ``model`` on ``tensor_parallel`` GPUs, from datasheet figures.

    Efficiencies are shares of peak rates; those that are not given are the GPU's ``kernel_rates``.
    ``parallelism`` has all degrees (``tensor_parallel`` alone is short for that one) and
    ``routing`` how tokens choose experts, uniform by default. ``first_stage`` and ``last_stage``
    say whether this share of a model has the embedding and the output head. Batches are padded to
    ``capture_sizes``. Raises ``ValueError`` where the model cannot be split so, for an unknown
    ``kv_cache_dtype``, and for an efficiency outside (0, 1] or a negative time.
    """

    measured = False
    uses_longest = False

    def __init__(
        self,
        model: ModelSpec,
        gpu: Gpu,
        *,
        tensor_parallel: int = 1,
        parallelism: Parallelism | None = None,
        routing: ExpertRouting | None = None,
        first_stage: bool = True,
        last_stage: bool = True,
        interconnect: Interconnect | None = None,
        kv_cache_dtype: str = "auto",
        block_size: int = 16,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        gemm_efficiency: float | None = None,
        moe_efficiency: float | None = None,
        attention_efficiency: float | None = None,
        memory_efficiency: float | None = None,
        attention_memory_efficiency: float | None = None,
        link_efficiency: float = LINK_EFFICIENCY,
        kernel_overheads: bool = True,
        host_per_iteration_s: float = HOST_PER_ITERATION_S,
        host_per_sequence_s: float = HOST_PER_SEQUENCE_S,
        host_source: str | None = None,
        capture_sizes: Sequence[int] = (),
    ) -> None:
        for key, value in {
            "gemm_efficiency": gemm_efficiency,
            "moe_efficiency": moe_efficiency,
            "attention_efficiency": attention_efficiency,
            "memory_efficiency": memory_efficiency,
            "attention_memory_efficiency": attention_memory_efficiency,
            "link_efficiency": link_efficiency,
        }.items():
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{key} must be above 0 and at most 1, not {value}")
        for key, value in {
            "host_per_iteration_s": host_per_iteration_s,
            "host_per_sequence_s": host_per_sequence_s,
        }.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{key} must be a finite number of seconds >= 0, not {value}")
        self.parallelism = Parallelism(tensor_parallel) if parallelism is None else parallelism
        tp = self.parallelism.tensor_parallel
        model.check_tensor_parallel(tp)

        gpus = self.parallelism.num_gpus * self.parallelism.data_parallel
        suffix = f" x {gpus}" if gpus > 1 else ""
        self.label = f"roofline (analytic, unmeasured): {model.name} on {gpu.name}{suffix}"
        self.model = model
        self.gpu = gpu
        self.tensor_parallel = tp
        self._capture_sizes = capture_sizes
        self._first_stage = first_stage
        self._last_stage = last_stage
        if model.moe is not None:
            chosen = model.moe.num_experts, model.moe.experts_per_token
            self.routing = ExpertRouting.uniform(*chosen) if routing is None else routing
        self._interconnect = gpu.interconnect if interconnect is None else interconnect
        self._link_efficiency = link_efficiency
        self._tensor_group: dict[str, Any] = {
            "ranks_per_node": self.parallelism.tensor_per_node,
            "link_efficiency": link_efficiency,
        }
        self.rates = gpu.kernel_rates.with_efficiencies(
            gemm_efficiency=gemm_efficiency,
            moe_efficiency=moe_efficiency,
            memory_efficiency=memory_efficiency,
            attention_efficiency=attention_efficiency,
            attention_memory_efficiency=attention_memory_efficiency,
        )
        attention = self.rates.attention
        self._bytes_per_s = gpu.memory_bytes_per_s * self.rates.products.memory_efficiency
        self._overheads = 1.0 if kernel_overheads else 0.0
        assumed = (host_per_iteration_s, host_per_sequence_s) == (
            HOST_PER_ITERATION_S,
            HOST_PER_SEQUENCE_S,
        )
        self.host = HostOverhead(
            host_per_iteration_s,
            host_per_sequence_s,
            host_source or ("assumed" if assumed else "given in the scenario"),
        )
        self._host_s = host_per_iteration_s
        self._host_per_sequence_s = host_per_sequence_s

        # Attention is linear in its features: coefficients, all layers together.
        peak = gpu.bfloat16_flops_per_s * attention.efficiency
        bandwidth = gpu.memory_bytes_per_s * attention.memory_efficiency
        groups = model.kv_groups(kv_cache_dtype, tp)
        kv_bytes = sum(group.index_bytes_per_token for group in groups)
        kv_bytes += sum(group.read_bytes_per_token for group in groups if group.limit is None)
        each = DTYPE_BYTES[model.dtype]
        self._beside = BesideAttention.of(
            model,
            groups,
            tensor_parallel=tp,
            bytes_each=each,
            flops_per_s=peak,
            bytes_per_s=bandwidth,
        )
        self._attention_launch_s = model.num_mixers * attention.overhead_s * self._overheads
        self._per_pair_s = model.prefill_attention_flops(tp) / peak
        self._per_key_s = kv_bytes / bandwidth
        # Ranks that share out a context read parts of it, for the query heads of all of them.
        context_ranks = self.parallelism.decode_context_parallel
        self._per_query_s = sum(group.query_numbers for group in groups) * each / bandwidth
        whole = sum(group.query_numbers for group in groups if group.limit is None)
        self._per_whole_query_s = whole * each / bandwidth
        self._per_expanded_s = self._latent_expansion_flops() / (
            gpu.bfloat16_flops_per_s * self.rates.products.efficiency
        )
        self._per_scored_s = model.decode_attention_flops(tp) / peak
        self._per_context_s = max(self._per_key_s / context_ranks, self._per_scored_s)
        self._per_decode_s = (
            model.num_mixers * attention.per_sequence_s * self._overheads
            + context_ranks * self._per_query_s
        ) + (self._beside.per_state_s if self._beside else 0.0)
        moved_bytes = block_size * sum(group.bytes_per_token for group in groups)
        self._per_swapped_block_s = moved_bytes / (gpu.host_link_bytes_per_s * HOST_LINK_EFFICIENCY)

        tokens = np.arange(max_num_batched_tokens + 1)
        rows = np.arange(max_num_seqs + 1)
        self._tokens_s: list[float] = self._tokens_total_s(tokens).tolist()
        self._logits_s: list[float] = self._logits_total_s(rows).tolist()
        self._exchange = ContextExchange.of(
            model, self.parallelism, self._interconnect, link_efficiency=link_efficiency,
            launch_s=ELEMENTWISE_OVERHEAD_S * self._overheads, max_num_seqs=max_num_seqs,
        )  # fmt: skip
        self._beyond_tokens_s: dict[int, float] = {}
        self._beyond_rows_s: dict[int, float] = {}

    def iteration_s(self, batch: Batch) -> float:
        """Seconds of one iteration."""
        duration_s = self._fixed_s(batch)
        decodes = batch.num_decodes
        if decodes:
            context = batch.context_tokens
            attention_s = decodes * self._per_decode_s + context * self._per_context_s
            if self._beside is not None:
                attention_s += self._beside.decode_s(decodes, context)
            duration_s += attention_s
        return duration_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """When each of up to `iterations` decode iterations ends (see `LatencyModel`)."""
        decodes, context = batch.num_decodes, batch.context_tokens
        fixed_s, beside = self._fixed_s(batch), self._beside
        per_decode_s, per_context_s = decodes * self._per_decode_s, self._per_context_s
        ends_s: list[float] = []
        for _ in range(iterations):
            attention_s = per_decode_s + context * per_context_s
            if beside is not None:
                attention_s += beside.decode_s(decodes, context)
            start_s += fixed_s + attention_s
            ends_s.append(start_s)
            if start_s >= until_s:
                break
            context += decodes
        return ends_s

    def further_queries_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        """Decode attention with `query_tokens` in all, beyond one for each sequence.

        Keys and values are read once for all queries of a sequence, which all are scored.
        """
        scored_s = query_tokens / num_decodes * self._per_scored_s
        beyond_s = context_tokens * max(scored_s - self._per_context_s, 0.0)
        if self._beside is not None:
            beyond_s += self._beside.further_s(num_decodes, context_tokens, query_tokens)
        return (query_tokens - num_decodes) * self._per_query_s + beyond_s

    def _within_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Classes that the parts have beside the one they are mostly of."""
        tokens, rows = iterations["num_tokens"], iterations["num_emitting"]
        within = {
            "elementwise": looked_up(self._elementwise_parts_s, tokens)["elementwise"],
            "all_to_all": np.zeros(len(tokens)),
            **looked_up(self._sampling_parts_s, rows),
        }
        if self._exchange is not None:
            within["gather_and_send"] += self._exchange.links_s(iterations["decode_seqs"])
        return within

    def _elementwise_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        each = self._elementwise_s(padded(tokens, self._capture_sizes).astype(np.float64))
        return {"elementwise": np.where(tokens > 0, each, 0.0)}

    def _sampling_parts_s(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        r = rows.astype(np.float64) * self._last_stage
        return {
            "sampling": np.where(r > 0, self._sampling_s(r), 0.0),
            "gather_and_send": self._row_parts_s(rows)["communication"],
        }

    def known_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parts that follow from recorded counts: all but attention."""
        parts = looked_up(self._token_parts_s, iterations["num_tokens"])
        rows = looked_up(self._row_parts_s, iterations["num_emitting"])
        parts["logits"] = rows["logits"]
        parts["communication"] = parts["communication"] + rows["communication"]
        if self._exchange is not None:
            parts["communication"] += self._exchange.links_s(iterations["decode_seqs"])
        parts["host"] = self._host_s + self._host_per_sequence_s * iterations["num_seqs"]
        if iterations["swap_blocks"].any():
            parts["swap"] = self._per_swapped_block_s * iterations["swap_blocks"]
        return parts

    def _fixed_s(self, batch: Batch) -> float:
        """All of an iteration but its decodes' attention, which comes last (and varies)."""
        num_tokens, rows = batch.padded_tokens or batch.num_tokens, batch.num_emitting
        try:
            duration_s = self._tokens_s[num_tokens]
        except IndexError:
            duration_s = self._beyond_token_table(num_tokens)
        try:
            duration_s += self._logits_s[rows]
        except IndexError:
            duration_s += self._beyond_row_table(rows)
        duration_s += batch.num_seqs * self._host_per_sequence_s
        if self._exchange is not None:
            duration_s += self._exchange.seconds(batch.num_decodes)
        for prefill in batch.prefills:
            new, cached = prefill.new_tokens, prefill.cached_tokens
            compute_s = new * (cached + 0.5 * (new + 1)) * self._per_pair_s
            memory_s = (cached + new) * self._per_key_s + new * self._per_whole_query_s
            duration_s += compute_s if compute_s > memory_s else memory_s
            duration_s += cached * self._per_expanded_s
            if self._beside is not None:
                duration_s += self._beside.prefill_s(new, cached)
        if batch.swap_in_blocks or batch.swap_out_blocks:
            blocks = batch.swap_in_blocks + batch.swap_out_blocks
            duration_s += blocks * self._per_swapped_block_s
        return duration_s

    def _beyond_token_table(self, num_tokens: int) -> float:
        value = self._beyond_tokens_s.get(num_tokens)
        if value is None:
            value = float(self._tokens_total_s(np.array([num_tokens]))[0])
            self._beyond_tokens_s[num_tokens] = value
        return value

    def _beyond_row_table(self, rows: int) -> float:
        value = self._beyond_rows_s.get(rows)
        if value is None:
            value = float(self._logits_total_s(np.array([rows]))[0])
            self._beyond_rows_s[rows] = value
        return value

    def _tokens_total_s(self, tokens: np.ndarray) -> np.ndarray:
        """What ``num_tokens`` decides, the launches of attention and the host's fixed part too."""
        total = np.sum(list(self._token_parts_s(tokens).values()), axis=0)
        total += np.where(tokens > 0, self._attention_launch_s, 0.0) + self._host_s
        return np.asarray(total)

    def _logits_total_s(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(list(self._row_parts_s(rows).values()), axis=0))

    def _token_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Seconds by part [len(tokens)] for everything but attention, logits and host."""
        t = padded(tokens, self._capture_sizes).astype(np.float64)
        model, tp = self.model, self.tensor_parallel
        linear = self._elementwise_s(t)
        for op in model.linear_operations(tp):
            linear += self._linear_s(op, t)
        parts = {"linear": np.where(t > 0, linear, 0.0)}
        if model.moe is not None:
            parts["moe"] = np.where(t > 0, self._experts_s(t), 0.0)
        message = t * model.hidden_size * DTYPE_BYTES[model.dtype]
        # Megatron-LM's two per layer (one where attention and MLP are added up together), and one
        # after the vocabulary-parallel embedding.
        parts["communication"] = (model.num_reductions + self._first_stage) * all_reduce_s(
            message, tp, self._interconnect, **self._tensor_group
        )
        return parts

    def _row_parts_s(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Seconds by part [len(rows)] of the vocabulary projection, its gather and sampling."""
        r = rows.astype(np.float64) * self._last_stage
        model, tp = self.model, self.tensor_parallel
        logits = self._linear_s(model.logits_operation(tp), r) + self._sampling_s(r)
        gathered = r * model.vocab_size * DTYPE_BYTES[model.dtype]
        return {
            "logits": np.where(r > 0, logits, 0.0),
            "communication": all_gather_s(gathered, tp, self._interconnect, **self._tensor_group),
        }

    def _sampling_s(self, rows: np.ndarray) -> np.ndarray:
        model, launched = self.model, self._overheads > 0
        return sampling_s(
            model.sampling, rows, model.vocab_size, self._bytes_per_s, launched=launched
        )

    def _linear_s(self, op: LinearOperation, tokens: np.ndarray) -> np.ndarray:
        """All copies of one product, each with ``tokens`` rows."""
        rates = self.rates.products_of(few_bits=self.gpu.computes_in_few_bits(op.weight_dtype))
        compute = op.flops(1) * tokens / self._peak(op, rates)
        moved = op.weight_bytes + tokens * (op.bytes_moved(1) - op.weight_bytes)
        memory = moved / (self.gpu.memory_bytes_per_s * rates.memory_efficiency)
        launch_s = INT4_OVERHEAD_S if self._is_unpacked(op) else rates.overhead_s
        return op.count * launch_s * self._overheads + np.maximum(compute, memory)

    def _peak(self, op: LinearOperation, rates: ProductRates) -> float:
        """FLOPs per second of products with these weights."""
        peak = self.gpu.peak_flops_per_s(op.weight_dtype) * rates.efficiency
        return peak * INT4_COMPUTE_SHARE if self._is_unpacked(op) else peak

    def _is_unpacked(self, op: LinearOperation) -> bool:
        """Whether weights of few bits are unpacked and multiplied in 16."""
        return not op.weights.is_plain and self.gpu.unpacks(op.weight_dtype)

    def _experts_s(self, tokens: np.ndarray) -> np.ndarray:
        """Routed experts: every chosen expert's FLOPs, the weights of those chosen by anyone.

        Where groups of ranks share experts out, all wait for the group that is sent most rows.
        """
        moe, groups = self.model.moe, self.model.experts_over
        assert moe is not None
        share = moe.experts_per_token / moe.num_experts
        even = np.maximum(tokens, 1e-300) * moe.experts_per_token / groups
        uneven = self.routing.slowest_rank_load(tokens, groups) / even
        touched = self.routing.activated_on_slowest_rank(tokens, groups)
        return self._grouped_s(1, share * tokens * uneven, touched / (moe.num_experts // groups))

    def _grouped_s(
        self,
        ranks: int,
        rows: np.ndarray,
        touched: np.ndarray,
        *,
        tensor_parallel: int | None = None,
    ) -> np.ndarray:
        """Grouped products of one of `ranks` that share out the experts, all layers.

        `rows` is what each of its experts gets on average, `touched` the share of them that gets
        any: their weights are read. Each is split as all matrices are, or over `tensor_parallel`.
        """
        moe = self.model.moe
        assert moe is not None
        split = tensor_parallel or self.tensor_parallel
        operations = self.model.expert_operations(split, ranks)
        few_bits = self.gpu.computes_in_few_bits(operations[0].weight_dtype)
        rates = self.rates.experts_of(few_bits=few_bits)
        bytes_per_s = self.gpu.memory_bytes_per_s * rates.memory_efficiency
        compute, memory = np.zeros_like(rows), np.zeros_like(rows)
        for op in operations:
            compute += op.flops(1) * rows / self._peak(op, rates)
            rows_bytes = op.bytes_moved(1) - op.weight_bytes
            memory += (op.weight_bytes * touched + rows_bytes * rows) / bytes_per_s
        launches = moe.num_layers * rates.overhead_s * self._overheads
        return np.asarray(launches + np.maximum(compute, memory))

    def _elementwise_s(self, tokens: np.ndarray) -> np.ndarray:
        """Norms with residual, rotary with the KV write, MLP activation, embedding: bytes only."""
        model, tp = self.model, self.tensor_parallel
        numbers = model.num_layers * 2 * 4 * model.hidden_size
        numbers += 2 * model.hidden_size * self._first_stage
        for op in model.linear_operations(tp):
            if op.kind == "qkv":
                numbers += 2 * op.out_features * op.count
            elif op.kind in ("gate_up", "shared_gate_up"):
                numbers += (op.out_features + op.out_features // 2) * op.count
        kernels = model.num_layers * _ELEMENTWISE_KERNELS_PER_LAYER + self._first_stage
        moved = tokens * numbers * DTYPE_BYTES[model.dtype]
        return kernels * ELEMENTWISE_OVERHEAD_S * self._overheads + moved / self._bytes_per_s

    def _latent_expansion_flops(self) -> int:
        """Latent attention prefills in expanded form: cached latents go through kv_b_proj again."""
        if self.model.mla is None:
            return 0
        operations = self.model.linear_operations(self.tensor_parallel)
        return sum(op.flops(1) for op in operations if op.name == "kv_b_proj")
