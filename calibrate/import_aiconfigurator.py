"""Compose a latency table from the measured kernel times of the package aiconfigurator-core.

The package (Apache-2.0, ai-dynamo/aiconfigurator) ships Parquet tables, in ms, of single kernels of
several serving engines on several GPUs:

    systems/data/SYSTEM/gemm/BACKEND/VERSION/gemm_perf.parquet                m, n, k
    systems/data/SYSTEM/attention/BACKEND/VERSION/context_attention_perf      batch_size, isl
    systems/data/SYSTEM/attention/BACKEND/VERSION/generation_attention_perf   batch_size, step
    systems/data/SYSTEM/moe/BACKEND/VERSION/moe_perf                          num_tokens
    systems/data/SYSTEM/comm/BACKEND/VERSION/custom_allreduce_perf            num_gpus, message_size

A layer is the sum of its kernels. Matrix products whose width or depth is not on the package's grid
run at the utilisation of their neighbours on it, blended; the number of rows is always a measured
one. What the package does not measure is estimated from bytes moved, and the table says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.import_llmservingsim import model_shape
from sim.latency.table_folder import TableError
from sim.model_spec import DTYPE_BYTES, LinearOperation, ModelSpec

SYSTEMS = {
    "a100-80gb": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h100-pcie": "h100_pcie",
    "h200-sxm": "h200_sxm",
    "b200": "b200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
DTYPES = {"bfloat16": "bfloat16", "float16": "bfloat16", "float8": "fp8"}
# Residual with norm twice, rotary with the cache write, activation: kernels a layer, and what each
# costs beside its bytes (a small kernel on a data-centre GPU; an estimate, not a measurement).
ELEMENTWISE_KERNELS = 4
ELEMENTWISE_LAUNCH_US = 2.0
ELEMENTWISE_EFFICIENCY = 0.8

Rows = list[tuple[Any, ...]]


def import_aiconfigurator(
    system: str,
    model: ModelSpec,
    *,
    backend: str = "vllm",
    version: str | None = None,
    tensor_parallel: int = 1,
    data: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """meta.yaml entries and parts of a table, for `sim.latency.table_folder.write_table`.

    `system` is one of our GPU names or one of the package's. Without `version` the newest that has
    all the files is taken. `data` is the package's folder ``systems`` (found by itself).

    Raises ValueError naming what there is to choose from.
    """
    model.check_tensor_parallel(tensor_parallel)
    if model.mla is not None:
        raise TableError(f"{model.name}: latent attention (MLA) cannot be composed yet")
    systems = _package() if data is None else data
    source = _Source(systems, SYSTEMS.get(system, system), backend, version)
    dtype = DTYPES[model.weight_dtype]

    linear: Rows = []
    for operation in model.linear_operations(tensor_parallel):
        linear += [
            (operation.name, rows, time_us * operation.count)
            for rows, time_us in source.product_us(operation, dtype)
        ]
    counts = sorted({rows for _, rows, _ in linear})
    linear += [
        ("element-wise (estimated)", rows, _elementwise_us(model, rows, tensor_parallel, source))
        for rows in counts
    ]
    logits = model.logits_operation(tensor_parallel)
    parts: dict[str, Rows] = {
        "linear": linear,
        "logits": [
            ("lm_head", rows, time_us) for rows, time_us in source.product_us(logits, "bfloat16")
        ],
        **source.attention(model, tensor_parallel),
    }
    if model.moe is not None:
        parts["moe"] = source.experts(model, tensor_parallel, dtype)
    if tensor_parallel > 1:
        parts["communication"] = source.all_reduce(tensor_parallel)
    return {
        "source": (
            f"{model.name} on {source.system}, {backend} {source.version} kernels measured by "
            f"aiconfigurator ({source.package}), tensor parallel {tensor_parallel}"
        ),
        "gpu": system,
        "model": model_shape(model),
        "dtype": model.weight_dtype,
        "kv_cache_dtype": "auto",
        "tensor_parallel": tensor_parallel,
        "launch": "graph",
        "imported_from": "aiconfigurator",
        "licence": "Apache-2.0",
        "estimated": [
            "element-wise operations, from bytes at the datasheet's bandwidth",
            "sampling",
        ],
        "host_overhead_us": None,
    }, parts


def _package() -> Path:
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise TableError(
            "the package aiconfigurator-core is not installed: pip install 'orcast[tables]'"
        )
    return Path(next(iter(found.submodule_search_locations))) / "systems"


class _Source:
    """The tables of one system and backend."""

    def __init__(self, systems: Path, system: str, backend: str, version: str | None) -> None:
        import yaml

        self.system, self.backend = system, backend
        self._folder = systems / "data" / system
        if not self._folder.is_dir():
            raise TableError(f"no measurements of {system!r}; systems: {_names(systems / 'data')}")
        gemm = self._folder / "gemm" / backend
        attention = self._folder / "attention" / backend
        if not gemm.is_dir() or not attention.is_dir():
            raise TableError(
                f"no {backend!r} on {system}; backends: {_names(self._folder / 'gemm')}"
            )
        both = {p.name for p in gemm.iterdir()} & {p.name for p in attention.iterdir()}
        versions = sorted(both, key=_natural)
        if not versions:
            raise TableError(f"{system}, {backend}: no version has both products and attention")
        if version is not None and version not in versions:
            raise TableError(
                f"no version {version!r} of {backend} on {system}; versions: {', '.join(versions)}"
            )
        self.version = version or versions[-1]
        figures = yaml.safe_load((systems / f"{system}.yaml").read_text(encoding="utf-8"))["gpu"]
        self.bytes_per_s = float(figures["mem_bw"])
        self._flops_per_s = {
            "bfloat16": float(figures["bfloat16_tc_flops"]),
            "fp8": float(figures.get("fp8_tc_flops") or figures["bfloat16_tc_flops"]),
        }
        self.package = _package_version()
        self._products: dict[str, dict[tuple[int, int], dict[int, float]]] = {}

    # -- matrix products ------------------------------------------------------------------

    def product_us(self, operation: LinearOperation, dtype: str) -> list[tuple[int, float]]:
        """One copy of this product: (rows, µs) at every measured number of rows."""
        shapes = self._shapes(dtype)
        width, depth = operation.out_features, operation.in_features
        widths = sorted({n for n, _ in shapes})
        depths = sorted({k for _, k in shapes})
        corners: list[tuple[float, tuple[int, int]]] = []
        for n, share_n in _bracket(widths, width):
            for k, share_k in _bracket(depths, depth):
                if share_n * share_k > 0 and (n, k) in shapes:
                    corners.append((share_n * share_k, (n, k)))
        if not corners:
            raise TableError(
                f"{self.system}, {self.backend} {self.version}: no product near {width} x {depth}"
            )
        total = sum(weight for weight, _ in corners)
        rows = set.intersection(*(set(shapes[shape]) for _, shape in corners))
        found = []
        for m in sorted(rows):
            # Time over ideal time is one over utilisation: that is what neighbours share.
            slowdown = sum(
                weight / total * shapes[shape][m] / self._ideal_us(m, *shape, dtype)
                for weight, shape in corners
            )
            found.append((m, slowdown * self._ideal_us(m, width, depth, dtype)))
        return found

    def _ideal_us(self, m: int, n: int, k: int, dtype: str) -> float:
        size = 1 if dtype == "fp8" else 2
        moved = size * n * k + 2 * m * (n + k)
        return max(2 * m * n * k / self._flops_per_s[dtype], moved / self.bytes_per_s) * 1e6

    def _shapes(self, dtype: str) -> dict[tuple[int, int], dict[int, float]]:
        if dtype not in self._products:
            table = self._read("gemm", "gemm_perf", gemm_dtype=dtype)
            shapes: dict[tuple[int, int], dict[int, float]] = {}
            for m, n, k, ms in _columns(table, "m", "n", "k", "latency"):
                shapes.setdefault((int(n), int(k)), {})[int(m)] = ms * 1e3
            self._products[dtype] = shapes
        return self._products[dtype]

    # -- attention, experts, collectives --------------------------------------------------

    def attention(self, model: ModelSpec, tensor_parallel: int) -> dict[str, Rows]:
        heads = model.num_attention_heads // tensor_parallel
        kv_heads = max(model.num_kv_heads // tensor_parallel, 1)
        chosen = {
            "num_heads": heads,
            "head_dim": model.head_dim,
            "kv_cache_dtype": "bfloat16",
            "window_size": 0,
        }
        layers, parts = model.num_layers, {}
        for part, name, columns in (
            ("prefill_attention", "context_attention_perf", ("batch_size", "isl", "step")),
            ("decode_attention", "generation_attention_perf", ("batch_size", "isl", "step")),
        ):
            table = self._read("attention", name, **chosen)
            kept = np.isin(table["num_key_value_heads"], [kv_heads] + [0] * (kv_heads == heads))
            table = {key: values[kept] for key, values in table.items()}
            if not len(table["latency"]):
                raise TableError(
                    f"{self.system}, {self.backend} {self.version}: no attention of {heads} heads, "
                    f"{kv_heads} key-value heads and head size {model.head_dim}"
                )
            points: dict[tuple[int, int], list[float]] = {}
            for batch, length, step, ms in _columns(table, *columns, "latency"):
                if part == "decode_attention":
                    key = (int(batch), int(length + step))
                elif batch == 1:
                    key = (int(length), int(step))
                else:
                    continue
                points.setdefault(key, []).append(ms * 1e3 * layers)
            parts[part] = [(*key, float(np.median(times))) for key, times in points.items()]
        parts["prefill_attention"] = [row for row in parts["prefill_attention"] if row[0] >= 16]
        return parts

    def experts(self, model: ModelSpec, tensor_parallel: int, dtype: str) -> Rows:
        """Balanced routing; the number of experts that a batch activates is in the measurement."""
        assert model.moe is not None
        moe = model.moe
        table = self._read(
            "moe",
            "moe_perf",
            moe_dtype=dtype,
            hidden_size=model.hidden_size,
            inter_size=moe.intermediate_size,
            topk=moe.experts_per_token,
            num_experts=moe.num_experts,
            moe_tp_size=tensor_parallel,
            moe_ep_size=1,
        )
        layers = model.num_layers - model.num_dense_layers
        points: dict[int, list[float]] = {}
        balanced = table["distribution"] == "balanced"
        uniform = balanced if balanced.any() else np.ones(len(balanced), dtype=bool)
        for tokens, ms in _columns(
            {key: values[uniform] for key, values in table.items()}, "num_tokens", "latency"
        ):
            points.setdefault(int(tokens), []).append(ms * 1e3 * layers)
        if not points:
            raise TableError(
                f"{self.system}, {self.backend} {self.version}: no experts of this shape "
                f"({moe.num_experts} of {moe.intermediate_size}, {moe.experts_per_token} a "
                f"token, hidden {model.hidden_size}) at tensor parallel {tensor_parallel}"
            )
        return [(t, moe.num_experts, float(min(times))) for t, times in sorted(points.items())]

    def all_reduce(self, ranks: int) -> Rows:
        table = self._read("comm", "custom_allreduce_perf", num_gpus=ranks)
        kept = np.ones(len(table["latency"]), dtype=bool)
        for key in ("backend", "implementation"):
            if key in table and any("graph" in str(name) for name in table[key]):
                kept = np.array(["graph" in str(name) for name in table[key]])
        points: dict[int, list[float]] = {}
        for size, ms in _columns(
            {key: values[kept] for key, values in table.items()}, "message_size", "latency"
        ):
            points.setdefault(int(size), []).append(ms * 1e3)
        if not points:
            raise TableError(f"{self.system}, {self.backend}: no all-reduce of {ranks} GPUs")
        return [
            ("all_reduce", ranks, size, float(np.median(times)))
            for size, times in sorted(points.items())
        ]

    # -- files ----------------------------------------------------------------------------

    def _read(self, family: str, name: str, **chosen: object) -> dict[str, np.ndarray]:
        """Rows of one file where the columns have the chosen values (absent columns match)."""
        import pyarrow.parquet as pq

        folder = self._folder / family / self.backend
        path = folder / self.version / f"{name}.parquet"
        if not path.is_file():
            # Some families are measured less often than the others: the newest there is.
            others = sorted(folder.glob(f"*/{name}.parquet"), key=lambda p: _natural(p.parent.name))
            if not others:
                raise TableError(f"{folder}: no {name}.parquet for {self.backend}")
            path = others[-1]
        there = set(pq.read_schema(path).names)
        filters = [(key, "=", value) for key, value in chosen.items() if key in there]
        table = pq.read_table(path, filters=filters or None)
        columns = {}
        for column in table.column_names:
            columns[column] = np.array(table.column(column).to_pylist())
        times = columns["latency"].astype(float)
        if not np.isfinite(times).all() or (times < 0).any():
            raise TableError(f"{path}: a latency is negative or not a number")
        return columns


def _columns(table: dict[str, np.ndarray], *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name].tolist() for name in names), strict=True)


def _bracket(axis: list[int], value: int) -> list[tuple[int, float]]:
    """Neighbours of a value on the grid with their weights; the last one alone beyond it."""
    if value in axis or value <= axis[0] or value >= axis[-1]:
        return [(min(max(value, axis[0]), axis[-1]), 1.0)]
    high = next(x for x in axis if x > value)
    low = axis[axis.index(high) - 1]
    share = (value - low) / (high - low)
    return [(low, 1.0 - share), (high, share)]


def _elementwise_us(model: ModelSpec, tokens: int, tensor_parallel: int, source: _Source) -> float:
    """Norms, rotary embedding with the cache write, activation: every value read and written."""
    hidden = model.hidden_size
    query = model.num_attention_heads * model.head_dim // tensor_parallel
    key_value = 2 * max(model.num_kv_heads // tensor_parallel, 1) * model.head_dim
    inner = 0 if model.intermediate_size is None else model.intermediate_size // tensor_parallel
    values = 2 * 4 * hidden + 2 * (query + key_value) + 3 * inner
    moved = values * tokens * DTYPE_BYTES["bfloat16"]
    each = moved / (source.bytes_per_s * ELEMENTWISE_EFFICIENCY) * 1e6
    return model.num_layers * (each + ELEMENTWISE_KERNELS * ELEMENTWISE_LAUNCH_US)


def _names(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "none"


def _natural(text: str) -> list[tuple[int, str]]:
    """1.10 after 1.9."""
    return [(int(digits or 0), rest) for digits, rest in re.findall(r"(\d*)(\D*)", text)]


def _package_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"aiconfigurator-core {version('aiconfigurator-core')}"
    except PackageNotFoundError:
        return "aiconfigurator-core"
