"""The what-if page: a scenario's knobs beside its forecast, which follows them (a Dash app).

The page loads nothing from elsewhere, answers only to this machine, and asks only for what its
knobs offer. All that travels are settings as text (`reports.what_if.setting`): the browser keeps
which one is shown, which was before and which are pinned, the server remembers the last answers.
"""

import html as markup
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.page.style import style_sheet
from reports.what_if.answers import Alive, Answers, Ask, SupersededError, Turn
from reports.what_if.figures import Snapshot, figures
from reports.what_if.guard import NONCE, guard, own_code
from reports.what_if.layout import CHARTS, layout
from reports.what_if.said import bar_word, ignored_note, refusal, table, verdict
from reports.what_if.server import has_left
from reports.what_if.setting import MOST_PINS, Knob, opened, values_of, written

if TYPE_CHECKING:
    from dash import Dash

HOST = "127.0.0.1"
_PAGE_ID = 64  # characters: they are remembered

Remedies = Callable[[Mapping[str, Any], Alive], Sequence[Mapping[str, Any]]]
"""Values without a forecast -> values near them that have one; each turns one more knob."""


def what_if_app(
    name: str, knobs: Sequence[Knob], ask: Ask, remedies: Remedies = lambda values, alive: ()
) -> "Dash":
    """The page for a scenario called `name`; serve ``.server`` on `HOST`."""
    from dash import ALL, ClientsideFunction, Dash, Input, Output, State, no_update
    from dash.exceptions import PreventUpdate

    app = Dash(
        __name__,
        title=_as_text(name),
        update_title="",
        serve_locally=True,
        assets_folder=str(Path(__file__).parent / "assets"),
        assets_ignore=r"^nonce\.js$",  # which the index loads itself, before all others
    )
    app.index_string = _index(style_sheet())
    app.layout = lambda: layout(name, knobs, page=secrets.token_hex(8))
    answers = Answers(ask)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("opened", "data"),
        Output("pins", "data"),
        Output("ignored", "children"),
        Input("query", "data"),
    )
    def read(query: Any) -> tuple[Any, ...]:
        with own_code():
            found = opened(knobs, _text(query))
            values = values_of(knobs, found.setting)
            positions = {knob.path: knob.choices.index(values[knob.path]) for knob in knobs}
            return positions, found.pins, ignored_note(found.ignored)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("verdict", "children"),
        Output("figures", "children"),
        *(Output(f"chart-{chart}", "figure") for chart in CHARTS),
        Output("command", "children"),
        Output("yaml", "children"),
        Output("now", "data"),
        Output("before", "data"),
        Output("short", "children"),
        Input("asked", "data"),
        State("page", "data"),
        State("now", "data"),
        State("before", "data"),
        State("hold", "value"),
    )
    def follow(asked: Any, page: Any, now: Any, before: Any, hold: Any) -> tuple[Any, ...]:
        with own_code():
            wanted = _Wanted.of(knobs, asked, now=now, before=before, hold=hold)
            turn = Turn(_text(page, most=_PAGE_ID), wanted.number, has_left(_connection()))
            try:
                answers.begin(turn)
                return respond(wanted, turn)
            except SupersededError:
                raise PreventUpdate from None

    def answer(setting: str, turn: Turn) -> Snapshot:
        return answers.of(setting, values_of(knobs, setting), turn)

    def known(setting: str, turn: Turn) -> Snapshot:
        """The same for a column of the table, empty where there is no forecast."""
        try:
            return answer(setting, turn)
        except ValueError:
            return {}

    def respond(wanted: _Wanted, turn: Turn) -> tuple[Any, ...]:
        pins = {pin: known(pin, turn) for pin in wanted.pins}
        before = None if wanted.before is None else (wanted.before, known(wanted.before, turn))
        try:
            shown = answer(wanted.setting, turn)
        except ValueError as error:
            near = remedies(values_of(knobs, wanted.setting), lambda: answers.check(turn))
            words = refusal(knobs, wanted.setting, str(error), near, wanted.pins)
            columns = table(knobs, (wanted.setting, {}), before, pins) if before or pins else ""
            return (words, columns, *[no_update] * (len(CHARTS) + 4), bar_word(None))
        charts = figures(shown, before and before[1], dark=wanted.dark)
        return (
            verdict(shown),
            table(knobs, (wanted.setting, shown), before, pins),
            *(charts[chart] for chart in CHARTS),
            shown["command"],
            shown["scenario"],
            wanted.setting,
            wanted.before,
            bar_word(shown),
        )

    def in_browser(name: str) -> Any:
        return ClientsideFunction("what_if", name)

    every = {"type": "knob", "path": ALL}
    app.clientside_callback(in_browser("query"), Output("query", "data"), Input("page", "data"))
    app.clientside_callback(
        in_browser("theme"),
        Output("theme", "data"),
        Output("theme-button", "children"),
        Input("theme-button", "n_clicks"),
        State("theme", "data"),
    )
    app.clientside_callback(
        in_browser("place"), Output(every, "value"), Input("opened", "data"), State(every, "id")
    )
    app.clientside_callback(
        in_browser("turned"),
        Output({"type": "shown", "path": ALL}, "children"),
        Output("asked", "data"),
        Input(every, "value"),
        Input("pins", "data"),
        Input("theme", "data"),
        State(every, "id"),
        State("knobs", "data"),
    )
    guard(app)
    return app


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the browser asks for, checked: it may be anything."""

    setting: str
    pins: list[str]
    before: str | None  # the setting to compare with
    dark: bool
    number: int

    @staticmethod
    def of(knobs: Sequence[Knob], asked: Any, *, now: Any, before: Any, hold: Any) -> "_Wanted":
        from werkzeug.exceptions import BadRequest

        if not isinstance(asked, dict) or not isinstance(asked.get("pins"), list):
            raise BadRequest
        number, pins = asked.get("turn"), asked["pins"]
        if type(number) is not int or len(pins) > MOST_PINS:
            raise BadRequest

        def canonical(text: Any) -> str:
            try:
                return written(knobs, values_of(knobs, _text(text)))
            except ValueError:
                raise BadRequest from None

        setting = canonical(asked.get("setting"))
        last = None if now is None else canonical(now)
        compared = None if before is None else canonical(before)
        if last is not None and last != setting and not (hold and compared is not None):
            compared = last
        return _Wanted(
            setting,
            list(dict.fromkeys(canonical(pin) for pin in pins)),
            compared,
            dark=asked.get("theme") == "dark",
            number=number,
        )


def _text(given: Any, *, most: int | None = None) -> str:
    from werkzeug.exceptions import BadRequest

    if given is None:
        return ""
    if not isinstance(given, str) or (most is not None and len(given) > most):
        raise BadRequest
    return given


def _connection() -> Any:
    from flask import request

    return request.environ.get("werkzeug.socket")


def _as_text(name: str) -> str:
    """A title for Dash's index, which neither escapes it nor leaves a ``{%…%}`` in it alone."""
    return markup.escape(f"{name} · Orcast").replace("{", "&#123;")


def _index(css: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{{%title%}}</title><style nonce="{NONCE}">{css}</style>'
        '<script src="assets/nonce.js"></script>{%css%}'
        '<link rel="icon" href="data:,"></head>'
        "<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body></html>"
    )
