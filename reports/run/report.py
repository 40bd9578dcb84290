"""The report of a run: one HTML page that opens offline."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from reports.page.figures import RunCharts, TimeAxis
from reports.page.page import Figure, Row, Section, Widget, escape, facts, page, panel, table
from reports.page.records import Columns, Latencies, RunRecords, request_latencies
from reports.run import block_script, request_chart
from reports.run.block_view import BlockView
from reports.run.details import Details
from reports.run.headline import headline, scenario_name
from reports.run.latency_figures import METRICS, latency_cdf
from reports.run.model_section import model_section
from reports.run.operator_figures import of_parts, operator_totals, operators_over_time
from reports.run.prompt_scatter import prompt_scatter
from reports.run.replica_figures import Replicas, replica_bars, replica_load, replicas_up
from reports.run.request_lanes import request_lanes
from reports.run.roofline_figure import roofline
from reports.run.scenario_section import scenario_section
from reports.run.service_levels import ServiceLevels
from reports.run.tier_section import tier_sections
from scenarios.quantity import MISSING, alike, count, figure_of, percent, plain

QUANTILES = {"median": 50, "p90": 90, "p95": 95, "p99": 99}
FOOTER = (
    '<p class="keyboard">A chart in focus answers to <kbd>←</kbd> <kbd>→</kbd> <kbd>+</kbd> '
    "<kbd>-</kbd> and <kbd>0</kbd>; drag to zoom, double-click to go back. Charts over time zoom "
    "together.</p><p>Made by Orcast; plotly.js inside (MIT licence). This file fetches nothing.</p>"
)


def run_report(
    records: RunRecords,
    *,
    scenario: Mapping[str, Any],
    summary: Mapping[str, Any],
    details: Details | None = None,
) -> str:
    """Build the page of a run.

    `scenario` is the resolved scenario, `summary` the content of summary.json (vLLM `bench serve`
    names), `details` that of details.json, which an engine's run does not have. Nothing is
    recomputed that the summary says; shares within the SLO, distributions and charts come from the
    records. Returns HTML that needs nothing but a browser.
    """
    latencies = request_latencies(records.requests)
    sections = run_sections(records, scenario=scenario, summary=summary, details=details)
    return page(
        title=f"{scenario_name(scenario)} · Orcast",
        top=headline(records, latencies, scenario=scenario, summary=summary),
        sections=sections,
        footer=FOOTER,
        scripts=[block_script.SCRIPT] if any(section.widgets for section in sections) else [],
    )


def run_sections(
    records: RunRecords,
    *,
    scenario: Mapping[str, Any],
    summary: Mapping[str, Any],
    details: Details | None = None,
) -> list[Section]:
    """The parts of the page below its top."""
    latencies = request_latencies(records.requests)
    return [
        _latency_section(records, latencies, ServiceLevels.of(scenario), summary),
        *_time_sections(records, scenario, summary, details),
        *tier_sections(summary),
        *_model_sections(details),
        _scenario_section(scenario),
        _provenance_section(summary, details),
    ]


def _latency_section(
    records: RunRecords, latencies: Latencies, levels: ServiceLevels, summary: Mapping[str, Any]
) -> Section:
    limits_ms = levels.limits_ms
    judged = {metric: levels.judge(latencies, metric, summary) for metric in METRICS}
    found = [latency_cdf(metric, latencies, judged[metric]) for metric in METRICS]
    figures = tuple(figure for figure in found if figure is not None)
    names = {metric: short for metric, (short, _, _) in METRICS.items()}
    names |= {"itl": "ITL (inter-token)", "queue": "Queue time"}
    names["prefill_ttft"] = "Prompt computed (prefill pool)"
    rows = []
    for metric in ("ttft", "prefill_ttft", "tpot", "itl", "e2el", "queue"):
        cells = [figure_of(summary, f"mean_{metric}_ms")]
        cells += [_quantile_ms(summary, latencies, metric, name) for name in QUANTILES]
        if all(cell is None for cell in cells):
            continue
        limit_ms = limits_ms.get(metric)
        *times, limit = alike([*cells, limit_ms])
        row = [names[metric], *times]
        if limits_ms:
            judgement = judged.get(metric)
            row.append(limit)
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
    classes = _classes(summary)
    if classes:
        parts.append(panel(classes))
    scatter = prompt_scatter(records.requests)
    if scatter is not None:
        parts.append(scatter)
    asked = f" Service levels are asked for at p{plain(levels.percentile)}." if limits_ms else ""
    return Section(
        "latency", "Latency", parts, f"Over completed requests, from their arrival.{asked}"
    )


def _classes(summary: Mapping[str, Any]) -> str:
    """The figures of each class of requests; nothing where there are none."""
    given = summary.get("classes")
    if not isinstance(given, Mapping) or not given:
        return ""
    rows = []
    for name, figures in given.items():
        counts = [count(figure_of(figures, key)) for key in ("requests", "completed")]
        times = []
        for metric in ("ttft", "tpot", "e2el"):
            keys = (f"{statistic}_{metric}_ms" for statistic in ("mean", "p95"))
            times += alike([figure_of(figures, key) for key in keys])
        rows.append([str(name), *counts, *times])
    head = ["Class", "Requests", "Completed", "Mean TTFT", "p95", "Mean TPOT", "p95"]
    return table([*head, "Mean E2E", "p95"], rows)


def _quantile_ms(
    summary: Mapping[str, Any], latencies: Latencies, metric: str, name: str
) -> float | None:
    """A quantile in ms as the summary has it, or else from the records."""
    for key in (f"{name}_{metric}_ms", *([f"p50_{metric}_ms"] if name == "median" else [])):
        value = figure_of(summary, key)
        if value is not None:
            return value
    if metric in ("itl", "prefill_ttft"):  # the summary has it, or nobody
        return None
    values_s = latencies.named(metric)
    return float(np.percentile(values_s, QUANTILES[name])) * 1e3 if values_s.size else None


def _time_sections(
    records: RunRecords,
    scenario: Mapping[str, Any],
    summary: Mapping[str, Any],
    details: Details | None,
) -> Iterator[Section]:
    requests, iterations = records.requests, records.iterations
    if not RunCharts.drawable(requests, iterations):
        nothing = panel("<p>No iteration ran, so there is nothing to draw over time.</p>")
        yield Section("time", "Over time", [nothing])
        return
    charts = RunCharts(requests, iterations, records.preemptions)
    replicas = Replicas.of(scenario, summary, iterations)
    engine = scenario.get("engine")
    limit = figure_of(engine, "max_num_seqs") if isinstance(engine, Mapping) else None
    memory = charts.kv_memory()
    yield Section(
        "time",
        "Over time",
        [
            charts.throughput(),
            charts.load(int(limit) * len(replicas.names) if limit else None),
            charts.batches(),
            *([memory] if memory else []),
        ],
        charts.resolution(),
    )
    yield from _work_sections(records, charts.axis, replicas, scenario, summary, details)
    if len(replicas.names) > 1:
        edges_s = charts.states.edges_s
        up = replicas_up(replicas, charts.axis)
        parts: list[str | Figure | Row | Widget] = [
            replica_load(replicas, iterations, edges_s, charts.axis),
            *([up] if up else []),
            Row(replica_bars(replicas, requests, iterations)),
        ]
        never = replicas.never_started
        intro = f"{never} of {never + len(replicas.names)} replicas never started." if never else ""
        yield Section("replicas", "Replica by replica", parts, intro, link="Replicas")
    found: list[str | Figure] = []
    lanes = request_lanes(requests, records.preemptions, charts.axis)
    if lanes is not None:
        found.append(lanes)
    if request_chart.drawable(requests, iterations):
        found.append(
            request_chart.request_chart(requests, iterations, records.preemptions, scenario)
        )
    if found:
        yield Section("requests", "Request by request", found, link="Requests")
    yield _block_section(requests, replicas, charts.axis, details)


def _work_sections(
    records: RunRecords,
    axis: TimeAxis,
    replicas: Replicas,
    scenario: Mapping[str, Any],
    summary: Mapping[str, Any],
    details: Details | None,
) -> Iterator[Section]:
    """Where the iterations' time goes, and how near they come to what the GPU can do."""
    operators = details.get("operators") if details else None
    parts = summary.get("time_parts_s")
    total_s = operators["total_s"] if operators else of_parts(parts) if parts else {}
    hardware = scenario.get("hardware")
    stages = figure_of(hardware, "pipeline_parallel") if isinstance(hardware, Mapping) else None
    number = len(replicas.names)
    found = [operator_totals(total_s, replicas=number)]
    if operators:
        found.append(operators_over_time(operators, axis, lanes=number * int(stages or 1)))
    drawn = [figure for figure in found if figure is not None]
    if drawn:
        yield Section("operators", "Where the time goes", drawn, link="Where time goes")
    work = details.get("work") if details else None
    figure = roofline(work, records.iterations) if work else None
    if figure is not None:
        yield Section("work", "How near to the roof", [figure], link="Roofline")


def _block_section(
    requests: Columns, replicas: Replicas, axis: TimeAxis, details: Details | None
) -> Section:
    """The block tables, or why there are none."""
    blocks = details.get("blocks") if details else None
    title, link = "Block by block", "Blocks"
    if blocks is None:
        blocks = "Block tables are not part of this run's records."
    if isinstance(blocks, str):
        return Section("blocks", title, [panel(f"<p>{escape(blocks)}</p>")], link=link)
    view = BlockView.of(blocks, requests, replicas.names)
    figure = view.map(axis)
    if figure is None:
        return Section("blocks", title, [panel("<p>No request held a block.</p>")], link=link)
    intro = f"Blocks of {blocks['block_size']} tokens each, as the run's allocator dealt them out."
    return Section("blocks", title, [figure, view.tables()], intro, link=link)


def _model_sections(details: Details | None) -> list[Section]:
    """The model's figures, of runs that recorded them."""
    model = (details or {}).get("model")
    return [model_section(model)] if isinstance(model, Mapping) else []


def _scenario_section(scenario: Mapping[str, Any]) -> Section:
    return scenario_section(_simple(scenario), "What this run was asked, with its defaults.")


def _provenance_section(summary: Mapping[str, Any], details: Details | None) -> Section:
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
        [panel(facts(pairs)), *_origins(details), panel(whole)],
        link="Provenance",
    )


def _origins(details: Details | None) -> list[str]:
    """Every part of an iteration's time: measured or not, and by whom."""
    rows = [
        (str(part), f"{'measured' if measured else 'not measured'} · {source}")
        for part, measured, source in (details or {}).get("origins", ())
    ]
    return [panel(facts(rows))] if rows else []


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
