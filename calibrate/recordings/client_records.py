"""What benchmark clients recorded of each request, and what they say of a whole run.

Where a format keeps latencies stands with the formats of traces (`sim/workload/trace_formats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.recordings.measurement_types import Measurement, MeasurementError
from sim.workload.trace_entries import Entry, json_object
from sim.workload.trace_file import TraceError, TraceFile
from sim.workload.trace_formats import PER_S, Keys, TraceFormat
from sim.workload.trace_prometheus import ANSWERED, Metrics, quantile, read_metrics
from sim.workload.trace_results import bench_object
from sim.workload.trace_spans import requests_of
from sim.workload.traces import trace_format

STATISTICS = ("mean", "p50", "p90", "p95", "p99")


def read_records(file: TraceFile, format: TraceFormat, label: str) -> Measurement:
    """The requests of a client's records; those that failed are not completed.

    Raises MeasurementError, one line that names file and line.
    """
    try:
        return _read_records(file, format, label)
    except TraceError as error:
        raise MeasurementError(str(error)) from None


def _read_records(file: TraceFile, format: TraceFormat, label: str) -> Measurement:
    assert format.arrival is not None and format.latencies is not None
    kept = [entry for entry in requests_of(file, format) if entry.counts_in(format)]
    if not kept:
        raise MeasurementError(f"{file.path}: no request in it")
    times = [entry.time(format.arrival) for entry in kept]
    per_s = PER_S.get(format.arrival.unit, 1.0)
    arrival_s = np.array([(value - times[0]) / per_s for value in times])
    failed = np.array([any(entry.get(key) for key in format.failed) for entry in kept])
    tokens = [
        (0, 0) if bad else (entry.tokens(format.prompt), entry.tokens(format.output))
        for entry, bad in zip(kept, failed.tolist(), strict=True)
    ]
    spans = [
        (math.nan, math.nan) if bad else _spans_s(entry, format)
        for entry, bad in zip(kept, failed.tolist(), strict=True)
    ]
    ttft_s, e2e_s = np.array(spans).T
    output = np.array([one for _, one in tokens], np.int64)
    ids = [entry.get(entry.first(format.request_id)) for entry in kept if format.request_id]
    return Measurement(
        label=label,
        recorded=True,
        arrival_s=arrival_s,
        scheduled_s=np.full(len(kept), np.nan),
        first_token_s=arrival_s + ttft_s,
        finished_s=arrival_s + e2e_s,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        prompt_tokens=np.array([one for one, _ in tokens], np.int64),
        output_tokens=output,
        completed=~failed & (output > 0) & np.isfinite(e2e_s),
        request_id=np.array([str(name) for name in ids], object)
        if ids and all(name is not None for name in ids)
        else None,
        by_client=True,
    ).in_order_of_arrival()


def _spans_s(entry: Entry, format: TraceFormat) -> tuple[float, float]:
    """TTFT and E2E of an answer; NaN where the record does not tell."""
    said = format.latencies
    assert said is not None
    began_s = entry.time_s(format.arrival)
    ttft_s, e2e_s = entry.time_s(said.ttft), entry.time_s(said.e2e)
    if math.isnan(e2e_s):
        e2e_s = entry.time_s(said.end) - began_s
    if said.token_times is not None and math.isnan(ttft_s):
        key = entry.first(said.token_times.keys)
        times = entry.get(key)
        if isinstance(times, list) and times:
            first = Entry(entry.file, entry.line, {f"{key}[0]": times[0]}, entry.place)
            ttft_s = first.number(f"{key}[0]") / PER_S[said.token_times.unit] - began_s
    if e2e_s < 0 or ttft_s < 0 or ttft_s > e2e_s * (1 + 1e-6) + 1e-6:
        raise entry.error(
            f"first token after {ttft_s:g} s, end after {e2e_s:g} s: expected them in this order"
        )
    return ttft_s, e2e_s


@dataclass(frozen=True, slots=True)
class Aggregates:
    """What a tool says of a run as a whole: statistics of latencies in ms, rates in 1/s.

    metrics: of ttft, tpot and e2e, those of STATISTICS that are there. notes: what to know of them.
    """

    label: str
    requests: int | None
    duration_s: float | None
    request_per_s: float | None
    output_per_s: float | None
    metrics: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a tool's summary has what; `{}` in a metric's keys stands for the statistic.

    unit: of the latencies; None where each metric names its own, in place of a statistic.
    """

    metrics: Mapping[str, Keys]
    unit: str | None
    requests: str
    duration: str
    request_per_s: str
    output_per_s: str


_WORDS = {"mean": ("mean", "avg"), "p50": ("median", "p50")}  # where tools' words differ

# `vllm bench serve` and `sglang.bench_serving`
_BENCH = _Layout(
    {"ttft": ("{}_ttft_ms",), "tpot": ("{}_tpot_ms",), "e2e": ("{}_e2el_ms", "{}_e2e_latency_ms")},
    "ms",
    requests="completed",
    duration="duration",
    request_per_s="request_throughput",
    output_per_s="output_throughput",
)
# AIPerf's and genai-perf's export
_PROFILE = _Layout(
    {
        "ttft": ("time_to_first_token.{}",),
        "tpot": ("inter_token_latency.{}",),
        "e2e": ("request_latency.{}",),
    },
    None,
    requests="request_count.avg",
    duration="benchmark_duration.avg",
    request_per_s="request_throughput.avg",
    output_per_s="output_token_throughput.avg",
)
# inference-perf's summary_lifecycle_metrics.json
_PERF = _Layout(
    {
        "ttft": ("successes.latency.time_to_first_token.{}",),
        "tpot": ("successes.latency.time_per_output_token.{}",),
        "e2e": ("successes.latency.request_latency.{}",),
    },
    "s",
    requests="successes.count",
    duration="benchmark_time_seconds",
    request_per_s="successes.throughput.requests_per_sec",
    output_per_s="successes.throughput.output_tokens_per_sec",
)


def aggregates_in(path: Path, label: str | None = None) -> Aggregates | None:
    """The aggregates of a file that has no requests; None where it has, or is something else.

    Raises MeasurementError where it has not even a latency.
    """
    if path.is_dir():
        return None
    try:
        file = TraceFile.read(path)
        format, _ = trace_format(file)
    except TraceError:
        return None
    label = label or str(path)
    if format.name == "prometheus":
        try:
            found = aggregates_of(read_metrics(file), label)
        except TraceError as error:
            raise MeasurementError(str(error)) from None
    elif format.name == "aggregates":
        entry = Entry(file, 1, json_object(file))
        found = _aggregates(entry, _PERF if entry.get("successes") else _PROFILE, label)
    elif format.name == "vllm-bench":
        entry = Entry(file, 1, bench_object(file).row)
        if "ttfts" in entry.row or "itls" in entry.row or "input_lens" in entry.row:
            return None
        found = _aggregates(entry, _BENCH, label)
    else:
        return None
    if not any(found.metrics.values()):
        raise MeasurementError(f"{path}: neither requests nor a latency in it to compare with")
    return found


# An engine's histograms of its metrics: TTFT, TPOT and E2E; the second where the first is not
# there. What vLLM called time_per_output_token before is the gap between two tokens.
_HISTOGRAMS = {
    "ttft": ("time_to_first_token_seconds",),
    "tpot": (
        "request_time_per_output_token_seconds",
        "inter_token_latency_seconds",
        "time_per_output_token_seconds",
    ),
    "e2e": ("e2e_request_latency_seconds",),
}


def aggregates_of(metrics: Metrics, label: str) -> Aggregates:
    """What an engine's own metrics say of the range they were queried for."""
    duration_s = float(metrics.times_s[-1] - metrics.times_s[0])
    count, tokens = (
        next((found for name in names if (found := metrics.increase(name)) is not None), None)
        for names in (ANSWERED, ("generation_tokens_total", "request_generation_tokens_sum"))
    )
    statistics: dict[str, dict[str, float]] = {}
    notes = ["B is of the engine's metrics: percentiles are linear within buckets"]
    for metric, names in _HISTOGRAMS.items():
        name = next((one for one in names if metrics.mean(one) is not None), None)
        statistics[metric] = {} if name is None else _statistics_of(metrics, name)
        if metric == "tpot" and name not in (None, names[0]):
            notes.append(f"B's TPOT is {name}: every gap counts, not every request")
    return Aggregates(
        label,
        None if count is None else round(count.sum()),
        duration_s,
        None if count is None else float(count.sum()) / duration_s,
        None if tokens is None else float(tokens.sum()) / duration_s,
        statistics,
        tuple(notes),
    )


def _statistics_of(metrics: Metrics, name: str) -> dict[str, float]:
    """Mean and percentiles of a histogram in ms."""
    found = {"mean": (metrics.mean(name) or 0.0) * 1e3}
    histogram = metrics.histogram(name)
    if histogram is not None:
        for statistic in STATISTICS[1:]:
            found[statistic] = quantile(histogram, int(statistic[1:]) / 100) * 1e3
    return found


def _aggregates(entry: Entry, layout: _Layout, label: str) -> Aggregates:
    requests = _number(entry, layout.requests)
    return Aggregates(
        label,
        None if requests is None else round(requests),
        _number(entry, layout.duration),
        _number(entry, layout.request_per_s),
        _number(entry, layout.output_per_s),
        {
            metric: dict(_statistics_ms(entry, keys, layout.unit))
            for metric, keys in layout.metrics.items()
        },
    )


def _statistics_ms(entry: Entry, keys: Keys, unit: str | None) -> Iterator[tuple[str, float]]:
    """Each statistic that is there, under the first of its keys and words that is."""
    if unit is None:
        key = keys[0].format("unit")
        unit = str(entry.get(key) or "ms")
        if unit not in PER_S:
            raise MeasurementError(f"{entry.file.path}:1: {key} is {unit!r:.40}, expected ms")
    for statistic in STATISTICS:
        names = (key.format(word) for word in _WORDS.get(statistic, (statistic,)) for key in keys)
        values = (_number(entry, name) for name in names)
        found = next((value for value in values if value is not None), None)
        if found is not None:
            yield statistic, found * (1e3 / PER_S[unit])


def _number(entry: Entry, key: str) -> float | None:
    value: Any = entry.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
    return float(value) if known else None
