"""How long a scenario's sequences are on average: what a window or a state costs a token.

A hybrid cache keeps a window or a state for each sequence, however long it is. What is sent from a
prefill to a decode pool is taken to be a cache of this length, a token's share for every token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from scenarios.schema.workload import Lengths, Workload

TRACE_TOKENS = 2048  # where lengths are in a trace: the order of public conversation traces


def typical_tokens(workload: Workload, longest: int) -> int:
    """Tokens of an average sequence, prompt and output, at most `longest`."""
    pairs = list(_pairs(workload))
    if not pairs:
        return min(TRACE_TOKENS, longest)
    weight = sum(share for share, _ in pairs)
    mean = sum(share * tokens for share, tokens in pairs) / weight
    if workload.shared_prefixes is not None:
        mean += workload.shared_prefixes.tokens
    return max(1, min(round(mean), longest))


def _pairs(workload: Workload) -> Iterator[tuple[float, float]]:
    """Shares of the load, and the mean tokens of each."""
    if workload.lengths is not None:
        yield 1.0, _mean(workload.lengths.prompt) + _mean(workload.lengths.output)
    for each in (workload.classes or {}).values():
        yield each.share, _mean(each.lengths.prompt) + _mean(each.lengths.output)


def _mean(lengths: Lengths) -> float:
    """Of the distribution, its bounds heeded by cutting off the mean."""
    if lengths.distribution == "fixed":
        return float(lengths.tokens or 1)
    if lengths.distribution == "uniform":
        return ((lengths.min or 1) + (lengths.max or 1)) / 2
    if lengths.distribution == "empirical":
        values = lengths.values or [1]
        return sum(values) / len(values)
    mean = lengths.mean
    if mean is None:
        mean = (lengths.median or 1.0) * math.exp(min((lengths.sigma or 0.0) ** 2 / 2, 50.0))
    return min(max(mean, lengths.min or 1), lengths.max or math.inf)
