"""`TableLatency`: an iteration's duration as a sum of measured parts.

Parts and features are those of DESIGN section 3: linear layers by tokens, attention by sequences
and contexts (`sim.latency.attention_table`), logits and sampling by rows, experts by tokens and
experts activated, all-reduce by bytes, host time by sequences. What depends on a single count is
tabulated once; attention is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sim.batch import Batch
from sim.expert_routing import ExpertRouting
from sim.hardware import Interconnect
from sim.latency.attention_table import AttentionTable
from sim.latency.communication import all_reduce_s, ring_all_reduce_s
from sim.latency.grid import Line, bracket, filled_grid
from sim.latency.protocol import HostOverhead, looked_up
from sim.latency.table_data import LatencyTable, Part
from sim.model_spec import ModelSpec


class TableLatency:
    """Seconds of an iteration from a `LatencyTable`.

    `host` has to be given where the table measured none. `link_measured`: the interconnect's
    figures are an all-reduce's own α and β, not a datasheet's. `swapped_block_s` is the time to
    move one KV block over the host link. Batches are padded to `capture_sizes`. Raises ValueError
    when the table is of another model shape or tensor-parallel degree.
    """

    measured = True

    def __init__(
        self,
        table: LatencyTable,
        model: ModelSpec,
        *,
        tensor_parallel: int = 1,
        ranks_per_node: int | None = None,
        routing: ExpertRouting | None = None,
        interconnect: Interconnect,
        link_measured: bool = False,
        host: HostOverhead,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        swapped_block_s: float = 0.0,
        capture_sizes: tuple[int, ...] = (),
        skew: bool = True,
    ) -> None:
        if table.tensor_parallel != tensor_parallel:
            raise ValueError(
                f"the table was measured at tensor_parallel {table.tensor_parallel}, "
                f"the scenario asks for {tensor_parallel}"
            )
        _check_shape(table, model)
        self.table = table
        self.host = host
        self.label = f"table: {table.source}"
        self._model = model
        self._tensor_parallel = tensor_parallel
        self._ranks_per_node = ranks_per_node
        self._interconnect = interconnect
        self._link_measured = link_measured
        self._swapped_block_s = swapped_block_s
        self._attention = AttentionTable(table, skew=skew)
        self.uses_longest = self._attention.skew is not None
        self._linear = [
            Line(part.coordinates["tokens"][order].tolist(), part.time_s[order].tolist())
            for part in table.parts["linear"].operations().values()
            for order in [np.argsort(part.coordinates["tokens"])]
        ]
        self._logits = [
            Line(part.coordinates["sequences"][order].tolist(), part.time_s[order].tolist())
            for part in table.parts["logits"].operations().values()
            for order in [np.argsort(part.coordinates["sequences"])]
        ]
        self._experts = None
        if model.moe is not None:
            self._experts = ExpertTable(table.parts["moe"], model, routing)
        self._capture_sizes = capture_sizes
        tokens = np.arange(max_num_batched_tokens + 1)
        self._tokens_s: list[float] = self._total(self._token_parts_s, tokens).tolist()
        rows = np.arange(max_num_seqs + 1)
        self._rows_s: list[float] = self._total(self._row_parts_s, rows).tolist()
        self._most_tokens = min(line.last for line in self._linear)

    # -- one iteration ------------------------------------------------------------------------

    def iteration_s(self, batch: Batch) -> float:
        """Seconds of one iteration; marks the batch where it leaves the measured range."""
        duration_s = self._fixed_s(batch)
        if batch.prefills:
            duration_s += self._attention.prefills_s(
                batch.prefills, batch.num_decodes, batch.context_tokens
            )
        if batch.num_decodes:
            duration_s += self._attention.decode_s(
                batch.num_decodes, batch.context_tokens, batch.longest_tokens
            )
        batch.extrapolated = self._outside(batch)
        return duration_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """When each of up to `iterations` decode iterations ends (see `LatencyModel`)."""
        decodes, context = batch.num_decodes, batch.context_tokens
        longest = batch.longest_tokens
        fixed_s, decode_s = self._fixed_s(batch), self._attention.decode_s
        batch.extrapolated = self._outside(batch)
        if not batch.extrapolated:
            # A run is wholly inside the measured range or wholly outside.
            inside = int(self._attention.decode.longest * decodes - context) // decodes + 1
            iterations = min(iterations, inside)
        ends_s: list[float] = []
        for _ in range(iterations):
            start_s += fixed_s + decode_s(decodes, context, longest)
            ends_s.append(start_s)
            if start_s >= until_s:
                break
            context += decodes
            longest += 1
        return ends_s

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Split recorded durations; attention is what the other parts leave."""
        parts = looked_up(self._token_parts_s, iterations["num_tokens"])
        parts |= looked_up(self._row_parts_s, iterations["num_emitting"])
        host_s = self.host.per_iteration_s + self.host.per_sequence_s * iterations["num_seqs"]
        parts["host"] = host_s
        if iterations["swap_blocks"].any():
            parts["swap"] = self._swapped_block_s * iterations["swap_blocks"]
        known_s = sum(parts.values())
        parts["attention"] = np.maximum(iterations["duration_s"] - known_s, 0.0)
        return parts

    # -- parts --------------------------------------------------------------------------------

    def _fixed_s(self, batch: Batch) -> float:
        """All but attention."""
        try:
            duration_s = self._tokens_s[batch.num_tokens]
        except IndexError:
            duration_s = float(self._total(self._token_parts_s, np.array([batch.num_tokens]))[0])
        try:
            duration_s += self._rows_s[batch.num_emitting]
        except IndexError:
            duration_s += float(self._total(self._row_parts_s, np.array([batch.num_emitting]))[0])
        duration_s += self.host.per_iteration_s + batch.num_seqs * self.host.per_sequence_s
        if batch.swap_in_blocks or batch.swap_out_blocks:
            duration_s += self._swapped_block_s * (batch.swap_in_blocks + batch.swap_out_blocks)
        return duration_s

    @staticmethod
    def _total(
        parts_of: Callable[[np.ndarray], dict[str, np.ndarray]], counts: np.ndarray
    ) -> np.ndarray:
        total: np.ndarray = np.sum(list(parts_of(counts).values()), axis=0)
        return total

    def _token_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        padded = self._padded(tokens)
        computed = tokens > 0
        parts = {"linear": sum(line.many(padded) for line in self._linear) * computed}
        if self._experts is not None:
            parts["moe"] = self._experts.many(padded) * computed
        if self._tensor_parallel > 1:
            parts["communication"] = self._all_reduce_s(padded) * computed
        return parts

    def _row_parts_s(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": sum(line.many(rows) for line in self._logits) * (rows > 0)}

    def _padded(self, tokens: np.ndarray) -> np.ndarray:
        """CUDA graphs replay at captured sizes; beyond the largest, kernels launch eagerly."""
        if not self._capture_sizes:
            return tokens
        sizes = np.array(self._capture_sizes)
        slot = np.searchsorted(sizes, tokens)
        return np.where(slot < len(sizes), sizes[np.minimum(slot, len(sizes) - 1)], tokens)

    def _all_reduce_s(self, tokens: np.ndarray) -> np.ndarray:
        """Two sums over all ranks a layer, of the layer's activations (16 bits each)."""
        part = self.table.parts.get("communication")
        size = tokens * self._model.hidden_size * 2
        ranks = self._tensor_parallel
        if part is not None:
            rows = part.coordinates["ranks"] == ranks
            order = np.argsort(part.coordinates["bytes"][rows])
            one = Line(
                part.coordinates["bytes"][rows][order].tolist(),
                part.time_s[rows][order].tolist(),
            ).many(size)
        elif self._link_measured and ranks <= (self._ranks_per_node or ranks):
            one = ring_all_reduce_s(size, ranks, self._interconnect)
        else:
            one = all_reduce_s(size, ranks, self._interconnect, ranks_per_node=self._ranks_per_node)
        return 2 * self._model.num_layers * one

    def _outside(self, batch: Batch) -> bool:
        """Whether a feature lies beyond what was measured."""
        attention = self._attention
        if batch.num_tokens > self._most_tokens:
            return True
        decodes = batch.num_decodes
        if decodes and (
            decodes > attention.decode.most_seqs
            or batch.context_tokens > attention.decode.longest * decodes
        ):
            return True
        new, cached = attention.prefill.longest
        return any(
            chunk.new_tokens > new or chunk.cached_tokens > cached for chunk in batch.prefills
        )


class ExpertTable:
    """Seconds of a mixture of experts by tokens, at the experts that these activate on average.

    Raises ValueError where routing is not uniform and the table has one number of experts only:
    its times then have the routing of the measurement in them.
    """

    def __init__(self, part: Part, model: ModelSpec, routing: ExpertRouting | None = None) -> None:
        assert model.moe is not None
        chosen = model.moe.num_experts, model.moe.experts_per_token
        self._routing = ExpertRouting.uniform(*chosen) if routing is None else routing
        if routing is not None and len(np.unique(part.coordinates["experts"])) < 2:
            raise ValueError(
                "the table's expert times are of the routing they were measured with: experts may "
                "be set where several numbers of activated experts were measured, or with source "
                "roofline"
            )
        self._axes, self._grid = filled_grid(
            [part.coordinates["tokens"], part.coordinates["experts"]], part.time_s
        )

    def many(self, tokens: np.ndarray) -> np.ndarray:
        """Times for these token counts."""
        return np.array([self._one(int(count)) for count in tokens.tolist()])

    def _one(self, tokens: int) -> float:
        activated = float(self._routing.activated(np.array([tokens]))[0])
        low, high, share = bracket(self._axes[1], activated)
        column = self._grid[:, low] + share * (self._grid[:, high] - self._grid[:, low])
        return Line(self._axes[0], column.tolist())(tokens)


def _check_shape(table: LatencyTable, model: ModelSpec) -> None:
    """A table is of one model shape; ValueError naming the first figure that differs."""
    ours = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
    }
    for key, value in ours.items():
        measured = table.meta["model"][key]
        if measured != value:
            raise ValueError(
                f"the table was measured for a model with {key} {measured}, "
                f"{model.name} has {value}"
            )
