"""A trace in a few lines of words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scenarios.quantity import count, percent, plain, seconds

Described = Mapping[str, Any]


def in_three_lines(trace: Described) -> list[str]:
    """When requests come, how long they are, and what they share."""
    prompt, output = trace["prompt_tokens"], trace["output_tokens"]
    what = f"{trace['name']} ({trace['format']}): {count(trace['requests'])} requests"
    return [
        f"{what} {arriving(trace)}",
        f"prompts of {lengths(prompt)}; outputs of {lengths(output)}",
        f"{sharing(trace)}; {sessions(trace)}",
    ]


def arriving(trace: Described) -> str:
    """Over what time, how many a second, and how unevenly."""
    if trace["request_rate"] is None:
        limit = trace["max_concurrency"]
        return "all at once" + (f", {limit} in flight" if limit else "")
    rate = trace["rate"]
    begin = "in sessions that begin " if trace["sessions"] is not None else ""
    return (
        f"{begin}over {seconds(trace['span_s'])}, {plain(trace['request_rate'])} a second in the "
        f"mean, {plain(rate['peak_per_s'])} in the busiest {seconds(rate['window_s'])}"
    )


def lengths(tokens: Mapping[str, float]) -> str:
    if tokens["min"] == tokens["max"]:
        return f"{count(tokens['max'])} tokens each"
    return (
        f"{plain(tokens['mean'])} tokens in the mean (half up to {count(tokens['p50'])}, 99 % up "
        f"to {count(tokens['p99'])}, at most {count(tokens['max'])})"
    )


def sharing(trace: Described) -> str:
    shared = trace["sharing"]
    if shared is None:
        return "nothing is known to be shared"
    part = (
        "" if shared["requests"] == trace["requests"] else f" (first {count(shared['requests'])})"
    )
    return f"{percent(shared['share'])} of the prompt tokens were there before{part}"


def sessions(trace: Described) -> str:
    found = trace["sessions"]
    if found is None:
        return "no request waits for another's answer"
    return (
        f"{count(found['sessions'])} sessions of {plain(found['mean_turns'])} turns in the mean, "
        f"{seconds(found['mean_think_s'])} between"
    )


def burstiness(trace: Described) -> str:
    found = trace["burstiness"]
    if found["gap_cv"] is None:
        return "not to be said of so few requests"
    parts = [f"gaps vary {plain(found['gap_cv'])} times as much as they are long"]
    if found["dispersion"] is not None:
        parts.append(f"counts {plain(found['dispersion'])} times as much as Poisson's")
    return ", ".join(parts) + " (Poisson: 1)"


def rows(trace: Described) -> list[tuple[str, str]]:
    """Names and values, for the terminal and the page."""
    found = [
        ("Format", str(trace["format"])),
        ("Requests", f"{count(trace['requests'])} {arriving(trace)}"),
        ("Burstiness", burstiness(trace)),
        ("Prompts", lengths(trace["prompt_tokens"])),
        ("Outputs", lengths(trace["output_tokens"])),
        ("Sharing", sharing(trace)),
        ("Sessions", sessions(trace)),
    ]
    if trace["rate"] is not None:
        rate = trace["rate"]
        peak = f"{plain(rate['peak_per_s'])} a second, {seconds(rate['peak_at_s'])} in"
        found.insert(2, ("Peak", f"{peak}; lowest {plain(rate['lowest_per_s'])}"))
    if trace["classes"]:
        found.append(
            ("Classes", ", ".join(f"{name} {count(n)}" for name, n in trace["classes"].items()))
        )
    return found
