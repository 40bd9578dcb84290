"""Engines by name: which knobs each sets, unless a scenario says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Generation = Literal["vllm", "vllm-sync", "vllm-v0", "orca", "static"]
LATEST: Generation = "vllm"
BY_GENERATION: Any = None  # the default of a knob that `filled` gives a value

_BEFORE_V1: dict[str, Any] = {
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
    },
    # the same before, or with --no-async-scheduling
    "vllm-sync": {
        "scheduler": "chunked",
        "async_scheduling": False,
        "null_block": True,
        "memory_profile": "vllm-v1",
    },
    "vllm-v0": _BEFORE_V1 | {"scheduler": "paged"},
    "orca": _BEFORE_V1 | {"scheduler": "orca"},
    # FasterTransformer and whatever else batches by request
    "static": _BEFORE_V1 | {"scheduler": "static"},
}
# Who names a policy alone means the engine that has it.
_OF_POLICY: Mapping[str, Generation] = {
    "chunked": LATEST,
    "paged": "vllm-v0",
    "orca": "orca",
    "static": "static",
    "dynamic": "static",
}


def filled(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a scenario's engine, and those of its generation that it does not give."""
    policy = engine.get("scheduler")
    generation = engine.get("generation")
    if generation is None:
        generation = _OF_POLICY.get(policy, "vllm-sync") if isinstance(policy, str) else LATEST
    if generation not in get_args(Generation):
        return dict(engine)  # the schema says what is wrong with it
    return {"generation": generation, **GENERATIONS[generation], **engine}


def only_given(engine: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of an engine without those of its generation, where another is `changed` to."""
    if not engine or not {"scheduler", "generation"} & changed.keys():
        return dict(engine)
    preset = {"generation": engine["generation"], **GENERATIONS[engine["generation"]]}
    return {name: value for name, value in engine.items() if preset.get(name) != value}
