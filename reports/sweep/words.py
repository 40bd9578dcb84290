"""How a sweep's axes and figures are named, and in which unit a figure is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scenarios.quantity import MISSING, plain
from scenarios.sweep.axes import level_text
from scenarios.sweep.statistics import Interval
from scenarios.sweep.table import SweepTable

_TIMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "inter-token latency",
    "e2el": "E2E",
    "queue": "queue time",
    "request_itl": "inter-token latency of a request",
}
_NAMES = {
    "request_goodput": ("Goodput", "req/s"),
    "request_throughput": ("Request throughput", "req/s"),
    "output_throughput": ("Output throughput", "tokens/s"),
    "total_token_throughput": ("Total throughput", "tokens/s"),
    "preemptions": ("Preemptions", ""),
    "rejected": ("Rejected requests", ""),
    "completed": ("Completed requests", ""),
    "duration": ("Duration", "s"),
    "kv_utilization": ("KV memory that holds a token", "%"),
    "kv_useful": ("KV memory in use that holds a token", "%"),
    "mean_running": ("Running requests, mean", ""),
    "mean_waiting": ("Waiting requests, mean", ""),
    "cost.usd_per_million_output_tokens": ("Cost", "$/million output tokens"),
    "cost.usd_per_hour": ("Cost", "$/hour"),
    "energy.joules_per_output_token": ("Energy, estimated", "J/output token"),
    "energy.joules_per_token": ("Energy, estimated", "J/token"),
    "energy.mean_watts": ("Power of the GPUs, estimated", "W"),
    "energy.usd_per_hour": ("Electricity, estimated", "$/hour"),
    "energy.usd_per_million_output_tokens": (
        "Electricity, estimated",
        "$/million output tokens",
    ),
    "memory_bytes.kv_cache": ("KV cache of a GPU", "GiB"),
    "slo_attainment.all": ("Requests within the SLO", "%"),
}
# Units of a scenario's paths, by their last keys; a key that ends in its unit needs no entry.
_PATH_UNITS = {
    "max_num_seqs": "sequences",
    "max_num_waiting": "requests",
    "max_num_batched_tokens": "tokens",
    "long_prefill_token_threshold": "tokens",
    "max_model_len": "tokens",
    "max_tokens": "tokens",
    "block_size": "tokens",
    "num_gpu_blocks_override": "blocks",
    "gpu_memory_utilization": "share",
    "watermark": "share of blocks",
    "tensor_parallel": "GPUs",
    "pipeline_parallel": "GPUs",
    "gpus_per_node": "GPUs",
    "request_rate": "requests/s",
    "num_requests": "requests",
    "max_concurrency": "requests",
    "target_outstanding": "requests",
    "time_scale": "×",
    "slo.percentile": "%",
    "cluster.replicas": "replicas",
    "min_replicas": "replicas",
    "shared_prefixes.num_prefixes": "prefixes",
    "shared_prefixes.tokens": "tokens",
} | {
    f"{kind}.{key}": "tokens"
    for kind in ("prompt", "output")
    for key in ("tokens", "mean", "median", "min", "max")
}
_SUFFIX_UNITS = {"_gib": "GiB", "_gb_per_s": "GB/s", "_ms": "ms", "_us": "µs", "_s": "s"}


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure as it is shown: its name, its unit, and how many of its own units make one."""

    name: str
    unit: str
    size: float = 1.0

    @classmethod
    def of(cls, metric: str, values: Iterable[float]) -> Measure:
        """How to show a figure that takes these values."""
        statistic, _, rest = metric.partition("_")
        time = _TIMES.get(rest.removesuffix("_ms"))
        if time is not None and metric.endswith("_ms"):
            statistic = statistic if statistic.startswith("p") else statistic.capitalize()
            seconds = max(values, default=0.0) >= 10_000
            return cls(f"{statistic} {time}", *(("s", 1e3) if seconds else ("ms", 1.0)))
        name, unit = _NAMES.get(metric, (metric, ""))
        return cls(name, unit, {"%": 0.01, "GiB": 2.0**30}.get(unit, 1.0))

    @property
    def title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float | None) -> str:
        """Without its unit."""
        return MISSING if value is None else plain(value / self.size)

    def mean(self, found: Interval | None, *, unit: bool = True) -> str:
        """A mean with its interval: ``5.75 ± 0.1 requests/s``."""
        if found is None:
            return MISSING
        spread = f" ± {plain(found.half / self.size, 2)}" if found.half else ""
        return f"{self.number(found.mean)}{spread}" + (
            f" {self.unit}" if unit and self.unit else ""
        )


def axis_label(table: SweepTable, axis: int) -> str:
    """The last key of each path; more of it where two axes would have the same label."""
    paths = [path for paths in table.axes for path in paths]
    ends = [path.rpartition(".")[2] for path in paths]
    return " : ".join(
        path.rpartition(".")[2] if ends.count(path.rpartition(".")[2]) == 1 else path
        for path in table.axes[axis]
    )


def axis_title(table: SweepTable, axis: int) -> str:
    """An axis' label with the units of its numbers: ``max_num_seqs (sequences)``."""
    levels = table.levels(axis)
    titles = []
    for at, label in enumerate(axis_label(table, axis).split(" : ")):
        numeric = any(isinstance(level[at], int | float) for level in levels)
        unit = _unit_of(table.axes[axis][at]) if numeric else ""
        titles.append(f"{label} ({unit})" if unit else label)
    return " : ".join(titles)


def _unit_of(path: str) -> str:
    keys = path.split(".")
    known = _PATH_UNITS.get(".".join(keys[-2:])) or _PATH_UNITS.get(keys[-1])
    suffixes = (unit for suffix, unit in _SUFFIX_UNITS.items() if path.endswith(suffix))
    return known or next(suffixes, "")


def level_label(level: tuple[Any, ...]) -> str:
    """A level in at most 40 characters: what is long mostly differs at one of its ends."""
    text = level_text(level)
    return text if len(text) <= 40 else f"{text[:19]}…{text[-20:]}"


def varying(table: SweepTable) -> list[int]:
    """The axes with more than one level; all of them where none has."""
    every = range(len(table.axes))
    return [axis for axis in every if len(table.levels(axis)) > 1] or list(every)


def setting_label(table: SweepTable, setting: int) -> str:
    """``max_num_seqs 64, block_size 16``."""
    return ", ".join(
        f"{axis_label(table, axis)} {level_label(table.level(axis, setting))}"
        for axis in varying(table)
    )
