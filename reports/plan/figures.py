"""The charts of a plan's candidates as plain Plotly JSON: costs, goodput, Pareto fronts."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from reports.page.figures import chart_layout
from reports.page.gpu_looks import gpu_look
from reports.page.page import Figure, Key, plotly_text
from reports.page.style import colour
from reports.plan.words import ranked, row_of
from scenarios.quantity import compact, money

Answer = Mapping[str, Any]
Row = Mapping[str, Any]

BARS = 24  # candidates in a bar chart; the table has all
BAR_PX = 26
BREAKS = {"TTFT": "prefill", "TPOT": "decode", "E2E": "e2e", "throughput": "running"}


def cost_bars(answer: Answer) -> Figure | None:
    """USD per hour of every deployment that meets the objectives, the cheapest first."""
    rows = [row for row in ranked(answer) if row["status"] in ("chosen", "meets")]
    if not rows:
        return None
    shown = rows[:BARS][::-1]  # Plotly draws the first bar lowest
    chosen = answer["chosen"]
    figure = _bars(
        "cost-bars",
        "US dollars per hour",
        "For the load that was asked for, head-room and spare replicas included."
        + (f" The {BARS} cheapest of {len(rows)}." if len(rows) > BARS else ""),
        shown,
        [row["usd_per_hour"] for row in shown],
        "USD per hour",
        [colour("good" if row["label"] == chosen else "held") for row in shown],
        [
            f"{row['replicas']} × {row['gpus_per_replica']} GPU: {money(row['usd_per_hour'])}"
            for row in shown
        ],
    )
    figure.data[0] |= {
        "text": [money(row["usd_per_hour"]) for row in shown],
        "textposition": "outside",
        "cliponaxis": False,
    }
    longest = max(len(money(row["usd_per_hour"])) for row in shown)
    figure.layout["margin"]["r"] = 12 + 8 * longest  # room for the figures, however narrow the page
    return figure


def goodput_bars(answer: Answer) -> Figure | None:
    """Goodput per GPU with its interval, coloured by what breaks first."""
    rows = [row for row in answer["candidates"] if row["goodput"]]
    if not rows:
        return None
    rows.sort(key=lambda row: -row["goodput"] / row["gpus_per_replica"])
    shown = rows[:BARS][::-1]
    gpus = [row["gpus_per_replica"] for row in shown]
    each = [row["goodput"] / n for row, n in zip(shown, gpus, strict=True)]
    figure = _bars(
        "goodput-bars",
        "Requests per second and GPU until it breaks",
        f"With the {answer['confidence']:.0%} interval. The colour says what breaks first."
        + (f" The {BARS} best of {len(rows)}." if len(rows) > BARS else ""),
        shown,
        each,
        "requests/s per GPU",
        [colour(_breaks(row)) for row in shown],
        [f"{row['breaks_first']}: {row['breaks_why']}" for row in shown],
        keys=_present_keys(shown),
    )
    figure.data[0]["error_x"] = {
        "type": "data",
        "symmetric": False,
        "array": compact(
            [(row["goodput_high"] - row["goodput"]) / n for row, n in zip(shown, gpus, strict=True)]
        ),
        "arrayminus": compact(
            [(row["goodput"] - row["goodput_low"]) / n for row, n in zip(shown, gpus, strict=True)]
        ),
        "color": colour("ink"),
        "thickness": 1,
        "width": 3,
    }
    top = max(row["goodput_high"] / n for row, n in zip(shown, gpus, strict=True))
    figure.layout["xaxis"]["range"] = [0, 1.06 * top]
    return figure


def _breaks(row: Row) -> str:
    kind = str(row["breaks_first"]).partition(" ")[0]
    return BREAKS.get(kind, "held")


def _present_keys(rows: Sequence[Row]) -> tuple[Key, ...]:
    present = {_breaks(row) for row in rows}
    names = {"prefill": "TTFT", "decode": "TPOT", "e2e": "E2E", "running": "throughput (full)"}
    return tuple(Key(text, name, ()) for name, text in names.items() if name in present)


def _bars(
    name: str,
    title: str,
    caption: str,
    rows: Sequence[Row],
    values: Sequence[float],
    unit: str,
    colours: Sequence[str],
    texts: Sequence[str],
    *,
    keys: tuple[Key, ...] = (),
) -> Figure:
    labels = [plotly_text(row["label"]) for row in rows]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": compact(values),
            "y": labels,
            "customdata": [plotly_text(text) for text in texts],
            "marker": {"color": list(colours)},
            "hovertemplate": "%{y}<br>%{customdata}<br>%{x:.4~g} " + unit + "<extra></extra>",
        }
    ]
    widest = max(len(label) for label in labels)
    layout = chart_layout(
        x={"title": {"text": unit}, "range": [0, 1.06 * max(values)]},
        y={"title": {"text": ""}, "type": "category", "tickfont": {"size": 11}},
        height_px=70 + BAR_PX * len(rows),
        left_px=min(40 + 6 * widest, 230),
    )
    layout["hovermode"] = "closest"
    layout["bargap"] = 0.25
    return Figure(name, title, caption, data, layout, keys)


def cost_front(answer: Answer) -> Figure | None:
    """USD per million output tokens against tokens/s per user."""
    return _front(
        answer,
        "cost_and_speed",
        "usd_per_million_output_tokens",
        "tokens_per_s_per_user",
        title="Cheap or fast",
        axes=("USD per million output tokens", "output tokens/s per user"),
        caption="Each point is a deployment sized for the load; on the line, none is both cheaper "
        "and faster. Down is cheaper, right is faster.",
    )


def speed_front(answer: Answer) -> Figure | None:
    """Tokens/s per GPU against tokens/s per user."""
    return _front(
        answer,
        "speed_and_throughput",
        "tokens_per_s_per_gpu",
        "tokens_per_s_per_user",
        title="Fast or full",
        axes=("output tokens/s per GPU", "output tokens/s per user"),
        caption="Each point is a replica at its goodput, its highest load within the objectives; "
        "on the line, none is both faster for a user and gets more out of a GPU.",
    )


def _front(
    answer: Answer,
    front: str,
    y: str,
    x: str,
    *,
    title: str,
    axes: tuple[str, str],
    caption: str,
) -> Figure | None:
    rows = [
        row
        for row in answer["candidates"]
        if row["status"] in ("chosen", "meets") and row[x] and row[y]
    ]
    if not rows:
        return None
    gpus = list(dict.fromkeys(row["gpu"] for row in answer["candidates"]))
    on_line = sorted((row for row in rows if front in row["fronts"]), key=lambda row: row[x])
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": compact([row[x] for row in on_line]),
            "y": compact([row[y] for row in on_line]),
            "line": {"color": colour("muted"), "width": 1.6, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    keys = [Key("Pareto front", "muted", (0,))]
    for gpu in gpus:
        mine = [row for row in rows if row["gpu"] == gpu]
        if not mine:
            continue
        thing, shape = gpu_look(gpu)
        keys.append(Key(gpu, thing, (len(data),)))
        data.append(_points(mine, x, y, thing, shape, axes))
    chosen = row_of(answer, answer["chosen"])
    layout = chart_layout(
        x=_log_axis([row[x] for row in rows], axes[1]),
        y=_log_axis([row[y] for row in rows], axes[0]) | {"rangemode": "normal"},
        height_px=380,
        left_px=66,
    )
    layout["hovermode"] = "closest"
    if chosen is not None and chosen[x] and chosen[y]:
        layout["annotations"] = [_note(chosen, x, y, rows)]
        if front not in chosen["fronts"]:
            caption += " The chosen one is off it: others are better at both, for more money."
    return Figure(front.replace("_", "-"), title, caption, data, layout, tuple(keys))


def _points(
    rows: Sequence[Row], x: str, y: str, thing: str, shape: str, axes: tuple[str, str]
) -> dict[str, Any]:
    chosen = [row["status"] == "chosen" for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plotly_text(rows[0]["gpu"]),
        "x": compact([row[x] for row in rows]),
        "y": compact([row[y] for row in rows]),
        "customdata": [
            plotly_text(f"{row['label']}: {money(row['usd_per_hour'])} an hour") for row in rows
        ],
        "marker": {
            "color": colour(thing),
            "symbol": shape,
            "size": [13 if one else 9 for one in chosen],
            "line": {"color": colour("ink"), "width": [2 if one else 0 for one in chosen]},
        },
        "hovertemplate": f"%{{customdata}}<br>%{{x:.4~g}} {axes[1]}<br>%{{y:.4~g}} {axes[0]}"
        "<extra></extra>",
    }


def _note(chosen: Row, x: str, y: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The chosen point's name, towards the middle of the chart."""
    right = sum(row[x] > chosen[x] for row in rows) >= len(rows) / 2
    low = sum(row[y] > chosen[y] for row in rows) >= len(rows) / 2
    return {
        "x": log10(chosen[x]),
        "y": log10(chosen[y]),
        "text": f"chosen: {plotly_text(chosen['label'])}",
        "ax": 40 if right else -40,
        "ay": -44 if low else 44,
        "xanchor": "left" if right else "right",
        "arrowhead": 0,
        "arrowcolor": colour("ink"),
        "font": {"size": 12, "color": colour("ink")},
    }


def _log_axis(values: Sequence[float], title: str) -> dict[str, Any]:
    low, high = log10(min(values)), log10(max(values))
    spare = 0.1 * max(high - low, 0.3)
    span = high - low
    ticks = {"dtick": 1} if span > 2 else {"dtick": "D2" if span > 0.7 else "D1"}
    return {
        "type": "log",
        "title": {"text": title},
        "range": [low - spare, high + spare],
        "tickformat": "~g",
        **ticks,
    }
