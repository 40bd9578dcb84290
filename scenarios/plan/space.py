"""What a plan searches beside GPUs, layouts and knobs: what `plan.search` names, pools of prefill
and decode, speculation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scenarios.errors import InputError
from scenarios.schema.plan import DEGREES, Candidates, Pools
from scenarios.schema.scenario import Scenario
from scenarios.schema.speculation import Speculation

# What a name in `plan.search` stands for, where the candidates' own lists do not say.
VALUES: dict[str, list[Any]] = {
    "tensor_parallel": [1, 2, 4, 8],
    "pipeline_parallel": [1, 2, 4],
    "expert_parallel": [1, 2, 4, 8],
    "weight_dtype": ["auto", "fp8"],
    "kv_cache_dtype": ["auto", "fp8"],
    "max_num_seqs": [64, 256, 1024],
    "max_num_batched_tokens": [2048, 8192, 16384],
}
POOLS = [None, Pools(prefill=1, decode=1), Pools(prefill=1, decode=2), Pools(prefill=2, decode=1)]
ROLES = {"prefill": "P", "decode": "D"}

Speculating = Speculation | None
Cluster = Mapping[str, Any]  # the section of a candidate's scenario, as JSON


def searched(scenario: Scenario, where: str) -> Candidates:
    """The plan's candidates with the values that `plan.search` asks for.

    Raises InputError for a name whose values stand in the candidates already, and for speculation
    where there is none to try.
    """
    assert scenario.plan is not None
    given, names = scenario.plan.candidates, dict.fromkeys(scenario.plan.search)
    layouts, knobs = list(given.layouts or [{}]), dict(given.engine)
    update: dict[str, Any] = {}
    for name in names:
        mine = f"{where}: plan.search: {name}"
        if name in DEGREES:
            if any(name in layout for layout in layouts):
                raise InputError(f"{mine} stands in plan.candidates.layouts already: keep one")
            layouts = [{**layout, name: degree} for layout in layouts for degree in VALUES[name]]
        elif name == "pools":
            update["pools"] = given.pools or (
                [None, "same"] if has_pools(scenario) else list(POOLS)
            )
        elif name == "speculation":
            if given.speculation is None and scenario.speculation is None:
                raise InputError(
                    f"{mine}: the scenario has none to try; say which, e.g. --set "
                    "'speculation={method: ngram, num_draft_tokens: 4, acceptance: {rate: 0.3}}'"
                )
            update["speculation"] = given.speculation or [None, "same"]
        else:
            if name in knobs:
                raise InputError(f"{mine} stands in plan.candidates.engine already: keep one")
            knobs[name] = VALUES[name]
    return given.model_copy(update=update | {"layouts": layouts, "engine": knobs})


def has_pools(scenario: Scenario) -> bool:
    """Whether the scenario's prefill and decode are apart."""
    return any(group.role != "both" for group in scenario.cluster.groups)


def clusters(scenario: Scenario, wanted: Candidates, where: str) -> list[tuple[str, Cluster]]:
    """The cluster of one unit for every choice of pools, each with its name; "" for none."""
    found: list[tuple[str, Cluster]] = []
    for choice in wanted.pools or ["same"]:
        content = scenario.cluster.model_dump(mode="json")
        content["replicas"] = 1
        if choice == "same" and wanted.pools is not None and not has_pools(scenario):
            raise InputError(f"{where}: plan.candidates.pools: same: the scenario has no pools")
        if choice is None:
            content |= {"groups": [], "kv_link": None}
        elif isinstance(choice, Pools):
            link = scenario.cluster.kv_link or wanted.kv_link
            content |= {"groups": _groups(choice), "kv_link": link.model_dump(mode="json")}
        found.append((pool_name(content["groups"]), content))
    return found


def _groups(pools: Pools) -> list[dict[str, Any]]:
    return [{"name": role, "role": role, "replicas": getattr(pools, role)} for role in ROLES]


def pool_name(groups: Sequence[Mapping[str, Any]]) -> str:
    """``1P+2D``: one prefill and two decode replicas."""
    counts = dict.fromkeys(ROLES, 0)
    for group in groups:
        if group["role"] in counts:
            counts[group["role"]] += group["replicas"]
    return "+".join(f"{number}{ROLES[role]}" for role, number in counts.items() if number)


def speculations(
    scenario: Scenario, wanted: Candidates, where: str
) -> list[tuple[str, Speculating]]:
    """Every choice of speculation with its name; "" for none."""
    found: list[tuple[str, Speculating]] = []
    for choice in wanted.speculation or ["same"]:
        one = scenario.speculation if choice == "same" else choice
        if choice == "same" and wanted.speculation is not None and one is None:
            raise InputError(
                f"{where}: plan.candidates.speculation: same: the scenario has no speculation"
            )
        assert not isinstance(one, str)
        found.append(("" if one is None else f"{one.method} k={one.depth}", one))
    return found
