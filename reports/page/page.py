"""One self-contained HTML page: sections of figures, tables and text, with Plotly inside.

Everything that goes into a page as text passes `escape`; everything that goes into a figure as
text passes `plotly_text`, because Plotly reads tags in labels too.
"""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.page.script import SCRIPT
from reports.page.style import dark_of_light, style_sheet, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

escape = html.escape
MARK = '<meta name="generator" content="Orcast">'  # what tells that a page is one of ours


def plotly_text(text: str) -> str:
    """`text` so that Plotly draws it letter by letter, tags and all."""
    return html.escape(text, quote=False)


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a figure's legend: a button that shows and hides its traces."""

    label: str
    colour: str  # a name in the palette
    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A Plotly figure as plain JSON, with its title, caption and legend outside of Plotly."""

    name: str  # unique in the page, a valid HTML id
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    keys: tuple[Key, ...] = ()
    group: str = ""  # figures of one group zoom together along x
    lanes: Mapping[str, Any] | None = None  # redrawn by the script for the window zoomed into

    def as_plotly(self, **layout: Any) -> PlotlyFigure:
        """The same for a notebook: its title inside, and a legend; with what `layout` says."""
        from plotly.graph_objects import Figure as PlotlyFigure

        own = {
            "title": {"text": self.title},
            "template": template(dark=False),
            "margin": {**self.layout.get("margin", {}), "t": 50},
            "showlegend": bool(self.keys),
        }
        return PlotlyFigure(self.data, self.layout | own | layout, skip_invalid=True)

    def html(self) -> str:
        keys = "".join(
            f'<button class="key" type="button" aria-pressed="true" data-figure="{self.name}" '
            f'data-traces="{" ".join(map(str, key.traces))}">'
            f'<i style="background:var(--{key.colour})"></i>{escape(key.label)}</button>'
            for key in self.keys
        )
        return (
            f"<figure><h3>{escape(self.title)}</h3>"
            + (f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else "")
            + (f'<div class="keys" role="group" aria-label="Legend">{keys}</div>' if keys else "")
            + f'<div class="plot" id="{self.name}" tabindex="0" role="img" '
            f'aria-label="{escape(self.title)}" style="height:{self.layout["height"]}px"></div>'
            + (
                f'<div class="windows" id="{self.name}-windows"></div>'
                f'<p class="lanes-note" id="{self.name}-note" aria-live="polite"></p>'
                if self.lanes
                else ""
            )
            + "</figure>"
        )

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "group": self.group,
            "data": self.data,
            "layout": self.layout,
            **({} if self.lanes is None else {"lanes": self.lanes}),
        }


@dataclass(frozen=True, slots=True)
class Widget:
    """Something that a script of its own draws into the element called `name`, from `data`."""

    name: str
    title: str
    caption: str
    data: Mapping[str, Any]
    keys: tuple[tuple[str, str], ...] = ()  # (label, a name in the palette)

    def html(self) -> str:
        keys = "".join(
            f'<span class="key"><i style="background:var(--{thing})"></i>{escape(label)}</span>'
            for label, thing in self.keys
        )
        return (
            f'<figure class="widget"><h3>{escape(self.title)}</h3>'
            f"<figcaption>{escape(self.caption)}</figcaption>"
            f'<div class="keys">{keys}</div><div id="{self.name}"></div></figure>'
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Figures side by side where the page is wide enough."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of a page. Strings among its parts are HTML and already escaped."""

    name: str  # the anchor
    title: str
    parts: Sequence[str | Figure | Row | Widget]
    intro: str = ""
    link: str = field(default="")  # a shorter title for the navigation bar

    @property
    def figures(self) -> list[Figure]:
        found: list[Figure] = []
        for part in self.parts:
            if isinstance(part, Figure):
                found.append(part)
            elif isinstance(part, Row):
                found.extend(part.figures)
        return found

    @property
    def widgets(self) -> list[Widget]:
        return [part for part in self.parts if isinstance(part, Widget)]

    def html(self) -> str:
        body = []
        for part in self.parts:
            if isinstance(part, Figure | Widget):
                body.append(part.html())
            elif isinstance(part, Row):
                inside = "".join(figure.html() for figure in part.figures)
                body.append(f'<div class="row">{inside}</div>')
            else:
                body.append(part)
        intro = f'<p class="intro">{escape(self.intro)}</p>' if self.intro else ""
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-title">'
            f'<h2 id="{self.name}-title">{escape(self.title)}</h2>{intro}{"".join(body)}</section>'
        )


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure; `judgement` is a second note, coloured by `tone` ("good" or "bad")."""

    label: str
    value: str
    note: str = ""
    judgement: str = ""
    tone: str = ""

    def html(self) -> str:
        note = f'<dd class="note">{escape(self.note)}</dd>' if self.note else ""
        if self.judgement:
            note += f'<dd class="note {self.tone}">{escape(self.judgement)}</dd>'
        return (
            f'<div class="card"><dt>{escape(self.label)}</dt>'
            f'<dd class="value">{escape(self.value)}</dd>{note}</div>'
        )


def cards(items: Sequence[Card]) -> str:
    """The headline figures of a page."""
    return f'<dl class="cards">{"".join(card.html() for card in items)}</dl>'


def warning_box(warnings: Sequence[str]) -> str:
    """What to know before believing the page, in words; nothing where there is nothing."""
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return (
        '<div class="warnings" role="note"><strong>Before you rely on this</strong>'
        f"<ul>{items}</ul></div>"
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    best: Collection[tuple[int, int]] = (),
) -> str:
    """A table of texts; the first column heads its row. Cells (row, column) of `best` stand out."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(
            f"<td{' class=best' * ((at, place) in best)}>{escape(text)}</td>"
            for place, text in enumerate(row[1:], start=1)
        )
        + "</tr>"
        for at, row in enumerate(rows)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in pairs
    )
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def panel(inside: str) -> str:
    """A box around HTML, scrolling by itself where it is too wide."""
    return f'<div class="panel" tabindex="0">{inside}</div>'


def plotly_script() -> str:
    """plotly.min.js as the installed plotly package ships it.

    Found without importing plotly, which would cost more than drawing the page.
    """
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the HTML report needs the package plotly: pip install plotly")
    path = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return path.read_text(encoding="utf-8")


def json_block(value: Any) -> str:
    """`value` as JSON that cannot end the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c")


def page(
    *,
    title: str,
    top: str,
    sections: Sequence[Section],
    footer: str = "",
    scripts: Sequence[str] = (),
) -> str:
    """A whole page. `top` and `footer` are HTML, already escaped; `title` is plain text.

    `scripts` draw the sections' widgets; each finds ``orcast.page.widgets`` and tells
    ``orcast.onTheme`` what to call when the colours change.

    The content security policy lets nothing be fetched: the page works, and stays, offline.
    """
    figures = [figure.json() for section in sections for figure in section.figures]
    block = json_block(
        {
            "figures": figures,
            "templates": {"light": template(dark=False), "dark": template(dark=True)},
            "dark": dark_of_light(),
            "widgets": {one.name: one.data for section in sections for one in section.widgets},
        }
    )
    links = "".join(
        f'<a href="#{section.name}">{escape(section.link or section.title)}</a>'
        for section in sections
    )
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; ',
            "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">\n",
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"{MARK}\n",
            f"<title>{escape(title)}</title>\n<style>{style_sheet()}</style></head>\n<body>",
            '<div class="bar"><div><span class="brand">Orcast</span>',
            f'<nav aria-label="Sections">{links}</nav>',
            '<button class="theme" id="theme" type="button">Dark</button></div></div>\n<main>',
            top,
            "".join(section.html() + "\n" for section in sections),
            f"<footer>{footer}<noscript> The charts need JavaScript.</noscript></footer></main>\n",
            f'<script type="application/json" id="orcast-figures">{block}</script>\n<script>',
            plotly_script(),
            f"</script>\n<script>{SCRIPT}</script>\n",
            *(f"<script>{script}</script>\n" for script in scripts),
            "</body></html>\n",
        ]
    )
