"""A comparison on the terminal: the fifteen latency figures, then what holds per request."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reports.compare_figures import LOOKS
from reports.compare_headline import STATISTICS, share, signed
from reports.quantity import MISSING
from reports.terminal import _printable

if TYPE_CHECKING:
    from rich.console import Group

LONGEST_VALUE = 28  # of a setting, in letters


def comparison_table(figures: Mapping[str, Any], notes: tuple[str, ...]) -> "Group":
    """Lay out what `orcast compare --json` prints, for `rich.print`; text without markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    labels = "\n".join(f"{side.upper()}: {_printable(figures[side])}" for side in "ab")
    table = Table(title=Text(labels), title_justify="left")
    table.add_column("Latency (ms)")
    for head in ("A", "B", "A against B"):
        table.add_column(head, justify="right")
    for metric, (short, _, _) in LOOKS.items():
        for name, pair in figures["metrics"][metric].items():
            cells = (f"{STATISTICS[name]} {short}", _number(pair["a"]), _number(pair["b"]))
            table.add_row(*cells, signed(pair["diff_pct"]), end_section=name == "p99")
    own = figures["per_request"]
    errors = ", ".join(f"{LOOKS[m][0]} {share(own[f'{m}_mape_pct'])}" for m in LOOKS)
    rates = figures["throughput"]
    lines = [
        f"Per request, over {figures['requests']}: mean absolute error {errors};",
        f"  E2E bias {signed(own['e2e_bias_pct'])}",
        f"Makespan (s): {_pair(figures['makespan'])}",
        f"Requests/s: {_pair(rates['request'])}",
        f"Output tokens/s: {_pair(rates['output'])}",
    ]
    changes = figures.get("scenario")
    if changes is not None:
        lines.append("Scenario, A | B:" if changes else "Scenario: not a single setting differs")
    for path, pair in (changes or {}).items():
        lines.append(f"  {path}: {_short(pair['a'])} | {_short(pair['b'])}")
    texts = [Text(_printable(line)) for line in lines]
    texts += [Text(_printable(f"note: {note}"), style="yellow") for note in notes]
    return Group(table, *texts)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.2f}"


def _pair(pair: Mapping[str, float | None]) -> str:
    return f"{_number(pair['a'])} | {_number(pair['b'])} ({signed(pair['diff_pct'])})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
