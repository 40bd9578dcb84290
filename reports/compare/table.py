"""A comparison on the terminal: the fifteen latency figures, then what holds per request."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from reports.compare.figures import LOOKS
from reports.compare.headline import STATISTICS, share, signed
from reports.compare.runs_words import shortened
from scenarios.quantity import MISSING, printable

if TYPE_CHECKING:
    from rich.console import Group


def comparison_table(figures: Mapping[str, Any], notes: tuple[str, ...]) -> "Group":
    """Lay out what `orcast compare --json` prints, for `rich.print`; text without markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    labels = "\n".join(f"{side.upper()}: {printable(figures[side])}" for side in "ab")
    table = Table(title=Text(labels), title_justify="left")
    table.add_column("Latency (ms)")
    for head in ("A", "B", "A against B"):
        table.add_column(head, justify="right")
    for metric, (short, _, _) in LOOKS.items():
        for name, pair in figures["metrics"][metric].items():
            cells = (f"{STATISTICS[name]} {short}", _number(pair["a"]), _number(pair["b"]))
            table.add_row(*cells, signed(pair["diff_pct"]), end_section=name == "p99")
    lines = [*_per_request(figures), *_whole_run(figures), *_settings(figures)]
    texts = [Text(printable(line)) for line in lines]
    texts += [Text(printable(f"note: {note}"), style="yellow") for note in notes]
    return Group(table, *texts)


def _settings(figures: Mapping[str, Any]) -> Iterator[str]:
    """What differs in the scenarios, a line each; nothing where it is not known."""
    changes = figures.get("scenario")
    if changes is None:
        return
    yield "Scenario, A | B:" if changes else "Scenario: not a single setting differs"
    for path, pair in changes.items():
        yield printable(f"  {path}: {shortened(pair['a'])} | {shortened(pair['b'])}")


def _per_request(figures: Mapping[str, Any]) -> Iterator[str]:
    own = figures["per_request"]
    errors = ", ".join(f"{LOOKS[m][0]} {share(own[f'{m}_mape_pct'])}" for m in LOOKS)
    yield f"Per request, over {figures['requests']}: mean absolute error {errors};"
    yield f"  E2E bias {signed(own['e2e_bias_pct'])}"


def _whole_run(figures: Mapping[str, Any]) -> Iterator[str]:
    rates = figures["throughput"]
    for label, pair in (
        ("Makespan (s)", figures["makespan"]),
        ("Requests/s", rates["request"]),
        ("Output tokens/s", rates["output"]),
    ):
        values = f"{_number(pair['a'])} | {_number(pair['b'])}"
        yield f"{label}: {values} ({signed(pair['diff_pct'])})"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.2f}"
