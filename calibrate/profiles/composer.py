"""A model's iteration as a sum of kernels, part by part: measured, or analytic where nobody did.

    linear             products of every layer, on the package's numbers of rows
    logits             the vocabulary's product
    prefill_attention  one prompt, on the package's lengths; behind a cached prefix composed
    decode_attention   on the package's batches and contexts
    bounded_…          the same of windows, the best few and states: `layer_kernels`
    moe                routed experts, gating and activation included
    communication      all-reduce inside a CUDA graph, NCCL's where there is no other

Every part remembers its origin: ``measured``; ``estimated`` from measurements of something else;
``analytic``, the roofline's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from calibrate.profiles.analytic_parts import AnalyticParts
from calibrate.profiles.attention_kernels import Grid
from calibrate.profiles.cached_prefixes import behind_prefixes
from calibrate.profiles.expert_kernels import experts_us
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, Points
from calibrate.profiles.layer_kernels import STATE, LayerKernels, kernels_of
from calibrate.profiles.matrix_products import WRITTEN_SCALED, Products, products_of
from calibrate.profiles.precision import Format, expert_formats, weight_format
from sim.latency.roofline import ELEMENTWISE_OVERHEAD_S
from sim.latency.sampling import sampling_s
from sim.model.layers import Mixer
from sim.model.matrix import Share
from sim.model.spec import LinearOperation, ModelSpec

# Small kernels last as long as their launch or their bytes, whichever is longer. Half of the bytes
# where a kernel's fit the last cache, which has what the kernel before wrote; all where they are
# half as many again. In the profiles of an RTX 4090 and an RTX PRO 6000 the activation of
# Llama-3.1-8B moves 0.29 to 0.60 of its bytes at the memory's rate below 0.7 of their caches, 0.76
# to 0.86 above 1.2.
NORM_KERNELS = 2  # each with the residual; and one of the activation
ROTARY_KERNELS = 1  # with the cache write
QK_NORM_KERNELS = 2  # of queries and of keys, before the rotary embedding
CACHE_MISSES = 0.5
CACHE_OVERRUN = 1.5  # of the last cache, from where on it has nothing of use
LAST_CACHE_BYTES = {89: 48e6, 90: 50e6, 100: 126e6, 103: 126e6, 120: 128e6}  # by SM: data sheets
LEAST_CACHE_BYTES = 40e6  # an A100's
VALUE_BYTES = 2  # of what is summed over ranks

# Of every sum over ranks: an engine's come to it one after the other, those timed alone together.
# vLLM's from its serving points of Llama-3.1-70B in fp8 on H100 with 4 and 8 in flight (prompts of
# 1,024 tokens, 161 sums): 0.73 to 1.45 ms a step, median 1.12, at tensor parallel 2, 4 and 8 alike.
# TensorRT-LLM's from its points of Llama-3.1-8B (65 sums) and Qwen3-32B (129) there, with 8 and 16
# in flight, by what tensor parallel 2, 4 and 8 took longer than 1: medians of 3 to 6 a group, -1 to
# 6. Engines of which no point was looked at are ASSUMED to wait as long as TensorRT-LLM.
RANKS_WAIT_US = {"vllm": 6.9, "trtllm": 5.0}
OTHERS_WAIT_US = 5.0

FAMILIES = {
    "linear": "gemm",
    "logits": "gemm",
    "prefill_attention": "attention",
    "decode_attention": "attention",
    "moe": "moe",
    "communication": "comm",
}
WORST = ("measured", "estimated", "analytic")
T = TypeVar("T")
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a part's times come from; `how` says what stands for what, or why it is analytic."""

    kind: Literal["measured", "estimated", "analytic"]
    by: str
    how: str | None = None

    def as_dict(self) -> dict[str, str]:
        told = {"origin": self.kind, "by": self.by}
        return told if self.how is None else {**told, "how": self.how}


class Composer:
    """The parts of one model's table from one set of kernel tables. Times in µs, whole model.

    What is not measured is taken from `analytic`, or raises NotMeasured without one. Kernels that
    `stands_for` names another engine's are estimates of that one's. With `expert_ranks` above 1
    experts are whole and shared out to so many GPUs, data-parallel ones too: times are those of the
    GPU that is sent most rows, by the tokens of all.
    """

    def __init__(
        self,
        tables: KernelTables,
        model: ModelSpec,
        *,
        tensor_parallel: int,
        number_format: Format,
        kv_dtype: str,
        routing: str,
        expert_ranks: int = 1,
        analytic: AnalyticParts | None = None,
        stands_for: str | None = None,
    ) -> None:
        self.tables, self.model, self.tensor_parallel = tables, model, tensor_parallel
        self.number_format, self._kv_dtype, self._routing = number_format, kv_dtype, routing
        self._analytic, self.stands_for = analytic, stands_for
        self.expert_ranks = expert_ranks
        bandwidth = tables.system.bytes_per_s * tables.system.memory_efficiency
        self._us_per_byte = 1e6 / bandwidth
        self._products: dict[str, Products] = {}
        self.origins: dict[str, Origin] = {}
        self.estimated = [
            "linear: norms, rotary embedding and activation, from bytes",
            f"logits: {model.sampling} sampling, from bytes and published timings",
        ]

    def parts(self) -> dict[str, Rows]:
        model, degree = self.model, self.tensor_parallel
        linear = self._linear()
        linear += [
            ("element-wise (estimated)", rows, self._elementwise_us(rows))
            for rows in sorted({rows for _, rows, _ in linear})
        ]
        head = model.logits_operation(degree)
        logits: Rows = [
            (head.name, *point)
            for point in self._or_analytic(
                "logits", lambda: self._product(head), lambda analytic: analytic.product_us(head)
            )
        ]
        logits += [
            ("sampling (estimated)", rows, self._sampling_us(rows)) for _, rows, _ in list(logits)
        ]
        parts = {"linear": linear, "logits": logits, **self._attention()}
        if model.moe is not None:
            parts["moe"] = self._experts()
        if degree > 1 and (reduced := self._all_reduce()):
            parts["communication"] = reduced
        return parts

    def _or_analytic(
        self, part: str, measured: Callable[[], T], analytic: Callable[[AnalyticParts], T]
    ) -> T:
        """Measured where it was, else analytic; the part's origin is noted either way."""
        try:
            found = measured()
        except NotMeasured as error:
            if self._analytic is None:
                raise
            self.origins[part] = Origin("analytic", "roofline", str(error))
            return analytic(self._analytic)
        self._note(part)
        return found

    def _note(self, part: str, how: str | None = None, *, estimated: bool = False) -> None:
        """A part was measured; what was noted of it before stays."""
        if part not in self.origins or how is not None:
            self.origins[part] = self._origin(FAMILIES[part], how, estimated=estimated)

    def _origin(self, family: str, how: str | None, *, estimated: bool) -> Origin:
        tables = self.tables
        by = tables.borrowed.get(family, f"{tables.backend} {tables.version}")
        if self.stands_for is not None:
            stand_in = f"for kernels of {self.stands_for}"
            how, estimated = "; ".join(filter(None, (stand_in, how))), True
        return Origin("estimated" if estimated else "measured", by, how)

    # -- matrix products ------------------------------------------------------------------

    def _linear(self) -> Rows:
        operations = self.model.linear_operations(self.tensor_parallel)

        def measured() -> Rows:
            rows = [
                (operation.name, rows, time_us * operation.count)
                for operation in operations
                for rows, time_us in self._product(operation)
            ]
            formats = {one.name: one for one in map(self._format_of, operations)}
            hows = [one.how or self._products[name].how for name, one in formats.items()]
            how = "; ".join(filter(None, hows)) or None
            self._note("linear", how, estimated=how is not None)
            return rows

        def computed(analytic: AnalyticParts) -> Rows:
            return [
                (operation.name, *point)
                for operation in operations
                for point in analytic.product_us(operation)
            ]

        return self._or_analytic("linear", measured, computed)

    def _product(self, operation: LinearOperation) -> list[tuple[int, float]]:
        """One copy of this product: (rows, µs) at every measured number of rows."""
        dtype = self._format_of(operation).name
        if dtype not in self._products:
            self._products[dtype] = products_of(self.tables, dtype)
        return self._products[dtype].times_us(
            operation.out_features,
            operation.in_features,
            written_scaled=operation.kind in WRITTEN_SCALED,
        )

    def _format_of(self, operation: LinearOperation) -> Format:
        """The asked one where it is most of the model's; routers and others have their own."""
        if operation.weight_dtype == self.model.weight_dtype:
            return self.number_format
        return weight_format(operation.weight_dtype, self.model.float8_scales)

    # -- attention ------------------------------------------------------------------------

    def _attention(self) -> dict[str, Rows]:
        """Every kind of layer's, added up: those that look at every token, and by their reach."""
        prefills: dict[int | None, Grid] = {}
        decodes: dict[int | None, Grid] = {}
        for kernels, alone, count in kernels_of(self.model, self.tensor_parallel, self._kv_dtype):
            prefill, decode = self._looking_us(kernels, alone, count)
            reach = kernels.reach
            prefills[reach] = _added(prefills[reach], prefill) if reach in prefills else prefill
            decodes[reach] = _added(decodes[reach], decode) if reach in decodes else decode
        rows: dict[str, Rows] = {}
        for name, found in (("prefill", prefills), ("decode", decodes)):
            for reach, grid in found.items():
                if reach is None:
                    rows[f"{name}_attention"] = [(*key, time_us) for key, time_us in grid.items()]
                else:
                    bounded = rows.setdefault(f"bounded_{name}", [])
                    bounded += [(reach, *key, time_us) for key, time_us in grid.items()]
        return rows

    def _looking_us(self, kernels: LayerKernels, alone: ModelSpec, count: int) -> tuple[Grid, Grid]:
        """Prompts' and decodes' times of all layers with these kernels, a model of `alone` them."""
        kind = "" if kernels.reach is None else f"{kernels.mixer.label}: "
        grids = []
        for phase, measured, analytic in (
            ("decode", kernels.decode_us, AnalyticParts.decode_us),
            ("prefill", kernels.prefill_us, AnalyticParts.prefill_us),
        ):
            part = f"{phase}_attention" if kernels.reach is None else f"bounded_{phase}"
            try:
                one, how = measured(self.tables)
            except NotMeasured as error:
                if self._analytic is None:
                    raise
                self._note_kind(part, Origin("analytic", "roofline", f"{kind}{error}"))
                grids.append(analytic(self._analytic.of_layers(alone)))
                continue
            modules = kernels.mixer.latent is not None
            self._note_kind(part, self._origin(kernels.family, how, estimated=modules), kind)
            grids.append(_times(one, count))
        decode, prefill = grids
        cold = {new: time_us for (new, cached), time_us in prefill.items() if cached == 0}
        if len(cold) == len(prefill) and kernels.reach != STATE:
            single = {context: us for (n, context), us in decode.items() if n == 1}
            prefill = {**prefill, **behind_prefixes(cold, single, kernels.reach)}
            told = "behind cached tokens, at the utilisation of the whole prompt"
            self.estimated.append(f"prefill_attention: {kind}{told}")
        return prefill, decode

    def _note_kind(self, part: str, found: Origin, kind: str = "") -> None:
        """One of several kinds of layers in a part: it is as well known as the least known one."""
        if found.how is not None and kind:
            found = replace(found, how=f"{kind}{found.how}")
        before = self.origins.get(part)
        if before is not None and before != found:
            found = Origin(
                max(before.kind, found.kind, key=WORST.index),
                "; ".join(dict.fromkeys((before.by, found.by))),
                "; ".join(dict.fromkeys(filter(None, (before.how, found.how)))) or None,
            )
        self.origins[part] = found

    # -- experts, collectives -------------------------------------------------------------

    def _experts(self) -> Rows:
        moe, shared_out = self.model.moe, self.expert_ranks > 1
        assert moe is not None

        def measured() -> list[tuple[int, float]]:
            points, how = experts_us(
                self.tables,
                moe,
                self.model.hidden_size,
                dtypes=expert_formats(
                    self._format_of(self.model.expert_operations()[0]), self.tables.system
                ),
                tensor_parallel=1
                if shared_out
                else self.tensor_parallel // self.model.experts_over,
                expert_parallel=self.expert_ranks if shared_out else self.model.experts_over,
                routing=self._routing,
            )
            self._note("moe", how, estimated=how is not None)
            return [(tokens, time_us * moe.num_layers) for tokens, time_us in points]

        # How many experts are activated at so many tokens is part of the measurement.
        return [
            (tokens, moe.num_experts, time_us)
            for tokens, time_us in self._or_analytic(
                "moe", measured, lambda analytic: analytic.experts_us(self.expert_ranks)
            )
        ]

    def _all_reduce(self) -> Rows:
        """None where it was not measured and may be analytic: links are known where it is used.

        The package's ``message_size`` counts values of 16 bits, its own models ask for tokens times
        hidden size. (As bytes eight H100s would reach half of what NCCL does on NVSwitch.)
        """

        def measured() -> Points:
            try:
                return self.tables.points(
                    "comm",
                    "custom_allreduce_perf",
                    "message_size",
                    num_gpus=self.tensor_parallel,
                    backend=(f"{self.tables.backend}_graph", f"{self.tables.backend}_eager"),
                )
            except NotMeasured:
                return self.tables.nccl("all_reduce", self.tensor_parallel)

        points = self._or_analytic("communication", measured, lambda analytic: {})
        wait_us = RANKS_WAIT_US.get(self.stands_for or self.tables.backend, OTHERS_WAIT_US)
        return [
            ("all_reduce", self.tensor_parallel, values * VALUE_BYTES, time_us + wait_us)
            for (values,), time_us in points.items()
        ]

    # -- estimates ------------------------------------------------------------------------

    def _elementwise_us(self, tokens: int) -> float:
        """Norms with residuals, rotary embedding, cache write, activation; embedding, last norm."""
        model, width = self.model, self.model.hidden_size
        kernels = [(3 * width, 2)]  # (numbers of a token that one moves, how many there are)
        for layer, count in model.kinds.items():
            kernels.append((4 * width, NORM_KERNELS * count))
            for mixer in layer.mixers:
                beside, more = self._beside_mixer(mixer)
                if more:
                    kernels.append((beside // more, more * count))
            if layer.has_dense_mlp:
                inner = layer.dense_width // self.tensor_parallel
                kernels.append(((3 if model.gated_mlp else 2) * inner, count))
        launched_us = sum(count for _, count in kernels) * ELEMENTWISE_OVERHEAD_S * 1e6
        moved = (
            count * self._missed_bytes(VALUE_BYTES * values * tokens) for values, count in kernels
        )
        return max(launched_us, sum(moved) * self._us_per_byte)

    def _missed_bytes(self, moved: float) -> float:
        """What a kernel that moves so many bytes does not find in the last cache."""
        version = int(self.tables.system.figures.get("sm_version") or 0)
        cache = LAST_CACHE_BYTES.get(version, LEAST_CACHE_BYTES)
        return moved * min(max(moved / (CACHE_OVERRUN * cache), CACHE_MISSES), 1.0)

    def _beside_mixer(self, mixer: Mixer) -> tuple[int, int]:
        """Numbers that the small kernels beside attention or a state move of a token, and how many
        kernels they are. Rotary embedding is in measured modules."""
        degree = self.tensor_parallel
        if mixer.latent is not None:
            return 0, 0
        if not mixer.attends:  # a state's output is normed and gated
            inner = [one.inputs for one in mixer.matrices if one.kind == "o"]
            return sum(3 * x.on_gpu(degree) for x in inner if isinstance(x, Share)), 1
        heads = mixer.num_heads + 2 * max(mixer.num_kv_heads, degree)
        moved, kernels = 2 * heads * mixer.head_dim // degree, ROTARY_KERNELS
        if mixer.parameters >= 2 * mixer.head_dim > 0:
            moved, kernels = 2 * moved, kernels + QK_NORM_KERNELS
        query = mixer.matrices[0].outputs
        if isinstance(query, tuple) and query[0].width >= 2 * mixer.head_dim:  # gates its output
            moved, kernels = moved + 3 * mixer.num_heads * mixer.v_head_dim // degree, kernels + 1
        return moved, kernels

    def _sampling_us(self, rows: int) -> float:
        model, bytes_per_s = self.model, 1e6 / self._us_per_byte
        return 1e6 * float(
            sampling_s(model.sampling, np.array(rows), model.vocab_size, bytes_per_s)
        )


def _added(one: Grid, other: Grid) -> Grid:
    """Both together, where both are known."""
    return {key: time_us + other[key] for key, time_us in one.items() if key in other}


def _times(grid: Grid, layers: int) -> Grid:
    return {key: time_us * layers for key, time_us in grid.items()}
