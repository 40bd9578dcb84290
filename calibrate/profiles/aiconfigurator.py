"""Compose a model's latency table from the kernel times of the package aiconfigurator-core.

An iteration is the sum of its kernels, each read from the package's own tables
(`calibrate.profiles.kernel_tables`), so that at the points of its grids the table says what the
package measured:

    linear             products of every layer, on the package's numbers of rows
    logits             the vocabulary's product
    prefill_attention  one prompt, on the package's lengths; behind a cached prefix composed
    decode_attention   on the package's batches and contexts
    moe                routed experts, gating and activation included
    communication      all-reduce inside a CUDA graph, NCCL's where there is no other

Products off the grid run at their neighbours' utilisation (`calibrate.profiles.matrix_products`);
for prefill behind a cached prefix see `calibrate.profiles.cached_prefixes`. What the package does
not measure (norms, rotary embedding, activation, sampling) is estimated from bytes, and
``estimated`` in meta.yaml says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibrate.profiles.cached_prefixes import behind_prefixes
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, find_system, package_version
from calibrate.profiles.matrix_products import WEIGHT_BYTES, product_us
from calibrate.tables.meta import model_shape
from sim.latency.roofline import ELEMENTWISE_OVERHEAD_S
from sim.latency.table_folder import TableError
from sim.model.spec import LinearOperation, ModelSpec

# The package's number formats for the weights of a model, in order of preference: a checkpoint
# quantised by ``fp8`` has a scale for each block of weights.
DTYPES = {
    "bfloat16": ("bfloat16",),
    "float16": ("bfloat16",),
    "float8": ("fp8_block", "fp8"),
    "int4": ("int4_wo",),
}
KV_DTYPES = {
    "auto": "bfloat16",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
}
# Nearly uniform routing with the unevenness of a trained router. Measured on every system, unlike
# "balanced", under which 16 tokens of 8 experts each use all 128.
ROUTING = "power_law_1.01"
# Small kernels last as long as their launch or their bytes, whichever is longer. Half of the bytes:
# what the kernel before wrote is still in the cache. Against an RTX 4090's profile of Llama-3.1-8B
# this errs by up to 22 % from 1 to 2,048 tokens, sampling by up to 3 % at 1 and 256 rows.
ELEMENTWISE_KERNELS = 3  # residual with norm twice, rotary with the cache write; and activation
CACHE_MISSES = 0.5
SAMPLING_KERNELS = 12
SAMPLING_BYTES_PER_LOGIT = 8

Rows = list[tuple[Any, ...]]


def import_aiconfigurator(
    system: str,
    model: ModelSpec,
    *,
    backend: str = "vllm",
    version: str | None = None,
    tensor_parallel: int = 1,
    dtype: str | None = None,
    kv_cache_dtype: str = "auto",
    routing: str = ROUTING,
    data: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """meta.yaml entries and parts of a table, for `sim.latency.table_folder.write_table`.

    `system` is one of our GPU names or one of the package's. Without `version` the newest is taken
    that has all the kernels. `dtype` is the package's format of the weights' products (bfloat16,
    fp8, fp8_block), by default the model's own; `routing` its distribution of tokens over experts.
    `data` is the package's folder ``systems`` (found by itself).

    Raises TableError (a ValueError), one line that names what there is to choose from.
    """
    model.check_tensor_parallel(tensor_parallel)
    if model.mla is not None:
        raise TableError(f"{model.name}: latent attention (MLA) is not among the composed kernels")
    dtypes = DTYPES[model.weight_dtype] if dtype is None else (dtype,)
    if dtypes[0] not in WEIGHT_BYTES:
        raise TableError(f"unknown dtype {dtype!r}; known: {', '.join(WEIGHT_BYTES)}")
    if kv_cache_dtype not in KV_DTYPES:
        raise TableError(
            f"unknown kv_cache_dtype {kv_cache_dtype!r}; known: {', '.join(KV_DTYPES)}"
        )
    found = find_system(system, data)
    versions = found.versions(backend)
    if version is not None and version not in versions:
        raise TableError(
            f"no version {version!r} of {backend} on {found.name}; there are: {', '.join(versions)}"
        )
    refusal: NotMeasured | None = None
    for candidate in versions if version is None else [version]:
        tables = KernelTables(found, backend, candidate)
        composer = _Composer(tables, model, tensor_parallel, dtypes)
        try:
            parts = composer.parts(KV_DTYPES[kv_cache_dtype], routing)
        except NotMeasured as error:
            refusal = refusal or error
            continue
        return _meta(composer, kv_cache_dtype), parts
    raise NotMeasured(f"{refusal}; backends of {found.name}: {', '.join(found.backends())}")


def _meta(composer: _Composer, kv_cache_dtype: str) -> dict[str, Any]:
    tables, model, degree = composer.tables, composer.model, composer.tensor_parallel
    borrowed = "".join(f", {family} of {kind}" for family, kind in tables.borrowed.items())
    return {
        "source": (
            f"{model.name} on {tables.system.name}, {tables.backend} {tables.version} kernels"
            f"{borrowed} from {package_version()}, tensor parallel {degree}"
        ),
        "gpu": tables.system.gpu,
        "model": model_shape(model),
        "dtype": model.weight_dtype,
        "kernel_dtype": composer.dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "tensor_parallel": degree,
        "launch": "graph",
        "imported_from": "aiconfigurator",
        "licence": "Apache-2.0",
        "estimated": composer.estimated,
        "host_overhead_us": None,
    }


class _Composer:
    """The parts of one model's table from one set of kernel tables. Times in µs, whole model."""

    def __init__(
        self,
        tables: KernelTables,
        model: ModelSpec,
        tensor_parallel: int,
        dtypes: tuple[str, ...],
    ) -> None:
        self.tables, self.model, self.tensor_parallel = tables, model, tensor_parallel
        self.dtype = dtypes[0]
        self._dtypes = dtypes
        bandwidth = tables.system.bytes_per_s * tables.system.memory_efficiency
        self._us_per_byte = 1e6 / bandwidth
        self.estimated = [
            "linear: norms, rotary embedding and activation, from bytes",
            "logits: sampling, from bytes",
            "prefill_attention: behind cached tokens, at the utilisation of the whole prompt",
        ]

    def parts(self, kv_dtype: str, routing: str) -> dict[str, Rows]:
        model, degree = self.model, self.tensor_parallel
        self.dtype = self._measured_dtype()
        linear: Rows = [
            (operation.name, rows, time_us * operation.count)
            for operation in model.linear_operations(degree)
            for rows, time_us in self._product(operation)
        ]
        linear += [
            ("element-wise (estimated)", rows, self._elementwise_us(rows))
            for rows in sorted({rows for _, rows, _ in linear})
        ]
        logits: Rows = [
            ("lm_head", *point) for point in self._product(model.logits_operation(degree))
        ]
        logits += [
            ("sampling (estimated)", rows, self._sampling_us(rows)) for _, rows, _ in list(logits)
        ]
        parts = {"linear": linear, "logits": logits, **self._attention(kv_dtype)}
        if model.moe is not None:
            parts["moe"] = self._experts(routing)
        if degree > 1:
            parts["communication"] = self._all_reduce()
        return parts

    # -- matrix products ------------------------------------------------------------------

    def _measured_dtype(self) -> str:
        for dtype in self._dtypes[:-1]:
            try:
                self.tables.products(dtype)
            except NotMeasured:
                continue
            return dtype
        self.tables.products(self._dtypes[-1])
        return self._dtypes[-1]

    def _product(self, operation: LinearOperation) -> list[tuple[int, float]]:
        """One copy of this product: (rows, µs) at every measured number of rows."""
        # Routers and the vocabulary's product stay in 16 bits in a quantised model.
        dtype = self.dtype if operation.weight_dtype == self.model.weight_dtype else "bfloat16"
        width, depth = operation.out_features, operation.in_features
        return product_us(self.tables, width, depth, dtype)

    # -- attention ------------------------------------------------------------------------

    def _attention(self, kv_dtype: str) -> dict[str, Rows]:
        model, degree = self.model, self.tensor_parallel
        wanted: dict[str, Any] = {
            "head_dim": model.head_dim,
            "num_heads": model.num_attention_heads // degree,
            "num_key_value_heads": max(model.num_kv_heads // degree, 1),
            "kv_cache_dtype": kv_dtype,
            "attn_dtype": ("bfloat16", "fp8"),
            "window_size": 0,
        }
        layers = model.num_layers
        context = self.tables.points(
            "attention", "context_attention_perf", "isl", "step", batch_size=1, **wanted
        )
        generation = self.tables.points(
            "attention", "generation_attention_perf", "batch_size", "isl", "step", **wanted
        )
        prefill = {(new, cached): time_us * layers for (new, cached), time_us in context.items()}
        decode = {
            (sequences, new + cached): time_us * layers
            for (sequences, new, cached), time_us in generation.items()
        }
        alone = {new: time_us for (new, cached), time_us in prefill.items() if cached == 0}
        if len(alone) == len(prefill):
            single = {context: us for (count, context), us in decode.items() if count == 1}
            prefill |= behind_prefixes(alone, single)
        else:
            self.estimated = [text for text in self.estimated if "cached" not in text]
        return {
            "prefill_attention": [(*key, time_us) for key, time_us in prefill.items()],
            "decode_attention": [(*key, time_us) for key, time_us in decode.items()],
        }

    # -- experts, collectives -------------------------------------------------------------

    def _experts(self, routing: str) -> Rows:
        model = self.model
        assert model.moe is not None
        points = self.tables.points(
            "moe",
            "moe_perf",
            "num_tokens",
            moe_dtype=self.dtype,
            num_experts=model.moe.num_experts,
            topk=model.moe.experts_per_token,
            hidden_size=model.hidden_size,
            inter_size=model.moe.intermediate_size,
            moe_tp_size=self.tensor_parallel,
            moe_ep_size=1,
            distribution=routing,
        )
        # How many experts are activated at so many tokens is part of the measurement.
        return [
            (tokens, model.moe.num_experts, time_us * model.moe.num_layers)
            for (tokens,), time_us in points.items()
        ]

    def _all_reduce(self) -> Rows:
        ranks, backend = self.tensor_parallel, self.tables.backend
        try:
            points = self.tables.points(
                "comm",
                "custom_allreduce_perf",
                "message_size",
                num_gpus=ranks,
                backend=(f"{backend}_graph", f"{backend}_eager"),
            )
        except NotMeasured:
            points = self.tables.nccl("all_reduce", ranks)
        return [("all_reduce", ranks, size, time_us) for (size,), time_us in points.items()]

    # -- estimates ------------------------------------------------------------------------

    def _elementwise_us(self, tokens: int) -> float:
        """Norms with residuals, rotary embedding, cache write, activation; embedding, last norm."""
        model, degree = self.model, self.tensor_parallel
        heads = model.num_attention_heads + 2 * max(model.num_kv_heads, degree)
        per_layer = 8 * model.hidden_size + 2 * heads * model.head_dim // degree
        activated = (3 if model.gated_mlp else 2) * model.intermediate_size // degree
        values = model.num_layers * per_layer + model.num_dense_layers * activated
        values += 6 * model.hidden_size
        kernels = model.num_layers * ELEMENTWISE_KERNELS + model.num_dense_layers + 2
        return self._small_us(kernels, CACHE_MISSES * 2 * values * tokens)

    def _sampling_us(self, rows: int) -> float:
        moved = rows * self.model.vocab_size * SAMPLING_BYTES_PER_LOGIT
        return self._small_us(SAMPLING_KERNELS, moved)

    def _small_us(self, kernels: int, moved_bytes: float) -> float:
        return max(kernels * ELEMENTWISE_OVERHEAD_S * 1e6, moved_bytes * self._us_per_byte)
