"""The figures of a page that Orcast wrote, read back from its HTML."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from reports.page.page import MARK, Figure, Key


def page_figures(path: Path) -> list[Figure]:
    """Every chart of a page, in order, with its title and legend.

    Raises ValueError, in one line, for a file that is not a page of Orcast's.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = ""
    if MARK not in text:
        raise ValueError(f"{path}: not a page of Orcast's")
    found = _Charts()
    found.feed(text)
    try:
        figures = json.loads(found.block)["figures"]
        return [
            Figure(
                each["name"],
                found.titles[each["name"]],
                "",
                each["data"],
                each["layout"],
                tuple(found.keys.get(each["name"], ())),
            )
            for each in figures
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a damaged page ({error!r})") from None


class _Charts(HTMLParser):
    """What a page says around its charts, and the block of JSON that draws them."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: dict[str, str] = {}
        self.keys: dict[str, list[Key]] = {}
        self.block = ""
        self._title = ""
        self._inside = ""  # "title", "key" or "block": what the next text belongs to
        self._figure, self._colour = "", ""
        self._traces: tuple[int, ...] = ()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given: dict[str, Any] = {name: value or "" for name, value in attrs}
        if tag == "h3":
            self._inside, self._title = "title", ""
        elif tag == "button" and "data-figure" in given:
            self._inside, self._figure = "key", given["data-figure"]
            self._traces = tuple(map(int, given["data-traces"].split()))
        elif tag == "i" and self._inside == "key":
            self._colour = given["style"].removeprefix("background:var(--").removesuffix(")")
        elif tag == "div" and given.get("class") == "plot":
            self.titles[given["id"]] = self._title
        elif tag == "script" and given.get("id") == "orcast-figures":
            self._inside = "block"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h3", "button", "script"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self._title += data
        elif self._inside == "key":
            key = Key(data, self._colour, self._traces)
            self.keys.setdefault(self._figure, []).append(key)
        elif self._inside == "block":
            self.block += data
