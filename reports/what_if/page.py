"""The what-if page: a scenario's knobs beside its forecast, which follows them (a Dash app).

The page loads nothing from elsewhere, answers only to this machine, and asks only for what its
knobs offer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from reports.page.records import RunRecords
from reports.page.style import style_sheet
from reports.run.headline import TONES
from reports.what_if.figures import Snapshot, comparison_rows, figures, snapshot

if TYPE_CHECKING:
    from dash import Dash

HOST = "127.0.0.1"
CHARTS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "e2el": "End-to-end latency",
    "running": "Batch",
    "waiting": "Queue",
    "kv": "KV memory",
}


class Knob(Protocol):
    """One value that can be turned; see `scenarios.schema.knobs`."""

    @property
    def path(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def choices(self) -> tuple[Any, ...]: ...
    @property
    def value(self) -> Any: ...
    @property
    def ordered(self) -> bool: ...
    @property
    def unit(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A forecast, and how to ask for it again."""

    records: RunRecords
    summary: Mapping[str, Any]
    command: str  # for a shell
    scenario: str  # resolved, as YAML


Ask = Callable[[Mapping[str, Any]], Answer]
"""Values of knobs by path -> a forecast. Raises ValueError, in words, where there is none."""


def what_if_app(name: str, knobs: Sequence[Knob], ask: Ask) -> "Dash":
    """The page for a scenario called `name`; run it with ``app.run(host=HOST, port=...)``."""
    from dash import ALL, Dash, Input, Output, State, html

    app = Dash(__name__, title=f"{name} · Orcast", update_title="", serve_locally=True)
    app.index_string = _index(style_sheet() + _RULES)
    _only_this_machine(app)
    app.layout = _layout(name, knobs)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("verdict", "children"),
        Output("figures", "children"),
        *(Output(f"chart-{chart}", "figure") for chart in CHARTS),
        Output("command", "children"),
        Output("yaml", "children"),
        Output("now", "data"),
        Output("before", "data"),
        Output({"type": "shown", "path": ALL}, "children"),
        Input({"type": "knob", "path": ALL}, "value"),
        Input("theme", "data"),
        State({"type": "knob", "path": ALL}, "id"),
        State("now", "data"),
        State("before", "data"),
        State("hold", "value"),
    )
    def follow(  # type: ignore[no-untyped-def]
        positions, theme, names, now, before, hold
    ) -> tuple[Any, ...]:
        values = values_at(knobs, names, positions)
        shown = [_shown(knob, values[knob.path]) for knob in knobs]
        if now and now.get("values") == values:  # only the colours have changed
            answer = now
        else:
            try:
                result = ask(values)
            except ValueError as error:
                words = html.Div(
                    [html.Strong("No forecast: "), str(error)], className="warnings", role="alert"
                )
                empty = figures({"figures": {}, "curves": {}}, None, dark=theme == "dark")
                blank = [empty[chart] for chart in CHARTS]
                return (words, "", *blank, "", "", now, before, shown)
            answer = snapshot(result.records, result.summary)
            answer |= {"values": values, "command": result.command, "scenario": result.scenario}
            if now and not (hold and before):
                before = _without_text(now)
        charts = figures(answer, before, dark=theme == "dark")
        return (
            _verdict(html, answer),
            _table(html, answer, before),
            *(charts[chart] for chart in CHARTS),
            answer["command"],
            answer["scenario"],
            answer,
            before,
            shown,
        )

    app.clientside_callback(
        "function(clicks, theme) {"
        " const root = document.documentElement;"
        " const dark = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';"
        " const next = clicks ? (theme === 'dark' ? 'light' : 'dark') : dark;"
        " root.dataset.theme = next; return [next, next === 'dark' ? 'Light' : 'Dark']; }",
        Output("theme", "data"),
        Output("theme-button", "children"),
        Input("theme-button", "n_clicks"),
        State("theme", "data"),
    )
    return app


def values_at(
    knobs: Sequence[Knob], names: Sequence[Mapping[str, Any]], positions: Sequence[Any]
) -> dict[str, Any]:
    """The knobs' values from their positions; a position that does not exist is refused."""
    given = {name["path"]: position for name, position in zip(names, positions, strict=True)}
    values = {}
    for knob in knobs:
        position = given.get(knob.path)
        if not isinstance(position, int) or not 0 <= position < len(knob.choices):
            raise ValueError(f"{knob.path}: no such choice")
        values[knob.path] = knob.choices[position]
    return values


def _shown(knob: Knob, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:,g}" if isinstance(value, int | float) else str(value)
    unit = _ONE.get(knob.unit, knob.unit) if value == 1 else knob.unit
    return f"{text} {unit}".rstrip()


_ONE = {"GPUs": "GPU", "ranks": "rank", "stages": "stage", "sequences": "sequence"}
_ONE |= {"tokens": "token", "requests/s": "request/s"}


def _without_text(answer: Snapshot) -> Snapshot:
    return {key: value for key, value in answer.items() if key not in ("command", "scenario")}


# -- what is seen -----------------------------------------------------------------------------


def _layout(name: str, knobs: Sequence[Knob]) -> Any:
    from dash import dcc, html

    groups: dict[str, list[Any]] = {}
    for knob in knobs:
        groups.setdefault(knob.group, []).append(_control(knob))
    controls = [
        html.Fieldset([html.Legend(group), *inside], className="panel")
        for group, inside in groups.items()
    ]
    charts = [
        html.Figure(
            [
                html.H3(title),
                dcc.Graph(
                    id=f"chart-{chart}",
                    config={"displayModeBar": False, "responsive": True},
                    style={"height": "230px"},
                ),
            ]
        )
        for chart, title in CHARTS.items()
    ]
    return html.Div(
        [
            dcc.Store(id="now"),
            dcc.Store(id="before"),
            dcc.Store(id="theme"),
            html.Div(
                html.Div(
                    [
                        html.Span("Orcast", className="brand"),
                        html.Nav(name, className="what"),
                        html.Button("Dark", id="theme-button", className="theme"),
                    ]
                ),
                className="bar",
            ),
            html.Main(
                [
                    html.Aside(controls, className="knobs", **{"aria-label": "Knobs"}),
                    html.Div(
                        [
                            html.Div(id="verdict", **{"aria-live": "polite"}),
                            html.Div(id="figures"),
                            _legend(),
                            html.Div(charts, className="row"),
                            _again(),
                        ],
                        className="answer",
                    ),
                ],
                className="what-if",
            ),
        ]
    )


def _control(knob: Knob) -> Any:
    from dash import dcc, html

    name = {"type": "knob", "path": knob.path}
    position = next(i for i, choice in enumerate(knob.choices) if choice == knob.value)
    if knob.ordered:
        control: Any = dcc.Slider(
            id=name, min=0, max=len(knob.choices) - 1, step=1, value=position, marks=None,
            included=False, allow_direct_input=False,
        )  # fmt: skip
    else:
        control = dcc.Dropdown(
            id=name,
            options=[
                {"label": _shown(knob, choice), "value": index}
                for index, choice in enumerate(knob.choices)
            ],
            value=position,
            clearable=False,
            searchable=len(knob.choices) > 8,
        )
    return html.Div(
        [
            html.Label(
                [
                    knob.label,
                    html.Output(id={"type": "shown", "path": knob.path}, className="shown"),
                ]
            ),
            control,
        ],
        className="knob" if knob.ordered else "knob menu",
        title=knob.path,
    )


def _legend() -> Any:
    from dash import dcc, html

    return html.Div(
        [
            html.Span([html.I(className="line-now"), "now"], className="key"),
            html.Span([html.I(className="line-before"), "before"], className="key"),
            dcc.Checklist(
                id="hold",
                options=[{"label": " hold what it is compared with", "value": 1}],
                value=[],
            ),
        ],
        className="keys",
    )


def _again() -> Any:
    from dash import dcc, html

    def block(title: str, name: str) -> Any:
        return html.Div(
            [
                html.H3([title, dcc.Clipboard(target_id=name, title=f"Copy: {title}")]),
                html.Pre(id=name),
            ],
            className="panel",
        )

    return html.Div([block("The same on the command line", "command"), block("Scenario", "yaml")])


def _verdict(html: Any, answer: Snapshot) -> Any:
    parts = []
    if answer["verdict"]:
        parts.append(html.P(_toned(html, " ".join(answer["verdict"])), className="verdict"))
    if answer["warnings"]:
        items = [html.Li(warning) for warning in answer["warnings"]]
        parts.append(html.Div([html.Ul(items)], className="warnings", role="note"))
    return parts


def _toned(html: Any, text: str) -> list[Any]:
    """A verdict, in which it stands out whether the service levels are met."""
    for word, tone in TONES.items():
        before, found, after = text.partition(word)
        if found:
            return [before, html.Span(word, className=tone), after]
    return [text]


def _table(html: Any, answer: Snapshot, before: Snapshot | None) -> Any:
    head = html.Thead(html.Tr([html.Th(text) for text in ("", "Now", "Before", "Change")]))
    rows = [
        [html.Th(label, scope="row"), *map(html.Td, (now, old)), html.Td(change, className=tone)]
        for label, now, old, change, tone in comparison_rows(answer, before)
    ]
    body = html.Tbody([html.Tr(cells) for cells in rows])
    return html.Div(html.Table([head, body]), className="panel")


# -- the page around it -----------------------------------------------------------------------


def _index(css: str) -> str:
    policy = (
        "default-src 'none'; connect-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{{%title%}}</title>{{%css%}}<style>{css}</style>"
        '<link rel="icon" href="data:,"></head>'
        "<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body></html>"
    )


def _only_this_machine(app: "Dash") -> None:
    """Refuse requests for another host: a web page elsewhere may have its name point here."""
    from flask import abort, request

    @app.server.before_request  # type: ignore[untyped-decorator]
    def check_host() -> None:
        if request.host.partition(":")[0] not in (HOST, "localhost"):
            abort(403)


_RULES = """
.what{color:var(--muted);font-size:14px;min-width:0;white-space:nowrap;text-overflow:ellipsis}
main.what-if{display:grid;grid-template-columns:310px minmax(0,1fr);gap:20px;max-width:1400px;
 padding-top:20px}
.knobs{position:sticky;top:60px;align-self:start;max-height:calc(100vh - 70px);overflow-y:auto}
fieldset.panel{border:1px solid var(--edge);overflow:visible;min-width:0}
fieldset legend{font-weight:600;font-size:14px;padding:0 6px}
.knob{margin:2px 0 8px;min-width:0}.answer{min-width:0}
.knob label{display:flex;justify-content:space-between;gap:10px;font-size:13px}
.shown{color:var(--muted);font-variant-numeric:tabular-nums;text-align:right}
.knob.menu .shown{display:none}
.knob .dash-slider-container,.knob .dash-slider-root{padding:0 6px}
.answer .panel h3{display:flex;justify-content:space-between}
.line-now{background:var(--ink)!important}.line-before{background:var(--held)!important}
.keys{margin-bottom:10px;align-items:center}
td.good{color:var(--good)}td.bad{color:var(--bad)}
.verdict{margin:0 0 12px}
:root{--Dash-Fill-Interactive-Strong:var(--accent);--Dash-Text-Primary:var(--ink);
 --Dash-Text-Strong:var(--ink);--Dash-Text-Weak:var(--muted);--Dash-Fill-Inverse-Strong:var(--surface);
 --Dash-Stroke-Strong:var(--edge);--Dash-Stroke-Weak:var(--edge);--Dash-Fill-Weak:var(--grid)}
@media (max-width:900px){main.what-if{grid-template-columns:minmax(0,1fr)}
 .knobs{position:static;max-height:none}}
@media (max-width:480px){#figures th,#figures td{padding:6px 4px;font-size:13px}}
"""
