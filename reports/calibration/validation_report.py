"""The page of a validation: the forecast against the engine's run of the same scenario."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from reports.calibration.validation_figures import iteration_parity, state_figures
from reports.compare.headline import Figures, headline, share, signed, title
from reports.compare.report import (
    Compared,
    distribution_section,
    latency_section,
    parity_section,
)
from reports.page.page import Card, Section, cards, escape, page, panel, table, warning_box
from reports.page.records import Columns, Floats
from reports.run.report import FOOTER
from scenarios.quantity import GAP, MISSING, count, percent, plain

NAMES = ("Forecast", "Measured")
PHASES = {
    "schedule": "Scheduling",
    "prepare": "Preparing inputs",
    "forward": "Forward pass",
    "sample": "Logits and sampling",
    "rest": "Bookkeeping and pauses",
}
ERRORS_SHOWN = 20


class RunRecords(Protocol):
    """The tables of one run."""

    @property
    def requests(self) -> Columns: ...
    @property
    def iterations(self) -> Columns: ...


def validation_report(
    compared: Compared,
    figures: Figures,
    *,
    name: str,
    setting: str,
    engine: RunRecords,
    forecast: RunRecords,
    predicted_s: Floats | None,
) -> str:
    """Build the page: HTML that needs nothing but a browser.

    `figures` is what `orcast validate --json` prints; `predicted_s` the duration that the latency
    model says for each of the engine's iterations, [iterations].
    """
    states = list(
        state_figures(
            (engine.requests, engine.iterations), (forecast.requests, forecast.iterations)
        )
    )
    sections = [
        latency_section(figures, NAMES),
        *_iteration_section(figures, engine.iterations, predicted_s),
        parity_section(compared, NAMES),
        distribution_section(compared, NAMES),
        Section("state", "Batch and memory over time", states, link="Load"),
        *_error_section(figures),
    ]
    return page(
        title=f"{name} · validation · Orcast",
        top=_top(figures, name, setting, compared.notes),
        sections=sections,
        footer=FOOTER,
    )


def _top(figures: Figures, name: str, setting: str, notes: tuple[str, ...]) -> str:
    identity = figures["schedule_identity"]
    warnings = list(notes)
    warnings += [f"The schedules differ: {text}" for text in identity["differences"]]
    warnings += figures["verdict"]["reasons"]
    return (
        '<header class="top"><p class="kind">Forecast against the engine</p>'
        f"<h1>{escape(name)}: {escape(title(figures).lower())}</h1>"
        f'<p class="setting">{escape(setting)}</p>'
        f'<p class="verdict">{escape(figures["verdict"]["words"])} '
        f"{escape(headline(figures, NAMES))}</p></header>"
        + warning_box(warnings)
        + cards(_cards(figures))
    )


def _cards(figures: Figures) -> list[Card]:
    metrics, iterations = figures["metrics"], figures["iterations"]
    identity = figures["schedule_identity"]
    found = [
        Card(f"Mean {short}", signed(metrics[metric]["mean"]["diff_pct"]), "forecast less measured")
        for metric, short in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "E2E"))
    ]
    output = figures["throughput"]["output"]
    found.append(
        Card(
            "Output throughput",
            signed(output["diff_pct"]),
            f"{plain(output['a'])} against {plain(output['b'])} tokens/s",
        )
    )
    found.append(
        Card(
            "Iterations, median error",
            share(iterations["median_error_pct"]),
            f"p95 {share(iterations['p95_error_pct'])}",
        )
    )
    same = not identity["differences"]
    found.append(
        Card(
            "Same schedule",
            ("yes" if same else "no") if identity["checked"] else MISSING,
            "from the same durations" if identity["checked"] else "not checked: requests failed",
            tone="good" if same else "bad",
        )
    )
    return found


def _iteration_section(
    figures: Figures, iterations: Columns, predicted_s: Floats | None
) -> list[Section]:
    own = figures["iterations"]
    parts: list[Any] = []
    if predicted_s is not None and len(predicted_s):
        parts.append(iteration_parity(iterations, predicted_s))
    rows = [
        [PHASES[name], percent(value), _each(iterations, name)]
        for name, value in own["phase_shares"].items()
    ]
    parts.append(
        panel(
            table(
                ("Where the engine's time goes", "Share", "Median per iteration"),
                rows,
            )
        )
    )
    if own["worst"]:
        parts.append(panel(_worst_table(own["worst"])))
    intro = (
        f"{count(own['engine'])} iterations were run, {count(own['forecast'])} are forecast. The "
        "latency model is asked about each batch the engine really ran."
    )
    return [Section("iterations", "Iteration by iteration", parts, intro, link="Iterations")]


def _each(iterations: Columns, name: str) -> str:
    column = iterations.get(f"{name}_s")
    if column is None or not len(column):
        return MISSING
    return f"{plain(float(np.median(column)) * 1e6)}{GAP}µs"


def _worst_table(worst: list[Mapping[str, Any]]) -> str:
    rows = [
        [
            count(each["number"]),
            f"{plain(each['measured_s'] * 1e3)}{GAP}ms",
            f"{plain(each['predicted_s'] * 1e3)}{GAP}ms",
            count(each["prefill_tokens"]),
            count(each["decode_seqs"]),
            each["reason"],
        ]
        for each in worst
    ]
    head = ("Iteration", "Measured", "Predicted", "Prompt tokens", "Decodes", "Why")
    return table(head, rows, caption="Predicted worst")


def _error_section(figures: Figures) -> list[Section]:
    errors = figures["request_errors"]
    if not errors:
        return []
    rows = [[f"Request {number}", why] for number, why in list(errors.items())[:ERRORS_SHOWN]]
    more = len(errors) - len(rows)
    intro = f"{count(more)} more are in validation.json." if more > 0 else ""
    inside = table(("Request", "Why"), rows).replace("<table>", '<table class="facts">', 1)
    return [Section("errors", "Requests without a whole answer", [panel(inside)], intro)]
