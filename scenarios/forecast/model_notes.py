"""What a reader of a forecast should know of its model: what is assumed, what is approximated."""

from __future__ import annotations

from collections.abc import Iterator

from scenarios.schema.scenario import Scenario
from sim.kv.memory import MemoryBudget
from sim.model.spec import ModelSpec


def model_notes(model: ModelSpec, scenario: Scenario, memory: MemoryBudget) -> Iterator[str]:
    """Notes, a line each. ``memory`` is what the model leaves for its cache."""
    yield from (f"{model.name}: {note}" for note in model.notes)
    asked, known = scenario.engine.max_model_len, model.max_position_embeddings
    if asked is not None and asked > known:
        yield (
            f"engine.max_model_len {asked:,} is longer than the {known:,} positions that "
            f"{model.name} knows: an engine refuses it, or its answers beyond them are poor"
        )
    if model.vision_parameters:
        yield (
            f"{model.name}: its image tower ({model.vision_parameters / 1e6:,.0f} million "
            "parameters) is in the memory; images count as the prompt tokens they become, the time "
            "to encode them is not modelled"
        )
    yield from _cache_notes(model, scenario, memory)
    if any(mixer.kind in ("sparse", "compressed") for mixer in model.mixers):
        yield (
            f"{model.name}: its indexer's scores and the attention to the best tokens are counted, "
            "other work of picking them is not"
        )


def _cache_notes(model: ModelSpec, scenario: Scenario, memory: MemoryBudget) -> Iterator[str]:
    """What becomes of layers that need not keep every token, or hold a state."""
    engine = scenario.engine
    windows = any(group.window is not None for group in model.kv_groups(engine.kv_cache_dtype))
    state = model.state_bytes()
    if not windows and not state:
        return
    if memory.layout is None:
        states = f", {state:,} B of states a sequence are set aside" if state else ""
        yield (
            f"{model.name}: without a hybrid cache (scheduler chunked has one, unless it is "
            f"disabled or blocks go to a second tier) every layer keeps every token{states}"
        )
        return
    if memory.block_size != engine.block_size:
        yield (
            f"{model.name}: KV blocks of {memory.block_size:,} tokens, so that a layer's keys and "
            f"values are as large as a layer's state (engine.block_size {engine.block_size})"
        )
    if state and engine.enable_prefix_caching and not caches_states(scenario, memory):
        yield (
            f"{model.name}: states are not cached here, so no prefix is found again (they are "
            "beside layers with keys and values, where nobody speculates)"
        )


def caches_states(scenario: Scenario, memory: MemoryBudget) -> bool:
    """Whether states are kept at the ends of blocks, so that prefixes are found again.

    vLLM's mode ``align``; with speculation it is not modelled.
    """
    rules = () if memory.layout is None else memory.layout.rules
    states = any(not rule.grows for rule in rules) and any(rule.grows for rule in rules)
    return states and scenario.engine.enable_prefix_caching and scenario.speculation is None
