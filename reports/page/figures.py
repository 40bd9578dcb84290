"""The charts of a run over time as plain Plotly JSON: throughput, load, batches, memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.page.page import Figure, Key
from reports.page.records import Columns, Floats
from reports.page.style import colour
from reports.page.timeline import (
    MAX_EXACT_ITERATIONS,
    Timeline,
    chart_edges,
    even_edges,
    run_end_s,
)
from scenarios.quantity import compact, compact_axis, count, percent, plain, seconds
from sim.waits import Waits

TIME_HEIGHT_PX = 270


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """The x axis that all charts over time share, in the unit that suits the run's length."""

    end_s: float

    @property
    def unit(self) -> tuple[str, float]:
        if self.end_s < 1:
            return "ms", 1e-3
        if self.end_s < 300:
            return "s", 1.0
        return ("min", 60.0) if self.end_s < 4 * 3600 else ("h", 3600.0)

    def positions(self, edges_s: Floats) -> list[float | int | None]:
        return compact_axis(edges_s / self.unit[1])

    def layout(self) -> dict[str, Any]:
        name, size_s = self.unit
        return {
            "title": {"text": f"Time since the run began ({name})"},
            "range": [0, float(f"{self.end_s / size_s:.6g}")],
            "hoverformat": ".4~g",
            "unifiedhovertitle": {"text": f"%{{x:.4~g}} {name}"},
        }


def chart_layout(
    *, x: dict[str, Any], y: dict[str, Any], height_px: int, left_px: int
) -> dict[str, Any]:
    return {
        "height": height_px,
        "margin": {"l": left_px, "r": 16, "t": 10, "b": 46},
        "xaxis": x,
        "yaxis": {"fixedrange": True, "rangemode": "tozero", **y},
        "hovermode": "x unified",
    }


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks of a logarithmic axis between these logarithms (base 10), two at the very least."""
    if high - low > 2:
        return {"dtick": 1}
    return {"dtick": "D2"} if high - low > 1 else {"nticks": 6}


def _number_format(top: float) -> str:
    """A d3 format for ticks up to `top`: 0.5 stays 0.5, 12000 becomes 12k."""
    return "~s" if top >= 10_000 else ",~g" if top >= 1 else "~g"


def _steps(values: Floats, *, digits: int = 4) -> list[float | int | None]:
    """Values of bins as a step line over the bins' edges."""
    return compact(np.append(values, values[-1:]), digits)


def _series(name: str, thing: str, x: list[Any], y: list[Any], hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"shape": "hv", "color": colour(thing), "width": 1.8},
        "hovertemplate": f"%{{y:{hover}}}",
    }


def _stacked(trace: dict[str, Any], thing: str) -> dict[str, Any]:
    trace["line"] = {**trace["line"], "width": 0}
    return {**trace, "stackgroup": "all", "fillcolor": colour(thing)}


class RunCharts:
    """The charts of one run over time. They share bins and axis; a run too long for its
    iterations to be drawn one by one is averaged over at most `MAX_BINS` bins.

    Raises ValueError for a run without iterations or without duration: check `drawable` first.
    """

    def __init__(self, requests: Columns, iterations: Columns, preemptions: Columns) -> None:
        if not self.drawable(requests, iterations):
            raise ValueError("a run without iterations has no charts over time")
        self.requests = requests
        self.preemptions = preemptions
        self.iterations = len(iterations["start_s"])
        self.emitted = "emitted" in iterations
        end_s = run_end_s(requests, iterations)
        self.axis = TimeAxis(end_s)
        self.exact = self.iterations <= MAX_EXACT_ITERATIONS
        self.states = Timeline.over(iterations, chart_edges(requests, iterations))
        self.rates = self.states
        if self.exact:  # a rate over a single iteration says little
            bins = max(self.iterations // 4, min(self.iterations, 20))
            self.rates = Timeline.over(iterations, even_edges(end_s, bins))

    @staticmethod
    def drawable(requests: Columns, iterations: Columns) -> bool:
        """Whether anything happened that takes time."""
        return len(iterations["start_s"]) > 0 and run_end_s(requests, iterations) > 0

    def resolution(self) -> str:
        """In words, what one point of the charts stands for."""
        if self.exact:
            return "Every iteration is drawn."
        bins = self.states.edges_s.size - 1
        width = seconds(float(self.states.width_s[0]))
        return (
            f"{count(self.iterations)} iterations are averaged over time before they reach this "
            f"page: each point is the mean of {plain(self.iterations / bins)} iterations "
            f"({width}); totals and time-weighted means are exact."
        )

    def _figure(
        self, name: str, title: str, caption: str, data: list[Any], y: dict[str, Any], *keys: Key
    ) -> Figure:
        layout = chart_layout(x=self.axis.layout(), y=y, height_px=TIME_HEIGHT_PX, left_px=66)
        return Figure(name, title, caption, data, layout, keys, group="time")

    def throughput(self) -> Figure:
        """Output and prompt tokens per second."""
        bins = self.rates
        output = bins.amount("emitted" if self.emitted else "decode_seqs") / bins.width_s
        if not self.emitted:
            first_s = np.asarray(self.requests["first_token_s"], dtype=np.float64)
            firsts, _ = np.histogram(first_s[np.isfinite(first_s)], bins.edges_s)
            output += firsts / bins.width_s
        prompt = bins.amount("prefill_tokens") / bins.width_s
        x = self.axis.positions(bins.edges_s)
        data = [
            _series("Prompt", "prefill", x, _steps(prompt), ".3~s"),
            _series("Output", "decode", x, _steps(output), ".3~s"),
        ]
        top = float(max(output.max(), prompt.max()))
        return self._figure(
            "throughput",
            "Throughput",
            f"Tokens computed per second, in bins of {seconds(float(bins.width_s[0]))}. "
            "Prompt tokens found in the prefix cache are not computed and not counted.",
            data,
            {"title": {"text": "tokens/s"}, "tickformat": _number_format(top)},
            Key("Prompt tokens", "prefill", (0,)),
            Key("Output tokens", "decode", (1,)),
        )

    def load(self, max_num_seqs: int | None) -> Figure:
        """Requests running and waiting, with the batch limit where it is near."""
        bins = self.states
        running = bins.mean("running")
        waits = Waits.of(self.requests, self.preemptions)
        waiting, peak_waiting = waits.mean(bins.edges_s), waits.peak()
        peak_running = float(bins.iterations["running"].max())
        x = self.axis.positions(bins.edges_s)
        data = [
            _series("Waiting", "waiting", x, _steps(waiting, digits=3), ".3~s"),
            _series("Running", "running", x, _steps(running, digits=3), ".3~s"),
        ]
        top = float(max(running.max(), waiting.max()))
        figure = self._figure(
            "load",
            "Running and waiting requests",
            f"At most {count(peak_running)} ran and {count(peak_waiting)} waited at once. "
            "A request waits from its arrival until it is first in a batch, and while preempted.",
            data,
            {"title": {"text": "requests"}, "tickformat": _number_format(top)},
            Key("Running", "running", (1,)),
            Key("Waiting", "waiting", (0,)),
        )
        if max_num_seqs and running.max() >= 0.6 * max_num_seqs and top <= 8 * max_num_seqs:
            _level(figure.layout, max_num_seqs, f"batch limit {max_num_seqs}", top)
        return figure

    def batches(self) -> Figure:
        """Tokens per iteration: prefill, decode and padding."""
        bins = self.states
        number = bins.count()
        each, busy = np.maximum(number, 1e-12), number > 1e-9
        decode, prefill = bins.amount("decode_seqs"), bins.amount("prefill_tokens")
        if self.emitted:  # rows computed for sequences that are done already (static batching)
            decode = np.minimum(decode, bins.amount("emitted"))
        kinds = {"decode": decode, "prefill": prefill}
        padding = np.maximum(0.0, bins.amount("num_tokens") - decode - prefill)
        if padding.sum() > 0.001 * (decode.sum() + prefill.sum()):
            kinds["padding"] = padding
        x = self.axis.positions(bins.edges_s)
        names = {"decode": "Decode", "prefill": "Prefill", "padding": "Padding"}
        means = {kind: np.where(busy, amount / each, 0.0) for kind, amount in kinds.items()}
        data = [
            _stacked(_series(names[kind], kind, x, _steps(mean, digits=3), ".3~s"), kind)
            for kind, mean in means.items()
        ]
        top = float(sum(means.values()).max())  # type: ignore[union-attr]
        return self._figure(
            "batches",
            "Batch composition",
            "Tokens computed in an iteration. A decoding sequence adds one, a prefill as many as "
            "its chunk holds"
            + ("; padding is computed and thrown away." if len(kinds) > 2 else "."),
            data,
            {"title": {"text": "tokens per iteration"}, "tickformat": _number_format(top)},
            *(Key(names[kind], kind, (index,)) for index, kind in enumerate(kinds)),
        )

    def kv_memory(self) -> Figure | None:
        """KV slots by kind, time-weighted; None where the run has no KV memory."""
        shares = self.states.kv_shares()
        if not shares:
            return None
        names = {
            "used": "Used",
            "fragmentation": "Internal fragmentation",
            "reserved": "Reserved, unused",
            "free": "Free",
        }
        x = self.axis.positions(self.states.edges_s)
        width = self.states.width_s
        whole = {kind: float((shares[kind] * width).sum() / width.sum()) for kind in names}
        data = [
            _stacked(
                _series(names[kind], kind, x, _steps(shares[kind] * 100, digits=4), ".1f")
                | {"hovertemplate": "%{y:.1f} %"},
                kind,
            )
            for kind in names
        ]
        occupied = 1 - whole["free"]
        fullest = 100 * float(1 - shares["free"].min())
        top = next((top for top in (5, 10, 25, 50) if 1.2 * fullest <= top), 100)
        useful = f", {percent(whole['used'] / occupied)} of what is occupied" if occupied else ""
        return self._figure(
            "kv-memory",
            "KV memory",
            f"Over the whole run {percent(whole['used'])} of the KV slots hold a token{useful}; "
            f"{percent(whole['fragmentation'])} is lost to internal fragmentation, "
            f"{percent(whole['reserved'])} is reserved for tokens that have not come."
            + (f" The axis ends at {top}\u00a0%." if top < 100 else ""),
            data,
            {"title": {"text": "% of KV slots"}, "range": [0, top], "tickformat": "~g"},
            *(Key(names[kind], kind, (index,)) for index, kind in enumerate(names)),
        )


def _level(layout: dict[str, Any], y: float, text: str, top: float) -> None:
    """A dashed horizontal line with its meaning beside it."""
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": y,
            "y1": y,
            "line": {"color": colour("muted"), "width": 1.2, "dash": "dash"},
        }
    ]
    layout["annotations"] = [
        {
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "y": y,
            "yanchor": "bottom",
            "text": text,
            "showarrow": False,
            "font": {"size": 12, "color": colour("muted")},
        }
    ]
    layout["yaxis"]["range"] = [0, 1.15 * max(top, y)]
