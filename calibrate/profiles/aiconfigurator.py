"""Compose a model's latency table from the kernel times of the package aiconfigurator-core.

An iteration is the sum of its kernels, each read from the package's own tables
(`calibrate.profiles.kernel_tables`), so that at the points of its grids the table says what the
package measured; `calibrate.profiles.composer` has the parts. Products off the grid run at their
neighbours' utilisation (`matrix_products`), other numbers of heads are composed from measured ones
(`attention_kernels`); for other kinds of layers, mixtures of experts and prefill behind a cached
prefix see `layer_kernels`, `expert_kernels` and `cached_prefixes`. What the package does not
measure (norms, rotary embedding, activation, sampling) is estimated from bytes, and ``estimated``
in meta.yaml says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calibrate.profiles.analytic_parts import AnalyticParts
from calibrate.profiles.composable import why_not_composed
from calibrate.profiles.composer import FAMILIES, Composer, Rows
from calibrate.profiles.kernel_tables import (
    KernelTables,
    NotMeasured,
    System,
    find_system,
    is_measured,
    package_version,
)
from calibrate.profiles.precision import cache_format, product_format
from calibrate.tables.meta import model_shape
from sim.latency.table_folder import TableError
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

# Nearly uniform routing with the unevenness of a trained router. Measured on every system, unlike
# "balanced", under which 16 tokens of 8 experts each use all 128.
ROUTING = "power_law_1.01"
BACKENDS = ("vllm", "sglang", "trtllm")  # whose kernels stand for others', in this order
# With none of these measured, a table is a roofline under another name.
MAIN_PARTS = (
    "linear",
    "prefill_attention",
    "decode_attention",
    "bounded_prefill",
    "bounded_decode",
)

# Of a batch with prompts, a layer's: where an engine holds only decodes in graphs, the host
# launches them kernel by kernel, and is no faster. From TensorRT-LLM 1.0's serving points on H100,
# by what a prompt of 1,024 tokens and the others' decodes take together where kernels take less: 18
# to 21 ms with Llama-3.1-8B's 32 layers, 34 to 41 with Qwen3-32B's 64, 56 to 67 with Qwen3-235B's
# 94.
EAGER_LAUNCH_US = {"trtllm": 610.0}
Table = tuple[dict[str, Any], dict[str, Rows]]


def import_aiconfigurator(
    system: str,
    model: ModelSpec,
    *,
    backend: str = "vllm",
    version: str | None = None,
    tensor_parallel: int = 1,
    dtype: str | None = None,
    expert_ranks: int = 1,
    kv_cache_dtype: str = "auto",
    routing: str = ROUTING,
    data: Path | None = None,
) -> Table:
    """meta.yaml entries and parts of a table, for `sim.latency.table_folder.write_table`.

    `system` is one of our GPU names or one of the package's. Without `version` the newest is taken
    that has all the kernels. `dtype` is the package's format of the weights' products (bfloat16,
    fp8, fp8_block), by default the model's own; `routing` its distribution of tokens over experts.
    `data` is the package's folder ``systems`` (found by itself).

    Raises TableError (a ValueError), one line that names what there is to choose from.
    """
    model.check_tensor_parallel(tensor_parallel)
    lacking = why_not_composed(model)
    if lacking is not None:
        raise TableError(f"{model.name}: {lacking}: not among the composed kernels")
    found = find_system(system, data)
    refusal: NotMeasured | None = None
    for composer in _composers(
        model,
        _versions(found, [backend], version),
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel=tensor_parallel,
        expert_ranks=expert_ranks,
        routing=routing,
    ):
        try:
            parts = composer.parts()
        except NotMeasured as error:
            refusal = refusal or error
            continue
        return _meta(composer, kv_cache_dtype), parts
    raise NotMeasured(f"{refusal}; backends of {found.name}: {', '.join(found.backends())}")


def measured_or_analytic(
    gpu: Gpu,
    model: ModelSpec,
    *,
    backend: str | None = None,
    version: str | None = None,
    tensor_parallel: int = 1,
    expert_ranks: int = 1,
    kv_cache_dtype: str = "auto",
    routing: str = ROUTING,
    data: Path | None = None,
) -> Table | None:
    """As `import_aiconfigurator`, with analytic parts where nobody measured.

    Without `backend` the first is taken that has all the kernels, else vLLM's newest with the rest
    analytic. None where neither products nor attention were measured.
    Raises TableError for a backend or version that is not there.
    """
    model.check_tensor_parallel(tensor_parallel)
    if why_not_composed(model) is not None or not is_measured(gpu.name, data):
        return None
    found = find_system(gpu.name, data)
    analytic = AnalyticParts(
        model, gpu, tensor_parallel=tensor_parallel, kv_cache_dtype=kv_cache_dtype
    )
    wanted = [name for name in BACKENDS if name in found.backends()]
    best: Table | None = None
    fewest = len(FAMILIES) + len(MAIN_PARTS)
    for composer in _composers(
        model,
        _versions(found, wanted if backend is None else [backend], version),
        stands_for=BACKENDS[0] if backend is None else None,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel=tensor_parallel,
        expert_ranks=expert_ranks,
        routing=routing,
        analytic=analytic,
    ):
        parts = composer.parts()
        missing = {part for part, origin in composer.origins.items() if origin.kind == "analytic"}
        if len(missing) < fewest and not missing.issuperset(_main(parts)):
            best, fewest = (_meta(composer, kv_cache_dtype), parts), len(missing)
        if fewest == 0:
            break
    return best


def _main(parts: Iterable[str]) -> set[str]:
    """Products and attention, of those parts that a model has."""
    return {part for part in MAIN_PARTS if part in parts}


def _composers(
    model: ModelSpec,
    versions: Iterable[KernelTables],
    *,
    dtype: str | None = None,
    kv_cache_dtype: str,
    stands_for: str | None = None,
    **asked: Any,
) -> Iterator[Composer]:
    """A composer for each version's kernels; those of other engines stand for `stands_for`'s."""
    number_format, kv_dtype = product_format(model, dtype), cache_format(kv_cache_dtype, model)
    for tables in versions:
        yield Composer(
            tables,
            model,
            number_format=number_format,
            kv_dtype=kv_dtype,
            stands_for=None if tables.backend == stands_for else stands_for,
            **asked,
        )


def _versions(
    found: System, backends: Iterable[str], version: str | None
) -> Iterator[KernelTables]:
    """The backends' kernels, newest first, or those of one version. Raises TableError: none."""
    for backend in backends:
        versions = found.versions(backend)
        if version is not None and version not in versions:
            raise TableError(
                f"no version {version!r} of {backend} on {found.name}; there are: "
                f"{', '.join(versions)}"
            )
        for candidate in versions if version is None else [version]:
            yield KernelTables(found, backend, candidate)


def _eager_prompts(backend: str, model: ModelSpec) -> dict[str, Any]:
    """What a backend's engine needs to launch a batch with prompts, where no graph holds those."""
    layer_us = EAGER_LAUNCH_US.get(backend)
    if layer_us is None:
        return {}
    return {"prompts": "eager", "eager_launch_us": layer_us * model.num_layers}


def _prefills(backend: str, system: System) -> dict[str, Any]:
    """vLLM's FlashAttention takes prompts and decodes in one launch; others, and what vLLM uses on
    data-centre Blackwells (FlashInfer), launch once for each kind."""
    flashinfer = int(system.figures.get("sm_version") or 100) // 10 == 10
    return {"prefills": "beside_decodes"} if backend == "vllm" and not flashinfer else {}


def _meta(composer: Composer, kv_cache_dtype: str) -> dict[str, Any]:
    tables, model, degree = composer.tables, composer.model, composer.tensor_parallel
    named = f"{tables.backend} {tables.version} on {tables.system.name}, {package_version()}"
    borrowed = "".join(f", {family} of {kind}" for family, kind in tables.borrowed.items())
    return {
        "source": (
            f"{model.name} on {tables.system.name}, {tables.backend} {tables.version} kernels"
            f"{borrowed} from {package_version()}, tensor parallel {degree}"
        ),
        "kernels": named,
        "gpu": tables.system.gpu,
        "model": model_shape(model),
        "dtype": model.weight_dtype,
        "kernel_dtype": composer.number_format.name,
        "kv_cache_dtype": kv_cache_dtype,
        "tensor_parallel": degree,
        "launch": "graph",
        **({"expert_ranks": composer.expert_ranks} if composer.expert_ranks > 1 else {}),
        **_eager_prompts(composer.stands_for or tables.backend, model),
        **_prefills(composer.stands_for or tables.backend, tables.system),
        "imported_from": "aiconfigurator",
        "licence": "Apache-2.0",
        "estimated": composer.estimated,
        "parts": {part: origin.as_dict() for part, origin in composer.origins.items()},
        "host_overhead_us": None,
    }
