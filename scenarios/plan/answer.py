"""A plan's answer in plain data: a row for every candidate, the fronts, and why each one lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

from scenarios.forecast.basis import CANDIDATES, cautions, kind_of
from scenarios.plan.candidates import Candidate
from scenarios.plan.deploying import to_deploy
from scenarios.plan.exploration import Exploration, Task, Trial
from scenarios.plan.target import Target, replicas_for
from scenarios.schema.plan import Plan
from scenarios.schema.scenario import Scenario

DECIDED_BY_INTERVAL = 1.5  # times the replicas that the estimate asks for


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate, what is known of it, and what it costs for the load that was asked for."""

    candidate: Candidate
    explored: Exploration
    status: str  # Exploration.status, or ``replicas``: more are needed than may be had
    reason: str
    miss: float
    replicas: int | None = None
    usd_per_hour: float | None = None
    following: float | None = None  # replica hours if they follow the load, over fixed ones

    @property
    def meets(self) -> bool:
        return self.status == "meets"

    @property
    def gpus(self) -> int | None:
        return None if self.replicas is None else self.replicas * self.candidate.gpus_per_replica


def answer(
    scenario: Scenario,
    task: Task,
    outcomes: list[Outcome],
    chosen: Outcome | None,
    check: Trial | None,
    curve: Sequence[Trial],
) -> dict[str, Any]:
    """Everything that is known, as JSON-ready data: the content of plan.json."""
    asked = task.plan
    target = task.target if chosen is None else task.target.answered_in(chosen.explored.e2e_s)
    prompt_tokens, output_tokens = task.replications.mean_tokens()
    rows = [
        _row(one, chosen, asked, target, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        for one in outcomes
    ]
    for figure, (first, second) in FRONTS.items():
        points = [_point(row, first, second) for row in rows]
        for at in front(points):
            rows[at]["fronts"].append(figure)
    # What cannot be deployed at all misses nothing: it is no near miss.
    misses = [row for row in rows if row["miss"] is not None] if chosen is None else []
    nearest = min(misses, key=lambda row: row["miss"], default=None)
    return {
        "name": scenario.name,
        "model": scenario.model,
        "load": {
            "request_rate": target.peak_per_s or None,
            "users": target.users,
            "think_time_s": None if target.users is None else target.think_time_s,
            "mean_request_rate": target.mean_per_s,
            "profile_request_rate": target.profile_per_s and list(target.profile_per_s),
            "window_s": target.window_s or None,
            "mean_prompt_tokens": prompt_tokens,
            "mean_output_tokens": output_tokens,
        },
        "objectives": [
            {
                "name": one.name,
                "metric": one.metric,
                "limit_ms": one.limit_s * 1e3,
                "percentile": one.percentile,
                "request_class": one.request_class,
            }
            for one in task.objectives
        ],
        "headroom": asked.headroom,
        "n_plus": asked.n_plus,
        "confidence": asked.confidence,
        "seeds": asked.seeds,
        "chosen": None if chosen is None else chosen.candidate.label,
        "nearest_miss": None if nearest is None else nearest["label"],
        "check": None if check is None else _json(asdict(check)),
        "curve": [_json(asdict(trial)) for trial in curve],
        "simulated": sum(one.explored.trials != () for one in outcomes),
        "to_deploy": None if chosen is None else _to_deploy(chosen, asked, target),
        "candidates": rows,
        "warnings": _warnings(outcomes, chosen, check, task),
        "scenario": scenario.model_dump(mode="json"),
    }


def _to_deploy(chosen: Outcome, asked: Plan, target: Target) -> dict[str, Any]:
    assert chosen.candidate.scenario is not None and chosen.replicas is not None
    return to_deploy(
        chosen.candidate.scenario,
        gpus=chosen.candidate.gpus_per_replica,
        replicas=chosen.replicas,
        serving=max(1, chosen.replicas - asked.n_plus),
        rate_per_s=target.peak_per_s,
    )


# What a front weighs: figures of a row, each with -1 where less is better.
FRONTS = {
    "cost_and_speed": (("usd_per_million_output_tokens", -1), ("tokens_per_s_per_user", 1)),
    "speed_and_throughput": (("tokens_per_s_per_user", 1), ("tokens_per_s_per_gpu", 1)),
}


def _point(
    row: dict[str, Any], first: tuple[str, int], second: tuple[str, int]
) -> tuple[float, float] | None:
    if row["status"] not in ("chosen", "meets") or row[first[0]] is None or row[second[0]] is None:
        return None
    return first[1] * row[first[0]], second[1] * row[second[0]]


def _row(
    one: Outcome,
    chosen: Outcome | None,
    asked: Plan,
    target: Target,
    *,
    prompt_tokens: float,
    output_tokens: float,
) -> dict[str, Any]:
    """One candidate. Rates are requests/s of one replica, tokens those of outputs unless said."""
    candidate, found = one.candidate, one.explored
    target = target.answered_in(found.e2e_s)
    hourly_s, cost = target.mean_per_s * 3600, one.usd_per_hour
    known = found.status == "meets"
    serving = None if one.replicas is None else max(1, one.replicas - asked.n_plus)
    return {
        "label": candidate.label,
        "gpu": candidate.gpu,
        "layout": candidate.layout,
        "gpus_per_replica": candidate.gpus_per_replica,
        "settings": dict(candidate.settings),
        "usd_per_gpu_hour": candidate.price_usd_per_hour / candidate.gpus_per_replica,
        "status": "chosen" if one is chosen else one.status,
        "reason": "" if one is chosen else one.reason or _why_not(one, chosen, asked, target),
        "miss": one.miss if isfinite(one.miss) and not one.meets else None,
        "goodput": found.goodput_per_s if known else None,
        "goodput_low": found.low_per_s if known else None,
        "goodput_high": found.high_per_s if known else None,
        "saturated": found.saturated_per_s,
        "ceiling": found.ceiling_per_s,
        "breaks_first": found.breaks or None,
        "breaks_why": found.why or None,
        "bottleneck": None if found.bottleneck is None else asdict(found.bottleneck),
        "replicas": one.replicas,
        "gpus": one.gpus,
        "serving": serving,
        "breaks_at": None if serving is None else serving * found.goodput_per_s,
        "load_share": (
            None if serving is None else target.peak_per_s / (serving * found.goodput_per_s)
        ),
        "usd_per_hour": cost,
        "usd_per_hour_following": (
            None if cost is None or one.following is None else cost * one.following
        ),
        "usd_per_million_tokens": (
            None if cost is None else cost / (hourly_s * (prompt_tokens + output_tokens)) * 1e6
        ),
        "usd_per_million_output_tokens": (
            None if cost is None else cost / (hourly_s * output_tokens) * 1e6
        ),
        **_energy(one, target, output_tokens),
        "tokens_per_s_per_user": 1 / found.tpot_s if found.tpot_s else None,
        "tokens_per_s_per_gpu": (
            found.goodput_per_s * output_tokens / candidate.gpus_per_replica if known else None
        ),
        "fronts": [],
        "requests_per_run": found.requests or None,
        "trials": [_json(asdict(trial)) for trial in found.trials],
        "latency": found.latency.get("label"),
        "measured": found.latency.get("measured"),
        "basis": found.latency.get("basis"),
    }


def _energy(one: Outcome, target: Target, output_tokens: float) -> dict[str, float | None]:
    """What the fleet draws at the mean load and what that costs, estimated; not in its price."""
    watts = None
    if one.replicas is not None:
        watts = one.explored.fleet_watts(target.mean_per_s, one.replicas)
    if watts is None or one.candidate.scenario is None:
        names = ("mean_watts", "joules_per_output_token", "electricity_usd_per_hour")
        return dict.fromkeys(names)
    return {
        "mean_watts": watts,
        "joules_per_output_token": watts / (target.mean_per_s * output_tokens),
        "electricity_usd_per_hour": one.candidate.scenario.electricity.usd(watts * 3600),
    }


def _json(value: Any) -> Any:
    """Without infinities, which JSON does not have: a rejected request's latency is None."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _why_not(one: Outcome, chosen: Outcome | None, asked: Plan, target: Target) -> str:
    """Why a deployment that meets the service level is not the one."""
    if chosen is None or one.usd_per_hour is None or chosen.usd_per_hour is None:
        return ""
    more = one.usd_per_hour / chosen.usd_per_hour - 1
    text = (
        f"costs {more:.0%} more"
        if round(more, 3) > 0
        else "costs as much, and has no more to spare"
    )
    if one.gpus is not None and chosen.gpus is not None and round(more, 3) <= 0:
        text = "costs as much with more GPUs" if one.gpus > chosen.gpus else text
    text += f": {one.explored.breaks} breaks at {one.explored.goodput_per_s:.3g} requests/s"
    if one.replicas is not None:
        text += f" a replica, {one.replicas} {'is' if one.replicas == 1 else 'are'} needed"
    at_best = replicas_for(target.peak_per_s, one.explored.high_per_s, asked)
    if round(at_best * one.candidate.price_usd_per_hour, 6) < chosen.usd_per_hour:
        text += f" ({at_best} at the upper end of the interval, which would be cheaper)"
    return text


def _warnings(
    outcomes: list[Outcome], chosen: Outcome | None, check: Trial | None, task: Task
) -> list[str]:
    found = (
        []
        if chosen is None
        else _decided_by_interval(chosen, task.plan, task.target.answered_in(chosen.explored.e2e_s))
    )
    # What every candidate says is said once.
    notes = [note for one in outcomes for note in one.explored.notes]
    found += list(dict.fromkeys(notes))
    short = [one.candidate.label for one in outcomes if not one.explored.settled]
    if short:
        found.append(
            f"{len(short)} candidates keep so many requests in the system at once that their runs "
            f"had no time to settle, {short[0]} among them: raise plan.requests, or the trace is "
            "too short"
        )
    if check is not None and not check.kept:
        assert chosen is not None
        found.append(
            f"simulated as a whole, {chosen.candidate.label} does not keep every limit at this "
            "load: raise plan.headroom or plan.seeds"
        )
    kinds = Counter(kind_of(one.explored.latency) for one in outcomes if one.explored.latency)
    named = [(f"{number} of {kinds.total()} candidates", kind) for kind, number in kinds.items()]
    found += cautions(named, trust=CANDIDATES)
    return found


def _decided_by_interval(chosen: Outcome, asked: Plan, target: Target) -> list[str]:
    """A warning where doubt about the goodput, not the load, asks for most of the replicas."""
    known = chosen.explored
    middle, upper = (
        replicas_for(target.peak_per_s, goodput_per_s, asked)
        for goodput_per_s in (known.goodput_per_s, known.high_per_s)
    )
    assert chosen.replicas is not None
    if chosen.replicas < DECIDED_BY_INTERVAL * middle:
        return []
    return [
        f"the confidence interval decides the number of replicas: {chosen.replicas} at its lower "
        f"end ({known.low_per_s:.3g} requests/s each), {middle} would do at the estimate "
        f"({known.goodput_per_s:.3g}) and {upper} at the upper end ({known.high_per_s:.3g}); raise "
        f"plan.seeds (now {asked.seeds}) or plan.requests (now {asked.requests}) to narrow it"
    ]


def front(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """The points that no other one is at least as good as in both, better in one; more is better.

    In descending order of the first figure; None is no point.
    """
    present = [(point, at) for at, point in enumerate(points) if point is not None]
    present.sort(key=lambda each: (-each[0][0], -each[0][1], each[1]))
    found, best = [], -inf
    for (_, second), at in present:
        if second > best:
            found.append(at)
            best = second
    return found
