"""What `orcast.simulate` gives: a forecast for notebooks, as tables, figures and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.forecast.forecast import Forecast

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True, repr=False)
class Forecasted(Forecast):
    """A finished simulation: records, summary and resolved scenario, and how to look at them."""

    @property
    def requests(self) -> pd.DataFrame:
        """A row for every request; times in s, columns as in requests.parquet."""
        return _frame(self.records.requests)

    @property
    def iterations(self) -> pd.DataFrame:
        """A row for every iteration; times in s, columns as in iterations.parquet."""
        return _frame(self.records.iterations)

    @property
    def verdict(self) -> str:
        """What the run comes to, in the words of the command line and the report."""
        return " ".join(self.summary["verdict"]["words"])

    @property
    def warnings(self) -> list[str]:
        """What to know before believing it."""
        return list(self.summary["warnings"])

    @property
    def figures(self) -> dict[str, go.Figure]:
        """The report's charts by name: cdf-ttft, throughput, load, batches, kv-memory, …"""
        from reports.run.report import run_sections

        sections = run_sections(self.records, scenario=self.scenario, summary=self.summary)
        return {one.name: one.as_plotly() for section in sections for one in section.figures}

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that opens offline; returns where it is."""
        from reports.run.report import run_report
        from scenarios.whole import write_whole

        page = run_report(self.records, scenario=self.scenario, summary=self.summary)
        target = Path(path)
        write_whole(target, page)
        return target

    def __repr__(self) -> str:
        return f"<Forecast of {self.scenario['name']}: {self.verdict}>"

    def _repr_html_(self) -> str:
        """A notebook shows the verdict, what to beware of, and the latencies."""
        beware = "".join(f"<li>{escape(text)}</li>" for text in self.warnings)
        rows = []
        for name, metric in (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2el")):
            figures = [self.summary[f"{which}_{metric}_ms"] for which in STATISTICS]
            shown = ("–" if value is None else f"{value:,.1f}" for value in figures)
            rows.append(f"<tr><th>{name} (ms)</th>{''.join(f'<td>{x}</td>' for x in shown)}</tr>")
        head = "".join(f"<th>{which}</th>" for which in ("", *STATISTICS))
        return (
            f"<p><b>{escape(str(self.scenario['name']))}</b>: {escape(self.verdict)}</p>"
            + (f"<ul>{beware}</ul>" if beware else "")
            + f"<table><tr>{head}</tr>{''.join(rows)}</table>"
        )


STATISTICS = ("mean", "median", "p90", "p99")


def _frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(dict(columns))
