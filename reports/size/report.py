"""The page of a sizing: the answer, its curves, costs, memory and tables."""

import json
from collections.abc import Iterator

from reports.page.page import (
    Card,
    Figure,
    Row,
    Section,
    cards,
    escape,
    facts,
    page,
    panel,
    table,
    warning_box,
)
from reports.run.report import FOOTER
from reports.size.figures import costs, deployments, iso_flops, laws, training_memory
from reports.size.rows import Table, tables
from reports.size.text import Figures, days, deployment, headline, memory, short, title, usd
from scenarios.quantity import plain


def size_report(figures: Figures) -> str:
    """Build the page from what `orcast size --json` prints: HTML that needs only a browser."""
    top = (
        '<header class="top"><p class="kind">Sizing</p>'
        f"<h1>{escape(title(figures))}</h1>"
        f'<p class="setting">{escape(_setting(figures))}</p>'
        f'<p class="verdict">{escape(headline(figures))}</p></header>'
        + warning_box(figures["notes"])
        + cards(list(_cards(figures)))
    )
    return page(
        title=f"{figures['name']} · Orcast",
        top=top,
        sections=list(_sections(figures)),
        footer=FOOTER,
    )


def _setting(figures: Figures) -> str:
    training = figures["training"]
    law = figures["law"]["name"]
    return (
        f"{figures['name']} · law {law} · trained on {training['gpus']:,} x {training['gpu']} at "
        f"{training['mfu']:.0%} MFU"
    )


def _cards(figures: Figures) -> Iterator[Card]:
    answer = figures["answer"]
    active, total = answer["activated_parameters"], answer["parameters"]
    note = "" if active == total else f"{short(active)} activated by a token"
    yield Card("Parameters", short(total), note)
    if answer["tokens"] is not None:
        yield Card(
            "Training tokens",
            short(answer["tokens"]),
            f"{plain(answer['tokens_per_parameter'])} a parameter, loss {answer['loss']:.4f}",
        )
        yield Card(
            "Training",
            usd(answer["training_usd"]),
            f"{days(answer['training_days'])}, {answer['training_gpu_hours']:,.0f} GPU hours",
        )
    else:
        yield Card("Weights", memory(figures["model"]["weight_bytes"]))
    if answer["usd_per_million_tokens"] is not None:
        yield Card(
            "A million tokens served",
            usd(answer["usd_per_million_tokens"]),
            f"on {deployment(answer)}, {_busy(figures)}",
            _electricity(figures),
        )
    if answer["lifetime_usd"] is not None:
        served = figures["candidates"][0]["lifetime_usd"]
        less = "" if not served else f"{usd(served)} for the compute-optimal model"
        yield Card("Training and serving", usd(answer["lifetime_usd"]), less)


def _electricity(figures: Figures) -> str:
    """What serving draws, where the GPU's power is known."""
    joules = figures["electricity"]["serving_joules_per_token"]
    if joules is None:
        return ""
    bill = figures["electricity"]["serving_usd_per_million_tokens"]
    return f"{plain(joules)} J a token and {usd(bill)} of electricity, estimated"


def _busy(figures: Figures) -> str:
    share = figures["answer"]["load_share"]
    return f"{share:.0%} of full load" if figures["service"]["objectives"] else "always busy"


def _sections(figures: Figures) -> Iterator[Section]:
    every = list(tables(figures))
    if "budget" in figures:
        cost = costs(figures)
        candidates: list[str | Figure | Row] = [_panel(every.pop(1))]
        candidates += [] if cost is None else [cost]
        if len(figures["candidates"]) > 1:
            candidates.append(_panel(every.pop(1)))
        yield Section(
            "sizes", "How large a model", candidates, link="Sizes",
            intro="First what the budget buys: each size trained for it, and no more. The size of "
            "the answer is the one that costs least over its life at equal loss, which all but the "
            "largest exceed the budget to reach: the chart, and the table below it.",
        )  # fmt: skip
        charts = Row((iso_flops(figures), laws(figures)))
        yield Section(
            "laws", "What the laws say", [charts, _panel(every.pop(0))],
            intro=figures["law"]["source"], link="Laws",
        )  # fmt: skip
    yield Section("model", "The model", [_panel(every[0])], link="Model")
    yield Section(
        "training", "Training", [training_memory(figures), _panel(every[1])], link="Training"
    )
    serving: list[str | Figure | Row] = [_panel(one) for one in every[2:]]
    shown = deployments(figures)
    yield Section(
        "serving",
        "Serving",
        serving if shown is None else [shown, *serving],
        link="Serving",
        intro=_serving_intro(figures),
    )
    law = figures["law"]
    pairs = [(name, plain(value, 4)) for name, value in law["coefficients"].items()]
    if "intervals" in law:
        between = {name: [plain(end) for end in ends] for name, ends in law["intervals"].items()}
        pairs = [(name, f"{value} ({' to '.join(between[name])})") for name, value in pairs]
    settings = escape(json.dumps(figures["training"]["settings"], indent=2))
    config = escape(json.dumps(figures["config"], indent=2))
    yield Section(
        "settings",
        "Settings",
        [
            panel(facts([("Law", law["source"]), *pairs])),
            panel(f"<details><summary>Training</summary><pre>{settings}</pre></details>"),
            panel(
                f"<details><summary>The model's config.json</summary><pre>{config}</pre></details>"
            ),
        ],
    )


def _serving_intro(figures: Figures) -> str:
    """How the prices came about, and where to take the question next."""
    asked = figures["service"]
    if asked is None:
        return ""
    if asked["objectives"]:
        text = (
            "Each deployment at the highest load that keeps the objectives (the lower end of its "
            f"{asked['confidence']:.0%} interval); one that is dearer than the best even if always "
            "busy is not searched any further."
        )
    else:
        text = "Each deployment always busy: the least it can cost. Objectives make it dearer."
    if asked["request_rate"] is not None:
        years = "a year" if asked["years"] == 1 else f"{plain(asked['years'])} years"
        text += (
            f" The load is {short(asked['lifetime_tokens'])} tokens spread evenly over "
            f"{years}, on whole replicas."
        )
    if figures["plan"] is not None:
        text += " plan.yaml in this folder is the same question for orcast plan."
    return text


def _panel(one: Table) -> str:
    if not any(one.head):
        return panel(facts([(row[0].strip(), row[1]) for row in one.rows]))
    rows = [
        [row[0] + one.mark * (index == one.marked), *row[1:]]
        for index, row in enumerate(one.rows)
    ]  # fmt: skip
    head = [name.replace("\n", " ") for name in one.head]
    return panel(table(head, rows, caption=one.title))
