"""The report of a run: one HTML page that opens offline."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from reports import request_chart
from reports.figures import RunCharts
from reports.headline import headline, scenario_name
from reports.latency_figures import METRICS, latency_cdf
from reports.page import Figure, Row, Section, escape, facts, page, panel, table
from reports.quantity import MISSING, figure_of, milliseconds, percent, plain
from reports.records import Latencies, RunRecords, request_latencies
from reports.service_levels import ServiceLevels

QUANTILES = {"median": 50, "p90": 90, "p95": 95, "p99": 99}
FOOTER = (
    '<p class="keyboard">A chart in focus answers to <kbd>←</kbd> <kbd>→</kbd> <kbd>+</kbd> '
    "<kbd>-</kbd> and <kbd>0</kbd>; drag to zoom, double-click to go back. Charts over time zoom "
    "together.</p><p>Made by Orcast; plotly.js inside (MIT licence). This file fetches nothing.</p>"
)


def run_report(
    records: RunRecords, *, scenario: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    """Build the page of a run.

    `scenario` is the resolved scenario, `summary` the content of summary.json (vLLM `bench serve`
    names). Nothing is recomputed that the summary says; shares within the SLO, distributions and
    charts come from the records. Returns HTML that needs nothing but a browser.
    """
    latencies = request_latencies(records.requests)
    return page(
        title=f"{scenario_name(scenario)} · Orcast",
        top=headline(records, latencies, scenario=scenario, summary=summary),
        sections=run_sections(records, scenario=scenario, summary=summary),
        footer=FOOTER,
    )


def run_sections(
    records: RunRecords, *, scenario: Mapping[str, Any], summary: Mapping[str, Any]
) -> list[Section]:
    """The parts of the page below its top."""
    latencies = request_latencies(records.requests)
    return [
        _latency_section(latencies, ServiceLevels.of(scenario), summary),
        *_time_sections(records, scenario),
        _scenario_section(scenario),
        _provenance_section(summary),
    ]


def _latency_section(
    latencies: Latencies, levels: ServiceLevels, summary: Mapping[str, Any]
) -> Section:
    limits_ms = levels.limits_ms
    judged = {metric: levels.judge(latencies, metric, summary) for metric in METRICS}
    found = [latency_cdf(metric, latencies, judged[metric]) for metric in METRICS]
    figures = tuple(figure for figure in found if figure is not None)
    names = {metric: short for metric, (short, _, _) in METRICS.items()}
    names |= {"itl": "ITL (inter-token)", "queue": "Queue time"}
    rows = []
    for metric in ("ttft", "tpot", "itl", "e2el", "queue"):
        cells = [figure_of(summary, f"mean_{metric}_ms")]
        cells += [_quantile_ms(summary, latencies, metric, name) for name in QUANTILES]
        if all(cell is None for cell in cells):
            continue
        row = [names[metric], *(milliseconds(cell) for cell in cells)]
        if limits_ms:
            judgement = judged.get(metric)
            row.append(milliseconds(limits_ms.get(metric)))
            row.append(percent(judgement.within) if judgement else MISSING)
        rows.append(row)
    head = ["Latency", "Mean", "Median", "p90", "p95", "p99"]
    head += ["SLO", "Within SLO"] if limits_ms else []
    parts: list[str | Figure | Row] = [Row(figures)] if figures else []
    parts.append(
        panel(table(head, rows))
        if rows
        else panel("<p>No request completed, so there are no latencies.</p>")
    )
    asked = f" Service levels are asked for at p{plain(levels.percentile)}." if limits_ms else ""
    return Section(
        "latency", "Latency", parts, f"Over completed requests, from their arrival.{asked}"
    )


def _quantile_ms(
    summary: Mapping[str, Any], latencies: Latencies, metric: str, name: str
) -> float | None:
    """A quantile in ms as the summary has it, or else from the records."""
    for key in (f"{name}_{metric}_ms", *([f"p50_{metric}_ms"] if name == "median" else [])):
        value = figure_of(summary, key)
        if value is not None:
            return value
    if metric == "itl":
        return None
    values_s = latencies.named(metric)
    return float(np.percentile(values_s, QUANTILES[name])) * 1e3 if values_s.size else None


def _time_sections(records: RunRecords, scenario: Mapping[str, Any]) -> Iterator[Section]:
    requests, iterations = records.requests, records.iterations
    if not RunCharts.drawable(requests, iterations):
        nothing = panel("<p>No iteration ran, so there is nothing to draw over time.</p>")
        yield Section("time", "Over time", [nothing])
        return
    charts = RunCharts(requests, iterations, records.preemptions)
    engine = scenario.get("engine")
    limit = figure_of(engine, "max_num_seqs") if isinstance(engine, Mapping) else None
    replicas = np.unique(np.asarray(iterations["replica"])).size
    memory = charts.kv_memory()
    yield Section(
        "time",
        "Over time",
        [
            charts.throughput(),
            charts.load(int(limit) * replicas if limit else None),
            charts.batches(),
            *([memory] if memory else []),
        ],
        charts.resolution(),
    )
    if request_chart.drawable(requests, iterations):
        chart = request_chart.request_chart(requests, iterations, records.preemptions, scenario)
        yield Section("requests", "Request by request", [chart], link="Requests")


def _scenario_section(scenario: Mapping[str, Any]) -> Section:
    import yaml

    text = yaml.safe_dump(_simple(scenario), sort_keys=False, allow_unicode=True, width=88)
    return Section(
        "scenario",
        "Scenario, as resolved",
        [panel(f"<pre>{escape(text)}</pre>")],
        "Every setting of this run, defaults included.",
        link="Scenario",
    )


def _provenance_section(summary: Mapping[str, Any]) -> Section:
    latency = summary.get("latency")
    pairs = [
        (str(key).replace("_", " ").capitalize(), _words(value))
        for key, value in (latency.items() if isinstance(latency, Mapping) else ())
    ] or [("Source", "not recorded")]
    rest = [(name, value) for name, value in _flat(summary) if not name.startswith("latency.")]
    whole = f"<details><summary>All figures of summary.json</summary>{facts(rest)}</details>"
    return Section(
        "provenance",
        "Where the latencies come from",
        [panel(facts(pairs)), panel(whole)],
        link="Provenance",
    )


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested mappings, the names joined by dots; lists are left out."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, (list, tuple)):
            yield f"{prefix}{key}", _words(value)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain(value, 5)
    return MISSING if value is None else str(value)


def _simple(value: Any) -> Any:
    """`value` out of the types YAML knows."""
    if isinstance(value, Mapping):
        return {str(key): _simple(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_simple(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (str, int, float, bool) or value is None:
        return value
    return str(value)
