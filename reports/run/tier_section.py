"""The section of a run's page that shows the tiers of KV memory: a row each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reports.page.page import Section, panel, table
from reports.run.model_rows import size
from reports.run.tier_rows import TIER_NAMES, tiers_of
from scenarios.quantity import MISSING, count, figure_of, percent

_HEAD = ["Tier", "Room", "Held at the end", "Prompt blocks found", "Share of all", "Passed over",
         "Read", "Written"]  # fmt: skip


def tier_sections(summary: Mapping[str, Any]) -> Iterator[Section]:
    """None where the prefix cache is the device's alone."""
    rows = [
        [
            TIER_NAMES[row["kind"]],
            count(figure_of(row, "blocks")),
            count(figure_of(row, "held_blocks")),
            count(figure_of(row, "found_blocks")),
            percent(figure_of(row, "hit_rate")),
            count(figure_of(row, "passed_over_blocks")),
            _bytes(row, "read_bytes"),
            _bytes(row, "written_bytes"),
        ]
        for row in tiers_of(summary)
    ]
    if rows:
        yield Section(
            "tiers",
            "Tiers of KV memory",
            [panel(table(_HEAD, rows))],
            "Where prompts found their full blocks, in blocks and as a share of all that prompts "
            "had. Passed over: there, but sooner computed again than fetched.",
            link="KV tiers",
        )


def _bytes(row: Mapping[str, Any], name: str) -> str:
    moved = figure_of(row, name)
    return MISSING if moved is None else size(moved)
