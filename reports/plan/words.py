"""A plan in sentences: what to rent, when it breaks, what else there was."""

from collections.abc import Iterator, Mapping
from typing import Any

from scenarios.forecast.basis import caution, times_are
from scenarios.quantity import count, money, plain

Answer = Mapping[str, Any]
Row = Mapping[str, Any]

# A plan's statuses of candidates that no number of replicas helps, for tables.
STATUS = {
    "chosen": "chosen",
    "meets": "meets the SLO",
    "refused": "refused",
    "memory": "does not fit",
    "unmeasured": "no latency data",
    "idle": "too slow",
    "ceiling": "too slow for the load",
    "no_load": "misses the SLO",
    "replicas": "too many replicas",
    "dearer": "costs more",
}


def row_of(answer: Answer, label: str | None) -> Row | None:
    """The candidate of that name."""
    return next((row for row in answer["candidates"] if row["label"] == label), None)


def ranked(answer: Answer) -> list[Row]:
    """The candidates, the chosen one first, then by cost, then those that do not meet the SLO."""
    return sorted(
        answer["candidates"],
        key=lambda row: (
            row["status"] != "chosen",
            row["status"] != "meets",
            row["usd_per_hour"] or 0.0 if row["status"] == "meets" else 0.0,
            row["miss"] is None,
            row["miss"] or 0.0,
        ),
    )


def question(answer: Answer) -> str:
    """What was asked, in one line."""
    limits = ", ".join(
        f"{one['name']} ≤ {plain(one['limit_ms'])} ms" for one in answer["objectives"]
    )
    load = answer["load"]
    parts = [f"{plain(load['request_rate'])} requests/s"]
    if load.get("users"):
        parts = [f"{plain(load['users'])} users"]
        if load["think_time_s"]:
            parts[0] += f" who think for {plain(load['think_time_s'])} s between requests"
        if load["request_rate"]:
            parts[0] += f", {plain(load['request_rate'])} requests/s from them"
    if load["profile_request_rate"]:
        parts[0] += f" at the busiest (mean {plain(load['mean_request_rate'])})"
    parts += [limits]
    if answer["headroom"]:
        parts.append(f"{answer['headroom']:.0%} head-room")
    if answer["n_plus"]:
        parts.append(f"N+{answer['n_plus']}")
    return " · ".join([answer["model"], *parts])


def verdict(answer: Answer) -> str:
    """The answer in one sentence."""
    chosen = row_of(answer, answer["chosen"])
    if chosen is not None:
        return (
            f"Cheapest: {fleet(chosen, answer)}, {money(chosen['usd_per_hour'])} an hour, "
            f"{money(chosen['usd_per_million_output_tokens'])} per million output tokens"
            f"{_times(chosen)}."
        )
    nearest = row_of(answer, answer["nearest_miss"])
    # What misses by no figure (no request fits) is no near miss: then the first says why.
    which, row = ("Nearest: ", nearest) if nearest else ("", answer["candidates"][0])
    return (
        f"No deployment of the {len(answer['candidates'])} meets the objectives. "
        f"{which}{row['label']}: {row['reason']}."
    )


def _times(chosen: Row) -> str:
    """What is said of a chosen deployment whose times nobody measured."""
    kind = chosen["basis"]
    return "" if caution(kind) is None else f" ({times_are(kind)[0].lower()}{times_are(kind)[1:]})"


def fleet(row: Row, answer: Answer) -> str:
    """``3 replicas of h100-sxm chunked, one of them spare (3 GPUs)``."""
    spare = row["replicas"] - row["serving"]
    replicas = "1 replica" if row["replicas"] == 1 else f"{row['replicas']} replicas"
    spares = {0: "", 1: ", one of them spare"}.get(spare, f", {spare} of them spare")
    gpus = "1 GPU" if row["gpus"] == 1 else f"{row['gpus']} GPUs"
    return f"{replicas} of {row['label']}{spares} ({gpus})"


def breaking(answer: Answer) -> Iterator[str]:
    """How many requests per second until the chosen deployment breaks, and what breaks first."""
    chosen = row_of(answer, answer["chosen"])
    if chosen is None:
        return
    serving = chosen["serving"]
    low, high = (serving * chosen[f"goodput_{end}"] for end in ("low", "high"))
    replicas = "its replica" if serving == 1 else f"its {serving} serving replicas"
    yield (
        f"It breaks at {plain(chosen['breaks_at'])} requests/s for {replicas} "
        f"({answer['confidence']:.0%} interval {plain(low)} to {plain(high)}): the load is "
        f"{chosen['load_share']:.0%} of that."
    )
    yield f"First to break: {chosen['breaks_first']}: {chosen['breaks_why']}."
    check = answer["check"]
    if check is not None:
        limits = {one["name"]: one["limit_ms"] for one in answer["objectives"]}
        found = ", ".join(
            f"{name} {'–' if value is None else plain(value)} ms (limit {plain(limits[name])})"
            for name, value in check["latencies_ms"].items()
        )
        kept = "keeps" if check["kept"] else "does NOT keep"
        yield f"Simulated as a whole at the load, it {kept} every limit: {found}."
    following = chosen["usd_per_hour_following"]
    if following is not None:
        saved = 1 - following / chosen["usd_per_hour"]
        yield (
            f"Replicas that follow the load, window by window, would cost {money(following)} an "
            f"hour in the mean, {saved:.0%} less (starting a replica taken to cost nothing)."
        )
    yield from over_time(answer)
    if chosen["mean_watts"] is not None:
        yield (
            f"Its GPUs draw {count(chosen['mean_watts'])} W, "
            f"{plain(chosen['joules_per_output_token'])} J an output token, and "
            f"{money(chosen['electricity_usd_per_hour'])} of electricity an hour, estimated; a "
            "rented GPU's price includes it."
        )


def over_time(answer: Answer) -> Iterator[str]:
    """A load that varies: what the fleet takes over its time, autoscaled and not."""
    found = answer.get("over_time")
    if not found or not found["off"]:
        return
    hours = (found["until_s"] - found["from_s"]) / 3600
    off, on = found["off"], found["on"]
    limits = {one["name"]: one["limit_ms"] for one in answer["objectives"]}

    def kept(run: Mapping[str, Any]) -> str:
        if run["kept"]:
            return "keep every limit"
        told = ", ".join(
            f"{name} {'–' if value is None else plain(value)} ms (limit {plain(limits[name])})"
            for name, value in run["latencies_ms"].items()
            if value is None or value > limits[name]
        )
        return f"do NOT keep {told}, though {run['share_kept']:.1%} of the requests keep all"

    fixed = max(off["replicas"])
    yield (
        f"Over {plain(hours)} h of the trace ({count(found['requests'])} requests simulated), "
        f"{plain(fixed)} replicas that are always up take {money(off['usd'])} and {kept(off)}."
    )
    if not on:
        yield (
            "Units of several engines that come and go are not simulated: with autoscaling nothing "
            "is known of them."
        )
        return
    low, high = min(on["replicas"]), max(on["replicas"])
    yield (
        f"Autoscaled (one for every {plain(found['autoscaling']['target_outstanding'])} unfinished "
        f"requests, {plain(found['autoscaling']['startup_s'])} s to start), {plain(low)} to "
        f"{plain(high)} replicas take {money(on['usd'])}, {_against(on['usd'], off['usd'])}, "
        f"and {kept(on)}."
    )


def _against(cost: float, other: float) -> str:
    """``30 % less``."""
    more = round(cost / other - 1, 2)
    return "as much" if not more else f"{abs(more):.0%} {'more' if more > 0 else 'less'}"


def runner_up(answer: Answer) -> str:
    """The next cheapest, and why it lost."""
    others = [row for row in ranked(answer) if row["status"] == "meets"]
    return f"Next: {others[0]['label']}, {others[0]['reason']}." if others else ""


def lost(answer: Answer) -> list[tuple[str, int]]:
    """How many candidates lost for which kind of reason, the most frequent first."""
    counts: dict[str, int] = {}
    for row in answer["candidates"]:
        if row["status"] not in ("chosen", "meets"):
            counts[STATUS[row["status"]]] = counts.get(STATUS[row["status"]], 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def summary(answer: Answer) -> str:
    """How many candidates there were, and how many had to be simulated."""
    total, simulated = len(answer["candidates"]), answer["simulated"]
    meets = sum(row["status"] in ("chosen", "meets") for row in answer["candidates"])
    ruled_out = total - simulated
    text = "1 candidate" if total == 1 else f"{count(total)} candidates"
    text += f", {count(meets)} of them within the objectives"
    if ruled_out:
        text += f", {count(ruled_out)} ruled out by schema, memory or roofline without simulating"
    return text + f"; {answer['seeds']} runs for every load tried."
