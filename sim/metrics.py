"""Records -> summary: latency statistics, throughput, goodput, memory.

Names and definitions follow vLLM's ``bench serve``: statistics in milliseconds, E2EL from arrival
to the last token's return, TPOT = (E2EL - TTFT) / (output tokens - 1) over requests of more than
one token, ITL over all gaps between two tokens of a request.

Under speculative decoding an iteration hands a request several tokens at once, all at its end. Like
``bench serve``, which takes the time between two chunks of a stream, ITL then is the gap between
two portions; TPOT and a request's own mean ITL still divide by tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.records import Records
from sim.scratch import Rows

PERCENTILES = (50, 90, 95, 99)
# Columns of requests that ended without an answer though an engine could have served them: a full
# queue, a client's patience, no replica left, a client that left.
UNANSWERED = ("refused", "gave_up", "stranded", "cancelled")


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objective: limits in seconds, None where there is none.

    `percentile` says which share of requests has to meet each limit.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None
    percentile: float = 99.0

    @property
    def limits(self) -> dict[str, float]:
        limits = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2el": self.e2el_s}
        return {name: limit for name, limit in limits.items() if limit is not None}


def request_times_s(requests: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """TTFT, TPOT, E2EL, queue time and mean ITL of every request in seconds; NaN for none.

    A request's mean ITL ends with its last token; its TPOT with the response, which under
    request-level batching comes with the whole batch. With prefill and decode pools TTFT is the
    client's, who hears the decode pool; ``prefill_ttft`` ends where the prefill pool has computed
    the prompt and its own first token, which nobody is sent.
    """
    ttft = requests["first_token_s"] - requests["arrival_s"]
    e2el = requests["finished_s"] - requests["arrival_s"]
    gaps = requests["output_tokens"] - 1.0
    tpot = np.divide(e2el - ttft, gaps, out=np.full(len(gaps), np.nan), where=gaps > 0)
    queue = requests["scheduled_s"] - requests.get("engine_arrival_s", requests["arrival_s"])
    spoken = requests["last_token_s"] - requests["first_token_s"]
    itl = np.divide(spoken, gaps, out=np.full(len(gaps), np.nan), where=gaps > 0)
    times = {"ttft": ttft, "tpot": tpot, "e2el": e2el, "queue": queue, "request_itl": itl}
    if "prefilled_s" in requests:
        times["prefill_ttft"] = requests["prefilled_s"] - requests["arrival_s"]
    return times


def summarize(records: Records, slo: Slo | None = None) -> dict[str, Any]:
    """The headline figures of a run, JSON-ready. Statistics of nothing are None."""
    requests, iterations = records.requests, records.iterations
    served = ~requests["rejected"]
    # First, while memory has no other figure of every request.
    itl = statistics_ms("itl", records.gaps_s, records.gap_weights)
    times = request_times_s(Rows(requests, served))
    completed = int(served.sum())
    duration_s = 0.0
    if completed:
        started_s = requests["arrival_s"].min()
        duration_s = float(requests["finished_s"][served].max() - started_s)
    input_tokens = int(requests["prompt_tokens"][served].sum())
    generated = requests.get("sampled_tokens", requests["output_tokens"])
    output_tokens = int(generated[served].sum())

    def per_s(amount: float) -> float:
        return amount / duration_s if duration_s > 0 else 0.0

    summary: dict[str, Any] = {
        "completed": completed,
        "rejected": int(len(served) - completed),
        **{name: int(requests[name].sum()) for name in UNANSWERED if name in requests},
        "duration": duration_s,
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": per_s(completed),
        "output_throughput": per_s(output_tokens),
        "total_token_throughput": per_s(input_tokens + output_tokens),
        "request_goodput": None,
    }
    for name, values_s in times.items():
        summary |= statistics_ms(name, values_s)
    # `request_itl` is over requests, each with its mean gap; vLLM's `itl` pools all gaps.
    summary |= itl
    gaps_s = records.gaps_s
    summary["max_itl_ms"] = float(gaps_s.max()) * 1e3 if len(gaps_s) else None
    if slo is not None and slo.limits:
        summary |= _slo_figures(slo, times, len(served), per_s)
    # Orca's and PagedAttention's measure: seconds of waiting for each token that was asked for.
    normalized = times["e2el"] / requests["output_tokens"][served]
    summary["mean_normalized_latency_ms"] = float(normalized.mean()) * 1e3 if completed else None
    summary |= _engine_figures(iterations, requests)
    if records.stages is not None:
        summary["pipeline"] = _pipeline_figures(records.stages)
    return summary


def statistics_ms(
    name: str, values_s: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float | None]:
    if weights is None:
        values_s = values_s[~np.isnan(values_s)]
    keys = [f"mean_{name}_ms", f"median_{name}_ms", f"std_{name}_ms"]
    keys += [f"p{percentile}_{name}_ms" for percentile in PERCENTILES]
    if not len(values_s):
        return dict.fromkeys(keys)
    mean = float(np.average(values_s, weights=weights))
    spread = float(np.sqrt(np.average((values_s - mean) ** 2, weights=weights)))
    percentiles = weighted_percentiles(values_s, weights, PERCENTILES)
    figures = [mean, percentiles[0], spread, *percentiles]
    return {key: figure * 1e3 for key, figure in zip(keys, figures, strict=True)}


def weighted_percentiles(
    values: np.ndarray, weights: np.ndarray | None, percentiles: tuple[float, ...]
) -> list[float]:
    """Percentiles of `values` repeated `weights` times, by numpy's linear interpolation."""
    if weights is None:
        return [float(value) for value in np.percentile(values, percentiles)]
    order = np.argsort(values)
    values = values[order]
    last_rank = np.cumsum(weights[order]) - 1.0
    found = []
    for percentile in percentiles:
        rank = percentile / 100.0 * last_rank[-1]
        below = values[np.searchsorted(last_rank, np.floor(rank))]
        above = values[np.searchsorted(last_rank, np.ceil(rank))]
        found.append(float(below + (above - below) * (rank - np.floor(rank))))
    return found


def _slo_figures(
    slo: Slo, times: Mapping[str, np.ndarray], asked: int, per_s: Any
) -> dict[str, Any]:
    """Shares are of all requests: one that got no answer has missed every limit."""
    good = np.ones(len(times["ttft"]), dtype=bool)
    attainment, at_percentile = {}, {}
    for name, limit_s in slo.limits.items():
        met = ~(times[name] > limit_s)  # a one-token answer has no TPOT to miss
        known = times[name][~np.isnan(times[name])]
        at = float(np.percentile(known, slo.percentile)) * 1e3 if len(known) else None
        at_percentile[name] = at
        attainment[name] = int(met.sum()) / asked if asked else None
        good &= met
    shares = [share for share in attainment.values() if share is not None]
    return {
        "request_goodput": per_s(int(good.sum())),
        "slo_attainment": {"all": int(good.sum()) / asked if asked else None, **attainment},
        "slo_latency_ms": at_percentile,  # of those answered, at the SLO's percentile
        "slo_met": bool(shares) and min(shares) * 100.0 >= slo.percentile,
    }


def _hit_rate(requests: Mapping[str, np.ndarray]) -> float:
    """The share of prompt tokens, of those admitted, that the prefix cache had."""
    served = ~requests["rejected"]
    prompt_tokens = int(requests["prompt_tokens"][served].sum())
    return int(requests["cached_tokens"][served].sum()) / prompt_tokens if prompt_tokens else 0.0


def _pipeline_figures(stages: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How busy stages were while any batch was in flight; ``bubble`` is idle over busy time.

    For m equal micro-batches over p equal stages the bubble is (p - 1) / m (GPipe, section 2.3).
    """
    busy_s, active_s = float(stages["busy_s"].sum()), float(stages["active_s"].sum())
    shares = [
        float(stages["busy_s"][rows].sum() / max(stages["active_s"][rows].sum(), 1e-300))
        for stage in range(int(stages["stage"].max(initial=-1)) + 1)
        for rows in [stages["stage"] == stage]
    ]
    return {
        "stages": len(shares),
        "stage_busy_share": shares,
        "bubble": active_s / busy_s - 1.0 if busy_s > 0 else 0.0,
    }


def _engine_figures(
    iterations: Mapping[str, np.ndarray], requests: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    duration_s = iterations["duration_s"]
    busy_s = float(duration_s.sum())

    def over_time(name: str) -> float:
        # No `@`: BLAS splits long products over its threads, which spin on cores that other runs
        # could use, and the last bits depend on how many there are.
        return float(np.multiply(duration_s, iterations[name]).sum())

    kinds = {
        kind: over_time(f"kv_{kind}_tokens")
        for kind in ("used", "reserved", "fragmentation", "free", "shared")
    }
    shared = kinds.pop("shared")
    slots = sum(kinds.values())
    allocated = slots - kinds["free"]

    def mean_over_time(name: str) -> float:
        return over_time(name) / busy_s if busy_s > 0 else 0.0

    return {
        "preemptions": int(requests["preemptions"].sum()),
        "cached_prompt_tokens": int(requests["cached_tokens"].sum()),
        "prefix_cache_hit_rate": _hit_rate(requests),
        # Of the slots that there would be without sharing (Kwon et al., section 6.3).
        "kv_saved_by_sharing": shared / (allocated + shared) if shared else 0.0,
        "copied_blocks": int(iterations["copied_blocks"].sum()),
        "swapped_blocks": int(iterations["swap_blocks"].sum()),
        "loaded_blocks": int(iterations["loaded_blocks"].sum()),
        "iterations": len(duration_s),
        "busy_s": busy_s,
        "mean_running": mean_over_time("running"),
        "mean_waiting": mean_over_time("waiting"),
        "peak_running": int(iterations["running"].max(initial=0)),
        "peak_waiting": int(iterations["waiting"].max(initial=0)),
        "kv_utilization": kinds["used"] / slots if slots else 0.0,
        "kv_useful": kinds["used"] / allocated if allocated else 0.0,
        "kv_share": {kind: amount / slots if slots else 0.0 for kind, amount in kinds.items()},
        "extrapolated_share": mean_over_time("extrapolated"),
    }
