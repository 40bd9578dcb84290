"""The bytes that one iteration sends, by kind of parallelism: closed forms.

For T tokens a rank's group computes, hidden size h, L layers, b bytes an activation:

    tensor     2 L + 1 all-reduces of T h b (Megatron-LM: after attention, after the MLP; and one
               after the vocabulary-parallel embedding), one all-gather of rows x vocabulary x b
    pipeline   p - 1 sends of T h b
    expert     2 all-to-alls a mixture layer; a rank holds T/e x k rows of h b, (e - 1)/e leave it
    ulysses    4 all-to-alls a layer (q, k, v, o); a rank holds T/s x width x b, (s - 1)/s leave it
    ring       L rings of s - 1 passes of a rank's keys and values, T_kv / s x KV bytes of a layer;
               a decode's query and partial output travel instead (pass-Q: Yang et al., 2024)
    decode     of n tensor-parallel ranks that share out contexts, for every decode and layer: an
    context    all-gather of their queries, one of n log-sum-exps of each head, and a reduce-scatter
               of their partial outputs (vLLM 0.32, ``cp_lse_ag_out_rs``)

Bytes are those that one GPU sends, the sum over all layers and stages it would belong to.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.batch import Batch
from sim.latency.communication import (
    all_gather_bytes,
    all_reduce_bytes,
    all_to_all_bytes,
    ring_pass_bytes,
)
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, ModelSpec


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of collective in an iteration: how many, and the bytes a GPU sends in each."""

    count: int
    bytes_each: float

    @property
    def bytes_sent(self) -> float:
        return self.count * self.bytes_each


def traffic(
    model: ModelSpec, parallelism: Parallelism, batch: Batch, *, kv_cache_dtype: str = "auto"
) -> dict[str, Collective]:
    """What each GPU sends in an iteration of `batch`, tokens spread evenly over ranks.

    Of ranks in lockstep it is one rank's, beside those whose tokens it counts; none is padded.
    """
    spread = parallelism
    tp, ranks, seq = spread.tensor_parallel, spread.dealt_ranks, spread.sequence_parallel
    each = DTYPE_BYTES[model.dtype]
    tokens = batch.num_tokens / (ranks * seq)  # on one GPU
    hidden_bytes = tokens * model.hidden_size * each
    sent: dict[str, Collective] = {}
    if tp > 1:
        sent["tensor_all_reduce"] = Collective(
            model.num_reductions + 1, all_reduce_bytes(hidden_bytes, tp)
        )
        rows = batch.num_emitting / (ranks * seq)
        sent["logits_all_gather"] = Collective(
            1, all_gather_bytes(rows * model.vocab_size * each, tp)
        )
    if spread.pipeline_parallel > 1:
        sent["pipeline_send"] = Collective(spread.pipeline_parallel - 1, hidden_bytes)
    if ranks > 1 and model.moe is not None:
        rows_bytes = hidden_bytes * model.moe.experts_per_token
        sent["expert_all_to_all"] = Collective(
            2 * model.moe.num_layers, all_to_all_bytes(rows_bytes, ranks)
        )
    if spread.data_parallel > 1 and model.moe is not None:
        gathered = (batch.all_tokens or batch.num_tokens) * float(model.hidden_size * each)
        sent["expert_gather_and_scatter"] = Collective(
            2 * model.moe.num_layers, all_gather_bytes(gathered, spread.data_parallel)
        )
    if seq > 1 and spread.sequence_kind == "ulysses":
        for name, width in ulysses_widths(model, tp).items():
            held = tokens * width * each
            sent[f"ulysses_{name}_all_to_all"] = Collective(
                model.num_layers, all_to_all_bytes(held, seq)
            )
    if seq > 1 and spread.sequence_kind == "ring":
        groups = model.kv_groups(kv_cache_dtype, tp)
        layer_bytes = sum(group.bytes_per_token for group in groups) / model.num_layers
        keys = sum(chunk.new_tokens + chunk.cached_tokens for chunk in batch.prefills)
        block = keys / ranks / seq * layer_bytes
        sent["ring_kv_pass"] = Collective(
            model.num_layers * (seq - 1), ring_pass_bytes(block, seq) / (seq - 1)
        )
        queries, outputs = decode_exchange_bytes(model, tp)
        decodes = batch.num_decodes / ranks
        sent["decode_query_all_gather"] = Collective(
            model.num_layers, all_gather_bytes(decodes * queries, seq)
        )
        sent["decode_output_all_to_all"] = Collective(
            model.num_layers, all_to_all_bytes(decodes * outputs, seq)
        )
    if spread.decode_context_parallel > 1:
        for name, result in context_exchange_bytes(model, spread).items():
            sent[f"context_{name}"] = Collective(
                model.num_layers,
                all_gather_bytes(batch.num_decodes * result, spread.decode_context_parallel),
            )
    return sent


def context_exchange_bytes(model: ModelSpec, parallelism: Parallelism) -> dict[str, int]:
    """What a decode's collectives among the ranks of its context result in, in bytes a layer."""
    ranks, tp = parallelism.decode_context_parallel, parallelism.tensor_parallel
    queries, outputs = decode_exchange_bytes(model, tp)
    sums = model.num_attention_heads // tp * 4
    return {
        "query_all_gather": ranks * queries,
        "sums_all_gather": ranks * ranks * sums,  # of all the group's heads, from every rank
        "output_reduce_scatter": ranks * (outputs - sums),
    }


def ulysses_widths(model: ModelSpec, tensor_parallel: int) -> dict[str, int]:
    """Numbers a token has in each of the four exchanges of a layer, on one tensor-parallel rank."""
    query = model.num_attention_heads // tensor_parallel * model.head_dim
    key = model.num_kv_heads // tensor_parallel * model.head_dim
    return {"q": query, "k": key, "v": key, "o": query}


def decode_exchange_bytes(model: ModelSpec, tensor_parallel: int) -> tuple[int, int]:
    """Bytes of one decode's query, and of a rank's partial output with its log-sum-exp, a layer."""
    each = DTYPE_BYTES[model.dtype]
    heads = model.num_attention_heads // tensor_parallel
    if model.mla is not None:  # absorbed: queries and outputs live in the latent space
        query, output = model.mla.latent_dim, model.mla.kv_lora_rank
    else:
        query = output = model.head_dim
    return heads * query * each, heads * (output * each + 4)
