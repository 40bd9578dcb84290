"""What an iteration asks of a GPU: floating-point operations, and bytes to and from its memory.

Counted from the model's shape (`sim.model.spec`), whatever the latencies come from: matrix products
with their weights, activations in and out of them, attention over the KV cache. Norms, activations
and sampling, whose operations are few, are left out; so are drafts. Peaks that such counts are held
against: Williams, Waterman and Patterson, "Roofline", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.model.expert_routing import ExpertRouting
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Features:
    """What iterations compute, f8[n] each: tokens, rows of logits, the prefills and the decodes."""

    tokens: np.ndarray
    rows: np.ndarray
    prefill_tokens: np.ndarray
    prefill_pairs: np.ndarray  # (query, key) pairs, each query with the keys up to its own
    prefill_cached: np.ndarray  # tokens in the cache before, of the sequences that prefill
    decodes: np.ndarray
    context_tokens: np.ndarray  # attended to by the decodes, their own included


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations (a multiply-add is two) and bytes, f8[n]."""

    flops: np.ndarray
    moved_bytes: np.ndarray


class ModelWork:
    """Work of one GPU of an engine, the mean over the GPUs that share its tokens.

    A pipeline's stages take turns: the work is that of all stages, as if one GPU did it.
    """

    def __init__(
        self,
        model: ModelSpec,
        parallelism: Parallelism,
        *,
        routing: ExpertRouting | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        tp = parallelism.tensor_parallel
        self._model = model
        self._routing = routing
        if model.moe is not None and routing is None:
            chosen = model.moe.num_experts, model.moe.experts_per_token
            self._routing = ExpertRouting.uniform(*chosen)
        self._sharing = parallelism.dealt_ranks * parallelism.sequence_parallel
        self._together = parallelism.data_parallel
        self._context_ranks = parallelism.decode_context_parallel
        self._linear = model.linear_operations(tp)
        self._experts = model.expert_operations(tp)
        self._head = model.logits_operation(tp)
        groups = model.kv_groups(kv_cache_dtype, tp)
        self._bounded = [group for group in groups if group.limit is not None]
        self._cached_bytes = sum(group.bytes_per_token for group in groups)
        self._read_bytes = sum(group.index_bytes_per_token for group in groups)
        self._read_bytes += sum(g.read_bytes_per_token for g in groups if g.limit is None)
        self._state_flops, self._state_bytes = model.state_flops(tp), model.state_bytes(tp)
        self._pair_flops = model.prefill_attention_flops(tp)
        self._context_flops = model.decode_attention_flops(tp)
        # Latent attention prefills in expanded form: cached latents are expanded again.
        self._expansion_flops = 0
        if model.mla is not None:
            self._expansion_flops = sum(
                op.flops(1) for op in self._linear if op.name == "kv_b_proj"
            )

    def of(self, features: Features) -> Work:
        """Work of each of these iterations."""
        share = 1.0 / self._sharing
        tokens, rows = features.tokens * share, features.rows * share
        flops, moved = np.zeros(len(tokens)), np.zeros(len(tokens))
        for op, count in (*((op, tokens) for op in self._linear), (self._head, rows)):
            flops += op.flops(1) * count
            moved += op.weight_bytes + (op.bytes_moved(1) - op.weight_bytes) * count
        flops += self._pair_flops * features.prefill_pairs * share
        flops += self._expansion_flops * features.prefill_cached * share
        queries = np.maximum(features.tokens - features.prefill_tokens, features.decodes)
        each = queries / np.maximum(features.decodes, 1)
        flops += self._context_flops * features.context_tokens * each * share
        read = features.context_tokens / self._context_ranks
        read = read + features.prefill_cached + features.prefill_tokens
        written = features.tokens / self._context_ranks
        moved += (self._read_bytes * read + self._cached_bytes * written) * share
        for group in self._bounded:
            assert group.limit is not None
            # Sums do not tell each sequence's share: those of the mean, an upper bound.
            pairs = np.minimum(features.prefill_pairs, features.prefill_tokens * group.limit)
            seen = np.minimum(features.context_tokens, features.decodes * group.limit)
            flops += (group.pair_flops * pairs + group.context_flops * seen * each) * share
            fresh = np.minimum(features.prefill_cached, group.limit) + features.prefill_tokens
            moved += group.read_bytes_per_token * (seen + fresh) * share
        flops += self._state_flops * features.tokens * share
        moved += 2 * self._state_bytes * features.decodes * share
        moe = self._model.moe
        if moe is not None:
            assert self._routing is not None
            chosen = moe.experts_per_token / moe.num_experts
            # Ranks in lockstep share what all activate; counted as if all had as many tokens.
            together = self._together
            touched = self._routing.activated(features.tokens * together) / moe.num_experts
            touched = touched / together
            for op in self._experts:
                row_bytes = op.bytes_moved(1) - op.weight_bytes
                flops += op.flops(1) * chosen * tokens
                moved += op.weight_bytes * touched * share + row_bytes * chosen * tokens
        return Work(flops, moved)
