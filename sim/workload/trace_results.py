"""Results of benchmark clients as traces: `vllm bench serve`, SGLang's, and aggregates of others.

Where a result has no arrivals they are drawn as its client drew them, from the rate it names; where
it has no requests, all have its mean lengths. What was made up is in the workload's notes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.workload import arrivals
from sim.workload.trace_entries import Entry, inside, json_object
from sim.workload.trace_file import TraceFile, TraceRows
from sim.workload.workload import Workload

MOST_REQUESTS = 10**7


def read_bench(file: TraceFile) -> Workload:
    """The result of vLLM's or SGLang's benchmark client: one JSON object of lists and figures.

    A request arrives when the client sent it (`start_times`), also where the client held it back
    for its --max-concurrency: replaying the times needs no closed loop.
    """
    result = bench_object(file)
    entry = Entry(file, 1, result.row)
    lists = "input_lens" in result.row and "output_lens" in result.row
    if lists:
        prompt, output = (_list(entry, name, whole=True) for name in ("input_lens", "output_lens"))
    elif "input_lens" in result.row or not _has_totals(entry):
        raise entry.error(
            "a vLLM bench result without input_lens and output_lens, expected --save-detailed"
        )
    else:
        prompt, output = _means(entry)
    notes = list(result.notes)
    if not lists:
        notes.append(
            f"a summary: its {len(prompt)} requests all have its mean lengths; with "
            "--save-detailed (SGLang: --output-details) it has each one's"
        )
    if result.row.get("start_times"):
        arrival_s = _list(entry, "start_times", whole=False)
        if not len(prompt) == len(output) == len(arrival_s):
            raise entry.error(
                f"{len(prompt)} input_lens, {len(output)} output_lens and {len(arrival_s)} "
                "start_times, expected equally many"
            )
        return TraceRows(
            arrival_s, prompt.astype(np.int64), output.astype(np.int64), notes=tuple(notes)
        ).workload(file)
    if len(prompt) != len(output):
        raise entry.error(
            f"{len(prompt)} input_lens and {len(output)} output_lens, expected equally many"
        )
    if "request_rate" not in result.row:
        raise entry.error(
            "a vLLM bench result without start_times, expected them as recent versions write with "
            "--save-detailed, or a request_rate: without them there are lengths but no arrivals"
        )
    arrival_s, said = _drawn(entry, len(prompt))
    limit = result.row.get("max_concurrency")
    if limit is not None:
        limit = entry.tokens(("max_concurrency",)) or None
        said += f", no more than {limit} at once"
    return TraceRows(
        arrival_s,
        prompt.astype(np.int64),
        output.astype(np.int64),
        notes=(*notes, f"no arrival times in it: {said}"),
        max_concurrency=limit,
    ).workload(file)


def read_aggregates(file: TraceFile) -> Workload:
    """Aggregates alone: requests of the mean lengths, evenly at the throughput that was reached."""
    entry = Entry(file, 1, json_object(file))
    if entry.get("successes") is not None:  # inference-perf's summary_lifecycle_metrics.json
        keys = (
            "successes.count",
            "successes.throughput.requests_per_sec",
            entry.first(("successes.prompt_len.mean", "successes.prompt_tokens.mean")),
            entry.first(("successes.output_len.mean", "successes.output_tokens.mean")),
        )
    else:  # AIPerf, genai-perf
        keys = ("request_count.avg", "request_throughput.avg", "input_sequence_length.avg",
                "output_sequence_length.avg")  # fmt: skip
    count, rate, prompt, output = (entry.number(key) for key in keys)
    n = round(count)
    if not 1 <= n <= MOST_REQUESTS or rate <= 0:
        raise entry.error(f"{keys[0]} is {count:g}, {keys[1]} {rate:g}, expected above 0")
    return TraceRows(
        np.arange(n) / rate,
        _spread(prompt * n, n),
        _spread(output * n, n),
        notes=(
            f"aggregates alone: {n} requests of the mean lengths, evenly at the {rate:g} a second "
            "that were answered; the tool's records of each request tell more",
        ),
    ).workload(file)


@dataclass(frozen=True, slots=True)
class BenchObject:
    """One result, and what is to be known of it."""

    row: dict[str, Any]
    notes: tuple[str, ...] = ()


def bench_object(file: TraceFile) -> BenchObject:
    """The result in a file; the last of them in one with a result a line, as SGLang appends."""
    lines = [(at, text) for at, text in enumerate(file.lines(), 1) if text.strip()]
    try:
        rows = [json.loads(text) for _, text in lines]
    except (ValueError, RecursionError):
        return BenchObject(json_object(file))
    if len(rows) < 2 or not all(isinstance(row, dict) for row in rows):
        return BenchObject(json_object(file))
    if not all("backend" in row and "completed" in row for row in rows):
        return BenchObject(json_object(file))
    return BenchObject(rows[-1], (f"{len(rows)} results, of which the last is read",))


def _has_totals(entry: Entry) -> bool:
    return all(entry.get(key) for key in ("completed", "total_input_tokens", "total_output_tokens"))


def _means(entry: Entry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lengths of requests that are all alike, with the totals of the result."""
    n = entry.tokens(("completed",))
    if not 1 <= n <= MOST_REQUESTS:
        raise entry.error(f"{entry.given('completed')}, expected 1 to {MOST_REQUESTS}")
    prompt, output = (
        _spread(entry.tokens((key,)), n).astype(np.float64)
        for key in ("total_input_tokens", "total_output_tokens")
    )
    return prompt, output


def _spread(total: float, n: int) -> NDArray[np.int64]:
    """`total` over n requests, as evenly as whole numbers allow."""
    edges = np.floor(np.arange(n + 1) * (total / n) + 0.5)
    return np.diff(edges).astype(np.int64)


def _drawn(entry: Entry, n: int) -> tuple[NDArray[np.float64], str]:
    """Arrivals at a client's rate, always the same ones, and what was done."""
    rate = entry.get("request_rate")
    if rate in ("inf", "Infinity") or rate == math.inf:
        return np.zeros(n), "all at once (request_rate inf)"
    rate = entry.number("request_rate")
    if rate <= 0:
        raise entry.error(f"request_rate is {rate}, expected above 0, or inf")
    burstiness = entry.number("burstiness") if entry.get("burstiness") is not None else 1.0
    rng = np.random.default_rng(0)
    if burstiness == 1 or burstiness <= 0:
        return arrivals.poisson(
            rng, n, rate_per_s=rate
        ), f"drawn (Poisson) at its {rate:g} a second"
    drawn = arrivals.gamma(rng, n, rate_per_s=rate, burstiness=burstiness)
    return drawn, f"drawn (gamma, burstiness {burstiness:g}) at its {rate:g} a second"


def _list(entry: Entry, key: str, *, whole: bool) -> NDArray[np.float64]:
    """A list of numbers of at least 0, whole ones where asked."""
    values = inside(entry.row, key)
    if not isinstance(values, list):
        raise entry.error(f"{entry.given(key)}, expected a list of numbers")
    numbers = []
    for at, value in enumerate(values):
        name = f"{key}[{at}]"
        one = Entry(entry.file, entry.line, {name: value})
        numbers.append(one.tokens((name,)) if whole else one.number(name))
    return np.array(numbers, np.float64)
