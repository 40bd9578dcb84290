"""What the what-if page answers: verdict, table, or why there is no forecast and what would do."""

from collections.abc import Mapping, Sequence
from typing import Any

from reports.run.headline import TONES
from reports.what_if.figures import Snapshot
from reports.what_if.setting import Knob, address, shown, values_of, words, written
from reports.what_if.table import rows

Column = tuple[str, Snapshot]  # a setting and its snapshot, empty where there is no forecast


def verdict(answer: Snapshot) -> list[Any]:
    from dash import html

    parts = []
    if answer["verdict"]:
        parts.append(html.P(_toned(" ".join(answer["verdict"])), className="verdict"))
    if answer["warnings"]:
        items = [html.Li(warning) for warning in answer["warnings"]]
        parts.append(html.Div([html.Ul(items)], className="warnings", role="note"))
    return parts


def bar_word(answer: Snapshot | None) -> Any:
    """The answer in a word, which stays in sight while one turns knobs further down."""
    from dash import html

    if answer is None:
        return html.Span("No forecast", className="bad")
    said = " ".join(answer["verdict"])
    for word, tone in TONES.items():
        if word in said:
            return html.Span(
                f"{word} the SLO" if word in ("Meets", "Misses") else word, className=tone
            )
    return ""


def refusal(
    knobs: Sequence[Knob],
    setting: str,
    why: str,
    near: Sequence[Mapping[str, Any]],
    pins: Sequence[str],
) -> Any:
    """Why there is no forecast, and the nearest settings that have one, to go to."""
    from dash import html

    parts: list[Any] = [html.P([html.Span("No forecast: ", className="bad"), why])]
    if near:
        links = [html.Li(_way(knobs, setting, values, pins)) for values in near]
        parts.append(html.P("Each of these alone would do:"))
        parts.append(html.Ul(links))
    return html.Div(parts, className="warnings", role="alert")


def ignored_note(ignored: Sequence[str]) -> Any:
    """What of the page's address meant nothing."""
    from dash import html

    if not ignored:
        return ""
    more = f", and {len(ignored) - 3} more" if len(ignored) > 3 else ""
    text = f"In the address, ignored: {'; '.join(ignored[:3])}{more}."
    return html.P(text, className="warnings", role="note")


def table(
    knobs: Sequence[Knob], now: Column, before: Column | None, pins: Mapping[str, Snapshot]
) -> Any:
    from dash import html

    compared = () if before is None else (before[0], None)
    heads = ["", "Now", *(("Before", "Change") if compared else ())]
    heads += [_pin_head(number, pin, pins) for number, pin in enumerate(pins, 1)]
    turned = [
        html.Td(_turned(knobs, each), className="setting-words")
        for each in (now[0], *compared, *pins)
    ]
    body = [html.Tr([html.Th("Setting", scope="row"), *turned])]
    for row in rows(now[1], None if before is None else before[1], list(pins.values())):
        cells = [row.cells[0], *(row.cells[1:3] if compared else ()), *row.cells[3:]]
        shown = [html.Td(cell.text, className=cell.tone) for cell in cells]
        body.append(html.Tr([html.Th(row.label, scope="row"), *shown]))
    head = html.Thead(html.Tr([html.Th(text) for text in heads]))
    return html.Div(html.Table([head, html.Tbody(body)]), className="panel")


def _turned(knobs: Sequence[Knob], setting: str | None) -> Any:
    from dash import html

    if setting is None:
        return ""
    return [html.Div(each) for each in words(knobs, setting)] or "the scenario's own"


def _pin_head(number: int, setting: str, pins: Mapping[str, Snapshot]) -> Any:
    from dash import html

    name = f"Pin {number}"
    query = address(setting, list(pins))
    return [
        html.A(name, href=query, title="Go to this setting", **{"data-query": query}),
        html.Button(
            "×", className="unpin", title=f"Remove {name}",
            **{"data-unpin": setting, "aria-label": f"Remove {name}"},
        ),
    ]  # fmt: skip


def _way(
    knobs: Sequence[Knob], setting: str, values: Mapping[str, Any], pins: Sequence[str]
) -> Any:
    from dash import html

    here = values_of(knobs, setting)
    text = ", ".join(
        f"{knob.label}: {shown(knob, values[knob.path])}"
        for knob in knobs
        if values[knob.path] != here[knob.path]
    )
    query = address(written(knobs, values), pins)
    return html.A(text, href=query, **{"data-query": query})


def _toned(text: str) -> list[Any]:
    """A verdict, in which it stands out whether the service levels are met."""
    from dash import html

    for word, tone in TONES.items():
        before, found, after = text.partition(word)
        if found:
            return [before, html.Span(word, className=tone), after]
    return [text]
