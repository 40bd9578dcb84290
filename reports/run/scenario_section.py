"""The section of a page that shows a scenario: what is set, and everything."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from reports.page.page import Section, panel


def scenario_section(scenario: Mapping[str, Any], intro: str) -> Section:
    """What is set is there to read; a click shows every setting."""
    inside = f"<details><summary>Every setting</summary><pre>{_yaml(scenario)}</pre></details>"
    return Section(
        "scenario",
        "Scenario, as resolved",
        [panel(f"<pre>{_yaml(_set(scenario))}</pre>"), panel(inside)],
        intro,
        link="Scenario",
    )


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=88)
    return escape(text)


def _set(content: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null or empty."""
    found = {}
    for key, value in content.items():
        inner = _set(value) if isinstance(value, Mapping) else value
        if inner is not None and inner != {} and inner != []:
            found[key] = inner
    return found
