"""Fitted laws and their comparison in rows and words: `orcast laws`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reports.size.text import power, short
from scenarios.quantity import MISSING, plain

Figures = dict[str, Any]
Rows = list[tuple[str, ...]]
_WAYS = {
    "envelope": "envelope of the training curves",
    "iso_flops": "parabolas at equal FLOPs",
    "law": "the law's exponents",
}


def amount(axis: str, value: float) -> str:
    """So many FLOPs, or so many of what the column counts."""
    return f"{power(value)} FLOPs" if axis == "flops" else f"{short(value)} {axis}"


def law_tables(figures: Figures) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Head and rows of every table."""
    for law in figures["laws"]:
        share = f"{law['confidence']:.0%} interval"
        head = (f"{law['name']}: {law['form']}, {law['num_runs']} runs", "fitted", share)
        rows: Rows = [
            (key, plain(value, 4), _between(law["intervals"][key]))
            for key, value in law["coefficients"].items()
        ]
        rows.append(("mean error", f"{law['mean_error']:.2%}", ""))
        at = law["at"]
        where = amount(figures["axis"], figures["at"])
        rows.append((f"loss at {where}", plain(at["loss"], 4), _between((at["low"], at["high"]))))
        yield head, rows
    ways = {name for law in figures["laws"] for name in law.get("growth", {})}
    if ways:
        names = [law["name"] for law in figures["laws"]]
        rows = []
        for way, words in _WAYS.items():
            if way in ways:
                found = [law["growth"].get(way, {}).get("exponent") for law in figures["laws"]]
                rows.append((words, *(MISSING if one is None else f"{one:.2f}" for one in found)))
        yield ("Best parameters grow as C^a: a by", *names), rows
    for law in figures["laws"]:
        minima = law.get("growth", {}).get("iso_flops")
        if minima:
            yield (
                (f"{law['name']}, FLOPs", "parameters", "tokens", "loss"),
                [
                    (
                        power(one["flops"]),
                        short(one["parameters"]),
                        short(one["tokens"]),
                        plain(one["loss"], 4),
                    )
                    for one in minima["points"]
                ],
            )


def comparison_words(figures: Figures) -> str:
    """Which of two laws is lower, from where on, and how sure that is."""
    one = figures["comparison"]
    axis, far = figures["axis"], figures["at"]
    sure = one["second_better_at"]
    better, share = (one["second"], sure) if sure >= 0.5 else (one["first"], 1 - sure)
    text = (
        f"At {amount(axis, far)} {better} has the lower loss in {share:.0%} of the resamplings "
        f"(runs reach {amount(axis, figures['reach'])}). "
    )
    if one["crossing"] is None:
        text += "The fitted laws do not cross"
    else:
        text += f"The fitted laws cross at {amount(axis, one['crossing'])}"
    crossed = one["share_that_cross"]
    if one["interval"] is not None:
        low, high = (amount(axis, end) for end in one["interval"])
        return f"{text}; {crossed:.0%} of the resampled pairs cross, between {low} and {high}."
    return f"{text}; {crossed:.0%} of the resampled pairs do: no interval can be given."


def _between(ends: tuple[float, float]) -> str:
    return f"{plain(ends[0], 4)} to {plain(ends[1], 4)}"
