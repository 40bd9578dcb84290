"""What a trace is like: its load over time, lengths, sharing and sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.workload import Workload

WINDOWS = 120  # of a page's chart of the rate
MOST_BLOCKS = 2_000_000  # looked up for what prompts share
PERCENTILES = (50, 90, 99)
_WINDOWS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


def describe(workload: Workload, *, format: str) -> dict[str, Any]:
    """What `orcast trace --json` prints. Times in s, rates in requests per second.

    burstiness: `gap_cv`, the coefficient of variation of the gaps between arrivals (1: Poisson),
    and `dispersion`, the variance of the counts of windows over their mean (1: Poisson).
    """
    arrival_s = workload.arrival_s
    if workload.follows is not None:  # when later turns come is for the answers before to say
        arrival_s = arrival_s[workload.follows < 0]
    span_s = float(arrival_s[-1])
    return {
        "name": workload.name,
        "format": format,
        "requests": len(workload),
        "span_s": span_s,
        "request_rate": _rate(len(arrival_s), span_s),
        "rate": _over_time(arrival_s),
        "burstiness": {
            "gap_cv": _gap_cv(arrival_s),
            "dispersion": _dispersion(arrival_s),
        },
        "prompt_tokens": _lengths(workload.prompt_tokens),
        "output_tokens": _lengths(workload.output_tokens),
        "sharing": _sharing(workload),
        "sessions": _sessions(workload),
        "classes": _classes(workload),
        "max_concurrency": workload.max_concurrency,
        "notes": list(workload.notes),
    }


def _rate(requests: int, span_s: float) -> float | None:
    return (requests - 1) / span_s if span_s > 0 else None


def _over_time(arrival_s: NDArray[np.float64]) -> dict[str, Any] | None:
    """Rates of equal windows; the last one, which the trace may not fill, is not the lowest.

    None where all requests come at once.
    """
    span_s = float(arrival_s[-1])
    if span_s <= 0:
        return None
    most = min(WINDOWS, max(4, len(arrival_s) // 10))
    fits = [size for size in _WINDOWS_S if span_s / size <= most]
    window_s = float(fits[0]) if fits and span_s >= 2 else max(span_s / WINDOWS, 1e-9)
    if not fits:
        window_s = span_s / WINDOWS
    windows = int(span_s // window_s) + 1
    counts = np.bincount(
        np.minimum((arrival_s / window_s).astype(np.int64), windows - 1), minlength=windows
    )
    whole = counts[:-1] if windows > 1 else counts
    return {
        "window_s": window_s,
        "requests_per_s": (counts / window_s).tolist(),
        "peak_per_s": float(counts.max() / window_s),
        "peak_at_s": float(np.argmax(counts) * window_s),
        "lowest_per_s": float(whole.min() / window_s),
    }


def _gap_cv(arrival_s: NDArray[np.float64]) -> float | None:
    gaps = np.diff(arrival_s)
    if len(gaps) < 2 or gaps.mean() <= 0:
        return None
    return round(float(gaps.std() / gaps.mean()), 6)


def _dispersion(arrival_s: NDArray[np.float64]) -> float | None:
    """Of windows that hold ten requests in the mean."""
    windows = len(arrival_s) // 10
    if windows < 10 or arrival_s[-1] <= 0:
        return None
    counts, _ = np.histogram(arrival_s, windows)
    return float(counts.var() / counts.mean())


def _lengths(tokens: NDArray[np.int64]) -> dict[str, float]:
    found = np.percentile(tokens, PERCENTILES).tolist()
    return {
        "total": int(tokens.sum()),
        "mean": float(tokens.mean()),
        "min": int(tokens.min()),
        **{f"p{at}": value for at, value in zip(PERCENTILES, found, strict=True)},
        "max": int(tokens.max()),
    }


def _sharing(workload: Workload) -> dict[str, Any] | None:
    """How much of the prompts was said before, in blocks, by a cache that forgets nothing.

    None where the trace does not say what prompts hold.
    """
    content = workload.content
    if content is None:
        return None
    block = content.unit_tokens if 16 <= content.unit_tokens <= 1024 else 16
    seen: set[int] = set()
    found = looked_at = blocks = requests = 0
    for request, tokens in enumerate(workload.prompt_tokens.tolist()):
        hashes = content.block_hashes(request, block, tokens)
        blocks += len(hashes)
        if blocks > MOST_BLOCKS:
            break
        known = 0
        for one in hashes:
            if one not in seen:
                break
            known += 1
        seen.update(hashes)
        # The last token is always computed: its prompt's last block is, where it ends with it.
        found += min(known * block, (tokens - 1) // block * block)
        looked_at += tokens
        requests += 1
    return {
        "share": found / looked_at if looked_at else 0.0,
        "block_tokens": block,
        "requests": requests,
    }


def _sessions(workload: Workload) -> dict[str, Any] | None:
    """Conversations by who follows whom; None where nobody does."""
    if workload.follows is None:
        return None
    follows = workload.follows.tolist()
    turns = [1] * len(follows)
    for row, before in enumerate(follows):
        if before >= 0:
            turns[row] = turns[before] + 1
    last = set(range(len(follows))) - {before for before in follows if before >= 0}
    lengths = [turns[row] for row in last]
    later = workload.follows >= 0
    return {
        "sessions": len(lengths),
        "mean_turns": float(np.mean(lengths)),
        "max_turns": max(lengths),
        "mean_think_s": float(workload.think_s[later].mean()),
    }


def _classes(workload: Workload) -> dict[str, int] | None:
    if workload.labels is None:
        return None
    names, counts = np.unique(np.array(workload.labels, object), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
