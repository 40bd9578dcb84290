"""A model's iteration as a sum of kernels, part by part: measured, or analytic where nobody did.

    linear             products of every layer, on the package's numbers of rows
    logits             the vocabulary's product
    prefill_attention  one prompt, on the package's lengths; behind a cached prefix composed
    decode_attention   on the package's batches and contexts
    moe                routed experts, gating and activation included
    communication      all-reduce inside a CUDA graph, NCCL's where there is no other

Every part remembers its origin: ``measured``; ``estimated`` from measurements of something else;
``analytic``, the roofline's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from calibrate.profiles import attention_kernels, latent_attention
from calibrate.profiles.analytic_parts import AnalyticParts
from calibrate.profiles.cached_prefixes import behind_prefixes
from calibrate.profiles.expert_kernels import experts_us
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, Points
from calibrate.profiles.matrix_products import WRITTEN_SCALED, Products
from calibrate.profiles.precision import Format, weight_format
from sim.latency.roofline import ELEMENTWISE_OVERHEAD_S
from sim.latency.sampling import sampling_s
from sim.model.spec import LinearOperation, ModelSpec

# Small kernels last as long as their launch or their bytes, whichever is longer. Half of the bytes:
# what the kernel before wrote is still in the cache. Against an RTX 4090's profile of Llama-3.1-8B
# this errs by up to 5 % from 2 to 64 tokens, by up to 22 % from 1 to 2,048.
ELEMENTWISE_KERNELS = 3  # residual with norm twice, rotary with the cache write; and activation
QK_NORM_KERNELS = 2  # of queries and of keys, before the rotary embedding
CACHE_MISSES = 0.5
VALUE_BYTES = 2  # of what is summed over ranks

# Of every sum over ranks: an engine's come to it one after the other, those timed alone together.
# From vLLM's serving points of Llama-3.1-70B in fp8 on H100 with 4 and 8 in flight (prompts of
# 1,024 tokens, 161 sums): 0.73 to 1.45 ms a step, median 1.12, at tensor parallel 2, 4 and 8 alike.
RANKS_WAIT_US = {"vllm": 6.9}

FAMILIES = {
    "linear": "gemm",
    "logits": "gemm",
    "prefill_attention": "attention",
    "decode_attention": "attention",
    "moe": "moe",
    "communication": "comm",
}
T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Grid = attention_kernels.Grid


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
            latent = self.model.mla is not None and part.endswith("attention")
            family, tables = "mla" if latent else FAMILIES[part], self.tables
            by = tables.borrowed.get(family, f"{tables.backend} {tables.version}")
            if self.stands_for is not None:
                stand_in = f"for kernels of {self.stands_for}"
                how, estimated = "; ".join(filter(None, (stand_in, how))), True
            self.origins[part] = Origin("estimated" if estimated else "measured", by, how)

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
            self._products[dtype] = Products(self.tables, dtype)
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
        layers = self.model.num_layers
        decode = self._or_analytic(
            "decode_attention",
            lambda: _times(self._decode_us(), layers),
            lambda analytic: analytic.decode_us(),
        )
        prefill = self._or_analytic(
            "prefill_attention",
            lambda: _times(self._prefill_us(), layers),
            lambda analytic: analytic.prefill_us(),
        )
        alone = {new: time_us for (new, cached), time_us in prefill.items() if cached == 0}
        if len(alone) == len(prefill):
            single = {context: us for (count, context), us in decode.items() if count == 1}
            prefill |= behind_prefixes(alone, single)
            self.estimated.append(
                "prefill_attention: behind cached tokens, at the utilisation of the whole prompt"
            )
        return {
            "prefill_attention": [(*key, time_us) for key, time_us in prefill.items()],
            "decode_attention": [(*key, time_us) for key, time_us in decode.items()],
        }

    def _heads(self) -> dict[str, Any]:
        model, degree = self.model, self.tensor_parallel
        return {"heads": model.num_attention_heads // degree, "kv_dtype": self._kv_dtype}

    def _prefill_us(self) -> Grid:
        model = self.model
        if model.mla is not None:
            grid = latent_attention.prefill_us(self.tables, model.mla, **self._heads())
            self._note("prefill_attention", latent_attention.HOW, estimated=True)
            return grid
        kv_heads = max(model.num_kv_heads // self.tensor_parallel, 1)
        grid, how = attention_kernels.prefill_us(
            self.tables, kv_heads=kv_heads, head_dim=model.head_dim, **self._heads()
        )
        self._note("prefill_attention", how)
        return grid

    def _decode_us(self) -> Grid:
        model = self.model
        if model.mla is not None:
            grid = latent_attention.decode_us(self.tables, model.mla, **self._heads())
            self._note("decode_attention", latent_attention.HOW, estimated=True)
            return grid
        kv_heads = max(model.num_kv_heads // self.tensor_parallel, 1)
        grid, how = attention_kernels.decode_us(
            self.tables, kv_heads=kv_heads, head_dim=model.head_dim, **self._heads()
        )
        self._note("decode_attention", how)
        return grid

    # -- experts, collectives -------------------------------------------------------------

    def _experts(self) -> Rows:
        moe, shared_out = self.model.moe, self.expert_ranks > 1
        assert moe is not None

        def measured() -> list[tuple[int, float]]:
            points, how = experts_us(
                self.tables,
                moe,
                self.model.hidden_size,
                dtype=self._format_of(self.model.expert_operations()[0]).name,
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
        wait_us = RANKS_WAIT_US.get(self.stands_for or self.tables.backend, 0.0)
        return [
            ("all_reduce", self.tensor_parallel, values * VALUE_BYTES, time_us + wait_us)
            for (values,), time_us in points.items()
        ]

    # -- estimates ------------------------------------------------------------------------

    def _elementwise_us(self, tokens: int) -> float:
        """Norms with residuals, rotary embedding, cache write, activation; embedding, last norm."""
        model, degree = self.model, self.tensor_parallel
        per_layer, kernels = 8 * model.hidden_size, ELEMENTWISE_KERNELS
        if model.mla is None:
            heads = model.num_attention_heads + 2 * max(model.num_kv_heads, degree)
            per_layer += 2 * heads * model.head_dim // degree
            if model.norms_heads:
                kernels += QK_NORM_KERNELS
                per_layer += 2 * heads * model.head_dim // degree
        else:
            kernels -= 1  # rotary embedding is in the measured module
        activated = (3 if model.gated_mlp else 2) * model.intermediate_size // degree
        values = model.num_layers * per_layer + model.num_dense_layers * activated
        values += 6 * model.hidden_size
        launches = model.num_layers * kernels + model.num_dense_layers + 2
        launched_us = launches * ELEMENTWISE_OVERHEAD_S * 1e6
        return max(launched_us, CACHE_MISSES * 2 * values * tokens * self._us_per_byte)

    def _sampling_us(self, rows: int) -> float:
        model, bytes_per_s = self.model, 1e6 / self._us_per_byte
        return 1e6 * float(
            sampling_s(model.sampling, np.array(rows), model.vocab_size, bytes_per_s)
        )


def _times(grid: Grid, layers: int) -> Grid:
    return {key: time_us * layers for key, time_us in grid.items()}
