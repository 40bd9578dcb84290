"""Prometheus' range queries of an engine's metrics, as a trace: how many requests, how long.

Counters and histograms tell how much came in each step, and not who: the requests of a step are
spread over it, and their lengths are drawn from the histograms of lengths, or are the step's mean
ones. Metrics go by vLLM's names (`vllm:request_success_total`, …; vLLM, "Metrics"), whose prefix
may be another engine's. Series of several engines or labels are added up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.workload.trace_entries import json_objects, json_value
from sim.workload.trace_file import TraceFile, TraceRows, shown
from sim.workload.workload import Workload

MOST_REQUESTS = 10**7
ANSWERED = (
    "request_success_total",
    "e2e_request_latency_seconds_count",
    "request_generation_tokens_count",
    "request_prompt_tokens_count",
    "time_to_first_token_seconds_count",
    "num_requests_total",
)
IN_FLIGHT = (
    ("num_requests_running", "num_running_reqs"),
    ("num_requests_waiting", "num_queue_reqs"),
)
PROMPT = ("request_prompt_tokens", "prompt_tokens_total")
OUTPUT = ("request_generation_tokens", "generation_tokens_total")

_NAME = re.compile(r"\b(?:vllm|sglang)[:_]([a-z0-9_]+)")
_RATE = re.compile(r"\b(i?rate|increase|i?delta)\s*\(")
_WINDOW = re.compile(r"\[(\d+)(ms|s|m|h|d)")
_WINDOW_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """One series: samples at `times_s` [n], ascending.

    per_s: None for what a metric itself says; else what a sample times makes a rate per second
    (PromQL's rate, increase).
    """

    name: str  # without the engine's prefix
    labels: Mapping[str, str]
    times_s: Floats
    values: Floats
    per_s: float | None = None

    def increases(self) -> Floats:
        """[n]: what came since the sample before (0 for the first); a counter may begin anew."""
        if self.per_s is not None:
            steps = np.diff(self.times_s, prepend=self.times_s[:1])
            return np.asarray(self.values * self.per_s * steps)
        more = np.diff(self.values, prepend=self.values[:1])
        return np.where(more < 0, self.values, more)


@dataclass(frozen=True, slots=True)
class Metrics:
    """All series of a file, on one grid of times."""

    file: TraceFile
    series: tuple[Series, ...]
    times_s: Floats  # [steps + 1]

    def named(self, name: str) -> list[Series]:
        return [one for one in self.series if one.name == name]

    def increase(self, name: str) -> Floats | None:
        """[steps]: what came in each step, over all series of a counter; None without one."""
        return self._added((one, one.increases()) for one in self.named(name))

    def growth(self, names: Iterable[str]) -> Floats | None:
        """[steps]: how much more a gauge shows at each step's end."""
        mine = [one for name in names for one in self.named(name) if one.per_s is None]
        return self._added((one, np.diff(one.values, prepend=one.values[:1])) for one in mine)

    def _added(self, found: Iterable[tuple[Series, Floats]]) -> Floats | None:
        total = None
        for one, amounts in found:
            if total is None:
                total = np.zeros(len(self.times_s))
            np.add.at(total, np.searchsorted(self.times_s, one.times_s), amounts)
        return None if total is None else total[1:]

    def histogram(self, name: str) -> tuple[Floats, Floats] | None:
        """Upper bounds, and how many there were up to each, over the whole range; None without.

        The last bound may be infinite.
        """
        counts: dict[float, float] = {}
        for one in self.named(f"{name}_bucket"):
            bound = _number(one.labels.get("le"))
            if bound is None:
                raise self.file.error(1, f"{name}_bucket without le, expected a bucket's bound")
            counts[bound] = counts.get(bound, 0.0) + float(one.increases().sum())
        if not counts:
            return None
        bounds = np.array(sorted(counts))
        below = np.maximum.accumulate([counts[bound] for bound in bounds.tolist()])
        return (bounds, below) if below[-1] > 0 else None

    def mean(self, name: str) -> float | None:
        """The mean of a histogram's values over the whole range."""
        total, count = (self.increase(f"{name}_{what}") for what in ("sum", "count"))
        if total is None or count is None or count.sum() <= 0:
            return None
        return float(total.sum() / count.sum())


def read_prometheus(file: TraceFile) -> Workload:
    """The requests of each step: those answered in it, and what more was in flight at its end."""
    metrics = read_metrics(file)
    name, came = next(
        ((name, found) for name in ANSWERED if (found := metrics.increase(name)) is not None),
        ("", None),
    )
    if came is None:
        raise file.error(
            1,
            f"no count of requests among {shown(sorted({one.name for one in metrics.series}))}; "
            'query {__name__=~"vllm:.*"}, or at least vllm:request_success_total',
        )
    gauges = [metrics.growth(names) for names in IN_FLIGHT]
    steady = name == ANSWERED[0] and all(one is not None for one in gauges)
    if steady:
        came = came + sum(one for one in gauges if one is not None)
    # Fewer than none carry over, and fractions do: the total stays what was counted.
    whole = np.maximum.accumulate(np.floor(np.maximum(np.cumsum(came), 0.0) + 0.5))
    counts = np.diff(whole, prepend=0.0).astype(np.int64)
    n = int(counts.sum())
    if not 1 <= n <= MOST_REQUESTS:
        raise file.error(1, f"{n} requests in it by {name}, expected 1 to {MOST_REQUESTS}")
    rng = np.random.default_rng(0)
    step = np.repeat(np.arange(len(counts)), counts)
    starts, ends = metrics.times_s[:-1][step], metrics.times_s[1:][step]
    arrival_s = np.sort(starts + (ends - starts) * rng.random(n))
    prompt, said_prompt = _lengths(metrics, PROMPT, came, step, rng)
    output, said_output = _lengths(metrics, OUTPUT, came, step, rng)
    notes = (
        f"metrics of {len(metrics.times_s) - 1} steps of {np.median(np.diff(metrics.times_s)):g} "
        "s: requests are spread over each at random"
        + ("" if steady else "; they count where they were answered, not where they came"),
        f"prompts {said_prompt}, outputs {said_output}; which belongs to which is not recorded",
    )
    return TraceRows(arrival_s, prompt, output, notes=notes).workload(file)


def _lengths(
    metrics: Metrics,
    names: tuple[str, str],
    came: Floats,
    step: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], str]:
    """Lengths of the requests of these steps, and where they are from."""
    histogram, counter = names
    found, mean = metrics.histogram(histogram), metrics.mean(histogram)
    n = len(step)
    if found is not None:
        drawn = quantile(found, (np.arange(n) + 0.5) / n)
        if mean is not None:  # buckets are wide; how much there was in all is known better
            drawn *= mean / drawn.mean()
        return _whole(rng.permutation(drawn)), "by their histogram"
    tokens = metrics.increase(f"{histogram}_sum")
    tokens = metrics.increase(counter) if tokens is None else tokens
    if tokens is None or tokens.sum() <= 0:
        raise metrics.file.error(
            1, f"neither {histogram} nor {counter} in it, expected one of them: query both"
        )
    # What is counted in one step may belong to requests of its neighbours: a moving mean.
    width = min(len(came), 5)
    kernel = np.ones(width)
    means = np.convolve(tokens, kernel, "same") / np.maximum(np.convolve(came, kernel, "same"), 1)
    whole = tokens.sum() / max(came.sum(), 1.0)
    each = np.where(means > 0, means, whole)[step]
    return _whole(each * (whole / each.mean())), "of the mean length of their time"


def quantile(histogram: tuple[Floats, Floats], share: Floats | float) -> Any:
    """What so large a share of a histogram's values is below: linear within buckets, and the last
    finite bound beyond, as Prometheus' histogram_quantile has it."""
    bounds, below = histogram
    bounds = np.where(np.isfinite(bounds), bounds, bounds[np.isfinite(bounds)].max(initial=1.0))
    known = np.concatenate([[0.0], below]), np.concatenate([[0.0], bounds])
    return np.interp(np.asarray(share) * below[-1], *known)


def _whole(lengths: Floats) -> NDArray[np.int64]:
    whole: NDArray[np.int64] = np.maximum(np.rint(lengths), 1).astype(np.int64)
    return whole


def read_metrics(file: TraceFile) -> Metrics:
    """The series of one answer, or of several: an array, an object by query, or one a line."""
    if file.text.lstrip()[:1] == "[":
        given: list[tuple[int, Any]] = [(1, json_value(file))]
    else:
        given = list(json_objects(file))
    series = [one for line, value in given for one in _series(file, line, value, "")]
    if not series:
        raise file.error(1, "no series of an engine's metrics in it, expected vllm:…")
    times_s = np.unique(np.concatenate([one.times_s for one in series]))
    if len(times_s) < 2:
        raise file.error(1, "samples of one time alone, expected a range query (/query_range)")
    return Metrics(file, tuple(series), times_s)


def _series(file: TraceFile, line: int, value: Any, query: str) -> Iterator[Series]:
    if isinstance(value, list):
        for one in value:
            yield from _series(file, line, one, query)
        return
    if not isinstance(value, Mapping):
        raise file.error(line, f"{shown(value)}, expected Prometheus' answer to a range query")
    if value.get("status") == "error":
        why = f"{value.get('errorType', 'error')}: {value.get('error', '')}"
        raise file.error(line, f"Prometheus refused the query ({why:.120})")
    query = str(value.get("query") or query)
    if "metric" in value:
        found = _one(file, line, value, query)
        if found is not None:
            yield found
        return
    data = value.get("data", value)
    if isinstance(data, Mapping) and "result" in data:
        kind = data.get("resultType", "matrix")
        if kind != "matrix":
            raise file.error(line, f"resultType is {shown(kind)}, expected matrix: /query_range")
        yield from _series(file, line, data["result"], query)
        return
    for name, inner in value.items():  # answers by the queries they are to
        if isinstance(inner, list | Mapping):
            yield from _series(file, line, inner, str(name))


def _one(file: TraceFile, line: int, given: Mapping[str, Any], query: str) -> Series | None:
    """A series; None for one that is no engine's, a quantile over time, or without a number."""
    labels, samples = given["metric"], given.get("values")
    if not isinstance(labels, Mapping) or not isinstance(samples, list) or not samples:
        have = shown(list(given))
        raise file.error(line, f"a series with {have}, expected metric, and values of a range")
    full = str(labels.get("__name__") or "")
    asked = _NAME.search(full or query)
    if (full and asked is None) or (not full and "quantile" in query):
        return None
    if asked is None:
        raise file.error(
            line,
            f"a series of {shown(full or query or dict(labels))}: which metric it is of is not "
            'said; query the metrics themselves, {__name__=~"vllm:.*"}',
        )
    place = f"{asked[0]}: "
    pairs = []
    for at, one in enumerate(samples):
        time_s, amount = map(_number, one) if _is_pair(one) else (None, None)
        if time_s is None or not isfinite(time_s) or amount is None:
            raise file.error(
                line, f"{place}values[{at}] is {shown(one)}, expected a time and a number"
            )
        if isfinite(amount):  # PromQL's NaN: nothing was there to divide by
            pairs.append((time_s, amount))
    if not pairs:
        return None
    times_s, values = np.array(pairs).T
    if (np.diff(times_s) <= 0).any():
        raise file.error(line, f"{place}times do not ascend, expected those of a range query")
    return Series(
        asked[1],
        {str(key): str(one) for key, one in labels.items()},
        times_s,
        values,
        None if full else _per_s(query),
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _per_s(query: str) -> float | None:
    """What makes a query's result a rate per second; None where it is the metric itself."""
    found, window = _RATE.search(query), _WINDOW.search(query)
    if found is None:
        return None
    if found[1].endswith("rate") or window is None:
        return 1.0
    return 1.0 / (int(window[1]) * _WINDOW_S[window[2]])


def _number(value: Any) -> float | None:
    """A sample's number, which Prometheus writes as text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return inf if value == "+Inf" else float(value)
    except (ValueError, OverflowError):
        return None
