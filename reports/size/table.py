"""A sizing on the terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reports.size.rows import tables
from reports.size.text import Figures, headline, title

if TYPE_CHECKING:
    from rich.console import RenderableType


def size_tables(figures: Figures) -> "Iterator[RenderableType]":
    """What `rich` prints, part by part; text from outside is shown without markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(title(figures), style="bold")
    yield Text(headline(figures))
    for one in tables(figures):
        shown = Table(
            title=Text(one.title), title_justify="left", title_style="bold", pad_edge=False,
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=any(one.head),
        )  # fmt: skip
        for column, name in enumerate(one.head):
            sentence = column and any(len(row[column]) > 25 for row in one.rows)
            shown.add_column(
                Text(name),
                justify="left" if not column or sentence else "right",
                no_wrap=not sentence,
            )
        for index, row in enumerate(one.rows):
            shown.add_row(*map(Text, row), style="bold green" if index == one.marked else "")
        yield shown
    for note in figures["notes"]:
        yield Text(f"note: {note}", style="yellow")
