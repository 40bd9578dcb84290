"""`TableLatency`: an iteration's duration as a sum of measured parts.

Parts and features are those of DESIGN section 3: linear layers by tokens, attention by sequences
and contexts (`sim.latency.attention_table`), logits and sampling by rows, experts by tokens and
experts activated, all-reduce by bytes, host time by sequences, and what a layer costs beyond its
kernels (`sim.latency.refinement`). What depends on a single count is tabulated once; attention is
looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sim.batch import Batch
from sim.latency.attention_table import AttentionTable
from sim.latency.communication import all_gather_s, all_reduce_s, ring_all_reduce_s
from sim.latency.expert_table import ExpertTable
from sim.latency.grid import Line
from sim.latency.operators import by_class, operator_class
from sim.latency.padding import padded
from sim.latency.protocol import HostOverhead, Steps, looked_up
from sim.latency.refinement import Refinement
from sim.latency.table_data import LatencyTable
from sim.latency.table_lines import check_shape, measured_host, one_line
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Interconnect
from sim.model.spec import ModelSpec


class TableLatency:
    """Seconds of an iteration from a `LatencyTable`.

    `host` has to be given where the table measured none; None takes the table's part ``host``.
    `link_measured`: the interconnect's figures are an all-reduce's own α and β, not a datasheet's.
    `swapped_block_s` is the time to move one KV block over the host link, unless the table measured
    swapping blocks (of its own size, `block_size` scales them). Batches are padded to
    `capture_sizes`.

    `launch_s` above zero is the engine that Orcast itself runs: CUDA graphs for decodes alone, up
    to the largest captured size; every other batch is unpadded and launched kernel by kernel, which
    takes the host at least `launch_s`. Raises ValueError when the table is of another model shape
    or tensor-parallel degree.
    """

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
        host: HostOverhead | None,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        swapped_block_s: float = 0.0,
        block_size: int | None = None,
        capture_sizes: tuple[int, ...] = (),
        launch_s: float = 0.0,
        skew: bool = True,
    ) -> None:
        if table.tensor_parallel != tensor_parallel:
            raise ValueError(
                f"the table was measured at tensor_parallel {table.tensor_parallel}, "
                f"the scenario asks for {tensor_parallel}"
            )
        check_shape(table, model)
        self.table = table
        self.host = host or measured_host(table)
        self.label = table.label
        self.measured = table.basis != "analytic"
        self._model = model
        self._tensor_parallel = tensor_parallel
        self.parallel = tensor_parallel > 1
        self._ranks_per_node = ranks_per_node
        self.interconnect = interconnect
        self._link_measured = link_measured
        self._swapped_block_s = swapped_block_s
        self._swap: Line | None = None
        self._swap_scale = 1.0
        if "swap" in table.parts:
            self._swap = one_line(table.parts["swap"], "blocks")
            if block_size and table.block_size:
                self._swap_scale = block_size / table.block_size
        self._routing = routing
        self._skew = skew
        self._capture_sizes = capture_sizes
        self._launch_s = launch_s
        self._most_captured = max(capture_sizes, default=0)
        self._limits = (max_num_batched_tokens, max_num_seqs)
        self._host: Line | None = None
        if host is None and "host" in table.parts:
            self._host = one_line(table.parts["host"], "sequences")
        self.refine(Refinement.of(table.meta))

    def refine(self, refinement: Refinement) -> None:
        """Let the engine's constants beyond kernels be these, and tabulate anew."""
        self.refinement = refinement
        model, most_seqs = self._model, self._limits[1]
        table = refinement.paced(self.table)
        self._attention = AttentionTable(table, skew=self._skew)
        self.uses_longest = self._attention.skew is not None
        linear, logits = (table.parts[name].operations() for name in ("linear", "logits"))
        self._linear = [one_line(part, "tokens") for part in linear.values()]
        self._logits = [one_line(part, "sequences") for part in logits.values()]
        self._linear_classes = [operator_class(name, "layers") for name in linear]
        self._logits_classes = [operator_class(name, "logits") for name in logits]
        self._experts = None
        if model.moe is not None:
            self._experts = ExpertTable(table.parts["moe"], model, self._routing)
        if refinement.link_bytes_per_s is not None and refinement.link_latency_s is not None:
            self.interconnect = replace(
                self.interconnect,
                bytes_per_s=refinement.link_bytes_per_s,
                latency_s=refinement.link_latency_s,
            )
            self._link_measured = True
        if self._host is None:
            self.host = refinement.host(self.host)
        self._gap_s = tuple(
            refinement.gap_s(model.num_layers, prompts=prompts) for prompts in (False, True)
        )
        tokens = np.arange(self._limits[0] + 1)
        self._tokens_s: list[float] = self._total(self._token_parts_s, tokens).tolist()
        rows = np.arange(most_seqs + 1)
        self._rows_s: list[float] = self._total(self._row_parts_s, rows).tolist()
        self._most_tokens = min(line.last for line in self._linear)
        self._unpadded_s: list[float] = []
        if self._launch_s > 0.0:
            self._unpadded_s = self._total(self._unpadded_parts_s, tokens).tolist()
        self._host_s = [self._host_time_s(seqs) for seqs in range(most_seqs + 1)]

    # -- one iteration ------------------------------------------------------------------------

    def iteration_s(self, batch: Batch) -> float:
        """Seconds of one iteration; marks the batch where it leaves the measured range."""
        if self._launch_s > 0.0 and self._is_eager(batch):
            return self._eager_s(batch)
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
        decode_s = self._attention.decode_s
        eager = self._launch_s > 0.0 and self._is_eager(batch)
        fixed_s = 0.0 if eager else self._fixed_s(batch)
        batch.extrapolated = self._outside(batch)
        if not batch.extrapolated:
            # A run is wholly inside the measured range or wholly outside.
            inside = int(self._attention.longest * decodes - context) // decodes + 1
            iterations = min(iterations, inside)
        ends_s: list[float] = []
        if eager:
            kernels_s, besides_s = self._eager_parts_s(batch)
        for _ in range(iterations):
            if eager:
                start_s += self._launched(
                    kernels_s + decode_s(decodes, context, longest), besides_s
                )
            else:
                start_s += fixed_s + decode_s(decodes, context, longest)
            ends_s.append(start_s)
            if start_s >= until_s:
                break
            context += decodes
            longest += 1
        return ends_s

    def steps_s(self, batch: Batch) -> Steps:
        """Seconds of the iterations after one of decodes alone, each with a token more a sequence,
        and whether it leaves the measured range: what `iteration_s` would say, to the last bit."""
        decodes, context, longest = batch.num_decodes, batch.context_tokens, batch.longest_tokens
        eager = self._launch_s > 0.0 and self._is_eager(batch)
        kernels_s, besides_s = self._eager_parts_s(batch) if eager else (self._fixed_s(batch), 0.0)
        decode_s, most = self._attention.decode_s, self._attention.longest * decodes
        outside = self._outside(replace(batch, context_tokens=0))
        while True:
            context += decodes
            longest += 1
            step_s = kernels_s + decode_s(decodes, context, longest)
            yield self._launched(step_s, besides_s) if eager else step_s, outside or context > most

    def further_queries_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        """Decode attention with `query_tokens` in all, beyond one for each sequence."""
        return self._attention.further_s(num_decodes, context_tokens, query_tokens)

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Split recorded durations; attention is what the other parts leave."""
        parts = looked_up(self._token_parts_s, iterations["num_tokens"])
        if self._launch_s > 0.0:
            unpadded = looked_up(self._unpadded_parts_s, iterations["num_tokens"])
            eager = iterations["prefill_seqs"] > 0
            parts = {key: np.where(eager, unpadded[key], parts[key]) for key in parts}
        parts = _sum_of(parts, looked_up(self._row_parts_s, iterations["num_emitting"]))
        seqs = iterations["num_seqs"]
        parts["host"] = np.array([self._host_time_s(n) for n in range(seqs.max(initial=0) + 1)])[
            seqs
        ]
        if any(self._gap_s):
            gaps_s = np.array(self._gap_s)[(iterations["prefill_seqs"] > 0).astype(int)]
            parts["gaps"] = np.where(iterations["num_tokens"] > 0, gaps_s, 0.0)
        if iterations["swap_blocks"].any():
            blocks = iterations["swap_blocks"]
            swap_s = {n: self._swap_s(n) for n in np.unique(blocks).tolist()}
            parts["swap"] = np.array([swap_s[n] for n in blocks.tolist()])
        known_s = sum(parts.values())
        rest_s = np.maximum(iterations["duration_s"] - known_s, 0.0)
        if self._launch_s > 0.0:
            besides_s = parts["host"] + parts.get("swap", 0.0) + parts.get("gaps", 0.0)
            waited = np.isclose(iterations["duration_s"] - besides_s, self._launch_s, rtol=1e-9)
            parts["launch"] = np.where(waited, rest_s, 0.0)
            rest_s = rest_s - parts["launch"]
        parts["attention"] = rest_s
        return parts

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`parts_s` by class of operation, as far as the table timed operations apart."""
        parts = self.parts_s(iterations)
        classes = {"attention": parts["attention"]}
        linear = looked_up(self._padded_classes_s, iterations["num_tokens"])
        if self._launch_s > 0.0:
            unpadded = looked_up(self._unpadded_classes_s, iterations["num_tokens"])
            eager = iterations["prefill_seqs"] > 0
            linear = {key: np.where(eager, unpadded[key], linear[key]) for key in linear}
        rows = looked_up(self._row_classes_s, iterations["num_emitting"])
        for name in (*linear, *rows):
            classes[name] = np.add(linear.get(name, 0.0), rows.get(name, 0.0))
        others = {"moe": "experts", "communication": "all_reduce"}
        for part in ("moe", "communication", "swap", "host", "launch"):
            if part in parts:
                classes[others.get(part, part)] = parts[part]
        if "gaps" in parts:
            classes["launch"] = classes.get("launch", 0.0) + parts["gaps"]
        return classes

    def _padded_classes_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return self._unpadded_classes_s(tokens, self._padded(tokens))

    def _unpadded_classes_s(
        self, tokens: np.ndarray, computed: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        rows = tokens if computed is None else computed
        return by_class(self._linear, self._linear_classes, rows, tokens > 0)

    def _row_classes_s(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return by_class(self._logits, self._logits_classes, rows, rows > 0)

    def batch_parts_s(self, batch: Batch) -> dict[str, float]:
        """One iteration's seconds by part, as if nothing was padded or waited for its launch."""
        parts = self._unpadded_parts_s(np.array([batch.num_tokens]))
        parts = _sum_of(parts, self._row_parts_s(np.array([batch.num_emitting])))
        times_s = {key: float(values[0]) for key, values in parts.items()}
        if batch.prefills:
            times_s["prefill_attention"] = self._attention.prefills_s(
                batch.prefills, batch.num_decodes, batch.context_tokens
            )
        if batch.num_decodes:
            times_s["decode_attention"] = self._attention.decode_s(
                batch.num_decodes, batch.context_tokens, batch.longest_tokens
            )
        return times_s

    def experts_s(self, tokens: int, experts: int) -> float:
        """The mixture of experts at so many activated experts. ValueError for a dense model."""
        if self._experts is None:
            raise ValueError(f"{self._model.name} has no experts")
        return self._experts.at(tokens, experts)

    # -- parts --------------------------------------------------------------------------------

    def _fixed_s(self, batch: Batch) -> float:
        """All but attention."""
        num_tokens = batch.padded_tokens or batch.num_tokens
        try:
            duration_s = self._tokens_s[num_tokens]
        except IndexError:
            duration_s = float(self._total(self._token_parts_s, np.array([num_tokens]))[0])
        try:
            duration_s += self._rows_s[batch.num_emitting]
        except IndexError:
            duration_s += float(self._total(self._row_parts_s, np.array([batch.num_emitting]))[0])
        try:
            duration_s += self._host_s[batch.num_seqs]
        except IndexError:
            duration_s += self._host_time_s(batch.num_seqs)
        if batch.num_tokens:
            duration_s += self._gap_s[bool(batch.prefills)]
        if batch.swap_in_blocks or batch.swap_out_blocks:
            duration_s += self._swap_s(batch.swap_in_blocks + batch.swap_out_blocks)
        return duration_s

    def host_s(self, num_seqs: int) -> float:
        """Host time of an iteration of so many sequences."""
        return self._host_time_s(num_seqs)

    def _host_time_s(self, num_seqs: int) -> float:
        if self._host is not None:
            return self._host(num_seqs)
        return self.host.per_iteration_s + num_seqs * self.host.per_sequence_s

    def _swap_s(self, blocks: int) -> float:
        if self._swap is None or not blocks:
            return self._swapped_block_s * blocks
        return self._swap(blocks * self._swap_scale)

    # -- kernels launched one by one --------------------------------------------------------------

    def _is_eager(self, batch: Batch) -> bool:
        return launched_one_by_one(batch, self._most_captured)

    def _eager_s(self, batch: Batch) -> float:
        kernels_s, besides_s = self._eager_parts_s(batch)
        if batch.prefills:
            kernels_s += self._attention.prefills_s(
                batch.prefills, batch.num_decodes, batch.context_tokens
            )
        if batch.num_decodes:
            kernels_s += self._attention.decode_s(
                batch.num_decodes, batch.context_tokens, batch.longest_tokens
            )
        batch.extrapolated = self._outside(batch)
        return self._launched(kernels_s, besides_s)

    def _launched(self, kernels_s: float, besides_s: float) -> float:
        """The GPU waits for the host where launching takes longer than computing."""
        return max(kernels_s, self._launch_s) + besides_s

    def _eager_parts_s(self, batch: Batch) -> tuple[float, float]:
        """Kernels but attention, and what comes on top of the kernels."""
        try:
            kernels_s = self._unpadded_s[batch.num_tokens]
        except IndexError:
            count = np.array([batch.num_tokens])
            kernels_s = float(self._total(self._unpadded_parts_s, count)[0])
        kernels_s += float(self._total(self._row_parts_s, np.array([batch.num_emitting]))[0])
        besides_s = self._host_time_s(batch.num_seqs)
        if batch.num_tokens:
            besides_s += self._gap_s[bool(batch.prefills)]
        if batch.swap_in_blocks or batch.swap_out_blocks:
            besides_s += self._swap_s(batch.swap_in_blocks + batch.swap_out_blocks)
        return kernels_s, besides_s

    # -- by counts --------------------------------------------------------------------------------

    @staticmethod
    def _total(
        parts_of: Callable[[np.ndarray], dict[str, np.ndarray]], counts: np.ndarray
    ) -> np.ndarray:
        total: np.ndarray = np.sum(list(parts_of(counts).values()), axis=0)
        return total

    def _token_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return self._computed_parts_s(tokens, self._padded(tokens))

    def _unpadded_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return self._computed_parts_s(tokens, tokens)

    def _computed_parts_s(self, tokens: np.ndarray, padded: np.ndarray) -> dict[str, np.ndarray]:
        computed = tokens > 0
        parts = {"linear": sum(line.many(padded) for line in self._linear) * computed}
        if self._experts is not None:
            parts["moe"] = self._experts.many(padded) * computed
        if self._tensor_parallel > 1:
            parts["communication"] = self._all_reduce_s(padded) * computed
        return parts

    def _row_parts_s(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        parts = {"logits": sum(line.many(rows) for line in self._logits) * (rows > 0)}
        if self._tensor_parallel > 1:  # every rank has logits of a share of the vocabulary
            parts["communication"] = all_gather_s(
                rows * self._model.vocab_size * 2.0, self._tensor_parallel, self.interconnect,
                ranks_per_node=self._ranks_per_node,
            )  # fmt: skip
        return parts

    def _padded(self, tokens: np.ndarray) -> np.ndarray:
        return padded(tokens, self._capture_sizes)

    def _all_reduce_s(self, tokens: np.ndarray) -> np.ndarray:
        """Two sums over all ranks a layer, and the embedding's, of 16-bit activations."""
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
            one = ring_all_reduce_s(size, ranks, self.interconnect)
        else:
            one = all_reduce_s(size, ranks, self.interconnect, ranks_per_node=self._ranks_per_node)
        return (self._model.num_reductions + 1) * one

    def _outside(self, batch: Batch) -> bool:
        """Whether a feature lies beyond what was measured."""
        attention = self._attention
        if (batch.padded_tokens or batch.num_tokens) > self._most_tokens:
            return True
        decodes = batch.num_decodes
        if decodes and (
            decodes > attention.most_seqs or batch.context_tokens > attention.longest * decodes
        ):
            return True
        if decodes and batch.prefills:
            most, longest = attention.most_beside
            if decodes > most or batch.context_tokens > longest * decodes:
                return True
        new, cached = attention.most_new, attention.most_cached
        return any(
            chunk.new_tokens > new or chunk.cached_tokens > cached for chunk in batch.prefills
        )


def _sum_of(
    parts: dict[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Seconds by part, of both."""
    return {**parts, **{name: parts.get(name, 0.0) + each for name, each in others.items()}}


def launched_one_by_one(batch: Batch, most_captured: int) -> bool:
    """Whether the engine launches a batch kernel by kernel: its graphs are of decodes alone.

    `most_captured`: the largest batch that one is captured for; 0 without any.
    """
    return bool(batch.prefills) or batch.num_tokens > most_captured
