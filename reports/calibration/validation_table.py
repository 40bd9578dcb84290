"""A validation on the terminal: the comparison, then what only an engine can tell."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reports.compare.headline import share, signed
from reports.compare.table import comparison_table
from scenarios.quantity import percent, printable

if TYPE_CHECKING:
    from rich.console import Group


def validation_table(figures: Mapping[str, Any], notes: tuple[str, ...]) -> "Group":
    """Lay out what `orcast validate --json` prints, for `rich.print`; text without markup."""
    from rich.console import Group
    from rich.text import Text

    own, identity = figures["iterations"], figures["schedule_identity"]
    phases = ", ".join(f"{name} {percent(part)}" for name, part in own["phase_shares"].items())
    lines = [
        f"Iterations: {own['engine']} run, {own['forecast']} forecast; each predicted with median "
        f"error {share(own['median_error_pct'])}, p95 {share(own['p95_error_pct'])}, "
        f"bias {signed(own['bias_pct'])}",
        f"Engine time: {phases}",
    ]
    if not identity["checked"]:
        lines.append("Schedule identity: not checked, as outputs ended early")
    elif identity["differences"]:
        lines.append("Schedule identity: the simulator, fed the engine's durations, differs:")
        lines += [f"  {text}" for text in identity["differences"]]
    else:
        lines.append(
            "Schedule identity: fed the engine's durations, the simulator makes the same schedule"
        )
    errors = figures["request_errors"]
    if errors:
        lines.append(f"{len(errors)} requests got no whole answer:")
        lines += [f"  request {number}: {why}" for number, why in list(errors.items())[:5]]
    judged = figures["verdict"]
    lines += [f"{text}." for text in judged["reasons"]]
    lines.append(f"Verdict: {judged['words']}")
    # What is compared is in the comparison; settings are the same in both.
    compared = {key: value for key, value in figures.items() if key != "scenario"}
    return Group(comparison_table(compared, notes), *(Text(printable(line)) for line in lines))
