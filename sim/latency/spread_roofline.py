"""The roofline where ranks share out tokens: expert and sequence parallelism.

One iteration, on the slowest of its ranks:

    expert parallel    sequences are dealt out to e ranks, each a group with attention weights of
                       its own. As evenly as whole prompts allow: a group computes the larger of
                       tokens / e and the longest chunk. Experts are split: the iteration waits for
                       the rank that was sent most rows (`ExpertRouting.slowest_rank_load`), and
                       for two all-to-alls a layer
    sequence parallel  a group's tokens are split over s ranks, whatever belongs to whom
        ulysses        attention has heads / s of all tokens; four all-to-alls a layer
        ring           attention has all heads of tokens / s; keys and values go round, hidden
                       behind attention as far as that lasts. A decode's query goes to where its
                       context is instead, and partial outputs come back (pass-Q)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.communication import all_gather_s, all_to_all_s, send_s
from sim.latency.protocol import looked_up
from sim.latency.roofline import RooflineLatency
from sim.latency.traffic import decode_exchange_bytes, ulysses_widths
from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, ModelSpec


class SpreadRoofline(RooflineLatency):
    """`RooflineLatency` of a stage whose tokens are shared out among ranks."""

    def __init__(
        self,
        model: ModelSpec,
        gpu: Gpu,
        *,
        parallelism: Parallelism,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        kv_cache_dtype: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(
            model,
            gpu,
            parallelism=parallelism,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            kv_cache_dtype=kv_cache_dtype,
            **settings,
        )
        self._ranks = parallelism.expert_parallel
        self._split = parallelism.sequence_parallel
        self._ring = self._split > 1 and parallelism.sequence_kind == "ring"
        # Keys and values go round at the pace of the slowest hop.
        ring_spans_nodes = parallelism.sequence_per_node < self._split
        links = self._interconnect
        self._ring_link = links.between_nodes if ring_spans_nodes else links
        tp = parallelism.tensor_parallel
        groups = model.kv_groups(kv_cache_dtype, tp)
        self._layer_kv_bytes = sum(group.bytes_per_token for group in groups) / model.num_layers

        # Of all ranks together, where base has one GPU's: contexts are split either way.
        self._per_context_s /= self._split * self._ranks
        self._per_swapped_block_s /= self._split * self._ranks
        if self._beside is not None:
            ranks = self._split * self._ranks
            self._beside = self._beside.shared(ranks, split=self._split)
        if not self._ring:
            self._per_decode_s -= self._per_query_s * (1 - 1 / self._split)

        tokens = np.arange(max_num_batched_tokens + 1)
        self._shared_s: list[float] = _total(self._shared_parts_s(tokens)).tolist()
        self._exchange_s: list[float] = self._decode_exchange_s(
            np.arange(max_num_seqs + 1)
        ).tolist()

    def rank_tokens(self, batch: Batch) -> int:
        """Tokens that the slowest GPU puts through its matrix products."""
        return -(-self._group_tokens(batch) // self._split)

    def host_s(self, num_seqs: int) -> float:
        """Host time of an iteration: each rank's host prepares the sequences dealt out to it."""
        return self._host_s + -(-num_seqs // self._ranks) * self._host_per_sequence_s

    def iteration_s(self, batch: Batch) -> float:
        duration_s = self._fixed_s(batch)
        if batch.num_decodes:
            decodes = -(-batch.num_decodes // self._ranks)
            context = batch.context_tokens
            attention_s = decodes * self._per_decode_s + context * self._per_context_s
            if self._beside is not None:
                attention_s += self._beside.decode_s(batch.num_decodes, context)
            duration_s += attention_s
        return duration_s

    def further_queries_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        """As of one GPU, on the ranks that sequences are dealt out to (not of split sequences)."""
        scored_s = query_tokens / num_decodes * self._per_scored_s / self._ranks
        beyond_s = context_tokens * max(scored_s - self._per_context_s, 0.0)
        further = -(-(query_tokens - num_decodes) // self._ranks)
        return further * self._per_query_s + beyond_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """When each of up to `iterations` decode iterations ends (see `LatencyModel`)."""
        context = batch.context_tokens
        fixed_s = self._fixed_s(batch)
        per_decode_s = -(-batch.num_decodes // self._ranks) * self._per_decode_s
        ends_s: list[float] = []
        for _ in range(iterations):
            attention_s = per_decode_s + context * self._per_context_s
            if self._beside is not None:
                attention_s += self._beside.decode_s(batch.num_decodes, context)
            start_s += fixed_s + attention_s
            ends_s.append(start_s)
            if start_s >= until_s:
                break
            context += batch.num_decodes
        return ends_s

    def known_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Records have prompts' tokens summed up: which one was longest, and so what the slowest
        group computed, is a lower bound where several were in a batch. Attention gets the rest."""
        num_tokens = iterations["num_tokens"]
        parts = looked_up(self._token_parts_s, self._recorded_group(iterations))
        shared = looked_up(self._shared_parts_s, num_tokens)
        rows = looked_up(self._row_parts_s, self._rank_share(iterations["num_emitting"]))
        parts["logits"] = rows["logits"]
        parts["communication"] = (
            parts["communication"]
            + shared.pop("communication")
            + rows["communication"]
            + self._decode_exchange_s(iterations["decode_seqs"])
        )
        parts |= shared
        hosted = -(-iterations["num_seqs"] // self._ranks)
        parts["host"] = self._host_s + self._host_per_sequence_s * hosted
        if iterations["swap_blocks"].any():
            parts["swap"] = self._per_swapped_block_s * iterations["swap_blocks"]
        return parts

    def _recorded_group(self, iterations: Mapping[str, np.ndarray]) -> np.ndarray:
        """Tokens of the fullest group, as far as records tell."""
        prompts = np.maximum(iterations["prefill_seqs"], 1)
        longest = -(-iterations["prefill_tokens"] // prompts)
        return np.asarray(np.maximum(-(-iterations["num_tokens"] // self._ranks), longest))

    def _within_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        on_gpu = -(-self._recorded_group(iterations) // self._split)
        rows = looked_up(self._sampling_parts_s, self._rank_share(iterations["num_emitting"]))
        shared = looked_up(self._shared_parts_s, iterations["num_tokens"])["communication"]
        gathered, returned = self._decode_exchange_parts_s(iterations["decode_seqs"])
        layers = self.model.num_layers
        exchanged = looked_up(self._ulysses_parts_s, on_gpu)["ulysses"] + layers * returned
        return {
            "elementwise": looked_up(self._elementwise_parts_s, on_gpu)["elementwise"],
            "sampling": rows["sampling"],
            "all_to_all": shared + exchanged,
            "gather_and_send": rows["gather_and_send"] + layers * gathered,
        }

    # -- one iteration --------------------------------------------------------------------------

    def _fixed_s(self, batch: Batch) -> float:
        num_tokens = batch.num_tokens
        group, rows = self._group_tokens(batch), -(-batch.num_emitting // self._num_ranks)
        try:
            duration_s = self._tokens_s[group] + self._shared_s[num_tokens]
        except IndexError:
            duration_s = self._beyond_token_table(group)
            duration_s += float(_total(self._shared_parts_s(np.array([num_tokens])))[0])
        try:
            duration_s += self._logits_s[rows] + self._exchange_s[batch.num_decodes]
        except IndexError:
            duration_s += self._beyond_row_table(rows)
            duration_s += float(self._decode_exchange_s(np.array([batch.num_decodes]))[0])
        duration_s += -(-batch.num_seqs // self._ranks) * self._host_per_sequence_s
        if batch.prefills:
            each_s = [self._prefill_s(c.new_tokens, c.cached_tokens) for c in batch.prefills]
            duration_s += max(sum(each_s) / self._ranks, max(each_s))
        if batch.swap_in_blocks or batch.swap_out_blocks:
            blocks = batch.swap_in_blocks + batch.swap_out_blocks
            duration_s += blocks * self._per_swapped_block_s
        return duration_s

    def _group_tokens(self, batch: Batch) -> int:
        """Tokens of the fullest group of the expert-parallel ranks."""
        if self._ranks == 1:
            return batch.num_tokens
        longest = max((chunk.new_tokens for chunk in batch.prefills), default=0)
        return max(-(-batch.num_tokens // self._ranks), longest)

    @property
    def _num_ranks(self) -> int:
        return self._ranks * self._split

    def _group(self, ranks_per_node: int) -> dict[str, Any]:
        return {"ranks_per_node": ranks_per_node, "link_efficiency": self._link_efficiency}

    def _rank_share(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(-(-counts // self._num_ranks))

    def _prefill_s(self, new: int, cached: int) -> float:
        """Attention of one chunk in its group."""
        split, keys = self._split, cached + new
        compute_s = new * (cached + 0.5 * (new + 1)) * self._per_pair_s / split
        expand_s = cached * self._per_expanded_s
        query_s = new * self._per_whole_query_s / split
        if self._beside is not None:
            expand_s += self._beside.prefill_s(new, cached)
        if not self._ring:
            return max(compute_s, keys * self._per_key_s / split + query_s) + expand_s
        attention_s = max(compute_s, keys * self._per_key_s + query_s)
        # Each of the ring's passes hides behind one of its s steps of attention.
        layers = self.model.num_layers
        block_bytes = np.array([keys / split * self._layer_kv_bytes])
        pass_s = float(
            send_s(block_bytes, self._ring_link, link_efficiency=self._link_efficiency)[0]
        )
        exposed_s = max(pass_s - attention_s / (layers * split), 0.0)
        return attention_s + layers * (split - 1) * exposed_s + expand_s

    # -- what depends on counts -----------------------------------------------------------------

    def _token_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """By the tokens of a group: all but experts, their exchange and attention."""
        split = self.parallelism.sequence_parallel
        on_gpu = -(-tokens // split)
        parts = super()._token_parts_s(on_gpu)
        parts.pop("moe", None)
        for exchange_s in self._ulysses_s(on_gpu):
            parts["communication"] = parts["communication"] + exchange_s
        return parts

    def _ulysses_s(self, on_gpu: np.ndarray) -> list[np.ndarray]:
        """The exchanges of all layers, by what is exchanged; none without Ulysses."""
        parallelism, model = self.parallelism, self.model
        split = parallelism.sequence_parallel
        if split < 2 or parallelism.sequence_kind != "ulysses":
            return []
        group = self._group(parallelism.sequence_per_node)
        return [
            model.num_layers
            * all_to_all_s(
                on_gpu * float(width * DTYPE_BYTES[model.dtype]), split, self._interconnect, **group
            )
            for width in ulysses_widths(model, parallelism.tensor_parallel).values()
        ]

    def _ulysses_parts_s(self, on_gpu: np.ndarray) -> dict[str, np.ndarray]:
        return {"ulysses": sum(self._ulysses_s(on_gpu), np.zeros(len(on_gpu)))}

    def _shared_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """By the tokens of all groups: experts, and the way to them and back."""
        zero = np.zeros(len(tokens))
        moe = self.model.moe
        if moe is None:
            return {"communication": zero}
        # Ranks of one place in their groups exchange their tokens / s.
        sliced = np.ceil(tokens / self._split)
        rows = self.routing.slowest_rank_load(sliced, self._ranks)
        held = rows * self.model.hidden_size * DTYPE_BYTES[self.model.dtype]
        exchange = zero
        if self._ranks > 1:
            exchange = (2 * moe.num_layers) * all_to_all_s(
                held, self._ranks, self._interconnect,
                **self._group(self.parallelism.expert_per_node),
            )  # fmt: skip
        return {
            "moe": np.where(tokens > 0, self._slowest_experts_s(sliced, rows), 0.0),
            "communication": exchange,
        }

    def _slowest_experts_s(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Products of the rank with most rows, weights of the rank with most experts activated."""
        moe = self.model.moe
        assert moe is not None
        held = moe.num_experts // self._ranks
        touched = self.routing.activated_on_slowest_rank(tokens, self._ranks) / held
        return self._grouped_s(self._ranks, rows / held, touched)

    def _decode_exchange_s(self, decodes: np.ndarray) -> np.ndarray:
        """Ring: queries to all ranks of the group and partial outputs back, all layers."""
        gathered, returned = self._decode_exchange_parts_s(decodes)
        return np.asarray(self.model.num_layers * (gathered + returned))

    def _decode_exchange_parts_s(self, decodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one layer: there, an all-gather; and back, an all-to-all."""
        if not self._ring:
            return np.zeros(len(decodes)), np.zeros(len(decodes))
        queries, outputs = decode_exchange_bytes(self.model, self.tensor_parallel)
        on_group = np.ceil(decodes / self._ranks)
        group = self._group(self.parallelism.sequence_per_node)
        gathered = all_gather_s(on_group * queries, self._split, self._interconnect, **group)
        returned = all_to_all_s(on_group * outputs, self._split, self._interconnect, **group)
        return gathered, returned


def _total(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(np.sum(list(parts.values()), axis=0))
