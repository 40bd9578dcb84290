"""What a run's report shows beyond its records: where the time goes, work, blocks, provenance.

All of it is told afterwards, from the records and the objects they were simulated with, so that a
simulation costs the same whether anybody looks or not. Block tables come from simulating a small
run once more, iteration by iteration, with a recorder watching; the records must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.forecast.block_tables import BlockTables, block_tables
from scenarios.forecast.deployment import Deployment
from scenarios.forecast.energy import engines
from scenarios.forecast.forecast import Forecast
from scenarios.forecast.provenance import Origin, latency_origins
from scenarios.model_figures import model_figures
from sim.latency.protocol import LatencyModel
from sim.model.hardware import Gpu
from sim.model.prefill_contexts import prefill_contexts
from sim.model.work import Features
from sim.records import Columns, Records
from sim.scratch import Table

MAX_SAMPLED_ITERATIONS = 2_000
KINDS = ("prefill", "mixed", "decode")
_CHUNK = 1 << 18  # iterations whose classes are computed at once


@dataclass(frozen=True, slots=True)
class Roof:
    """A GPU's ceilings, from its datasheet, for products with weights of ``weight_dtype``."""

    gpu: str
    weight_dtype: str
    peak_flops_per_s: float
    memory_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class SampledWork:
    """Work of some iterations on one GPU: `rows` of the records, FLOPs and bytes, whose roof."""

    rows: np.ndarray
    kind: np.ndarray  # index into KINDS
    flops: np.ndarray
    moved_bytes: np.ndarray
    roof: np.ndarray  # index into `roofs`
    roofs: tuple[Roof, ...]
    of_each_kind: tuple[int, ...]  # iterations in the run, by kind


@dataclass(frozen=True, slots=True)
class RunDetails:
    """`operators_s`: seconds of every iteration by class (`sim.latency.protocol.OPERATORS`), f4."""

    operators_s: Columns
    work: SampledWork
    blocks: BlockTables | str  # or why there are none
    origins: tuple[Origin, ...]
    model: dict[str, Any]


def run_details(
    forecast: Forecast, *, origin: Path | None = None, unrepeatable: str | None = None
) -> RunDetails:
    """The details of a finished run; `origin` is the scenario's file.

    `unrepeatable`: why it cannot be simulated once more, in words, where it cannot.
    """
    deployment, records = forecast.deployment, forecast.records
    beside = None if origin is None else origin.parent
    model = model_figures(deployment.model, deployment.scenario.engine.kv_cache_dtype)
    if "kv_groups" in forecast.summary:
        model["kv_cache"]["tables"] = forecast.summary["kv_groups"]
    return RunDetails(
        operators_s=operator_seconds(deployment, records.iterations),
        work=sampled_work(deployment, records, beside=beside),
        blocks=unrepeatable or block_tables(deployment, records),
        origins=tuple(latency_origins(deployment)),
        model=model,
    )


def operator_seconds(deployment: Deployment, iterations: Table) -> Columns:
    """Seconds of each iteration by class of operation; each group's latency model splits its own.

    Classes that take no time at all are left out.
    """
    found: Columns = {}
    for latency, rows in _shares(deployment, iterations):
        for begin in range(0, len(rows), _CHUNK):
            some = rows[begin : begin + _CHUNK]
            own = {name: column[some] for name, column in iterations.items()}
            for name, seconds in latency.operators_s(own).items():
                if name not in found:
                    found[name] = np.zeros(len(iterations["start_s"]), dtype=np.float32)
                found[name][some] = seconds
    return {name: seconds for name, seconds in found.items() if seconds.any()}


def _shares(deployment: Deployment, iterations: Table) -> Iterator[tuple[LatencyModel, np.ndarray]]:
    """Latency models and the rows that are theirs."""
    group_of = deployment.group_of(iterations["replica"])
    models = [group.latency for group in deployment.groups] or [deployment.latency]
    for number, latency in enumerate(models):
        yield latency, np.flatnonzero(group_of == number)


def sampled_work(
    deployment: Deployment, records: Records, *, beside: Path | None = None
) -> SampledWork:
    """FLOPs and bytes of at most `MAX_SAMPLED_ITERATIONS` iterations, evenly from each kind."""
    iterations = records.iterations
    prefills, decodes = iterations["prefill_seqs"] > 0, iterations["decode_seqs"] > 0
    kind = np.where(prefills & decodes, 1, np.where(prefills, 0, 2)).astype(np.int8)
    rows = _sample(kind, MAX_SAMPLED_ITERATIONS)
    contexts = prefill_contexts(records.requests, iterations, wanted=rows)
    group = deployment.group_of(iterations["replica"][rows])
    flops, moved = np.zeros(len(rows)), np.zeros(len(rows))
    roofs: list[Roof] = []
    roof_of = np.zeros(len(rows), dtype=np.int64)
    for number, engine in enumerate(engines(deployment, beside)):
        roof = _roof(engine.gpu, engine.weight_dtype)
        if roof not in roofs:
            roofs.append(roof)
        mine = np.flatnonzero(group == number)
        at = rows[mine]

        def column(name: str, at: np.ndarray = at) -> np.ndarray:
            return np.asarray(iterations[name][at], dtype=np.float64)

        asked = engine.work.of(
            Features(
                tokens=column("num_tokens"),
                rows=column("num_emitting"),
                prefill_tokens=column("prefill_tokens"),
                prefill_pairs=contexts.pairs[at],
                prefill_cached=contexts.cached_tokens[at],
                decodes=column("decode_seqs"),
                context_tokens=column("context_tokens"),
            )
        )
        flops[mine], moved[mine], roof_of[mine] = asked.flops, asked.moved_bytes, roofs.index(roof)
    totals = tuple(int(number) for number in np.bincount(kind, minlength=len(KINDS)))
    return SampledWork(rows, kind[rows], flops, moved, roof_of, tuple(roofs), totals)


def _sample(kind: np.ndarray, most: int) -> np.ndarray:
    """Rows, in order: each kind gets an equal share, what a rare one leaves goes to the others."""
    by_size = sorted((np.flatnonzero(kind == k) for k in range(len(KINDS))), key=len)
    chosen = []
    for place, rows in enumerate(by_size):
        share = min(len(rows), most // (len(by_size) - place))
        most -= share
        if share:
            chosen.append(rows[np.linspace(0, len(rows) - 1, share).round().astype(np.intp)])
    return np.sort(np.concatenate(chosen or [np.zeros(0, dtype=np.intp)]))


def _roof(gpu: Gpu, weight_dtype: str) -> Roof:
    peak = gpu.peak_flops_per_s(weight_dtype)
    return Roof(gpu.name, weight_dtype, peak, gpu.memory_bytes_per_s)
