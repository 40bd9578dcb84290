"""What a model costs to serve: dollars a million tokens on every candidate deployment of a plan.

The floor is a deployment that always has work waiting (`scenarios.sizing.serving_floor`). Under a
service-level objective it is the goodput that a plan finds (`scenarios.plan.goodput`), searched
from the lowest floor up until no floor is below the best price. A goodput's lower end counts: what
is promised is what is sure. Idle nights cost more than either.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from scenarios.errors import InputError
from scenarios.forecast.latency_source import Composer
from scenarios.plan.candidates import Candidate, candidates_of
from scenarios.plan.exploration import Exploration, Task, explore
from scenarios.plan.target import Target
from scenarios.schema.scenario import Scenario
from scenarios.schema.sizing import Serving
from scenarios.sizing.serving_floor import floors
from scenarios.sizing.serving_plan import (
    has_objectives,
    load_per_s,
    objectives,
    plan_of,
    plan_scenario,
    replications_of,
)
from scenarios.sizing.serving_price import RuledOut, ServingCost

# A floor is one run's estimate, a goodput that of several others: it may come out a little above.
FLOOR_SLACK = 0.03
ANY_LOAD = Target(1e-9)  # what is asked is how much one replica carries


def serving_cost(
    config: Mapping[str, Any],
    serving: Serving,
    *,
    name: str,
    compose: Composer | None = None,
    origin: Path | None = None,
) -> list[ServingCost | RuledOut]:
    """Every candidate deployment of the model described by a Hugging Face `config`.

    Cheapest first, then those ruled out: the too dear by their floor, the others by how far they
    miss. Raises InputError for a GPU or setting that does not exist, and where no deployment's
    times are known.
    """
    # A scenario names its model by file.
    with tempfile.TemporaryDirectory(prefix="orcast-size-") as folder:
        file = Path(folder) / f"{name}.json"
        file.write_text(json.dumps(dict(config)), encoding="utf-8")
        scenario = plan_scenario(serving, name=name, model=str(file), origin=origin)
        candidates = candidates_of(scenario, origin=origin)
        prompt, output = replications_of(scenario, origin=origin).mean_tokens()
        search = _Search(
            scenario, prompt, output, load_per_s(serving, prompt + output), compose, origin
        )
        tried = floors(candidates, compose=compose, origin=origin)
        if has_objectives(serving):
            found = list(search.within_objectives(list(tried), candidates))
        else:
            found = [search.priced(one) if isinstance(one, ServingCost) else one for one in tried]
    for one in found:
        if not isinstance(one, RuledOut) or one.status != "unmeasured":
            return sorted(found, key=_order)
    raise InputError(f"{origin or 'sizing'}: serving.latency: {_reasons(found)}")


@dataclass(frozen=True, slots=True)
class _Search:
    """The service that is asked of every deployment: mean lengths in tokens, load, objectives."""

    scenario: Scenario
    prompt_tokens: float
    output_tokens: float
    load_per_s: float | None
    compose: Composer | None
    origin: Path | None

    def priced(self, one: ServingCost) -> ServingCost:
        return one.serving(self.load_per_s)

    def at_best(self, floor: ServingCost) -> ServingCost:
        """What no goodput of the deployment is cheaper than."""
        return self.priced(floor.at(1 + FLOOR_SLACK))

    def within_objectives(
        self,
        tried: Sequence[ServingCost | RuledOut],
        candidates: Sequence[Candidate],
    ) -> Iterator[ServingCost | RuledOut]:
        """The deployments at their goodput, while one may still be the cheapest."""
        yield from (one for one in tried if isinstance(one, RuledOut))
        named = {(one.gpu, one.gpus_per_replica): one for one in candidates}
        best = inf
        busy = [one for one in tried if isinstance(one, ServingCost)]
        for floor in sorted(busy, key=lambda one: self.at_best(one).rank):
            if self.at_best(floor).rank[0] > best:
                yield RuledOut(
                    floor.gpu,
                    floor.tensor_parallel,
                    "dear",
                    "dearer even if always busy",
                    floor_usd_per_million_tokens=self.priced(floor).usd_per_million_tokens,
                )
                continue
            one = self.at_goodput(floor, self.explored(named[floor.gpu, floor.tensor_parallel]))
            if isinstance(one, ServingCost):
                best = min(best, one.rank[0])
            yield one

    def explored(self, candidate: Candidate) -> Exploration:
        return explore(
            Task(
                candidate,
                plan_of(self.scenario),
                objectives(self.scenario, origin=self.origin),
                ANY_LOAD,
                replications_of(self.scenario, origin=self.origin),
                self.origin,
                self.compose,
            )
        )

    def at_goodput(self, floor: ServingCost, found: Exploration) -> ServingCost | RuledOut:
        rate = found.low_per_s
        if found.status != "meets" or rate <= 0:
            reason = found.reason or "no load keeps the objectives for sure"
            miss = found.miss if isfinite(found.miss) else None
            return RuledOut(floor.gpu, floor.tensor_parallel, found.status, reason, miss)
        cost = replace(
            floor,
            requests_per_s=rate,
            tokens_per_s=rate * (self.prompt_tokens + self.output_tokens),
            output_tokens_per_s=rate * self.output_tokens,
            median_tpot_ms=(found.tpot_s or 0.0) * 1e3,
            load_share=rate / (found.saturated_per_s or inf),
            breaks=found.breaks,
        )
        return self.priced(cost)


def _order(one: ServingCost | RuledOut) -> tuple[float, ...]:
    if isinstance(one, ServingCost):
        return 0, *one.rank
    if one.floor_usd_per_million_tokens is not None:
        return 1, one.floor_usd_per_million_tokens
    return 2, inf if one.miss is None else one.miss


def _reasons(tried: Sequence[ServingCost | RuledOut]) -> str:
    reasons = (one.reason for one in tried if isinstance(one, RuledOut))
    return "; ".join(dict.fromkeys(reasons))
