"""The charts of a sizing as plain Plotly JSON: budgets, laws, costs, memory."""

import math
from typing import Any

from reports.page.figures import chart_layout
from reports.page.page import Figure, Key, plotly_text
from reports.page.style import colour
from reports.size.text import MEMORY_PARTS, Figures, memory, power, service, short, usd
from scenarios.quantity import plain

HEIGHT_PX = 340
LAWS = ("decode", "prefill", "running", "preempted", "waiting")
MEMORY = ("used", "waiting", "preempted", "prefill")
GIB = 2**30


def iso_flops(figures: Figures) -> Figure:
    """Loss against parameters at fixed budgets, with each budget's optimum."""
    data: list[dict[str, Any]] = []
    keys = []
    things = ("held", "waiting", "decode", "running")
    for curve, thing in zip(figures["iso_flops"], things, strict=True):
        best = curve["optimum"]
        name = f"{power(curve['flops'])} FLOPs"
        keys.append(Key(name, thing, (len(data), len(data) + 1)))
        data.append(line(name, curve["parameters"], curve["loss"], thing))
        data.append(
            dots(
                name, [best["parameters"]], [best["loss"]], thing,
                [f"optimum: {short(best['parameters'])} parameters, {short(best['tokens'])} "
                 f"tokens, loss {best['loss']:.4f}"],
            )
        )  # fmt: skip
    drawn = [value for curve in figures["iso_flops"] for value in curve["parameters"]]
    best_loss = [curve["optimum"]["loss"] for curve in figures["iso_flops"]]
    span = max(best_loss) - min(best_loss)
    x = log_axis("parameters", min(drawn), max(drawn))
    y = {
        "title": {"text": "loss (nats per token)"},
        "range": [min(best_loss) - 0.1 * span, max(best_loss) + 0.6 * span],
        "rangemode": "normal",
    }
    return Figure(
        "iso-flops",
        "Loss against size, at fixed budgets",
        "Each curve spends the same training FLOPs; left of its lowest point the model is too "
        "small for its tokens, right of it it sees too few.",
        data,
        chart_of(x, y),
        tuple(keys),
    )


def laws(figures: Figures) -> Figure:
    """The best loss of each budget, by law."""
    data: list[dict[str, Any]] = []
    keys = []
    flops = figures["budget"]["flops"]
    for one, thing in zip(figures["laws"], LAWS, strict=False):
        keys.append(Key(one["law"], thing, (len(data), len(data) + 1)))
        data.append(line(one["law"], one["frontier"]["flops"], one["frontier"]["loss"], thing))
        text = f"{one['law']}: {short(one['parameters'])} on {short(one['tokens'])} tokens"
        data.append(dots(one["law"], [flops], [one["loss"]], thing, [text]))
    budgets = figures["laws"][0]["frontier"]["flops"]
    return Figure(
        "frontiers",
        "What the laws promise",
        f"The lowest loss for each budget; dots at yours, {power(flops)} FLOPs. Laws were fitted "
        "to different data and tokenizers: compare their slopes, not their levels.",
        data,
        chart_of(
            log_axis("training FLOPs", min(budgets), max(budgets), power_ticks=True),
            {"title": {"text": "loss (nats per token)"}, "rangemode": "normal"},
        ),
        tuple(keys),
    )


def costs(figures: Figures) -> Figure | None:
    """Training and serving of every size that reaches the loss; None without lifetime tokens."""
    known = [one for one in figures["candidates"] if one["lifetime_usd"] is not None]
    if not known:
        return None
    known = known[::-1]  # small to large
    positions = list(range(len(known)))
    parts = (("Training", "training_usd", "prefill"), ("Serving", "serving_usd", "decode"))
    data = [
        {
            "type": "bar",
            "name": name,
            "x": positions,
            "y": [float(f"{one[key]:.6g}") for one in known],
            "marker": {"color": colour(thing)},
            "customdata": [usd(one[key]) for one in known],
            "hovertemplate": "%{customdata}",
        }
        for name, key, thing in parts
    ]
    top = max(one["lifetime_usd"] for one in known)
    chosen = figures["answer"]["model"]
    best = next(index for index, one in enumerate(known) if one["model"] == chosen)
    layout = chart_of(
        {
            "title": {"text": "active parameters, tokens trained on"},
            "tickvals": positions,
            "ticktext": [
                f"{short(one['activated_parameters'])}<br>{short(one['tokens'], 2)}"
                for one in known
            ],
            "range": [-0.6, len(known) - 0.4],
            "unifiedhovertitle": {"text": "%{x}"},
        },
        {"title": {"text": "USD"}, "tickformat": "~s", "range": [0, 1.16 * top]},
    )
    layout |= {"barmode": "stack", "bargap": 0.35}
    layout["annotations"] = [_label(best, known[best]["lifetime_usd"], "cheapest")]
    served = figures["lifetime_optimum"]["served_tokens"]
    return Figure(
        "costs",
        "Training against serving, at equal loss",
        f"Every bar reaches a loss of {known[-1]['loss']:.4f}, all but the largest beyond the "
        f"budget, and serves {short(served)} tokens. "
        "A smaller model must see more tokens, and each token it serves is cheaper.",
        data,
        layout,
        tuple(Key(name, thing, (index,)) for index, (name, _, thing) in enumerate(parts)),
    )


def training_memory(figures: Figures) -> Figure:
    """Training memory of one copy and of each GPU, by part."""
    sides = (("per_gpu", "each GPU"), ("whole", "one copy"))
    memories = figures["training"]["memory"]
    whole = memories["whole"]["total_bytes"] / GIB
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": [0, 1],
            "x": [float(f"{memories[side][key] / GIB:.5g}") for side, _ in sides],
            "marker": {"color": colour(thing)},
            "customdata": [memory(memories[side][key]) for side, _ in sides],
            "hovertemplate": f"{label} %{{customdata}}<extra></extra>",
        }
        for (key, label), thing in zip(MEMORY_PARTS.items(), MEMORY, strict=True)
    ]
    limit = memories["gpu_memory_bytes"] / GIB
    end = 1.12 * max(whole, limit)
    layout = chart_of(
        {"title": {"text": "GiB"}, "range": [0, end], "hoverformat": ".4~g"},
        {"tickvals": [0, 1], "ticktext": [name for _, name in sides], "range": [-0.6, 1.6]},
        height_px=230,
    )
    layout |= {"barmode": "stack", "bargap": 0.4, "hovermode": "closest"}
    layout["shapes"] = [
        {
            "type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": limit, "x1": limit,
            "line": {"color": colour("muted"), "width": 1.2, "dash": "dash"},
        }
    ]  # fmt: skip
    training = figures["training"]
    return Figure(
        "training-memory",
        "Training memory",
        f"Mixed precision with Adam; dashed: one {plotly_text(training['gpu'])}. The states are "
        f"shared by {training['gpus']:,} GPUs (ZeRO stage {training['settings']['zero_stage']}).",
        data,
        layout,
        tuple(
            Key(label, thing, (index,))
            for index, (label, thing) in enumerate(zip(MEMORY_PARTS.values(), MEMORY, strict=True))
        ),
    )


def deployments(figures: Figures) -> Figure | None:
    """Dollars a million tokens of every deployment; None where none can be."""
    known = [one for one in figures["serving"] if not one["reason"]]
    dear = [one for one in figures["serving"] if one.get("floor_usd_per_million_tokens")]
    if not known:
        return None
    names = [f"{one['tensor_parallel']} x {one['gpu']}" for one in known + dear]
    floors = [one["floor_usd_per_million_tokens"] for one in dear]
    top = max([one["usd_per_million_tokens"] for one in known] + floors)
    layout = chart_of(
        {"title": {"text": "USD per million tokens"}, "range": [0, 1.04 * top]},
        {
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [len(names) - 0.4, -0.6],  # the cheapest on top
        },
        height_px=110 + 22 * len(names),
    )
    layout |= {"bargap": 0.3, "hovermode": "closest"}
    layout["margin"]["l"] = 100
    data = [
        _prices(
            [one["usd_per_million_tokens"] for one in known],
            [
                f"{usd(one['usd_per_million_tokens'])} a million tokens, "
                f"{one['tokens_per_s']:,.0f} tokens/s, TPOT {plain(one['median_tpot_ms'])} ms, "
                f"{one['load_share']:.0%} of full load"
                for one in known
            ],
            [colour("running"), *[colour("decode")] * (len(known) - 1)],
        )
    ]
    text = f"Dollars a million tokens, prompts and outputs together, {service(figures)}."
    if dear:
        texts = [f"at least {usd(floor)} a million tokens, always busy" for floor in floors]
        data.append(_prices(floors, texts, colour("held"), first=len(known)))
        text += " Grey: what the dearer ones cost at least, always busy."
    return Figure("deployments", f"Where to serve {figures['model']['name']}", text, data, layout)


def _prices(
    prices: list[float], texts: list[str], colours: str | list[str], *, first: int = 0
) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "x": [float(f"{price:.5g}") for price in prices],
        "y": [first + at for at in range(len(prices))],
        "marker": {"color": colours},
        "customdata": [plotly_text(text) for text in texts],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def line(name: str, x: list[float], y: list[float], thing: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plotly_text(name),
        "x": x,
        "y": y,
        "line": {"color": colour(thing), "width": 2},
        "hoverinfo": "skip",
    }


def dots(name: str, x: list[float], y: list[float], thing: str, texts: list[str]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plotly_text(name),
        "x": x,
        "y": y,
        "marker": {"color": colour(thing), "size": 9},
        "customdata": [plotly_text(text) for text in texts],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _label(x: float, y: float, text: str) -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 12, "color": colour("muted")},
    }


def chart_of(x: dict[str, Any], y: dict[str, Any], *, height_px: int = HEIGHT_PX) -> dict[str, Any]:
    layout = chart_layout(x=x, y=y, height_px=height_px, left_px=66)
    layout["hovermode"] = "closest"
    layout["margin"]["b"] = 60
    return layout


def log_axis(title: str, low: float, high: float, *, power_ticks: bool = False) -> dict[str, Any]:
    """A logarithmic axis with a tick at each decade."""
    first, last = math.log10(low), math.log10(high)
    decades = [10**exponent for exponent in range(math.ceil(first), math.floor(last) + 1)]
    return {
        "type": "log",
        "title": {"text": title},
        "range": [first, last],
        "tickvals": decades,
        "ticktext": [power(value) if power_ticks else short(value) for value in decades],
    }
