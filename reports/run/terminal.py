"""The summary of a run on the terminal, laid out like vLLM's "Serving Benchmark Result"."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reports.run.tier_rows import TIER_NAMES, tiers_of
from scenarios.quantity import MISSING, figure_of, printable
from sim.metrics import UNANSWERED

if TYPE_CHECKING:
    from rich.text import Text

WIDTH = 50
LATENCIES = {
    "Time to First Token": ("ttft", "TTFT"),
    "First Token of the Prefill Pool": ("prefill_ttft", "prefill TTFT"),
    "Time per Output Token (excl. 1st token)": ("tpot", "TPOT"),
    "Inter-token Latency": ("itl", "ITL"),
    "End-to-end Latency": ("e2el", "E2EL"),
}
STATISTICS = {"mean": "Mean", "median": "Median", "p90": "P90", "p99": "P99"}


def summary_table(summary: Mapping[str, Any]) -> "Text":
    """Lay out `summary` (vLLM `bench serve` names, latencies in ms) for `rich.print`.

    What the summary lacks is left out or shown as a dash; text from outside is shown without
    markup and without control characters.
    """
    from rich.text import Text

    lines: list[tuple[str, str]] = [(_rule(" Serving Benchmark Result ", "="), "bold")]
    lines += _counts(summary)
    for title, (metric, short) in LATENCIES.items():
        if figure_of(summary, f"mean_{metric}_ms") is None:
            continue
        lines.append((_rule(title, "-"), "bold"))
        for statistic, label in STATISTICS.items():
            value = figure_of(summary, f"{statistic}_{metric}_ms")
            if value is not None:
                lines.append((_line(f"{label} {short} (ms):", f"{value:.2f}"), ""))
    lines.append((_rule("Orcast", "-"), "bold"))
    lines += _own(summary)
    lines.append((_rule("", "="), "bold"))
    lines += _verdict(summary)
    lines += [(f"warning: {printable(text)}", "yellow") for text in summary.get("warnings") or ()]
    return Text("\n").join(Text(text, style=style) for text, style in lines)


def _verdict(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run comes to; what it rests on stands above already."""
    said = summary.get("verdict")
    said = said if isinstance(said, Mapping) else {}
    style = {"met": "bold green", "missed": "bold red"}.get(str(said.get("slo")), "bold")
    return [(printable(text), style) for text in said.get("words") or ()]


def _counts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("Successful requests:", "completed", "d"),
        ("Benchmark duration (s):", "duration", ".2f"),
        ("Total input tokens:", "total_input_tokens", "d"),
        ("Total generated tokens:", "total_output_tokens", "d"),
        ("Request throughput (req/s):", "request_throughput", ".2f"),
        ("Request goodput (req/s):", "request_goodput", ".2f"),
        ("Output token throughput (tok/s):", "output_throughput", ".2f"),
        ("Total token throughput (tok/s):", "total_token_throughput", ".2f"),
    ]
    lines = []
    for label, key, form in rows:
        value = figure_of(summary, key)
        if value is None and key == "request_goodput":
            continue
        if value is None:
            lines.append((_line(label, MISSING), ""))
        else:
            lines.append((_line(label, format(round(value) if form == "d" else value, form)), ""))
    return lines


def _own(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    memory = summary.get("memory_bytes")
    cache = figure_of(memory, "kv_cache") if isinstance(memory, Mapping) else None
    if cache is not None:
        lines.append((_line("KV cache of a GPU (GiB):", f"{cache / 2**30:.2f}"), ""))
    for label, key in (
        ("KV memory that holds a token (%):", "kv_utilization"),
        ("KV memory in use that holds one (%):", "kv_useful"),
    ):
        share = figure_of(summary, key)
        if share is not None:
            lines.append((_line(label, f"{100 * share:.2f}"), ""))
    for label, key in (
        ("KV memory saved by sharing (%):", "kv_saved_by_sharing"),
        ("Prefix cache hit rate (%):", "prefix_cache_hit_rate"),
    ):
        share = figure_of(summary, key)
        if share:
            lines.append((_line(label, f"{100 * share:.2f}"), ""))
    lines += _tiers(summary)
    for label, key in (
        ("Preemptions:", "preemptions"),
        ("Rejected requests:", "rejected"),
        ("  refused by a full queue:", "refused"),
        ("  gave up waiting:", "gave_up"),
        ("  found no replica:", "stranded"),
        ("  cancelled:", "cancelled"),
        ("Iterations:", "iterations"),
    ):
        value = figure_of(summary, key)
        if value is None and key in UNANSWERED:  # it cannot happen here
            continue
        style = "yellow" if value and key == "rejected" else ""
        lines.append((_line(label, MISSING if value is None else f"{value:.0f}"), style))
    lines += _steady_state(summary)
    lines += _conservation(summary)
    lines += _classes(summary)
    lines += _speculation(summary)
    lines += _energy(summary)
    speed = figure_of(summary, "simulated_requests_per_s")
    if speed is not None:
        lines.append((_line("Simulated requests per second:", f"{speed:.0f}"), ""))
    latency = summary.get("latency")
    if isinstance(latency, Mapping):
        source = str(latency.get("label") or latency.get("source") or MISSING)
        measured = bool(latency.get("measured"))
        if not measured and "measured" not in source:
            source += " (not measured)"
        text = f"Latency source: {printable(source)}"
        if len(text) <= WIDTH:
            text = _line("Latency source:", printable(source))
        lines.append((text, "" if measured else "yellow"))
        host = latency.get("host_overhead")
        if host:
            lines.append((f"Host: {printable(host)}", ""))
    front_end = summary.get("front_end")
    if front_end:
        lines.append((f"Front end: {printable(front_end)}", ""))
    return lines


def _steady_state(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is left of a run without its warm-up and cool-down."""
    steady = summary.get("steady_state")
    if not isinstance(steady, Mapping):
        return []
    begin, end = figure_of(steady, "from_s"), figure_of(steady, "until_s")
    requests = figure_of(steady, "requests")
    if begin is None or end is None or not requests:
        return [("Steady state: no request in it", "yellow")]
    found = {True: "found at", False: "not found, so all of", None: ""}.get(steady.get("detected"))
    said = f"Steady state, {found} {begin:g}".replace(",  ", ", ")
    lines = [
        (f"{said} to {end:g} s of the run:", "" if found != "not found, so all of" else "yellow")
    ]
    for label, key in (
        ("  requests that came:", "requests"),
        ("  output tokens/s:", "output_throughput"),
        ("  median TTFT (ms):", "median_ttft_ms"),
        ("  P99 TTFT (ms):", "p99_ttft_ms"),
        ("  median TPOT (ms):", "median_tpot_ms"),
        ("  P99 TPOT (ms):", "p99_tpot_ms"),
    ):
        value = figure_of(steady, key)
        if value is not None:
            form = ".0f" if key == "requests" else ".2f"
            lines.append((_line(label, format(value, form)), ""))
    return lines


def _conservation(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """That nothing was lost: requests in and out, and tokens."""
    laws = summary.get("conservation")
    if not isinstance(laws, Mapping):
        return []
    asked, answered, rejected = (
        f"{figure_of(laws, key) or 0:.0f}" for key in ("requests", "answered", "rejected")
    )
    said = f"{asked} = {answered} + {rejected}"
    return [(_line("Requests in = answered + rejected:", said), "")]


def _classes(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Two lines for each class of requests; what is beyond the first ten is in summary.json."""
    lines = []
    classes = summary.get("classes")
    for name, figures in list(classes.items())[:10] if isinstance(classes, Mapping) else ():
        shown = printable(name)[:20]
        for label, key in (("Mean", "mean_ttft_ms"), ("P95", "p95_ttft_ms")):
            value = figure_of(figures, key)
            text = MISSING if value is None else f"{value:.2f}"
            lines.append((_line(f"{label} TTFT of {shown} (ms):", text), ""))
    return lines


def _tiers(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for row in tiers_of(summary):
        share = figure_of(row, "hit_rate")
        label = f"  blocks found, {TIER_NAMES[row['kind']]} (%):"
        lines.append((_line(label, MISSING if share is None else f"{100 * share:.2f}"), ""))
    return lines


def _speculation(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = summary.get("speculation")
    if not isinstance(figures, Mapping):
        return []
    lines = []
    for label, key, scale in (
        ("Tokens per step:", "tokens_per_step", 1),
        ("Acceptance length, expected:", "expected_tokens_per_step", 1),
        ("Acceptance length, achieved:", "acceptance_length", 1),
        ("Draft acceptance rate (%):", "draft_acceptance_rate", 100),
        ("Time spent drafting (%):", "draft_share", 100),
    ):
        value = figure_of(figures, key)
        lines.append((_line(label, MISSING if value is None else f"{scale * value:.2f}"), ""))
    return lines


def _energy(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = summary.get("energy")
    if not isinstance(figures, Mapping):
        return []
    lines = []
    for label, key, form in (
        ("Power of the GPUs, estimated (W):", "mean_watts", ",.0f"),
        ("Energy per output token, estimated (J):", "joules_per_output_token", ".3g"),
        ("Electricity per 1M output, estimated ($):", "usd_per_million_output_tokens", ".3g"),
    ):
        value = figure_of(figures, key)
        if value is not None:
            lines.append((_line(label, format(value, form)), ""))
    return lines


def _line(label: str, value: str) -> str:
    return f"{label} {value:>{WIDTH - len(label) - 1}}"


def _rule(title: str, stroke: str) -> str:
    return title.center(WIDTH, stroke)
