"""The report of a plan: one HTML page that opens offline."""

from collections.abc import Iterator, Mapping
from typing import Any

from reports.page.page import (
    Card,
    Figure,
    Row,
    Section,
    cards,
    escape,
    page,
    panel,
    table,
    warning_box,
)
from reports.plan.figures import cost_bars, cost_front, goodput_bars, speed_front
from reports.plan.load_figures import load_profile, replicas_over_time, until_it_breaks
from reports.plan.words import (
    STATUS,
    breaking,
    lost,
    question,
    ranked,
    row_of,
    runner_up,
    summary,
    verdict,
)
from reports.run.report import FOOTER
from reports.run.scenario_section import scenario_section
from scenarios.quantity import GAP, MISSING, count, money, percent, plain

Answer = Mapping[str, Any]


def plan_report(answer: Answer) -> str:
    """Build the page of a plan from its answer (the content of plan.json)."""
    return page(
        title=f"{answer['name']} · Orcast plan",
        top=_top(answer),
        sections=list(_sections(answer)),
        footer=FOOTER,
    )


def _top(answer: Answer) -> str:
    tone = "good" if answer["chosen"] else "bad"
    sentences = " ".join(escape(line) for line in [*breaking(answer), runner_up(answer)] if line)
    return (
        '<header class="top"><p class="kind">Capacity plan</p>'
        f"<h1>{escape(str(answer['name']))}</h1>"
        f'<p class="setting">{escape(question(answer))}</p>'
        f'<p class="verdict"><span class="{tone}">{escape(verdict(answer))}</span> {sentences}</p>'
        "</header>" + warning_box(answer["warnings"]) + cards(list(_cards(answer)))
    )


def _cards(answer: Answer) -> Iterator[Card]:
    chosen = row_of(answer, answer["chosen"])
    if chosen is None:
        yield Card("Deployments that meet the SLO", "none", f"of {len(answer['candidates'])}")
        return
    spare = chosen["replicas"] - chosen["serving"]
    note = f"{chosen['replicas']} replicas" + (f", {spare} spare" if spare else "")
    yield Card("GPUs", f"{chosen['gpus']} × {chosen['gpu']}", note)
    yield Card(
        "Cost",
        f"{money(chosen['usd_per_hour'])} an hour",
        f"{money(chosen['usd_per_gpu_hour'])} a GPU",
    )
    yield Card(
        "Per million output tokens",
        money(chosen["usd_per_million_output_tokens"]),
        f"{money(chosen['usd_per_million_tokens'])} with prompts",
    )
    joules, watts = chosen["joules_per_output_token"], chosen["mean_watts"]
    if joules is not None:
        yield Card(
            "Energy, estimated",
            f"{plain(joules)} J/token",
            f"of output; {count(watts)} W at the mean load",
            f"{money(chosen['electricity_usd_per_hour'])} of electricity an hour",
        )
    yield Card(
        "Breaks at",
        f"{plain(chosen['breaks_at'])} req/s",
        f"first: {chosen['breaks_first']}",
        f"{percent(1 - chosen['load_share'])} to spare",
        "good",
    )
    yield Card(
        "Tokens/s for a user", plain(chosen["tokens_per_s_per_user"]), "median, where it breaks"
    )
    yield Card("Tokens/s from a GPU", plain(chosen["tokens_per_s_per_gpu"]), "where it breaks")


def _sections(answer: Answer) -> Iterator[Section]:
    costs = cost_bars(answer)
    if costs is not None:
        yield Section("cost", "What it costs", [costs], _why_cheapest(answer), link="Cost")
    fronts = [figure for figure in (cost_front(answer), speed_front(answer)) if figure is not None]
    if fronts:
        yield Section(
            "fronts",
            "What there is to choose between",
            [Row(tuple(fronts))],
            "A plan has one cheapest answer; these are the others that are best at something. "
            "Tokens are output tokens.",
            link="Fronts",
        )
    breaks: list[Figure] = [
        figure
        for figure in (
            until_it_breaks(answer),
            load_profile(answer),
            replicas_over_time(answer),
            goodput_bars(answer),
        )
        if figure is not None
    ]
    if breaks:
        intro = " ".join(list(breaking(answer))[:2])
        yield Section("breaks", "How much until it breaks", breaks, intro, link="Breaking point")
    if answer.get("to_deploy"):
        yield _to_deploy(answer["to_deploy"])
    yield _candidates(answer)
    yield _scenario(answer)


def _why_cheapest(answer: Answer) -> str:
    chosen = row_of(answer, answer["chosen"])
    if chosen is None:
        return ""
    return (
        f"Sized by the lower end of the {answer['confidence']:.0%} interval of each goodput: "
        f"{plain(chosen['goodput_low'])} requests/s a replica for {chosen['label']}, so "
        f"{chosen['serving']} to serve {plain(answer['load']['request_rate'])} requests/s"
        + (f" with {answer['headroom']:.0%} kept free" if answer["headroom"] else "")
        + (f", and {answer['n_plus']} to spare." if answer["n_plus"] else ".")
    )


def _to_deploy(deployed: Mapping[str, Any]) -> Section:
    """Commands of the chosen deployment, as far as engines have them."""
    import yaml

    texts = [
        ("vLLM, on every replica", deployed.get("vllm")),
        ("SGLang, the same", deployed.get("sglang")),
    ]
    if deployed.get("kubernetes"):
        whole = yaml.safe_dump_all(deployed["kubernetes"], sort_keys=False)
        texts.append(("Kubernetes, all replicas", whole))
    panels = [
        panel(f"<h3>{escape(title)}</h3><pre>{escape(text)}</pre>") for title, text in texts if text
    ]
    intro = " ".join(f"{note[:1].upper()}{note[1:]}." for note in deployed.get("notes") or ())
    intro += " chosen.yaml in this folder is the deployment to be forecast again: orcast run."
    return Section("deploy", "What to type", panels, intro.strip(), link="To type")


def _candidates(answer: Answer) -> Section:
    head = ["Deployment", "Verdict", "req/s a replica", "Interval", "Replicas", "GPUs", "USD/h"]
    head += ["USD/M tokens", "tokens/s user", "tokens/s GPU", "Times", "Breaks first"]
    rows = [
        [
            row["label"],
            STATUS[row["status"]],
            _number(row["goodput"]),
            _interval(row),
            _whole(row["replicas"]),
            _whole(row["gpus"]),
            money(row["usd_per_hour"]),
            money(row["usd_per_million_output_tokens"]),
            _number(row["tokens_per_s_per_user"]),
            _number(row["tokens_per_s_per_gpu"]),
            row["basis"] or MISSING,
            row["breaks_first"] or MISSING,
        ]
        for row in ranked(answer)
    ]
    whole = table(head, rows).replace("<table>", '<table class="dense">', 1)
    # Sentences, which a narrow page must wrap.
    reasons = table(
        ("Deployment", "Why not"),
        [[row["label"], row["reason"]] for row in ranked(answer) if row["reason"]],
    ).replace("<table>", '<table class="facts">', 1)
    counts = ", ".join(f"{number} {what}" for what, number in lost(answer))
    intro = summary(answer) + (f" Lost: {counts}." if counts else "")
    return Section(
        "candidates",
        "Every candidate, and why it lost",
        [panel(whole), panel(reasons)],
        intro,
        link="Candidates",
    )


def _scenario(answer: Answer) -> Section:
    return scenario_section(answer["scenario"], "What this plan was asked, with its defaults.")


def _interval(row: Mapping[str, Any]) -> str:
    if row["goodput_low"] is None:
        return MISSING
    return f"{plain(row['goodput_low'])}{GAP}–{GAP}{plain(row['goodput_high'])}"


def _number(value: float | None) -> str:
    return MISSING if value is None else plain(value)


def _whole(value: int | None) -> str:
    return MISSING if value is None else str(value)
