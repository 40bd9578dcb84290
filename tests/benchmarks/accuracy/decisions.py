"""What it costs to deploy what the forecast would choose, among deployments that were measured.

For each model, engine, GPU, precision and pair of lengths, and each limit on the time between
tokens, the forecast chooses the deployment (degrees and concurrency) with most tokens a second and
GPU that it expects to keep the limit. *Regret* is what it lacks in measured tokens a second and GPU
to the best that was measured to keep it; all of it where the forecast finds none. A limit is
*broken* where what was chosen was measured more than 3 % above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.benchmarks.accuracy.silicon_points import Point

LIMITS_MS = (8, 10, 12, 15, 20, 25, 30, 40, 50)
BROKEN = 1.03

Forecast = Callable[[Point], tuple[float, float] | str]
Deployments = list[tuple[Point, float, float, float, float]]


def print_decisions(points: list[Point], forecasts: Forecast) -> None:
    """A row for all decisions of dense and quantised models, and one for each precision."""
    decided = list(_decisions(points, forecasts))
    print("\n| decisions | number | regret, mean | p90 | worst | limit broken | none found |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in ("all", *sorted({precision for precision, _, _ in decided})):
        chosen = [(r, b) for precision, r, b in decided if name in ("all", precision)]
        regrets = np.array([regret for regret, _ in chosen if regret is not None])
        broken = np.array([is_broken for _, is_broken in chosen], float)
        print(
            f"| {name} | {len(chosen)} | {regrets.mean():.1%} | {np.percentile(regrets, 90):.1%} "
            f"| {regrets.max():.0%} | {broken.mean():.1%} | {np.mean(regrets == 1):.1%} |"
        )


def _decisions(
    points: list[Point], forecasts: Forecast
) -> Iterator[tuple[str, float | None, bool]]:
    """Precision, regret (None where nothing measured keeps the limit), whether it was broken."""
    for candidates in _questions(points, forecasts):
        precision = candidates[0][0].precision
        for limit_ms in LIMITS_MS:
            kept = [thr for _, _, _, tpot, thr in candidates if tpot <= limit_ms]
            feasible = [entry for entry in candidates if entry[1] <= limit_ms]
            chosen = max(feasible, key=lambda entry: entry[2], default=None)
            broken = chosen is not None and chosen[3] > limit_ms * BROKEN
            if kept:
                regret = 1.0 if chosen is None else max(1 - chosen[4] / max(kept), 0.0)
                yield precision, regret, broken
            elif chosen is not None:
                yield precision, None, broken


def _questions(points: list[Point], forecasts: Forecast) -> Iterator[Deployments]:
    """Deployments to choose from: point, forecast TPOT and rate, measured TPOT and rate."""
    asked = sorted({(*p.group, p.prompt_tokens, p.output_tokens) for p in points})
    for question in asked:
        same: dict[tuple[int, int, int], list[Point]] = {}
        for point in points:
            if (*point.group, point.prompt_tokens, point.output_tokens) == question:
                key = point.tensor_parallel, point.data_parallel, point.concurrency
                same.setdefault(key, []).append(point)
        candidates: Deployments = []
        for repeated in same.values():
            point, pair = repeated[0], forecasts(repeated[0])
            if isinstance(pair, str):
                continue
            ttft_ms = float(np.median([p.ttft_ms for p in repeated]))
            tpot_ms = float(np.median([p.tpot_ms for p in repeated]))
            candidates.append(
                (point, pair[1], _rate(point, *pair), tpot_ms, _rate(point, ttft_ms, tpot_ms))
            )
        if len(candidates) > 1:
            yield candidates


def _rate(point: Point, ttft_ms: float, tpot_ms: float) -> float:
    """Output tokens a second and GPU of a closed loop."""
    e2e_s = (ttft_ms + tpot_ms * (point.output_tokens - 1)) / 1e3
    return point.concurrency * point.output_tokens / e2e_s / point.gpus
