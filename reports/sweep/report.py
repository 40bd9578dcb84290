"""The report of a sweep: one HTML page that opens offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from reports.page.page import (
    Card,
    Figure,
    Row,
    Section,
    cards,
    escape,
    page,
    panel,
    table,
    warning_box,
)
from reports.run.report import FOOTER
from reports.run.scenario_section import scenario_section
from reports.sweep.figures import heat_map, lines, points, sensitivity_chart
from reports.sweep.limits import never_reached
from reports.sweep.words import (
    Measure,
    axis_label,
    axis_title,
    level_label,
    setting_label,
    varying,
)
from scenarios.quantity import GAP, count, percent, plain
from scenarios.sweep.rate_curve import Knee, knee_of
from scenarios.sweep.statistics import (
    Interval,
    Sensitivity,
    as_good,
    best_setting,
    intervals,
    sensitivity,
)
from scenarios.sweep.table import SweepTable, better

MOST_ROWS = 200  # of the table of settings
MOST_ERRORS = 20
MOST_LEVELS = 60  # of an axis in a heat map


def sweep_report(
    sweep: SweepTable, *, scenario: Mapping[str, Any], warnings: Sequence[str] = ()
) -> str:
    """Build the page of a sweep: HTML that needs nothing but a browser.

    `scenario` is the resolved scenario with its sweep section, as in sweep.yaml.
    """
    shown = [metric for metric in sweep.metrics if any(intervals(sweep, metric))]
    found = (sensitivity(sweep, metric) for metric in shown)
    parts = [part for part in found if part is not None]
    order = _by_importance(sweep, parts)
    sections = [
        *_heat_section(sweep, shown, order),
        *_line_section(sweep, shown, order),
        *_sensitivity_section(sweep, parts),
        _settings_section(sweep, shown),
        *_failures_section(sweep),
        _scenario_section(scenario),
    ]
    return page(
        title=f"{sweep.name} · Orcast",
        top=_top(sweep, warnings, shown),
        sections=sections,
        footer=FOOTER.replace(" Charts over time zoom together.", ""),
    )


def _by_importance(sweep: SweepTable, parts: Sequence[Sensitivity]) -> list[int]:
    """The axes, the one that explains most of all figures first."""
    weight = {axis: sum(part.effects[axis].share for part in parts) for axis in varying(sweep)}
    return sorted(weight, key=lambda axis: -weight[axis])


# -- the top --------------------------------------------------------------------------------------


def _top(sweep: SweepTable, warnings: Sequence[str], shown: list[str]) -> str:
    about = f'<p class="setting">{escape(sweep.description)}</p>' if sweep.description else ""
    return (
        '<header class="top"><p class="kind">Forecast of a sweep</p>'
        f"<h1>{escape(sweep.name)}</h1>{about}"
        f'<p class="setting">{escape(_size(sweep))}</p>'
        f'<p class="verdict">{escape(headline(sweep))}</p></header>'
        + warning_box(warnings)
        + cards(list(_cards(sweep, shown)))
    )


def _size(sweep: SweepTable) -> str:
    seeds = len(set(sweep.columns["seed"]))
    axes = " × ".join(
        f"{len(sweep.levels(axis))} {axis_label(sweep, axis)}" for axis in varying(sweep)
    )
    if sweep.sampling == "latin_hypercube":
        names = ", ".join(axis_label(sweep, axis) for axis in varying(sweep))
        axes = f"{count(sweep.num_settings)} settings drawn over {names}"
    each = f" × {seeds} seeds" if seeds > 1 else ""
    return f"{axes}{each}: {count(sweep.num_runs)} runs"


def headline(sweep: SweepTable) -> str:
    """The answer in a sentence or two: where a rate curve has its knee, or else the best setting by
    the first figure that has a best."""
    knee = knee_of(sweep)
    if knee is not None:
        return knee_words(knee)
    for metric in sweep.metrics:
        best = best_setting(sweep, metric)
        if best is None:
            continue
        means = intervals(sweep, metric)
        measure = Measure.of(metric, [one.mean for one in means if one])
        word = "Highest" if better(metric) > 0 else "Lowest"
        lower = measure.name[1:2].islower()  # not an abbreviation
        name = measure.name[0].lower() + measure.name[1:] if lower else measure.name
        text = f"{word} {name}: {measure.mean(means[best])} at {setting_label(sweep, best)}."
        others = len(as_good(sweep, metric, best)) - 1
        seeds = len(set(sweep.columns["seed"]))
        if others:
            which = f"{count(others)} other setting{'s' * (others > 1)}"
            told = f"{seeds} seeds do not tell {which} from it."
            text += f" {told if seeds > 1 else f'{which} came to the same.'}"
        return f"{text} {never_reached(sweep)}".rstrip()
    return "No figure of this sweep has a best setting." if sweep.metrics else ""


def knee_words(knee: Knee) -> str:
    """Where the curve bends, and up to which rate the SLO is kept."""
    name = Measure.of(knee.metric, ()).name
    text = f"The knee is at {plain(knee.rate)} requests/s: beyond it {name} grows steeply."
    if knee.missed is None:
        return text if knee.kept is None else f"{text} The SLO is kept at every rate tried."
    if knee.kept is None:
        return f"{text} The SLO is missed at every rate tried."
    return (
        f"{text} The SLO is kept up to {plain(knee.kept)} requests/s and missed at "
        f"{plain(knee.missed)}."
    )


def _cards(sweep: SweepTable, shown: Iterable[str]) -> Iterator[Card]:
    for metric in shown:
        best, means = best_setting(sweep, metric), intervals(sweep, metric)
        known = [one for one in means if one is not None]
        measure = Measure.of(metric, [one.mean for one in known])
        unit = f"{GAP}{measure.unit}" if measure.unit else ""
        if best is None:
            low, high = (end(one.mean for one in known) for end in (min, max))
            yield Card(measure.name, f"{measure.number(low)}–{measure.number(high)}{unit}")
            continue
        found = means[best]
        assert found is not None
        word = "best" if better(metric) > 0 else "lowest"
        note = setting_label(sweep, best)
        yield Card(f"{measure.name}, {word}", f"{measure.number(found.mean)}{unit}", note)
    failed = len(sweep.errors)
    done = sweep.num_runs - failed
    yield Card("Runs", count(done), *(("", f"{count(failed)} failed", "bad") if failed else ()))


# -- sections -------------------------------------------------------------------------------------


def _heat_section(sweep: SweepTable, shown: list[str], order: list[int]) -> Iterator[Section]:
    fits = [axis for axis in order if len(sweep.levels(axis)) <= MOST_LEVELS]
    if sweep.sampling != "cartesian" or len(fits) < 2 or not shown:
        return
    figures: list[Figure] = []
    for metric in shown:
        pairs = list(combinations(fits, 2)) if metric == shown[0] else [(fits[0], fits[1])]
        for first, second in pairs[:6]:
            figures.append(heat_map(sweep, metric, min(first, second), max(first, second)))
    rows = [Row(tuple(figures[at : at + 2])) for at in range(0, len(figures), 2)]
    yield Section(
        "maps",
        "Two axes at a time",
        rows,
        "A cell is the mean over its runs; the brighter, the better.",
        link="Maps",
    )


def _line_section(sweep: SweepTable, shown: list[str], order: list[int]) -> Iterator[Section]:
    if not shown:
        return
    figures: list[Figure] = []
    if sweep.sampling == "latin_hypercube":
        figures = [points(sweep, metric, axis) for metric in shown for axis in order]
        title, intro = "Along each axis", "A point is one setting, its bar the confidence interval."
    else:
        numeric = [axis for axis in order if sweep.is_numeric(axis)]
        along = numeric[0] if numeric else order[0]
        other = next((axis for axis in order if axis != along), None)
        figures = [lines(sweep, metric, along, other) for metric in shown]
        title, intro = "Along one axis", "The axis that explains most of the figures."
    rows = [Row(tuple(figures[at : at + 2])) for at in range(0, len(figures), 2)]
    yield Section("lines", title, rows, intro, link="Lines")


def _sensitivity_section(sweep: SweepTable, parts: Sequence[Sensitivity]) -> Iterator[Section]:
    if not parts:
        return
    rows = []
    for axis in varying(sweep):
        row = [axis_title(sweep, axis)]
        for part in parts:
            effect = part.effects[axis]
            change = "" if effect.elasticity is None else f" · {_signed(effect.elasticity)}"
            row.append(f"{percent(round(effect.share, 4))}{change}")
        rows.append(row)
    rows.append(["Together only", *(percent(round(part.interaction, 4)) for part in parts)])
    if len(set(sweep.columns["seed"])) > 1:
        rows.append(["Seeds", *(percent(round(part.noise, 4)) for part in parts)])
    names = [Measure.of(part.metric, ()).name for part in parts]
    intro = (
        "How much of the variance of a figure each axis explains. The signed number in the table "
        "is the elasticity: by how many per cent the figure changes where the axis grows by one "
        "per cent, over its whole range."
    )
    if sweep.errors:
        intro += " Runs are missing, so that the shares are approximate."
    inside: list[str | Figure | Row] = [
        sensitivity_chart(sweep, parts),
        panel(table(("Axis", *names), rows)),
    ]
    yield Section("sensitivity", "Sensitivity", inside, intro)


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return text.replace("-", "−")


def _settings_section(sweep: SweepTable, shown: list[str]) -> Section:
    means = {metric: intervals(sweep, metric) for metric in shown}
    measures = {
        metric: Measure.of(metric, [one.mean for one in found if one])
        for metric, found in means.items()
    }
    order = list(range(sweep.num_settings))
    if shown:
        sign = better(shown[0]) or 1
        order.sort(key=lambda setting: _rank(means[shown[0]][setting], sign))
    rows = [
        [
            ", ".join(level_label(sweep.level(axis, setting)) for axis in varying(sweep)),
            *(measures[metric].mean(means[metric][setting], unit=False) for metric in shown),
        ]
        for setting in order[:MOST_ROWS]
    ]
    head = [
        ", ".join(axis_title(sweep, axis) for axis in varying(sweep)),
        *(measures[metric].title for metric in shown),
    ]
    intro = "Means over the seeds with their confidence intervals, the best first."
    if len(order) > MOST_ROWS:
        intro += f" {count(MOST_ROWS)} of {count(len(order))}; sweep.parquet has every run."
    return Section("settings", "Every setting", [panel(table(head, rows))], intro, link="Settings")


def _rank(found: Interval | None, sign: int) -> float:
    return float("inf") if found is None else -sign * found.mean


def _failures_section(sweep: SweepTable) -> Iterator[Section]:
    if not sweep.errors:
        return
    settings: dict[str, list[str]] = {}
    for setting, error in zip(sweep.columns["setting"], sweep.columns["error"], strict=True):
        if error is not None:
            settings.setdefault(error, []).append(setting_label(sweep, setting))
    rows = [
        [error, count(number), settings[error][0]]
        for error, number in Counter(sweep.errors).most_common(MOST_ERRORS)
    ]
    head = ("Why", "Runs", "For example at")
    inside = table(head, rows).replace("<table>", '<table class="facts">', 1)
    yield Section("failures", "Runs that failed", [panel(inside)], link="Failures")


def _scenario_section(scenario: Mapping[str, Any]) -> Section:
    return scenario_section(
        scenario,
        "The first run, with its defaults, and the sweep over it. It is a scenario again: "
        "orcast sweep sweep.yaml.",
    )
