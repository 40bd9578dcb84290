"""Engines by name: which knobs each sets, unless a scenario says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel

from scenarios import library
from scenarios.errors import InputError
from scenarios.schema.vllm_defaults import batch_limits

Generation = Literal["vllm", "vllm-sync", "vllm-v0", "orca", "static"]
LATEST: Generation = "vllm"
BY_GENERATION: Any = None  # the default of a knob that `filled` gives a value

_BEFORE_V1: dict[str, Any] = {
    "placement": "anywhere",
    "async_scheduling": False,
    "null_block": False,
    "memory_profile": "vllm-v0",
}
GENERATIONS: Mapping[Generation, Mapping[str, Any]] = {
    # vLLM since 0.14, its V1 engine: decides an iteration ahead
    "vllm": {
        "scheduler": "chunked",
        "async_scheduling": True,
        "null_block": True,
        "memory_profile": "vllm-0.21",
        "placement": "anywhere",
    },
    # the same before, or with --no-async-scheduling
    "vllm-sync": {
        "scheduler": "chunked",
        "async_scheduling": False,
        "null_block": True,
        "memory_profile": "vllm-v1",
        "placement": "anywhere",
    },
    "vllm-v0": _BEFORE_V1 | {"scheduler": "paged"},
    "orca": _BEFORE_V1 | {"scheduler": "orca", "placement": "buddy"},
    # FasterTransformer and whatever else batches by request
    "static": _BEFORE_V1 | {"scheduler": "static"},
}
# Of every generation, but where `vllm` knows its GPU.
LIMITS: Mapping[str, Any] = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
# Who names a policy alone means the engine that has it.
_OF_POLICY: Mapping[str, Generation] = {
    "chunked": LATEST,
    "paged": "vllm-v0",
    "orca": "orca",
    "static": "static",
    "dynamic": "static",
}


def filled(engine: Mapping[str, Any], hardware: object = None) -> dict[str, Any]:
    """The knobs of a scenario's engine, and those of its generation that it does not give.

    `hardware` is the scenario's, where it is known: the limits of ``vllm`` are by its GPU.
    """
    policy = engine.get("scheduler")
    generation = engine.get("generation")
    if generation is None:
        generation = _OF_POLICY.get(policy, "vllm-sync") if isinstance(policy, str) else LATEST
    if generation not in get_args(Generation):
        return dict(engine)  # the schema says what is wrong with it
    limits = _by_gpu(engine, hardware) if generation == "vllm" else {}
    return {"generation": generation, **GENERATIONS[generation], **LIMITS, **limits, **engine}


def filled_whole(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario whose engine is `filled`, by its GPU; data-parallel ranks have vLLM's router."""
    found = dict(scenario)
    engine, cluster = scenario.get("engine", {}), scenario.get("cluster", {})
    if isinstance(engine, Mapping):  # otherwise the schema says what is wrong with it
        found["engine"] = filled(engine, scenario.get("hardware"))
    if isinstance(cluster, Mapping) and "router" not in cluster and _has_ranks(scenario, cluster):
        found["cluster"] = {**cluster, "router": "data_parallel"}
    return found


def _has_ranks(scenario: Mapping[str, Any], cluster: Mapping[str, Any]) -> bool:
    groups = cluster.get("groups", [])
    sections = [scenario, *(groups if isinstance(groups, list) else [])]
    given = (one.get("hardware") for one in sections if isinstance(one, Mapping))
    return any(isinstance(one, Mapping) and one.get("data_parallel", 1) != 1 for one in given)


def _by_gpu(engine: Mapping[str, Any], hardware: object) -> dict[str, int]:
    name = hardware.get("gpu") if isinstance(hardware, Mapping) else None
    try:
        gpu = library.gpu(name) if isinstance(name, str) else None
    except InputError:
        gpu = None  # told where the scenario is deployed
    return {} if gpu is None else batch_limits(gpu, engine)


def given_knobs(engine: BaseModel, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs that an engine was given, of which those in `changed` get other values.

    Who changes the policy means the engine that has it.
    """
    knobs = engine.model_dump(exclude_unset=True)
    if "scheduler" in changed:
        knobs.pop("generation", None)
    if "generation" in changed:
        knobs.pop("scheduler", None)
    return knobs | dict(changed)
