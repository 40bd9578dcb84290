"""GPUs: the library's by name or alias, one described in a YAML file, or in a scenario itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from scenarios.errors import InputError, did_you_mean, reading
from scenarios.yaml_file import find_file, read_yaml
from sim.model.hardware import Gpu

GPUS_FILE = Path(__file__).parent / "gpus.yaml"

# Other names that people use, in lower case with dashes.
ALIASES = {
    "a100": "a100-80gb",
    "a100-sxm": "a100-80gb",
    "a100-sxm4-80gb": "a100-80gb",
    "a100-sxm4-40gb": "a100-40gb",
    "h100": "h100-sxm",
    "h100-sxm5": "h100-sxm",
    "h100-80gb": "h100-sxm",
    "h100-80gb-hbm3": "h100-sxm",
    "h200": "h200-sxm",
    "h200-141gb": "h200-sxm",
    "h800": "h800-sxm",
    "gh200": "gh200-96gb",
    "b200-sxm": "b200",
    "b300-sxm": "b300",
    "v100": "v100-32gb",
    "4090": "rtx-4090",
    "rtx4090": "rtx-4090",
    "3090": "rtx-3090",
    "rtx3090": "rtx-3090",
    "5090": "rtx-5090",
    "rtx5090": "rtx-5090",
    "a6000": "rtx-a6000",
    "rtx-pro-6000-blackwell": "rtx-pro-6000",
    "rtx-6000-pro": "rtx-pro-6000",
    "mi300": "mi300x",
    "mi325": "mi325x",
    "mi355": "mi355x",
    "v5e": "tpu-v5e",
    "v6e": "tpu-v6e",
    "trillium": "tpu-v6e",
    "gaudi-3": "gaudi3",
    "trn2": "trainium2",
}
_MAKERS = ("nvidia-", "amd-", "instinct-", "geforce-", "intel-", "google-", "aws-", "tesla-")

# Keys of a GPU in a scenario, in units of data sheets, and what they set: (section, key, factor).
FIGURES: dict[str, tuple[str | None, str, float]] = {
    "memory_gb": (None, "memory_bytes", 1e9),
    "memory_bandwidth_gb_per_s": (None, "memory_bytes_per_s", 1e9),
    "bf16_tflops": (None, "bfloat16_flops_per_s", 1e12),
    "fp8_tflops": (None, "float8_flops_per_s", 1e12),
    "int8_tops": (None, "int8_flops_per_s", 1e12),
    "fp4_tflops": (None, "float4_flops_per_s", 1e12),
    "host_link_gb_per_s": (None, "host_link_bytes_per_s", 1e9),
    "idle_watts": (None, "idle_watts", 1.0),
    "peak_watts": (None, "peak_watts", 1.0),
    "price_usd_per_hour": (None, "price_usd_per_hour", 1.0),
    "link_gb_per_s": ("interconnect", "bytes_per_s", 1e9),
    "link_latency_us": ("interconnect", "latency_s", 1e-6),
    "inter_node_link_gb_per_s": ("interconnect", "inter_node_bytes_per_s", 1e9),
    "inter_node_link_latency_us": ("interconnect", "inter_node_latency_s", 1e-6),
}
_TOLD = {"like", "name", "architecture", *FIGURES}
# What tells a GPU described so from an entry of gpus.yaml, which is in bytes and FLOPs.
_OF_DATA_SHEETS = {"like"} | {key for key, (_, inner, _) in FIGURES.items() if key != inner}


def gpus() -> dict[str, Any]:
    """Figures of every GPU by name, as written in gpus.yaml; for reading only."""
    status = GPUS_FILE.stat()
    return _read_once(GPUS_FILE, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=1)
def _read_once(path: Path, _: tuple[int, int]) -> dict[str, Any]:
    """Again only when the file has changed: plans and sweeps ask for GPUs at every point."""
    figures: dict[str, Any] = read_yaml(path)
    return figures


def gpu_name(given: str) -> str:
    """The library's name of a GPU that goes by this name or alias; `given` itself where none."""
    name = "-".join(given.lower().replace("_", " ").replace("-", " ").split())
    for maker in _MAKERS:
        name = name.removeprefix(maker)
    return ALIASES.get(name, name if name in gpus() else given)


def gpu(given: str | Mapping[str, Any], *, beside: Path | None = None) -> Gpu:
    """A GPU by name, alias or YAML file (in the current folder, then in `beside`), or by figures.

    A mapping says ``like``, a name or file whose figures it changes, or every figure (`FIGURES`).
    """
    if isinstance(given, Mapping):
        return _described(given, beside=beside)
    path = find_file(given, beside=beside) if given.endswith((".yaml", ".yml")) else None
    with reading(given if path is None else path):
        name, figures = _figures_of(given, beside=beside)
        return _checked(figures, name)


def _figures_of(given: str, *, beside: Path | None) -> tuple[str, dict[str, Any]]:
    known = gpus()
    name = gpu_name(given)
    if name in known:
        return name, known[name]
    path = find_file(given, beside=beside) if given.endswith((".yaml", ".yml")) else None
    if path is None or not path.is_file():
        raise InputError(f"unknown GPU {given!r}; {_meant(given, known)}")
    content = read_yaml(path)
    if isinstance(content, Mapping) and len(content) == 1:  # an entry copied with its name
        ((name, inner),) = content.items()
        if isinstance(inner, Mapping):
            return str(name), dict(inner)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected the figures of a GPU, as in an entry of gpus.yaml")
    if _OF_DATA_SHEETS & content.keys():  # as a scenario tells one, in the units of data sheets
        return _of_data_sheet(content, path)
    return path.stem, dict(content)


def _of_data_sheet(content: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    for key in content:
        if key not in _TOLD:
            raise InputError(f"{path}: {key}: unknown key; {did_you_mean(str(key), sorted(_TOLD))}")
    for key in content.keys() & FIGURES.keys():
        if isinstance(content[key], bool) or not isinstance(content[key], int | float):
            raise InputError(f"{path}: {key}: expected a number, not {content[key]!r:.60}")
    like = content.get("like")
    if like is not None and gpu_name(str(like)) not in gpus():
        raise InputError(f"{path}: like: unknown GPU {like!r:.60}; {_meant(str(like), gpus())}")
    return _told({"name": path.stem, **content}, beside=None)


def _described(given: Mapping[str, Any], *, beside: Path | None) -> Gpu:
    name, figures = _told(given, beside=beside)
    return _checked(figures, name)


def _told(given: Mapping[str, Any], *, beside: Path | None) -> tuple[str, dict[str, Any]]:
    """Another GPU's figures with some changed, or a GPU told in full."""
    like = given.get("like")
    if like is None:
        figures: dict[str, Any] = {"interconnect": {}, "source": "described in the scenario"}
        name = str(given.get("name") or "gpu")
    else:
        base, found = _figures_of(str(like), beside=beside)
        figures = copy.deepcopy(found)
        name = str(given.get("name") or f"{base} (changed)")
        if FIGURES.keys() & given.keys():
            figures["source"] = f"as {base} but for what is told: {figures['source']}"
    for key, (section, inner, factor) in FIGURES.items():
        if given.get(key) is not None:
            target = figures if section is None else figures[section]
            target[inner] = float(given[key]) * factor
    if given.get("link_gb_per_s") is not None:
        for of_the_others_link in ("measured", "peer_links", "peer_access"):
            figures["interconnect"].pop(of_the_others_link, None)
    if given.get("architecture") is not None:
        figures["architecture"] = given["architecture"]
    if like is None:
        _fill_in(figures, name)
    return name, figures


def _fill_in(figures: dict[str, Any], name: str) -> None:
    """What a GPU told in full may leave out: PCIe 5.0 to host and peers, 400 Gbit/s beyond."""
    for said in ("memory_gb", "memory_bandwidth_gb_per_s", "bf16_tflops", "price_usd_per_hour"):
        if FIGURES[said][1] not in figures:
            raise InputError(f"{name}: {said} is missing; or say which GPU it is like")
    figures.setdefault("host_link_bytes_per_s", 6.3e10)
    links = figures["interconnect"]
    links.setdefault("bytes_per_s", figures["host_link_bytes_per_s"])
    links.setdefault("latency_s", 2.5e-6)
    links.setdefault("inter_node_bytes_per_s", 5.0e10)
    links.setdefault("inter_node_latency_s", 5.0e-6)


def _checked(figures: Mapping[str, Any], name: str) -> Gpu:
    try:
        return Gpu.from_mapping(figures, name=name)
    except ValueError as error:
        raise InputError(str(error)) from None


def _meant(given: str, known: Mapping[str, Any]) -> str:
    """The nearest name: first those that begin alike."""
    plain = given.lower().replace("_", "-").replace(" ", "-")
    begin = [name for name in known if name.startswith(plain.split("-")[0])]
    hint = did_you_mean(plain, begin or known)
    if begin and not hint.startswith("did"):
        hint = f"did you mean {begin[0]!r}? allowed: "
    return f"{hint.partition('allowed: ')[0]}allowed: {', '.join(known)}, or a YAML file"
