"""The what-if page before anything is answered: its knobs, and the places of the answer."""

from collections.abc import Sequence
from typing import Any

from reports.what_if.setting import Knob, shown

CHARTS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "e2el": "End-to-end latency",
    "running": "Batch",
    "waiting": "Queue",
    "kv": "KV memory",
}
_STORES = ("query", "opened", "pins", "asked", "now", "before", "theme")


def layout(name: str, knobs: Sequence[Knob], *, page: str) -> Any:
    """The page; `page` tells its requests from those of others that are open."""
    from dash import dcc, html

    groups: dict[str, list[Any]] = {}
    for knob in knobs:
        groups.setdefault(knob.group, []).append(_control(knob))
    controls = [
        html.Fieldset([html.Legend(group), *inside], className="panel")
        for group, inside in groups.items()
    ]
    return html.Div(
        [
            *(dcc.Store(id=store) for store in _STORES),
            dcc.Store(id="page", data=page),
            dcc.Store(id="knobs", data=[_in_browser(knob) for knob in knobs]),
            _bar(name),
            html.Main(
                [
                    html.H1(name, className="unseen"),
                    # The answer comes before the questions: a phone shows one below the other.
                    html.Section(
                        [
                            html.Div(id="ignored"),
                            html.Div(id="verdict", **{"aria-live": "polite"}),
                            html.Div(id="figures"),
                            _legend(),
                        ],
                        className="answer",
                    ),
                    html.Aside(controls, className="knobs", **{"aria-label": "Knobs"}),
                    html.Section(
                        [
                            html.H2("Distributions, and load over time", className="unseen"),
                            html.Div(_charts(), className="row"),
                            _again(),
                        ],
                        className="charts",
                    ),
                ],
                className="what-if",
            ),
        ]
    )


def _bar(name: str) -> Any:
    from dash import html

    return html.Div(
        html.Div(
            [
                html.Span("Orcast", className="brand"),
                html.Nav(name, className="what"),
                html.Span(id="short"),
                html.Button("Dark", id="theme-button", className="theme"),
            ]
        ),
        className="bar",
    )


def _in_browser(knob: Knob) -> dict[str, Any]:
    """A knob as the page's script needs it."""
    return {
        "path": knob.path,
        "own": _position(knob),
        "texts": [knob.text(choice) for choice in knob.choices],
        "shown": [shown(knob, choice) for choice in knob.choices],
    }


def _position(knob: Knob) -> int:
    return knob.choices.index(knob.value)


def _control(knob: Knob) -> Any:
    from dash import dcc, html

    name = {"type": "knob", "path": knob.path}
    if knob.ordered:
        control: Any = dcc.Slider(
            id=name, min=0, max=len(knob.choices) - 1, step=1, value=_position(knob), marks=None,
            included=True, allow_direct_input=False,
        )  # fmt: skip
    else:
        control = dcc.Dropdown(
            id=name,
            options=[
                {"label": shown(knob, choice), "value": index}
                for index, choice in enumerate(knob.choices)
            ],
            value=_position(knob),
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
        **{"data-label": knob.label},
    )


def _charts() -> list[Any]:
    from dash import dcc, html

    return [
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


def _legend() -> Any:
    from dash import dcc, html

    return html.Div(
        [
            html.Button("Pin this setting", id="pin", className="theme"),
            dcc.Checklist(
                id="hold",
                options=[{"label": " hold what it is compared with", "value": 1}],
                value=[],
            ),
            html.Span([html.I(className="line-now"), "now"], className="key"),
            html.Span([html.I(className="line-before"), "before"], className="key"),
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
