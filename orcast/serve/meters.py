"""What is counted of an engine, under vLLM's names and in its buckets (read in vLLM 0.32.0).

Seconds are simulated ones, whatever the speed; ``engine`` is the replica's number. What vLLM counts
of things that are not simulated (LoRA adapters, images, sleeping engines) is left out.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from orcast.serve.answers import Prompt
from sim.batch import Batch
from sim.cluster.cluster import Cluster
from sim.request import Request

_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
            120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
         10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_GAP = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        20.0, 40.0, 80.0)  # fmt: skip
_ITERATION = tuple(float(2**power) for power in (0, *range(3, 15)))
_N = (1.0, 2.0, 5.0, 10.0, 20.0)
_PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
_REASONS = ("stop", "length", "abort", "error", "repetition")
_RECENT = 2_000  # latencies that charts ask for
_KEPT_DELAYS = 4_000


def _one_two_five(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, … up to `most`."""
    found, scale = [], 1
    while scale <= most:
        found += [float(scale * one) for one in (1, 2, 5) if scale * one <= most]
        scale *= 10
    return tuple(found)


class Histogram:
    """Counts by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus has them."""
        found, below = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            found.append(("+Inf" if bound == float("inf") else str(float(bound)), float(below)))
        return found


# Name, words, buckets (None: those of token counts), attribute.
_HISTOGRAMS: tuple[tuple[str, str, Sequence[float] | None, str], ...] = (
    ("request_prompt_tokens", "Number of prefill tokens processed.", None, "prompts"),
    ("request_generation_tokens", "Number of generation tokens processed.", None, "outputs"),
    ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", _ITERATION,
     "iterations"),
    ("request_max_num_generation_tokens",
     "Histogram of maximum number of requested generation tokens.", None, "longest"),
    ("request_params_n", "Histogram of the n request parameter.", _N, "n"),
    ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", None, "limits"),
    ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT, "ttft"),
    ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _GAP, "itl"),
    ("request_time_per_output_token_seconds",
     "Histogram of time_per_output_token_seconds per request.", _GAP, "tpot"),
    ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _LATENCY,
     "e2e"),
    ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.",
     _LATENCY, "queued"),
    ("request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.",
     _LATENCY, "inference"),
    ("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.",
     _LATENCY, "prefill"),
    ("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.",
     _LATENCY, "decode"),
    ("request_num_preemptions",
     "Histogram of the number of times a request was preempted.", _PREEMPTIONS, "preempted"),
    ("request_prefill_kv_computed_tokens",
     "Histogram of new KV tokens computed during prefill (excluding cached tokens).", None,
     "computed"),
)  # fmt: skip
# Name, words, attribute.
_COUNTERS = (
    ("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.",
     "queries"),
    ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", "hits"),
    ("num_preemptions", "Cumulative number of preemption from the engine.", "preemptions"),
    ("prompt_tokens", "Number of prefill tokens processed.", "queries"),
    ("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", "hits"),
    ("generation_tokens", "Number of generation tokens processed.", "generated"),
)  # fmt: skip


class Meter:
    """One replica's."""

    def __init__(self, longest: int, recent: Recent) -> None:
        counts = _one_two_five(longest)
        self.histograms = {
            attribute: Histogram(counts if bounds is None else bounds)
            for _, _, bounds, attribute in _HISTOGRAMS
        }
        self.counters = {attribute: 0 for _, _, attribute in _COUNTERS}
        self.endings = dict.fromkeys(_REASONS, 0)
        self._recent = recent

    def first_token(self, request: Request, at_s: float) -> None:
        """A prompt is computed, and its first token went out then."""
        came_s = request.sent_s if request.sent_s == request.sent_s else request.arrival_s
        self.histograms["ttft"].add(at_s - came_s)
        self._recent.ttft.append((time.monotonic(), at_s - came_s))
        self.counters["queries"] += request.prompt_tokens
        self.counters["hits"] += request.cached_tokens

    def tokens(self, given: int, gaps: Iterable[tuple[float, int]]) -> None:
        """An iteration gave so many tokens, so many of them so long after the one before."""
        add = self.histograms["itl"].add
        for gap_s, times in gaps:
            add(gap_s, times)
        self.counters["generated"] += given
        self._recent.generated += given

    def finished(self, request: Request, prompt: Prompt) -> None:
        """All of a request's answers are out."""
        add = {name: histogram.add for name, histogram in self.histograms.items()}
        first, came_s = request.first_token, request.sent_s
        came_s = came_s if came_s == came_s else request.arrival_s
        assert first is not None
        end_s = request.answered_s
        for choice in prompt.choices:
            self.endings[choice.finish_reason] += 1
            add["outputs"](choice.tokens)
            add["prompts"](request.prompt_tokens)
            add["e2e"](end_s - came_s)
            add["queued"](max(request.scheduled_s - request.arrival_s, 0.0))
            add["prefill"](max(first.at_s - request.scheduled_s, 0.0))
            add["inference"](max(request.last_token_s - request.scheduled_s, 0.0))
            add["decode"](max(request.last_token_s - first.at_s, 0.0))
            add["preempted"](request.preemptions)
            add["computed"](request.prompt_tokens - request.cached_tokens)
            add["limits"](request.max_tokens)
            if choice.tokens > 1:
                tpot_s = (choice.last_s - first.seen_s) / (choice.tokens - 1)
                add["tpot"](tpot_s)
                self._recent.tpot.append((time.monotonic(), tpot_s))
        add["n"](len(prompt.choices))
        add["longest"](max(choice.tokens for choice in prompt.choices))
        self._recent.e2e.append((time.monotonic(), end_s - came_s))
        self._recent.finished += 1


@dataclass(slots=True)
class Recent:
    """Latencies of late, with when they were noted on the wall clock; and counts of all time."""

    ttft: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    tpot: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    e2e: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    generated: int = 0
    finished: int = 0
    refused: int = 0


class Meters:
    """Of all replicas."""

    def __init__(
        self, cluster: Cluster, *, model: str, longest: int, now_s: Callable[[], float]
    ) -> None:
        """`longest`: the model's context. `now_s`: the simulated time."""
        self._cluster, self._model, self._now_s = cluster, model, now_s
        self.recent = Recent()
        self.delays_s: deque[float] = deque(maxlen=_KEPT_DELAYS)  # of tokens, on the wall clock
        self._meters = [Meter(longest, self.recent) for _ in cluster.replicas]
        self._refused = {"max_num_queued_reqs": 0, "max_num_waiting": 0}

    def of(self, replica: int) -> Meter:
        return self._meters[replica]

    def iteration(self, replica: int, batch: Batch) -> None:
        """A batch is through."""
        meter = self._meters[replica]
        meter.histograms["iterations"].add(batch.num_tokens)
        meter.counters["preemptions"] += batch.preempted

    def finished(self, request: Request, prompt: Prompt) -> None:
        self._meters[prompt.replica].finished(request, prompt)

    def refused(self, *, by_sequences: bool) -> None:
        self.recent.refused += 1
        self._refused["max_num_queued_reqs" if by_sequences else "max_num_waiting"] += 1

    def collect(self) -> Iterator[Metric]:
        """Everything, family by family; what happens between two of them is in the later alone."""
        labels = ["model_name", "engine"]
        now_s, replicas = self._now_s(), self._cluster.replicas
        names = [[self._model, str(number)] for number in range(len(replicas))]

        def gauge(name: str, words: str, of: Callable[[Any], float]) -> Metric:
            family = GaugeMetricFamily(f"vllm:{name}", words, labels=labels)
            for label, replica in zip(names, replicas, strict=True):
                family.add_metric(label, of(replica))
            return family

        yield gauge("num_requests_running", "Number of requests in model execution batches.",
                    lambda one: one.pool.num_running)  # fmt: skip
        yield gauge("num_requests_waiting", "Number of requests waiting to be processed.",
                    lambda one: one.num_waiting)  # fmt: skip
        reasons = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            labels=[*labels, "reason"],
        )
        for label, replica in zip(names, replicas, strict=True):
            reasons.add_metric([*label, "capacity"], replica.num_waiting)
            reasons.add_metric([*label, "deferred"], 0)
        yield reasons
        yield gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.",
                    lambda one: one.used_share(now_s))  # fmt: skip
        for name, words, attribute in _COUNTERS:
            counter = CounterMetricFamily(f"vllm:{name}", words, labels=labels)
            for label, meter in zip(names, self._meters, strict=True):
                counter.add_metric(label, meter.counters[attribute])
            yield counter
        by_source = CounterMetricFamily(
            "vllm:prompt_tokens_by_source", "Number of prompt tokens by source.",
            labels=[*labels, "source"],
        )  # fmt: skip
        for label, meter in zip(names, self._meters, strict=True):
            hits = meter.counters["hits"]
            by_source.add_metric([*label, "local_compute"], meter.counters["queries"] - hits)
            by_source.add_metric([*label, "local_cache_hit"], hits)
            by_source.add_metric([*label, "external_kv_transfer"], 0)
        yield by_source
        success = CounterMetricFamily(
            "vllm:request_success", "Count of successfully processed requests.",
            labels=[*labels, "finished_reason"],
        )  # fmt: skip
        for label, meter in zip(names, self._meters, strict=True):
            for reason, times in meter.endings.items():
                success.add_metric([*label, reason], times)
        yield success
        rejections = CounterMetricFamily(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            labels=["model_name", "reason"],
        )
        for reason, times in self._refused.items():
            rejections.add_metric([self._model, reason], times)
        yield rejections
        for name, words, _, attribute in _HISTOGRAMS:
            family = HistogramMetricFamily(f"vllm:{name}", words, labels=labels)
            for label, meter in zip(names, self._meters, strict=True):
                histogram = meter.histograms[attribute]
                family.add_metric(label, histogram.buckets, histogram.total)
            yield family
        yield self._cache_config(replicas)
        yield from self._own(replicas)

    def _cache_config(self, replicas: Sequence[Any]) -> Metric:
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig",
            labels=["engine", "block_size", "num_gpu_blocks", "enable_prefix_caching"],
        )  # fmt: skip
        for number, replica in enumerate(replicas):
            config = replica.scheduler.config
            caching = str(config.enable_prefix_caching)
            info.add_metric(
                [str(number), str(config.block_size), str(replica.num_blocks), caching], 1
            )
        return info

    def _own(self, replicas: Sequence[Any]) -> Iterator[Metric]:
        """What vLLM has no names for."""
        up = GaugeMetricFamily(
            "orcast:replica_serving", "Whether a replica takes requests.", labels=["engine"]
        )
        for number, state in enumerate(self._cluster.states):
            up.add_metric([str(number)], state == "serving")
        yield up
        delay_s = self.usual_delay_s
        late = GaugeMetricFamily(
            "orcast:token_delay_seconds",
            "How late this machine handed tokens out, 99th percentile of the latest iterations.",
        )
        late.add_metric([], delay_s or 0.0)
        yield late

    @property
    def usual_delay_s(self) -> float | None:
        """What 99% of the latest iterations' tokens were at most late by; None before any."""
        delays = sorted(self.delays_s)
        return delays[int(0.99 * (len(delays) - 1))] if delays else None
