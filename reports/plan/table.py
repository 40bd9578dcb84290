"""A plan on the terminal, and its candidates as columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.page.records import Columns
from reports.plan.words import (
    STATUS,
    breaking,
    question,
    ranked,
    runner_up,
    summary,
    verdict,
)
from scenarios.quantity import MISSING, money, plain

if TYPE_CHECKING:
    from rich.console import Group

SHOWN = 24  # candidates on the terminal; the report has all

TEXTS = (
    *("label", "gpu", "layout", "status", "reason", "breaks_first", "breaks_why"),
    *("basis", "latency"),
)
NUMBERS = (
    *("gpus_per_replica", "usd_per_gpu_hour", "goodput", "goodput_low", "goodput_high"),
    *("saturated", "ceiling", "replicas", "serving", "gpus", "breaks_at", "load_share", "miss"),
    *("usd_per_hour", "usd_per_hour_following", "usd_per_million_tokens"),
    *("usd_per_million_output_tokens", "tokens_per_s_per_user", "tokens_per_s_per_gpu"),
    *("mean_watts", "joules_per_output_token", "electricity_usd_per_hour"),
)


def candidate_columns(answer: Mapping[str, Any]) -> Columns:
    """A tidy table of the candidates, one row each; NaN or an empty text where nothing is known.

    Rates are requests/s of one replica, tokens those of outputs; every knob that varies has a
    column of its own (texts), every front a column that is true for its members.
    """
    rows = answer["candidates"]
    columns: dict[str, Any] = {
        name: np.array([row[name] or "" for row in rows], object) for name in TEXTS
    }
    columns |= {
        knob: np.array([str(row["settings"][knob]) for row in rows], object)
        for knob in rows[0]["settings"]
    }
    for name in NUMBERS:
        values = [np.nan if row[name] is None else row[name] for row in rows]
        columns[name] = np.array(values, float)
    for front in ("cost_and_speed", "speed_and_throughput"):
        columns[f"front_{front}"] = np.array([front in row["fronts"] for row in rows], bool)
    return columns


def plan_table(answer: Mapping[str, Any]) -> "Group":
    """Lay out a plan for `rich.print`; text from outside is shown without markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("Deployment", overflow="fold")
    heads = ("req/s each", "replicas", "GPUs", "$/hour", "$/M tokens", "tok/s/user", "tok/s/GPU")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("Times", no_wrap=True)
    table.add_column("Why not", overflow="fold", ratio=1)
    rows = ranked(answer)
    for row in rows[:SHOWN]:
        chosen = row["status"] == "chosen"
        met = chosen or row["status"] == "meets"
        mark = "*" if row["fronts"] else ""
        why = "the cheapest" if chosen else row["reason"]
        style = "bold green" if chosen else "" if met else "dim"
        table.add_row(
            Text(f"{row['label']}{mark}"),
            _number(row["goodput"]),
            MISSING if row["replicas"] is None else str(row["replicas"]),
            MISSING if row["gpus"] is None else str(row["gpus"]),
            money(row["usd_per_hour"]),
            money(row["usd_per_million_output_tokens"]),
            _number(row["tokens_per_s_per_user"]),
            _number(row["tokens_per_s_per_gpu"]),
            row["basis"] or MISSING,
            Text(why if met else f"{STATUS[row['status']]}: {why}"),
            style=style,
        )
    lines = [Text(verdict(answer), style="bold green" if answer["chosen"] else "bold yellow")]
    lines += [Text(line) for line in breaking(answer)]
    lines += [Text(line) for line in [runner_up(answer)] if line]
    notes = [Text(summary(answer), style="dim")]
    if len(rows) > SHOWN:
        notes.append(Text(f"{len(rows) - SHOWN} more are in the report.", style="dim"))
    notes.append(Text("* on a Pareto front; tokens are output tokens", style="dim"))
    notes += [Text(f"warning: {text}", style="yellow") for text in answer["warnings"]]
    command = (answer.get("to_deploy") or {}).get("vllm")
    if command:
        notes += [Text(""), Text("To deploy it, on every replica:")]
        notes += [Text(f"  {line}") for line in command.splitlines()]
    return Group(Text(question(answer)), *lines, Text(""), table, Text(""), *notes)


def _number(value: float | None) -> str:
    return MISSING if value is None else plain(value)
