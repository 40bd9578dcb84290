"""The top of a run's report: what was run, what came out, what to beware of, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reports.page.page import Card, cards, escape, warning_box
from reports.page.records import Latencies, RunRecords
from reports.run.latency_figures import METRICS
from reports.run.service_levels import ServiceLevels
from scenarios.forecast.verdict import verdict
from scenarios.quantity import count, figure_of, milliseconds, percent, plain, seconds

# Words of a verdict that stand out.
TONES = {"Meets": "good", "Misses": "bad", "No request completed": "bad"}


def headline(
    records: RunRecords,
    latencies: Latencies,
    *,
    scenario: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> str:
    """Title, verdict, warnings and headline figures as HTML."""
    levels = ServiceLevels.of(scenario)
    kind = "Run of the engine" if summary.get("mode") == "engine" else "Forecast of a run"
    return (
        f'<header class="top"><p class="kind">{kind}</p>'
        f"<h1>{escape(scenario_name(scenario))}</h1>"
        f'<p class="setting">{escape(_setting(scenario, summary))}</p>'
        f'<p class="verdict">{verdict_html(verdict(summary, levels.slo)["words"])}</p></header>'
        + warning_box(report_warnings(summary))
        + cards(list(_cards(records, latencies, levels, summary)))
    )


def scenario_name(scenario: Mapping[str, Any]) -> str:
    return str(scenario.get("name") or "unnamed scenario")


def report_warnings(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know first, as the run itself says it."""
    return [str(warning) for warning in summary.get("warnings") or ()]


def _part(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _setting(scenario: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Model, hardware, policy and size of the run in one line."""
    hardware, engine = _part(scenario, "hardware"), _part(scenario, "engine")
    replicas = figure_of(_part(scenario, "cluster"), "replicas") or 1
    gpus = figure_of(_part(hardware, "sequence_parallel"), "degree") or 1
    ranks = figure_of(hardware, "data_parallel") or 1
    # Ranks share out experts among their own GPUs.
    other = "data_parallel" if ranks > 1 else "expert_parallel"
    for degree in ("tensor_parallel", "pipeline_parallel", other):
        gpus *= figure_of(hardware, degree) or 1
    each = f"{count(gpus)} × " * (gpus > 1) + str(hardware.get("gpu") or "")
    if replicas > 1:
        some = f"{count(replicas)} replicas"
        if _part(_part(scenario, "cluster"), "autoscaling"):
            some = _up_to(summary, replicas) + some
        each = f"{some} of {each}"
    parts = [
        str(scenario.get("model") or ""),
        each,
        f"{engine['scheduler']} scheduler" if engine.get("scheduler") else "",
        f"{count(figure_of(summary, 'iterations'))} iterations" if "iterations" in summary else "",
    ]
    return " · ".join(part for part in parts if part)


def _up_to(summary: Mapping[str, Any], replicas: float) -> str:
    """How many replicas an autoscaler ever had up at once, where it was not all of them."""
    steps = _part(summary, "cluster").get("replicas_over_time") or ()
    most = max((int(number) for _, number in steps), default=0)
    return f"up to {most} of " if 0 < most < replicas else ""


def verdict_html(words: Sequence[str]) -> str:
    """A verdict's sentences; whether the service levels are met stands out."""
    text = escape(" ".join(words))
    for word, tone in TONES.items():
        text = text.replace(word, f'<span class="{tone}">{word}</span>', 1)
    return text


def _cards(
    records: RunRecords, latencies: Latencies, levels: ServiceLevels, summary: Mapping[str, Any]
) -> Iterator[Card]:
    number = {key: figure_of(summary, key) for key in summary}
    rejected = number.get("rejected") or 0
    yield Card(
        "Requests completed",
        count(number.get("completed")),
        *(("", f"{count(rejected)} rejected", "bad") if rejected else ("none rejected",)),
    )
    wall_s = number.get("wall_s")
    yield Card(
        "Duration",
        seconds(number.get("duration")),
        f"simulated in {seconds(wall_s)}" if wall_s else "",
    )
    total = number.get("total_token_throughput")
    yield Card(
        "Output throughput",
        f"{_rate(number.get('output_throughput'))} tokens/s",
        f"{_rate(total)} with prompts" if total else "",
    )
    rate, goodput = number.get("request_throughput"), number.get("request_goodput")
    yield Card("Request throughput", f"{_rate(rate)} req/s")
    if levels.limits_ms:
        share = f"{percent(goodput / rate)} within SLO" if goodput is not None and rate else ""
        yield Card("Goodput", f"{_rate(goodput)} req/s", share)
    for metric, (short, _, _) in METRICS.items():
        judgement = levels.judge(latencies, metric, summary)
        note = f"mean {milliseconds(number.get(f'mean_{metric}_ms'))}"
        value = milliseconds(number.get(f"p99_{metric}_ms"))
        if judgement is None:
            yield Card(f"{short}, p99", value, note)
        else:
            within = f"{percent(judgement.within)} within {milliseconds(judgement.limit_ms)}"
            tone = "good" if judgement.met else "bad"
            yield Card(f"{short}, p99", value, note, within, tone)
    yield from _speculation(_part(summary, "speculation"))
    useful = number.get("kv_useful")
    yield Card(
        "KV utilisation",
        percent(number.get("kv_utilization")),
        "of all slots hold a token" if useful is None else f"{percent(useful)} of what is taken",
    )
    hits, saved = number.get("prefix_cache_hit_rate"), number.get("kv_saved_by_sharing")
    if hits:
        yield Card("Prefix cache hits", percent(hits), "of prompt tokens were not computed")
    if saved:
        yield Card("KV saved by sharing", percent(saved), "of what each would hold on its own")
    preempted = number.get("preemptions")
    if preempted is None:
        preempted = float(np.sum(records.requests["preemptions"]))
    yield Card("Preemptions", count(preempted))
    yield from _energy(_part(summary, "energy"))


def _energy(figures: Mapping[str, Any]) -> Iterator[Card]:
    """What the GPUs' boards draw, where their power is known."""
    joules, watts = figure_of(figures, "joules_per_output_token"), figure_of(figures, "mean_watts")
    if joules is None or watts is None:
        return
    price = figure_of(figures, "usd_per_million_output_tokens")
    yield Card(
        "Energy, estimated",
        f"{plain(joules)} J/token",
        f"of output; {count(watts)} W in the mean",
        "" if price is None else f"${plain(price)} of electricity per million",
    )


def _speculation(figures: Mapping[str, Any]) -> Iterator[Card]:
    """What speculative decoding brought, where there was any."""
    if not figures:
        return
    yield Card(
        "Tokens per step",
        plain(figure_of(figures, "tokens_per_step")),
        f"{plain(figure_of(figures, 'expected_tokens_per_step'))} expected",
        f"{percent(figure_of(figures, 'draft_share'))} of the time is drafting",
    )


def _rate(value: float | None) -> str:
    return count(value) if value is not None and value >= 1000 else plain(value)
