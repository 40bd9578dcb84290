"""A comparison on the terminal: the fifteen latency figures, then what holds per request.

Two forecasts begin with what was changed between them, and end with what became of the runs.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from reports.compare.figures import LOOKS
from reports.compare.headline import (
    STATISTICS,
    TWO,
    Names,
    outcomes,
    share,
    shortened,
    signed,
)
from scenarios.quantity import MISSING, printable

if TYPE_CHECKING:
    from rich.console import Group


def comparison_table(
    figures: Mapping[str, Any], notes: tuple[str, ...], names: Names = ("Forecast", "Measured")
) -> "Group":
    """Lay out what `orcast compare --json` prints, for `rich.print`; text without markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    two = names == TWO
    order = "ba" if two else "ab"
    labels = "\n".join(f"{side.upper()}: {printable(figures[side])}" for side in "ab")
    table = Table(title=None if two else Text(labels), title_justify="left")
    table.add_column("Latency (ms)")
    for head in (*order.upper(), "Change" if two else "A against B"):
        table.add_column(head, justify="right")
    for metric, (short, _, _) in LOOKS.items():
        for name, pair in figures["metrics"][metric].items():
            cells = (f"{STATISTICS[name]} {short}", *(_number(pair[side]) for side in order))
            table.add_row(*cells, signed(pair["diff_pct"]), end_section=name == "p99")
    scenario = list(_settings(figures, order))
    above = [labels, *scenario] if two else []
    lines = [*_per_request(figures, two), *_whole_run(figures, order)]
    lines += [] if two else scenario
    texts = [Text(printable(line)) for line in lines]
    texts += [Text(printable(f"note: {note}"), style="yellow") for note in notes]
    return Group(*(Text(line) for line in above), table, *texts)


def _settings(figures: Mapping[str, Any], order: str) -> Iterator[str]:
    """What differs in the scenarios, a line each; nothing where it is not known."""
    changes = figures.get("scenario")
    if changes is None:
        return
    between = " → " if order == "ba" else " | "
    heads = between.join(order.upper())
    yield f"Scenario, {heads}:" if changes else "Scenario: not a single setting differs"
    for path, pair in changes.items():
        yield printable(f"  {path}: {between.join(shortened(pair[side]) for side in order)}")


def _per_request(figures: Mapping[str, Any], two: bool) -> Iterator[str]:
    own, requests = figures["per_request"], figures["requests"]
    bias = signed(own["e2e_bias_pct"])
    if two:
        yield f"Per request, over {requests}: E2E changes by {bias} on average"
        return
    errors = ", ".join(f"{LOOKS[m][0]} {share(own[f'{m}_mape_pct'])}" for m in LOOKS)
    yield f"Per request, over {requests}: mean absolute error {errors};"
    yield f"  E2E bias {bias}"


def _whole_run(figures: Mapping[str, Any], order: str) -> Iterator[str]:
    between = " → " if order == "ba" else " | "
    rates = figures["throughput"]
    for label, pair in (
        ("Makespan (s)", figures["makespan"]),
        ("Requests/s", rates["request"]),
        ("Output tokens/s", rates["output"]),
    ):
        values = between.join(_number(pair[side]) for side in order)
        yield f"{label}: {values} ({signed(pair['diff_pct'])})"
    if order == "ba":
        for label, b, a, change in outcomes(figures):
            yield f"{label}: {b} → {a} ({change})"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.2f}"
