"""The section of a run's page that shows its model: layers by kind, memory, work of a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.page.page import Section, facts, panel, table
from reports.run.model_rows import (
    CACHE_HEAD,
    LAYER_HEAD,
    TABLES_HEAD,
    cache_rows,
    facts_of,
    layer_rows,
    table_rows,
)


def model_section(model: Mapping[str, Any]) -> Section:
    """Of the figures in details.json."""
    panels = [
        panel(facts(facts_of(model))),
        panel(table(LAYER_HEAD, layer_rows(model))),
        panel(table(CACHE_HEAD, cache_rows(model))),
    ]
    if tables := table_rows(model):
        panels.append(panel(table(TABLES_HEAD, tables)))
    return Section(
        "model",
        "The model",
        panels,
        "Counted from its configuration, whole, before it is spread over GPUs.",
        link="Model",
    )
