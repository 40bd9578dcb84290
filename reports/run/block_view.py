"""Block tables of a small run: who holds which KV blocks over time, and slot by slot at a moment.

The tables at a moment follow the figures of Kwon et al., "Efficient memory management for large
language model serving with PagedAttention" (SOSP 2023): logical blocks in order, each with the
physical block it maps to, filled slots, reserved ones, and those lost in the last block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.page.figures import TimeAxis, chart_layout
from reports.page.page import Figure, Key, Widget, plotly_text
from reports.page.records import Columns
from reports.page.style import colour
from scenarios.quantity import count

TURNS = 6  # colours that requests take in turn
KINDS = (
    ("Used slots", "used"),
    ("Reserved, unused", "reserved"),
    ("Internal fragmentation", "fragmentation"),
    ("Free", "free"),
)


@dataclass(frozen=True, slots=True)
class BlockView:
    """The block tables of details.json, with the names of requests and replicas."""

    blocks: Mapping[str, Any]
    names: Mapping[int, str]  # of requests
    replicas: Sequence[str]

    @classmethod
    def of(
        cls, blocks: Mapping[str, Any], requests: Columns, replicas: Sequence[str]
    ) -> "BlockView":
        shown = requests.get("request_id", requests["request"])
        names = {
            int(number): str(name)
            for number, name in zip(
                requests["request"].tolist(), np.asarray(shown).tolist(), strict=True
            )
        }
        return cls(blocks, names, replicas)

    @property
    def num_engines(self) -> int:
        return len(self.blocks["starts_s"])

    @property
    def touched(self) -> int:
        """Blocks from 0 to the highest one that was ever held, of the fullest engine."""
        held = [hold[2] for hold in self.blocks["holds"]]
        return max(held, default=-1) + 1

    def shared_spans(self) -> list[tuple[int, int, int, int]]:
        """(engine, block, first iteration, the one it ends before) while several tables hold it."""
        by_block: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for table, _, block, first, last in self.blocks["holds"]:
            engine = self.blocks["tables"][table][0]
            by_block.setdefault((engine, block), []).extend([(first, 1), (last, -1)])
        found = []
        for (engine, block), events in by_block.items():
            held, since = 0, 0
            for at, change in sorted(events):
                if held < 2 <= held + change:
                    since = at
                elif held >= 2 > held + change and at > since:
                    found.append((engine, block, since, at))
                held += change
        return sorted(found)

    def time_s(self, engine: int, first: int, last: int) -> tuple[float, float]:
        """From the start of iteration `first` to the end of the one before `last`."""
        starts_s, ends_s = self.blocks["starts_s"][engine], self.blocks["ends_s"][engine]
        return starts_s[first], ends_s[last - 1]

    def map(self, axis: TimeAxis) -> Figure | None:
        """Blocks over time, in the colour of the request that holds them."""
        if not self.blocks["holds"]:
            return None
        data = [self._turn(turn, axis) for turn in range(TURNS)]
        used = [turn for turn in range(TURNS) if data[turn]["x"]]
        data = [data[turn] for turn in used]
        keys: list[Key] = []
        shared = self.shared_spans()
        if shared:
            keys.append(Key("Shared by several tables", "ink", (len(data),)))
            data.append(self._marked("Shared", "ink", shared, axis, width=0.34))
        idle = [tuple(span) for span in self.blocks["idle"] if span[1] < self.touched]
        if idle:
            keys.append(Key("Free, kept for the prefix cache", "held", (len(data),)))
            data.append(self._marked("Kept by the prefix cache", "held", idle, axis, width=0.16))
        rows = self.num_engines * self.touched
        unused = self.blocks["num_blocks"] - self.touched
        never = f" Blocks {count(self.touched)} and up were never held." if unused > 0 else ""
        stacked = (
            f" The blocks of {self.num_engines} replicas are stacked, those of replica 0 first."
            if self.num_engines > 1
            else ""
        )
        layout = chart_layout(
            x=axis.layout(),
            y={
                "title": {"text": "KV block"},
                "range": [rows - 0.5, -0.5],
                "rangemode": "normal",
                "tickformat": "d",
                "nticks": 8,
                "showgrid": False,
            },
            height_px=max(240, min(520, 90 + 6 * rows)),
            left_px=66,
        )
        layout |= {"barmode": "overlay", "bargap": 0.0, "hovermode": "closest"}
        return Figure(
            "block-map",
            "KV blocks over time",
            "A bar is a block in a request's table, from allocation to release; requests take "
            f"{len(used)} colours in turn.{never}{stacked}",
            data,
            layout,
            tuple(keys),
            group="time",
        )

    def _name(self, table: int) -> str:
        _, request, sample = self.blocks["tables"][table]
        name = self.names.get(request, str(request))
        return f"{name}, sample {sample}" if sample else name

    def _row(self, engine: int, block: int) -> int:
        return engine * self.touched + block

    def _turn(self, turn: int, axis: TimeAxis) -> dict[str, Any]:
        """What the requests of one colour hold."""
        base, length, rows, hover = [], [], [], []
        for table, position, block, first, last in self.blocks["holds"]:
            engine, request, _ = self.blocks["tables"][table]
            if request % TURNS == turn:
                begin_s, end_s = self.time_s(engine, first, last)
                base.append(float(f"{begin_s / axis.unit[1]:.7g}"))
                length.append(float(f"{(end_s - begin_s) / axis.unit[1]:.5g}"))
                rows.append(self._row(engine, block))
                hover.append(
                    f"block {block}: block {position + 1} of request "
                    f"{plotly_text(self._name(table))}"
                )
        return {
            "type": "bar",
            "orientation": "h",
            "name": f"Requests, colour {turn + 1}",
            "base": base,
            "x": length,
            "y": rows,
            "width": 0.94,
            "customdata": hover,
            "marker": {"color": colour(f"turn-{turn + 1}"), "line": {"width": 0}},
            "hovertemplate": (
                f"%{{customdata}}<br>%{{x:.3~g}} {axis.unit[0]} from %{{base:.4~g}}<extra></extra>"
            ),
        }

    def _marked(
        self,
        label: str,
        thing: str,
        spans: Sequence[Sequence[int]],
        axis: TimeAxis,
        *,
        width: float,
    ) -> dict[str, Any]:
        """A narrow bar within the blocks' own."""
        base, length, rows = [], [], []
        for engine, block, first, last in spans:
            begin_s, end_s = self.time_s(engine, first, last)
            base.append(float(f"{begin_s / axis.unit[1]:.7g}"))
            length.append(float(f"{(end_s - begin_s) / axis.unit[1]:.5g}"))
            rows.append(self._row(engine, block))
        return {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "base": base,
            "x": length,
            "y": rows,
            "width": width,
            "marker": {"color": colour(thing), "line": {"width": 0}},
            "hovertemplate": f"block %{{y}}: {label.lower()}<extra></extra>",
        }

    def tables(self) -> Widget:
        """The tables at a moment, chosen with a slider; drawn by `reports.run.block_script`."""
        payload = {
            **{
                name: self.blocks[name]
                for name in ("num_blocks", "block_size", "tables", "holds", "fills", "idle")
            },
            "starts": [_short(starts_s) for starts_s in self.blocks["starts_s"]],
            "names": {str(number): name for number, name in self.names.items()},
            "replicas": [str(name) for name in self.replicas][: self.num_engines],
            "touched": self.touched,
        }
        return Widget(
            "block-tables",
            "Block tables at a moment",
            "A row is a request's block table: its blocks in order, each as wide as its slots are "
            "many, with the number of the physical block where there is room. Framed blocks are "
            "shared. Below, the whole pool.",
            payload,
            tuple(KINDS),
        )


def _short(times_s: Sequence[float]) -> list[float]:
    return [float(f"{time_s:.7g}") for time_s in times_s]
