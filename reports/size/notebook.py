"""A sizing for notebooks: a tidy DataFrame and a Plotly figure."""

from typing import TYPE_CHECKING, Any, NamedTuple

from reports.page.style import template
from reports.size.figures import costs, iso_flops, training_memory
from reports.size.folder import Sized

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


class SizeStudy(NamedTuple):
    """What `orcast.size` returns.

    ``table``: a row for each candidate model. ``figure``: training against serving cost, or the
    isoFLOP curves, or the memory of training. ``summary``: what `orcast size --json` prints.
    """

    table: "pd.DataFrame"
    figure: "Figure"
    summary: dict[str, Any]


def size_study(sized: Sized) -> SizeStudy:
    """The candidates as a table, and the chart that says most about this sizing."""
    import pandas as pd
    from plotly.graph_objects import Figure

    figures = sized.summary
    if "budget" in figures:
        chart = costs(figures) or iso_flops(figures)
    else:
        chart = training_memory(figures)
    layout = {
        **template(dark=False)["layout"],
        **chart.layout,
        "showlegend": bool(chart.keys),
        "title": {"text": chart.title},
        "margin": {**chart.layout["margin"], "t": 48},
    }
    return SizeStudy(pd.DataFrame(sized.rows), Figure(data=chart.data, layout=layout), figures)
