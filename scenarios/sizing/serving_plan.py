"""The plan of a sized model: its deployments, service level and load, as `orcast plan` takes it."""

from __future__ import annotations

from math import floor, log10
from pathlib import Path
from typing import Any

from scenarios import library
from scenarios.plan.objectives import Objective, objectives_of
from scenarios.plan.replications import Replications
from scenarios.schema.hardware import Hardware
from scenarios.schema.load import parse_scenario
from scenarios.schema.plan import Plan
from scenarios.schema.scenario import Scenario
from scenarios.schema.sizing import Serving
from scenarios.sizing.serving_price import ServingCost

# Independent runs of every load tried. With five the intervals are as wide as 20 %, which hides
# what distinguishes one model from the next; with ten 1 to 8 %.
SEEDS = 10
YEAR_S = 365.25 * 86400
REQUESTS_PER_SEQUENCE = 8  # requests for each row of the batch: rates within 2 % of 32 a row
FLEET = 10  # replicas whose load a plan is for where none is known: rounding up costs little
MOST_REPLICAS = 1024  # of the plan schema


def plan_scenario(
    serving: Serving,
    *,
    name: str,
    model: str,
    request_rate: float = 1.0,
    description: str = "",
    origin: Path | None = None,
) -> Scenario:
    """Every deployment that `serving` allows, for so many requests per second at random times.

    Raises InputError for an engine, a latency source or lengths that do not go together.
    """
    degrees = sorted(set(serving.tensor_parallel))
    content = {
        "name": name,
        "description": description,
        "model": model,
        "hardware": {"gpu": serving.gpus[0], "tensor_parallel": degrees[0]},
        # What is left to the engine goes by the GPU.
        "engine": serving.engine.model_dump(exclude_none=True),
        "latency": serving.latency.model_dump(),
        "workload": {
            "arrivals": {"process": "poisson", "request_rate": request_rate},
            "lengths": serving.lengths.model_dump(),
            "num_requests": max(1000, REQUESTS_PER_SEQUENCE * serving.engine.max_num_seqs),
            "seed": serving.seed,
        },
        "slo": serving.slo.model_dump(),
        "plan": {
            "load": {"request_rate": request_rate},
            "candidates": {
                "gpus": list(dict.fromkeys(serving.gpus)),
                "layouts": [{"tensor_parallel": degree} for degree in degrees],
                "replicas": {"min": 1, "max": MOST_REPLICAS},
            },
            "seeds": SEEDS,
        },
    }
    return parse_scenario(content, origin=f"{origin or 'sizing'}: serving")


def plan_of(scenario: Scenario) -> Plan:
    """The scenario's plan, which `plan_scenario` has given it."""
    assert scenario.plan is not None
    return scenario.plan


def replications_of(scenario: Scenario, *, origin: Path | None) -> Replications:
    """The runs that every deployment is tried with."""
    return Replications(scenario.workload, scenario.engine, origin, plan_of(scenario).seeds)


def has_objectives(serving: Serving) -> bool:
    """Whether a latency is asked for; else a deployment may be kept busy all the time."""
    return any((serving.slo.ttft_ms, serving.slo.tpot_ms, serving.slo.e2el_ms))


def objectives(scenario: Scenario, *, origin: Path | None) -> tuple[Objective, ...]:
    """The limits to keep. Raises InputError where there is none."""
    return objectives_of(scenario, origin=f"{origin or 'sizing'}: serving")


def load_per_s(serving: Serving, tokens_per_request: float) -> float | None:
    """Requests per second, where it is said how long the tokens of the model's life take."""
    if serving.lifetime_tokens is None or serving.years is None:
        return None
    return serving.lifetime_tokens / (serving.years * YEAR_S) / tokens_per_request


def with_lifetime(serving: Serving, *, origin: Path | None) -> Serving:
    """The same, with the tokens of the model's life where only a rate of requests is said."""
    if serving.request_rate is None or serving.years is None:
        return serving
    scenario = plan_scenario(serving, name="service", model="service", origin=origin)
    tokens = serving.request_rate * sum(replications_of(scenario, origin=origin).mean_tokens())
    update = {"lifetime_tokens": tokens * serving.years * YEAR_S, "request_rate": None}
    return serving.model_copy(update=update)


def service_figures(serving: Serving, *, origin: Path | None) -> dict[str, Any]:
    """What is asked of serving, as plain data: objectives, mean lengths, load."""
    scenario = plan_scenario(serving, name="service", model="service", origin=origin)
    prompt, output = replications_of(scenario, origin=origin).mean_tokens()
    asked = objectives(scenario, origin=origin) if has_objectives(serving) else ()
    return {
        "objectives": [{"name": one.name, "limit_ms": one.limit_s * 1e3} for one in asked],
        "confidence": plan_of(scenario).confidence,
        "mean_prompt_tokens": prompt,
        "mean_output_tokens": output,
        "lifetime_tokens": serving.lifetime_tokens,
        "years": serving.years,
        "request_rate": load_per_s(serving, prompt + output),
    }


def ready_plan(
    serving: Serving,
    cost: ServingCost,
    *,
    name: str,
    request_rate: float | None = None,
    origin: Path | None = None,
) -> dict[str, Any] | None:
    """The scenario that asks `orcast plan` where to serve the model, without what is default.

    Its model is `model_file(name)`, to be put beside it. None without objectives, which a plan
    needs.
    """
    if not has_objectives(serving):
        return None
    if request_rate is not None and (cost.replicas or 0) <= MOST_REPLICAS // FLEET:
        load = f"{serving.lifetime_tokens:.3g} tokens, spread evenly over {_years(serving.years)}"
    else:
        request_rate = _rounded_down(FLEET * cost.requests_per_s)
        load = f"as much as {FLEET} replicas of {cost.label} carry"
    scenario = plan_scenario(
        _portable(serving, origin),
        name=name,
        model=model_file(name),
        request_rate=request_rate,
        description=f"Where to serve {name}: {request_rate:.4g} requests/s, {load}.",
        origin=origin,
    )
    # What the scenario itself describes is one replica of the cheapest, at what it carries.
    one = Hardware(gpu=cost.gpu, tensor_parallel=cost.tensor_parallel)
    content: dict[str, Any] = scenario.model_copy(update={"hardware": one}).model_dump(
        mode="json", exclude_defaults=True
    )
    share = min(request_rate, cost.requests_per_s)
    content["workload"]["arrivals"]["request_rate"] = _rounded_down(share)
    return content


def _years(count: float | None) -> str:
    """A span in words."""
    return "1 year" if count == 1 else f"{count:g} years"


def _rounded_down(rate: float) -> float:
    """To three digits."""
    digits = 2 - floor(log10(rate))
    return floor(rate * 10.0**digits) / 10.0**digits


def model_file(name: str) -> str:
    """The file of a model beside its plan.

    Not config.json: a relative path is looked up in the current folder first, which may have one.
    """
    return f"sized-{name.removeprefix('sized-')}.json"


def _portable(serving: Serving, origin: Path | None) -> Serving:
    """With the place of a latency table that is found beside the sizing file written out."""
    table, beside = serving.latency.table, None if origin is None else origin.parent
    found = None if table is None else library.find_file(table, beside=beside)
    if found is None:
        return serving
    latency = serving.latency.model_copy(update={"table": str(found.resolve())})
    return serving.model_copy(update={"latency": latency})
