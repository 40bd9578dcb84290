"""What a run comes to: its service levels kept or missed, what it costs, what that rests on.

One place for the words, so that the terminal, JSON, pages and Python say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scenarios.forecast.basis import times_are
from scenarios.quantity import GAP, count, figure_of, milliseconds, percent, plain
from sim.metrics import Slo

Summary = Mapping[str, Any]

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2E"}


def verdict(summary: Summary, slo: Slo) -> dict[str, Any]:
    """A run's verdict, JSON-ready, from its summary's figures.

    ``slo``: "met", "missed", or None where no limit was set. ``limits``: each with its latency at
    the SLO's percentile (of answered requests), the share of all requests within it, and whether
    that is enough. ``words``: the same in sentences, the answer to the service levels first.
    """
    limits = list(_limits(summary, slo))
    met = None
    if limits and summary.get("completed") and all(one["within"] is not None for one in limits):
        met = "met" if all(one["met"] for one in limits) else "missed"
    return {
        "slo": met,
        "percentile": slo.percentile,
        "limits": limits,
        "words": [_served(summary), *_kept(limits, met, slo), *_price(summary), *_basis(summary)],
    }


def _limits(summary: Summary, slo: Slo) -> Iterator[dict[str, Any]]:
    attained = summary.get("slo_attainment")
    shares = attained if isinstance(attained, Mapping) else {}
    values = summary.get("slo_latency_ms")
    at = values if isinstance(values, Mapping) else {}
    for metric, limit_s in slo.limits.items():
        within = figure_of(shares, metric)
        yield {
            "metric": metric,
            "limit_ms": limit_s * 1e3,
            "value_ms": figure_of(at, metric),
            "within": within,
            "met": within is not None and within * 100.0 >= slo.percentile,
        }


def _served(summary: Summary) -> str:
    completed, rejected = (figure_of(summary, key) or 0 for key in ("completed", "rejected"))
    if not completed:
        return f"No request completed{f' of {count(rejected)}' * (rejected > 0)}."
    return (
        f"{count(completed)} of {count(completed + rejected)} requests completed, "
        f"{plain(figure_of(summary, 'output_throughput'))} output tokens/s."
    )


def _kept(limits: list[dict[str, Any]], met: str | None, slo: Slo) -> Iterator[str]:
    if met is None:
        return
    each = []
    # What is missed comes first: it is the answer.
    for one in sorted(limits, key=lambda limit: limit["met"]):
        value = milliseconds(one["value_ms"])
        each.append(
            f"{NAMES[one['metric']]} p{slo.percentile:g} {value}, "
            f"{percent(one['within'])} within {milliseconds(one['limit_ms'])}"
        )
    word = "Meets" if met == "met" else "Misses"
    yield f"{word} the SLO of {slo.percentile:g}{GAP}%: {'; '.join(each)}."


def _price(summary: Summary) -> Iterator[str]:
    cost = summary.get("cost")
    cost = cost if isinstance(cost, Mapping) else {}
    gpus, hourly = figure_of(cost, "gpus"), figure_of(cost, "usd_per_hour")
    if gpus is None or hourly is None:
        return
    each = figure_of(cost, "usd_per_million_output_tokens")
    tokens = "" if each is None else f", ${plain(each)} per million output tokens"
    yield f"{count(gpus)}{GAP}GPU{'s' * (gpus != 1)}, ${hourly:,.2f} an hour{tokens}."


def _basis(summary: Summary) -> Iterator[str]:
    latency = summary.get("latency")
    latency = latency if isinstance(latency, Mapping) else {}
    kind = latency.get("basis")
    if kind is not None:
        label = str(latency.get("label")).removeprefix("measured kernels: ")
        yield f"{times_are(kind)} ({label})."
