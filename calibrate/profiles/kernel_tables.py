"""Kernel times that the package aiconfigurator-core ships: finding them and reading them.

The package (Apache-2.0, ai-dynamo/aiconfigurator) has Parquet tables, times in ms, of single
kernels of several serving engines on several GPUs:

    systems/SYSTEM.yaml                                      the GPU's datasheet
    systems/data/SYSTEM/FAMILY/BACKEND/VERSION/NAME.parquet  a column a feature, and `latency`

Not every family was measured again with every version. What a version lacks is taken from the
newest older one, as the package itself does, and the choice is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.profiles.parquet_columns import columns_of
from sim.latency.table_folder import TableError

# Our names of GPUs -> the package's; others are known by the package's own names.
SYSTEMS = {
    "a100-80gb": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
NEEDED = ("gemm", "attention")
KERNEL = "kernel_source"  # the column that tells kernels for the same work apart

Points = dict[tuple[int, ...], float]


class NotMeasured(TableError):
    """What was asked for is not among the measurements; another version may have it."""


@dataclass(frozen=True)
class System:
    """One GPU type of the package. `folder` holds its measurements, `figures` its datasheet."""

    name: str
    gpu: str
    folder: Path
    figures: dict[str, Any] = field(hash=False)

    @property
    def bytes_per_s(self) -> float:
        return float(self.figures["mem_bw"])

    @property
    def memory_efficiency(self) -> float:
        """The share of the bandwidth that the package reckons small kernels to reach."""
        return float(self.figures.get("mem_bw_empirical_scaling_factor", 0.8))

    def flops_per_s(self, dtype: str) -> float:
        """Dense peak of products in this number format."""
        rates = {
            "fp8": "fp8",
            "fp8_block": "fp8",
            "w4a8_mxfp4_mxfp8": "fp8",
            "nvfp4": "fp4",
            "sq": "int8",
        }
        peak = self.figures.get(f"{rates.get(dtype, 'bfloat16')}_tc_flops")
        return float(peak or self.figures["bfloat16_tc_flops"])

    @property
    def multiplies_4_bits(self) -> bool:
        """Whether its tensor cores take weights of 4 bits."""
        return bool(self.figures.get("fp4_tc_flops"))

    def backends(self) -> list[str]:
        """Serving engines with products and attention."""
        gemm, attention = (_names(self.folder / family) for family in NEEDED)
        return [name for name in gemm if name in attention]

    def versions(self, backend: str) -> list[str]:
        """Versions of a backend with products and attention, newest first. TableError: none."""
        if backend not in self.backends():
            raise TableError(
                f"no kernels of {backend!r} on {self.name}; there are: {_list(self.backends())}"
            )
        gemm, attention = (_names(self.folder / family / backend) for family in NEEDED)
        both = [name for name in gemm if name in attention]
        if not both:
            raise TableError(f"{self.name}, {backend}: no version has products and attention")
        return sorted(both, key=version_key, reverse=True)


def find_system(name: str, systems: Path | None = None) -> System:
    """The package's system of this name, ours or the package's; `systems` replaces the package.

    Raises TableError without the package, and for a GPU that it has no measurements of.
    """
    import yaml

    systems = _installed() if systems is None else systems
    system = SYSTEMS.get(name, name)
    there = [x for x in _names(systems / "data") if _names(systems / "data" / x / "gemm")]
    if system not in there:
        ours = {package: gpu for gpu, package in SYSTEMS.items()}
        raise TableError(
            f"no kernel times of {name!r}; there are: {_list([ours.get(x, x) for x in there])}"
        )
    gpu = next((gpu for gpu, package in SYSTEMS.items() if package == system), system)
    path = systems / f"{system}.yaml"
    try:
        figures = yaml.safe_load(path.read_text(encoding="utf-8"))["gpu"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise TableError(f"{path}: no figures of the GPU") from None
    return System(system, gpu, systems / "data" / system, figures)


def is_measured(name: str, systems: Path | None = None) -> bool:
    """Whether the package is there and has products and attention of this GPU, by our name."""
    if systems is None:
        found = find_spec("aiconfigurator_core")
        if found is None or name not in SYSTEMS:
            return False
        systems = _installed()
    folder = systems / "data" / SYSTEMS.get(name, name)
    return all(_names(folder / family) for family in NEEDED)


def package_version() -> str:
    """aiconfigurator-core and its version, for the record."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"aiconfigurator-core {version('aiconfigurator-core')}"
    except PackageNotFoundError:
        return "aiconfigurator-core"


@dataclass
class KernelTables:
    """The measurements of one backend's version on one system.

    `borrowed` fills with what had to be taken from another version: family -> "BACKEND VERSION".
    """

    system: System
    backend: str
    version: str
    borrowed: dict[str, str] = field(default_factory=dict)
    _products: dict[str, Points] = field(default_factory=dict)

    def points(self, family: str, name: str, *columns: str, **wanted: object) -> Points:
        """µs by the values of `columns`, of the rows where the other columns are as wanted.

        A tuple of wanted values is an order of preference, a function tells them by itself; a
        column that a file lacks matches.
        A point measured more than once has its median, of several kernels for it that of the
        fastest. Raises NotMeasured saying what there is.
        """
        return self._points(family, self.backend, name, columns, wanted)

    def nccl(self, operation: str, ranks: int) -> Points:
        """µs by values of one of NCCL's collectives (16 bits each); its versions are its own."""
        wanted = {"op_name": operation, "nccl_dtype": "half", "num_gpus": ranks}
        return self._points("comm", "nccl", "nccl_perf", ("message_size",), wanted)

    def _points(
        self,
        family: str,
        backend: str,
        name: str,
        columns: tuple[str, ...],
        wanted: dict[str, object],
    ) -> Points:
        folder = self.system.folder / family / backend
        versions = sorted(_names(folder), key=version_key, reverse=True)
        if backend == self.backend:
            versions = [x for x in versions if version_key(x) <= version_key(self.version)]
        refusal: NotMeasured | None = None
        for version in versions:
            path = folder / version / f"{name}.parquet"
            if not path.is_file():
                continue
            try:
                found = _read(path, columns, wanted)
            except NotMeasured as error:
                refusal = refusal or error
                continue
            if (backend, version) != (self.backend, self.version):
                self.borrowed[family] = f"{backend} {version}"
            return found
        raise refusal or NotMeasured(
            f"{self.system.name}: no {name} of {backend} {self.version} or before"
        )

    def products_elsewhere(self, dtype: str, longest_us: float) -> tuple[Points, str] | None:
        """Products of another backend, the least of which takes no longer, and whose they are."""
        for other in self.elsewhere():
            try:
                points = other.products(dtype)
            except NotMeasured:
                continue
            if min(points.values()) <= longest_us:
                return points, f"{other.backend} {other.version}"
        return None

    def elsewhere(self) -> Iterator[KernelTables]:
        """Every other backend's newest on the same system."""
        for backend in self.system.backends():
            if backend != self.backend:
                yield KernelTables(self.system, backend, self.system.versions(backend)[0])

    def products(self, dtype: str) -> Points:
        """µs of matrix products by (n, k, m), i.e. width, depth and rows."""
        if dtype not in self._products:
            self._products[dtype] = self.points(
                "gemm", "gemm_perf", "n", "k", "m", gemm_dtype=dtype
            )
        return self._products[dtype]


def version_key(version: str) -> tuple[tuple[int, ...], int, int]:
    """Sorts versions: 0.9 before 0.10, 1.3.0rc20 before 1.3.0, 0.5.6 before 0.5.6.post2."""
    release = re.match(r"[\d.]*", version)
    assert release is not None
    numbers = tuple(int(x) for x in release[0].split(".") if x)
    stage = re.search(r"(dev|a|b|rc|post)\.?(\d*)", version)
    if stage is None:
        return numbers, 0, 0
    order = {"dev": -4, "a": -3, "b": -2, "rc": -1, "post": 1}[stage[1]]
    return numbers, order, int(stage[2] or 0)


def _read(path: Path, columns: tuple[str, ...], wanted: dict[str, object]) -> Points:
    import pyarrow as pa

    try:
        table = columns_of(path, {*columns, *wanted, "latency", KERNEL})
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: {str(error).splitlines()[0]}") from None
    for column in (*columns, "latency"):
        if column not in table:
            raise TableError(f"{path}: no column {column!r}")
    rows = np.arange(len(table["latency"]))
    for column, value in wanted.items():
        if column not in table:
            continue
        there = table[column][rows]
        kept = rows[_as_wanted(there, value)]
        if not len(kept):
            raise NotMeasured(
                f"{'/'.join(path.parts[-5:])}: nothing measured with {column} {_or(value)}; "
                f"there are: {_list(np.unique(there).tolist())}"
            )
        rows = kept
    time_us = table["latency"][rows].astype(float) * 1e3
    for bad in np.flatnonzero(~((time_us > 0) & (time_us < np.inf)))[:1]:
        raise TableError(
            f"{path}: row {rows[bad]}: latency is {table['latency'][rows[bad]]!r}, "
            "expected ms above 0"
        )
    lists = []
    for column in columns:
        values = table[column][rows]
        for bad in np.flatnonzero(~(values >= 0))[:1] if values.dtype.kind in "iu" else [0]:
            raise TableError(f"{path}: row {rows[bad]}: {column} is {values[bad]!r}")
        lists.append(values.tolist())
    keys = list(zip(*lists, strict=True))
    found = dict(zip(keys, time_us.tolist(), strict=True))
    if len(found) == len(keys):
        return found
    kernels = table[KERNEL][rows].tolist() if KERNEL in table else [""] * len(keys)
    groups: dict[tuple[int, ...], dict[str, list[float]]] = {}
    for key, kernel, each in zip(keys, kernels, time_us.tolist(), strict=True):
        groups.setdefault(key, {}).setdefault(kernel, []).append(each)
    return {key: min(map(float, map(np.median, by.values()))) for key, by in groups.items()}


def _as_wanted(there: np.ndarray, value: object) -> np.ndarray:
    """Which of the values are wanted: by a function, or the first choice that is there."""
    if callable(value):
        return np.isin(there, [each for each in np.unique(there).tolist() if value(each)])
    masks = (there == choice for choice in (value if isinstance(value, tuple) else (value,)))
    return next((mask for mask in masks if mask.any()), np.zeros(len(there), dtype=bool))


def _installed() -> Path:
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise TableError(
            "the package aiconfigurator-core is not installed: pip install aiconfigurator-core "
            "(on Linux, or macOS on ARM; Python 3.11 to 3.13)"
        )
    return Path(next(iter(found.submodule_search_locations))) / "systems"


def _names(folder: Path) -> list[str]:
    return sorted(x.name for x in folder.iterdir() if x.is_dir()) if folder.is_dir() else []


def _list(names: list[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


def _or(value: object) -> str:
    if callable(value):
        return "of that kind"
    return " or ".join(map(str, value)) if isinstance(value, tuple) else str(value)
