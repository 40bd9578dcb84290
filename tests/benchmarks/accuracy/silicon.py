"""Time between tokens against measured serving points, a row a group of points."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from scenarios.errors import InputError
from tests.benchmarks.accuracy.decisions import print_decisions
from tests.benchmarks.accuracy.kept_forecasts import KeptForecasts
from tests.benchmarks.accuracy.silicon_points import WAVES, Point, by_group, points
from tests.benchmarks.accuracy.sources import forecast_of

SMALLEST_GROUP = 20


class Forecasts:
    """Forecasts (TTFT, TPOT in ms) of points, each computed once; or why there is none."""

    def __init__(self, source: str, configs: Path, kept: KeptForecasts | None = None) -> None:
        self.source, self._configs = source, configs
        self._kept = kept or KeptForecasts(None)

    def __call__(self, point: Point) -> tuple[float, float] | str:
        key = f"{self.source} {replace(point, ttft_ms=0.0, tpot_ms=0.0)}"
        told = self._kept.get(key)
        if told is None:
            try:
                run = forecast_of(point.scenario(self.source, self._configs))
            except InputError as error:
                told = str(error).replace(f"{self._configs}/", "")
            else:
                told = _means_ms(run.records.requests, point)
            self._kept.keep(key, told)
        return told


def main(sources: Sequence[str], *, every: int = 1, keep: Path | None = None) -> None:
    """Print both tables: errors of TPOT by group, and regret of decisions.

    Of every `every`th point of each group, by degrees, lengths and concurrency; then no decisions.
    What is forecast is kept in the file `keep`, and taken from there.
    """
    read, left_out = points()
    print(f"{len(read)} rows are one engine in a closed loop. Left out: ", end="")
    print("; ".join(f"{count} {why}" for why, count in sorted(left_out.items())) + ".\n")
    if every > 1:
        print(f"Every {every}th of each group.\n")
        sampled = (sorted(members, key=_place)[::every] for _, members in by_group(read))
        read = [point for members in sampled for point in members]
    with tempfile.TemporaryDirectory() as folder:
        for source in sources:
            forecasts = Forecasts(source, Path(folder), KeptForecasts(keep))
            started_s = time.process_time()
            print(f"`latency.source: {source}`\n")
            print_groups(read, forecasts, smallest=-(-SMALLEST_GROUP // every))
            if every == 1:
                print_decisions(read, forecasts)
            print(f"\n{time.process_time() - started_s:.0f} s of computing.\n")


def _place(point: Point) -> tuple[int, ...]:
    return (
        point.tensor_parallel, point.data_parallel, point.experts_over, point.prompt_tokens,
        point.output_tokens, point.concurrency,
    )  # fmt: skip


def _means_ms(requests: Mapping[str, np.ndarray], point: Point) -> tuple[float, float]:
    """Mean TTFT and TPOT of a run of ten requests for each in flight, from one of `WAVES`.

    All of a run count: those that begin it arrive at once, at an empty engine; those that end it
    have fewer and fewer beside them. All between are alike, so some stand for them.
    """
    concurrency = point.concurrency
    ttft_s = requests["first_token_s"] - requests["arrival_s"]
    tpot_s = requests["last_token_s"] - requests["first_token_s"]
    tpot_s = tpot_s / np.maximum(requests["output_tokens"] - 1, 1)
    first, last = slice(0, concurrency), slice(-concurrency, None)
    between = slice(concurrency, (WAVES - 1) * concurrency)
    ttft_ms, tpot_ms = (
        float(times[first].mean() + 8 * times[between].mean() + times[last].mean()) / 10 * 1e3
        for times in (ttft_s, tpot_s)
    )
    return ttft_ms, tpot_ms


def print_groups(read: list[Point], forecasts: Forecasts, *, smallest: int) -> None:
    """Errors of TPOT and TTFT; groups that are too small, and those without a forecast, below."""
    print(
        "| model | GPU | engine | weights | points | TPOT error, mean | bias | p90 "
        "| TTFT, median bias |"
    )
    print("|---|---|---|---|--:|--:|--:|--:|--:|")
    refused: dict[str, dict[str, int]] = {}
    small = 0
    for group, members in by_group(read):
        pairs = [(point, forecasts(point)) for point in members]
        answered = [(point, pair) for point, pair in pairs if not isinstance(pair, str)]
        for _, pair in pairs:
            if isinstance(pair, str):
                of_reason = refused.setdefault(pair, {})
                of_reason[" ".join(group)] = of_reason.get(" ".join(group), 0) + 1
        if len(answered) < smallest:
            small += len(answered)
            continue
        ttft = np.array([pair[0] / point.ttft_ms for point, pair in answered]) - 1
        tpot = np.array([pair[1] / point.tpot_ms for point, pair in answered]) - 1
        name = " | ".join(group) + members[0].mark
        print(
            f"| {name} | {len(answered)} | {np.abs(tpot).mean():.1%} | {tpot.mean():+.1%} "
            f"| {np.percentile(np.abs(tpot), 90):.1%} | {np.median(ttft):+.0%} |",
            flush=True,
        )
    print(
        "\n† nothing was fitted or chosen after a look at these; ‡ one thing was chosen after it. "
        f"{small} points in groups below {smallest}."
    )
    for reason, groups in sorted(refused.items()):
        names = ", ".join(f"{name} ({count})" for name, count in sorted(groups.items()))
        print(f"- no forecast: {reason.removeprefix('silicon: ')}: {names}")
